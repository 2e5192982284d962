"""Budgets in recipes: one of several things may be asked for."""

from __future__ import annotations

import dataclasses
from typing import Self

from pydantic import model_serializer, model_validator
from pydantic.dataclasses import dataclass

from planish.passes.contract import OPTIONS


@dataclass(frozen=True, config=OPTIONS)
class OneOf:
    """Fields that are numbers or None, of which exactly one is given."""

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
    def kind(self) -> str:
        """The name of what was asked for."""
        return next(iter(self.asked))

    @property
    def value(self) -> float:
        """How much of it."""
        return next(iter(self.asked.values()))

    def __str__(self) -> str:
        """As recipes write it: `bits: 4.5`."""
        return f"{self.kind}: {self.value:g}"
