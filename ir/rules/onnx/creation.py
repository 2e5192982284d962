"""Operators that make tensors out of nothing but sizes: constants, ranges, random numbers."""

from __future__ import annotations

from planish.ir.flow.call import NotCovered
from planish.ir.flow.known import Counting, Known, numbers, one_number
from planish.ir.flow.polynomial import Count, product, quotient
from planish.ir.flow.vocabulary import (
    Expression,
    Fill,
    Opaque,
    Operand,
    Reads,
    Shape,
    everything,
    pointwise,
)
from planish.ir.rules.onnx.call import OnnxCall, OnnxLearn, named, of_rank
from planish.ir.rules.onnx.sizes import by_data, least


def _part(call: OnnxCall) -> Shape:
    """The sizes that `Shape` is asked for."""
    sizes = call.input(0).shape
    start, end = call.attribute("start", 0), call["end"]
    return sizes[slice(start, end)]


def shape_of(call: OnnxCall) -> Expression:
    """`Shape` and `Size`: the same for all requests, unless data decided a size."""
    value = call.input(0)
    shape: Shape = (len(_part(call)),) if call.name == "Shape" else ()
    if any(map(by_data, value.shape)):
        return everything("statistic", shape, value)
    return Fill(shape, "by place")


def constant(_: OnnxCall) -> Expression:
    """`Constant`: the front end says its shape and, where it is small, its elements."""
    raise NotCovered("a constant of a kind that is not read")


def of_shape(call: OnnxCall) -> Expression:
    """`ConstantOfShape(shape)`."""
    call.ignore("value")
    return Fill(_sizes(call, 0))


def _sizes(call: OnnxCall, place: int) -> Shape:
    sizes = call.numbers(place)
    if any(least(size) is None or (least(size) or 0) < 0 for size in sizes):
        raise NotCovered("a size may be negative")
    return tuple(sizes)


def eye(call: OnnxCall) -> Expression:
    """`EyeLike(x)`: only the shape of x."""
    call.ignore("dtype", "k")
    return Fill(call.input(0).shape, "by place")


def random(call: OnnxCall) -> Expression:
    """`RandomNormal`, `RandomUniform`: of a given shape."""
    call.ignore("dtype", "seed", "mean", "scale", "high", "low")
    return Fill(tuple(call.integers("shape") or ()), "random")


def random_like(call: OnnxCall) -> Expression:
    """`RandomNormalLike`, `RandomUniformLike`: only the shape of x."""
    call.ignore("dtype", "seed", "mean", "scale", "high", "low")
    return Fill(call.input(0).shape, "random")


def multinomial(call: OnnxCall) -> Expression:
    """`Multinomial(x [N, C])`: samples of each row."""
    call.ignore("dtype", "seed")
    value = call.input(0)
    shape = (value.shape[0], call.attribute("sample_size", 1))
    return Reads(shape, (Operand(value, (0, "class")),), "statistic")


def count_up(call: OnnxCall) -> Expression:
    """`Range(start, limit, delta)`; its length is data where its ends are not known."""
    call.ignore("stash_type")
    length = _length(call)
    if length is not None:
        return Fill((length,), "by place")
    values = [of_rank(one, 0, 1) for one in call.tensors()]
    if all((call.control(place) is None) for place in range(3)):
        why = "how long a range is depends on the data"
        return Opaque((call.fresh(),), tuple(values), why, "shape")
    return pointwise("nonlinear", *values, shape=(call.fresh(),))


def _length(call: OnnxCall) -> Count | None:
    start, limit, step = (one_number(call.control(place)) for place in range(3))
    if start is None or limit is None or not isinstance(step, int) or step == 0:
        return None
    span = (limit - start) * (1 if step > 0 else -1)
    if isinstance(span, int):
        return max(0, -(-span // abs(step)))
    bound = least(span)
    return quotient(span, abs(step)) if bound is not None and bound >= 0 else None


def window(call: OnnxCall) -> Expression:
    """`HannWindow` and others: of a given size."""
    call.ignore("output_datatype", "periodic")
    return Fill(_sizes(call, 0), "by place")


def mel_weights(call: OnnxCall) -> Expression:
    """`MelWeightMatrix(bins, dft length, ...)`."""
    call.ignore("output_datatype")
    bins, length = call.integer(0), call.integer(1)
    others = [call.input(place) for place in (2, 3, 4)]
    return pointwise("nonlinear", *others, shape=(length // 2 + 1, bins))


def affine_grid(call: OnnxCall) -> Expression:
    """`AffineGrid(theta [N, d, d + 1], size)`: places for each sample's transform."""
    call.ignore("align_corners")
    theta, sizes = call.input(0), _sizes(call, 1)
    shape = (theta.shape[0], *sizes[2:], len(sizes) - 2)
    return Reads(shape, (Operand(theta, (0, "row", "column")),), "contract")


RULES = (
    named(shape_of, "Shape Size")
    | named(constant, "Constant")
    | named(of_shape, "ConstantOfShape")
    | named(eye, "EyeLike")
    | named(random, "RandomNormal RandomUniform")
    | named(random_like, "RandomNormalLike RandomUniformLike")
    | named(multinomial, "Multinomial")
    | named(count_up, "Range")
    | named(window, "HannWindow HammingWindow BlackmanWindow")
    | named(mel_weights, "MelWeightMatrix")
    | named(affine_grid, "AffineGrid")
)


_LISTED = 64
"""Constants of more elements are known by their formula."""


def _shape(call: OnnxCall) -> Known | None:
    return numbers(list(_part(call)), (len(_part(call)),))


def _size(call: OnnxCall) -> Known | None:
    return numbers(product(call.input(0).shape))


def _of_shape(call: OnnxCall) -> Known | None:
    """The front end reads the attribute's one number."""
    value = call["value"]
    sizes = _sizes(call, 0)
    whole = product(sizes)
    if isinstance(whole, int) and whole <= _LISTED and isinstance(value, int):
        return numbers([value] * whole, sizes)
    if isinstance(value, bool):
        return None
    return Counting(value, (0,) * len(sizes)) if isinstance(value, int) else None


def _range(call: OnnxCall) -> Known | None:
    start, step = one_number(call.control(0)), one_number(call.control(2))
    return Counting(start, (step,)) if start is not None and step is not None else None


LEARN: dict[tuple[str, str], OnnxLearn] = {
    ("", "Shape"): _shape,
    ("", "Size"): _size,
    ("", "ConstantOfShape"): _of_shape,
    ("", "Range"): _range,
}
