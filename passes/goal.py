"""How much of a model is to be left: of its parameters, its work, its time or its quality."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Self

from pydantic import Field, model_serializer, model_validator
from pydantic.dataclasses import dataclass

from planish.ir.cost import costs, total
from planish.ir.program import Program
from planish.passes.contract import OPTIONS

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, config=OPTIONS)
class Goal:
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

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.asked) != 1:
            names = ", ".join(field.name for field in dataclasses.fields(self))
            raise ValueError(f"ask for exactly one of {names}.")
        return self

    @model_serializer
    def _as_written(self) -> dict[str, float]:
        return self.asked

    @property
    def asked(self) -> dict[str, float]:
        """What was asked for, by name."""
        every = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in every.items() if value is not None}

    @property
    def share(self) -> float:
        """What share may be left of what is counted, where that is known beforehand."""
        (value,) = self.asked.values()
        return 1 / value if self.speed else value

    def left(self, program: Program, original: Program) -> float:
        """What share a program has of what is counted in another; of recovery, parameters."""
        return self._amount(program) / self._amount(original)

    def _amount(self, program: Program) -> float:
        if self.flops is None and self.speed is None:
            return program.parameters
        least = {size.name: max(size.min, 1) for size in program.sizes}
        cost = total(costs(program, least).values())
        return cost.flops if self.flops is not None else cost.nbytes

    def __str__(self) -> str:
        """As recipes write it: `parameters: 0.75`."""
        ((kind, value),) = self.asked.items()
        return f"{kind}: {value:g}"
