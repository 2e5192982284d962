"""Reading single things out of ONNX's protobufs: attributes, small tensors, shapes, dtypes.

Weights are not read: of tensors only those of a few thousand integers, truth values or, fewer
still, floating-point numbers, stored inside the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, defs, helper, numpy_helper

from planish.ir.flow.known import LARGEST, Known, Numbers, numbers
from planish.ir.flow.polynomial import Count, Polynomial
from planish.ir.flow.vocabulary import UNRANKED, Expression, Shape, Unranked

FOLLOWED = ("INT64", "INT32", "BOOL")
"""The dtypes whose values may be known: narrower ones wrap, floating-point ones round."""

_FLOATS = 64
"""Tensors of more floating-point numbers than this are not read: factors of a resize are few."""

_DIMENSIONS = 32
_TERMS = 64
_LARGEST_FACTOR = 2**62

_PLAIN = {
    "value_int": (TensorProto.INT64, "i"),
    "value_ints": (TensorProto.INT64, "ints"),
    "value_float": (TensorProto.FLOAT, "f"),
    "value_floats": (TensorProto.FLOAT, "floats"),
}
"""Attributes of `Constant` that hold numbers: as what type, and where."""

_SEQUENCES = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def dtype_name(number: int) -> str:
    """`INT64` for 7; names that no version knows become their numbers."""
    try:
        return str(TensorProto.DataType.Name(number))
    except ValueError:
        return str(number)


def attribute_value(attribute: AttributeProto) -> Any:
    """An attribute as a Python value: texts as `str`, lists as lists, graphs as None."""
    if attribute.type in _SEQUENCES:
        return None
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, TensorProto):
        return one_element(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in value]
    return value


def one_element(tensor: TensorProto) -> Any:
    """The number in a tensor of one element of a dtype that is followed; else the tensor."""
    known = stored_numbers(tensor)
    if isinstance(known, Numbers) and known.array.size == 1:
        return known.array.flat[0]
    return tensor


def is_inside(tensor: TensorProto) -> bool:
    """Whether the elements are in the file itself."""
    return bool(tensor.data_location != TensorProto.EXTERNAL)


def stored_numbers(tensor: TensorProto) -> Known | None:
    """The elements of a small stored tensor of integers or truth values."""
    if dtype_name(tensor.data_type) not in FOLLOWED:
        return None
    array = _small(tensor, LARGEST)
    return None if array is None else numbers(array.tolist(), tuple(tensor.dims))


def stored_floats(tensor: TensorProto) -> tuple[float, ...] | None:
    """The elements of a very small stored tensor of floating-point numbers."""
    if tensor.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return None
    array = _small(tensor, _FLOATS)
    return None if array is None else tuple(float(number) for number in array.flat)


def _small(tensor: TensorProto, largest: int) -> np.ndarray | None:
    if not is_inside(tensor) or min(tensor.dims, default=1) < 0 or prod(tensor.dims) > largest:
        return None
    try:
        return numpy_helper.to_array(tensor)
    except (TypeError, ValueError):
        return None


def input_shape(value: onnx.ValueInfoProto, symbol: Callable[[str, int], Count]) -> Shape:
    """The shape of an input, as its file states it.

    Args:
        value: the input.
        symbol: the size that a name stands for, of a dimension by its number.
    """
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return UNRANKED
    sizes: list[Count] = []
    for number, dim in enumerate(value.type.tensor_type.shape.dim):
        fixed = dim.HasField("dim_value") and dim.dim_value >= 0
        sizes.append(dim.dim_value if fixed else symbol(dim.dim_param, number))
    return tuple(sizes)


def constant_tensor(attributes: Mapping[str, AttributeProto]) -> TensorProto | None:
    """What a `Constant` node holds, None where it is no tensor of numbers."""
    if len(attributes) != 1:
        return None
    (name, attribute), *_ = attributes.items()
    if name == "value":
        return attribute.t
    if name not in _PLAIN:
        return None
    data_type, field = _PLAIN[name]
    value = getattr(attribute, field)
    if name.endswith("s"):
        return helper.make_tensor("", data_type, (len(value),), value)
    return helper.make_tensor("", data_type, (), [value])


def newest(domain: str) -> int:
    """The newest opset of ONNX's own domain that the installed onnx knows; others have no limit."""
    return int(defs.onnx_opset_version()) if domain == "" else 2**31


def find_schema(domain: str, operator: str, version: int) -> defs.OpSchema | None:
    """The schema of an operator in an opset, None where there is none, or it is withdrawn."""
    if version < 1:
        return None
    try:
        schema = defs.get_schema(operator, version, domain)
    except defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def output_dtypes(
    schema: defs.OpSchema | None,
    attributes: Mapping[str, AttributeProto],
    inputs: Sequence[Expression | None],
    number: int,
) -> list[str | None]:
    """The dtypes of outputs, as far as the schema and the inputs say."""
    if schema is None or not schema.outputs:
        return [None] * number
    stated = [attributes[name].i for name in ("to", "dtype", "output_dtype") if name in attributes]
    if stated and stated[0]:
        return [dtype_name(stated[0])] * number
    if schema.name == "ConstantOfShape":
        value = attributes.get("value")
        return [dtype_name(value.t.data_type) if value is not None else "FLOAT"] * number
    last = len(schema.outputs) - 1
    kinds = [schema.outputs[min(place, last)].type_str for place in range(number)]
    return [_dtype_of(schema, kind, inputs) for kind in kinds]


def _dtype_of(schema: defs.OpSchema, kind: str, inputs: Sequence[Expression | None]) -> str | None:
    """The dtype that a name in a schema stands for: the only one allowed, or that of an input."""
    constraints = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}
    allowed = constraints.get(kind, [kind])
    if len(allowed) == 1 and allowed[0].startswith("tensor("):
        return allowed[0].removeprefix("tensor(").removesuffix(")").upper()
    for place, one in enumerate(inputs if schema.inputs else ()):
        formal = schema.inputs[min(place, len(schema.inputs) - 1)]
        if formal.type_str == kind and one is not None:
            dtype = getattr(one, "dtype", None)
            return None if dtype is None else str(dtype)
    return None


def fits(known: Known, dtype: str | None) -> bool:
    """Whether what is known of a value fits its dtype, so that nothing has wrapped."""
    if dtype not in FOLLOWED:
        return False
    if not isinstance(known, Numbers):
        return dtype != "BOOL" and all(map(moderate, (known.base, *known.steps)))
    truths = dtype == "BOOL"
    if any(isinstance(x, bool | np.bool_) != truths for x in known.array.flat):
        return False
    bits = 31 if dtype == "INT32" else 63
    return truths or all(
        -(2**bits) <= x < 2**bits if isinstance(x, int) else moderate(x) for x in known.array.flat
    )


def moderate(count: Count) -> bool:
    """Whether a size is one that a model may have, not one made to exhaust who reads it."""
    if isinstance(count, Polynomial):
        return len(count.terms) <= _TERMS and all(
            abs(factor) < _LARGEST_FACTOR and sum(power for _, power in monomial) <= _DIMENSIONS
            for monomial, factor in count.terms
        )
    return abs(count) < _LARGEST_FACTOR


def moderate_shape(shape: Shape) -> bool:
    """Whether a shape is one that a model may have."""
    return isinstance(shape, Unranked) or (len(shape) <= _DIMENSIONS and all(map(moderate, shape)))
