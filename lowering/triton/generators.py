"""From a specification to its source: the one table of generators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from planish.lowering.triton import floating, group_scaled, rowwise, scaled, weight_only
from planish.lowering.triton.fields import Epilogue, NoKernel, Tiling
from planish.lowering.triton.float_specs import Floating
from planish.lowering.triton.frames import Chosen
from planish.lowering.triton.routed_specs import Alone, Routed
from planish.lowering.triton.row_specs import RowWise
from planish.lowering.triton.specs import GroupScaled, Scaled, WeightOnly
from planish.lowering.triton.text import Source

Spec = Alone | Routed | RowWise


def _routed(spec: Routed) -> Source:
    return GENERATORS[type(spec.product)](spec.product, Chosen(spec))


GENERATORS: dict[type[Any], Callable[..., Source]] = {
    WeightOnly: weight_only.generate,
    Scaled: scaled.generate,
    GroupScaled: group_scaled.generate,
    Floating: floating.generate,
    Routed: _routed,
    RowWise: rowwise.generate,
}
"""By class of specification."""

OPERATORS = {kind.__name__: kind for kind in GENERATORS}
"""By the name that files use."""


def generate(spec: Spec) -> Source:
    """The source of a specification; the same one each time."""
    return GENERATORS[type(spec)](spec)


def pointers(spec: Spec) -> tuple[str, ...]:
    """Triton's type of each tensor that a kernel takes, in order."""
    kinds = {
        "bfloat16": "*bf16",
        "float16": "*fp16",
        "float32": "*fp32",
        "int8": "*i8",
        "float8_e4m3fn": "*fp8e4nv",
    }
    found = {"words": "*i16", "partial": "*fp32", "arrived": "*i32", "row_scales": "*fp32"}
    found |= {"order": "*i64", "bounds": "*i32"}
    match spec.product if isinstance(spec, Routed) else spec:
        case WeightOnly(scale_dtype=scales):
            found |= dict.fromkeys(("scales", "zeros"), kinds[scales])
        case Scaled(codes=codes):
            found |= {"x": kinds[codes], "codes": kinds[codes], "scales": "*fp32"}
        case GroupScaled(scale_dtype=scales):
            found |= {"x": "*i8", "nibbles": "*i8", "scales": kinds[scales]}
        case RowWise(codes=str(codes)):
            found["y"] = kinds[codes]
    return tuple(found.get(name, kinds[spec.dtype]) for name in generate(spec).tensors)


def warps_and_stages(spec: Spec) -> dict[str, int]:
    """How a kernel is compiled."""
    if isinstance(spec, RowWise):
        return {"num_warps": spec.warps}
    return {"num_warps": spec.tiling.warps, "num_stages": spec.tiling.stages}


def spec_json(spec: Spec) -> dict[str, Any]:
    """A specification as JSON values."""
    nested = {"product": spec_json(spec.product)} if isinstance(spec, Routed) else {}
    return {"operator": type(spec).__name__, **dataclasses.asdict(spec), **nested}


def spec_of(values: Mapping[str, Any]) -> Spec:
    """The specification that `spec_json` wrote.

    Raises:
        NoKernel: if it is none.
    """
    fields = dict(values)
    kind = OPERATORS.get(str(fields.pop("operator", None)))
    if kind is None:
        raise NoKernel(f"{values.get('operator')!r} is no operator; there are {[*OPERATORS]}.")
    try:
        parts = {name: read(fields.pop(name)) for name, read in _PARTS.items() if name in fields}
        made: Spec = kind(**fields, **parts)
    except TypeError as error:
        raise NoKernel(f"this is no specification of {kind.__name__}: {error}.") from error
    return made


_PARTS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "epilogue": lambda values: Epilogue(**values),
    "tiling": lambda values: Tiling(**values),
    "product": spec_of,
}
"""What reads the fields that are specifications themselves."""
