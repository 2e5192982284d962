"""What a pass is, and what it promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

from planish.ir.errors import PlanishError
from planish.ir.program import Program
from planish.passes.work import UNSEEN, Work

OPTIONS = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
"""How the options of a pass are validated, from Python and from recipes alike."""


class NotApplicable(PlanishError):
    """A pass refuses a program: why, where, and what would help."""


@dataclass(frozen=True)
class Contract:
    """What a pass promises; the pipeline checks it after every run.

    Attributes:
        numerics: `"exact"` passes give the same function over the reals, checked to rounding on
            the samples; `"lossy"` ones are measured, and the report says what they cost.
        isolation: `"kept"` passes let no request in a batch reach another that it could not reach
            before; `"repaired"` ones take away ways by which it could.
    """

    numerics: Literal["exact", "lossy"]
    isolation: Literal["kept", "repaired", "may break"]


class Pass(ABC):
    """A rewrite of programs.

    A pass is a frozen pydantic dataclass (`@dataclass(frozen=True, config=OPTIONS)` of
    `pydantic.dataclasses`) whose fields are its options, each with a docstring that the command
    line and the schema of recipes show. Calling it gives a new program.
    """

    contract: ClassVar[Contract]

    @abstractmethod
    def __call__(self, program: Program) -> Program:
        """Rewrite a copy of `program`.

        Raises:
            NotApplicable: if the program is not one this pass can transform.
        """


class LongPass(Pass):
    """A pass that can learn from samples, layer by layer; on large models that takes minutes."""

    @property
    def learns(self) -> bool:
        """Whether it does so with these options."""
        return True

    @abstractmethod
    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Rewrite a copy of `program`.

        Args:
            program: stays as it is.
            work: is told how far the pass is, and may keep what is finished.

        Raises:
            NotApplicable: if the program is not one this pass can transform.
        """


def options_of(one: Pass) -> dict[str, Any]:
    """The options of a pass by name: text, numbers, tuples, and mappings of such."""
    options: dict[str, Any] = TypeAdapter(type(one)).dump_python(one)
    return options
