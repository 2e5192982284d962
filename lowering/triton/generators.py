"""From a specification to its source: the one table of generators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from planish.lowering.triton import group_scaled, rowwise, scaled, weight_only
from planish.lowering.triton.fields import Epilogue, NoKernel, Tiling
from planish.lowering.triton.row_specs import RowWise
from planish.lowering.triton.specs import GroupScaled, Scaled, WeightOnly
from planish.lowering.triton.text import Source

Spec = WeightOnly | Scaled | GroupScaled | RowWise

GENERATORS: dict[type[Any], Callable[[Any], Source]] = {
    WeightOnly: weight_only.generate,
    Scaled: scaled.generate,
    GroupScaled: group_scaled.generate,
    RowWise: rowwise.generate,
}
"""By class of specification."""

OPERATORS = {kind.__name__: kind for kind in GENERATORS}
"""By the name that files use."""

_PARTS: dict[str, type[Any]] = {"epilogue": Epilogue, "tiling": Tiling}


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
    match spec:
        case WeightOnly():
            found |= dict.fromkeys(("scales", "zeros"), kinds[spec.scale_dtype])
        case Scaled():
            found |= {"x": kinds[spec.codes], "codes": kinds[spec.codes], "scales": "*fp32"}
        case GroupScaled():
            found |= {"x": "*i8", "nibbles": "*i8", "scales": kinds[spec.scale_dtype]}
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
    return {"operator": type(spec).__name__, **dataclasses.asdict(spec)}


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
        parts = {name: _PARTS[name](**fields.pop(name)) for name in (*_PARTS,) if name in fields}
        made: Spec = kind(**fields, **parts)
    except TypeError as error:
        raise NoKernel(f"this is no specification of {kind.__name__}: {error}.") from error
    return made
