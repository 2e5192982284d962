"""How much of a model is to be left: of its parameters, its work, its time or its quality."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from planish.ir.cost import costs, total
from planish.ir.program import Program
from planish.passes.contract import OPTIONS
from planish.passes.one_of import OneOf

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, config=OPTIONS)
class Goal(OneOf):
    """What is asked of the model that is left: one of these."""

    parameters: Share | None = None
    """At most this share of its parameters."""

    flops: Share | None = None
    """At most this share of the multiplications and additions of its layers, convolutions and
    attention, for one request of the least sizes: for language models, one token."""

    speed: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    """One request of the least sizes at least so many times as fast, by a model: its time is that
    of the bytes it moves."""

    recovery: Share | None = None
    """A perplexity of at most 1 / recovery times what it was, measured on the samples, with as few
    parameters as some tries find; for language models."""

    @property
    def share(self) -> float:
        """What share may be left of what is counted, where that is known beforehand."""
        return 1 / self.value if self.speed else self.value

    @property
    def counted(self) -> str:
        """What `left` is a share of."""
        if self.flops is not None:
            return "flops"
        return "parameters" if self.speed is None else "bytes moved"

    def left(self, program: Program, original: Program) -> float:
        """What share a program has of what is counted in another; of recovery, parameters."""
        return self._amount(program) / self._amount(original)

    def _amount(self, program: Program) -> float:
        if self.flops is None and self.speed is None:
            return program.parameters
        least = {size.name: max(size.min, 1) for size in program.sizes}
        cost = total(costs(program, least).values())
        return cost.flops if self.flops is not None else cost.nbytes
