"""Which kernel a product takes, by its number of rows: a frozen value that a graph's node carries.

A plan is text in the graph, so it can be read in an artifact, and running it looks nothing up
elsewhere. What chose it is `planish.lowering.triton.tuning`, or the model of the chip.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal, TypeVar, cast, get_args

from planish.lowering.triton.fields import NoKernel, Scaling, Tiling, check_words
from planish.lowering.triton.generators import spec_json, spec_of
from planish.lowering.triton.routed_specs import Alone, Routed
from planish.lowering.triton.specs import WeightOnly
from planish.lowering.triton.tilings import ROWS, tile

Product = Alone | Routed

P = TypeVar("P", bound=Product)

How = Literal["kernel", "dequantize", "dense", "reference"]
"""A generated kernel; the weight in floating point for this one call, then an ordinary product;
the same with a floating-point copy that is kept; or plain torch, where no kernel runs."""


@dataclass(frozen=True)
class Choice:
    """What is done with up to so many rows.

    Attributes:
        rows: the most rows it is for; 0 for any number.
        how: the way to compute the product.
        tiling: of the kernel, if it is one.
        scaling: of a weight-only kernel.
    """

    rows: int
    how: How
    tiling: Tiling | None = None
    scaling: Scaling = "sums"

    def __post_init__(self) -> None:
        check_words(self)
        if self.how not in get_args(How):
            raise NoKernel(f"how is {self.how!r}; it may be {', '.join(get_args(How))}.")
        if (self.how == "kernel") != (self.tiling is not None):
            raise NoKernel("a kernel, and nothing else, has a tiling.")

    def of(self, product: P) -> P:
        """The specification of its kernel for a product."""
        made: Any
        if isinstance(product, Routed):
            made = replace(product, product=self._alone(product.product))
        else:
            made = self._alone(product)
        return cast("P", made)

    def _alone(self, product: Alone) -> Alone:
        assert self.tiling is not None
        if isinstance(product, WeightOnly):
            return replace(product, tiling=self.tiling, scaling=self.scaling)
        return replace(product, tiling=self.tiling)


@dataclass(frozen=True)
class Plan:
    """What is done with any number of rows: the first choice that is for so many."""

    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        bounds = [choice.rows for choice in self.choices]
        if not bounds or bounds[-1] != 0 or bounds[:-1] != sorted({*bounds[:-1]} - {0}):
            raise NoKernel(f"a plan's bounds rise and end with 0, unlike {bounds}.")

    def choice(self, rows: int) -> Choice:
        """What is done with a number of rows."""
        return next(each for each in self.choices if not each.rows or rows <= each.rows)

    def kernels(self, product: Product) -> Iterator[Product]:
        """The specifications of all kernels that it may run."""
        for choice in self.choices:
            if choice.how == "kernel":
                yield choice.of(product)

    @property
    def keeps_dense(self) -> bool:
        """Whether a floating-point copy of the weight is needed."""
        return any(choice.how == "dense" for choice in self.choices)

    def without(self, wrong: frozenset[Product], product: Product) -> Plan:
        """The same, with plain torch in place of kernels that are wrong."""
        return Plan(
            tuple(
                Choice(each.rows, "reference")
                if each.how == "kernel" and each.of(product) in wrong
                else each
                for each in self.choices
            )
        )


def text(value: Product | Plan | Any) -> str:
    """A specification or a plan as an argument of a node: JSON in one line."""
    if isinstance(value, Plan):
        return json.dumps([_brief(asdict(choice)) for choice in value.choices])
    return json.dumps(spec_json(value))


def _brief(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice without what only kernels have."""
    return choice if choice["tiling"] else {key: choice[key] for key in ("rows", "how")}


@cache
def read_spec(written: str) -> Any:
    """The specification that `text` wrote.

    Raises:
        NoKernel: if it is none.
    """
    try:
        return spec_of(json.loads(written))
    except (ValueError, AttributeError) as error:
        raise NoKernel(f"this is no specification: {error}.") from error


@cache
def read_plan(written: str) -> Plan:
    """The plan that `text` wrote.

    Raises:
        NoKernel: if it is none.
    """
    try:
        return Plan(tuple(_choice(each) for each in json.loads(written)))
    except (ValueError, TypeError, KeyError) as error:
        raise NoKernel(f"this is no plan: {error}.") from error


def _choice(values: dict[str, Any]) -> Choice:
    tiling = values.get("tiling")
    return Choice(**{**values, "tiling": Tiling(**tiling) if tiling else None})


def modelled(product: Product, *, bitwise: bool) -> Plan:
    """The plan that the model of the chip gives, where nothing has been measured.

    Args:
        product: what is computed; of a routed one, the rows are those of an expert.
        bitwise: whether the bits of a row may not depend on the number of rows.
    """
    choices = []
    for bound in ROWS:
        chosen = tile(product, bound, bitwise=bitwise)
        choices.append(Choice(bound, "kernel", chosen.tiling, scaling_of(chosen)))
    last = choices.pop()
    if not bitwise and isinstance(product, WeightOnly):
        # Beyond the tiles' rows a product is bound by arithmetic, and reading fewer bytes is no
        # gain: the weight is made floating-point once and multiplied by the fastest product.
        return Plan((*choices, replace(last, rows=DEQUANTIZED), Choice(0, "dequantize")))
    return Plan((*choices, replace(last, rows=0)))


def scaling_of(product: Product) -> Scaling:
    """Where a weight-only kernel multiplies by scales; of others nothing that matters."""
    alone = product.product if isinstance(product, Routed) else product
    return alone.scaling if isinstance(alone, WeightOnly) else "sums"


DEQUANTIZED = 512
"""Rows from which on the model dequantizes: the weight's making costs 2.5 bytes a number, the work
of 230 rows on an H200; a fused kernel loses less than that to its slower products until then."""
