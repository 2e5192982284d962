"""Contractions: matrix products, sums of products, convolutions, in floats and integers."""

from __future__ import annotations

from dataclasses import replace

from planish.ir.flow.call import NotCovered, Result
from planish.ir.flow.laws import Products
from planish.ir.flow.polynomial import Count
from planish.ir.flow.vocabulary import (
    Expression,
    Operand,
    Reads,
    Reshape,
    Shape,
    permuted,
    pointwise,
)
from planish.ir.rules.aten.product import convolved, product_of, summed
from planish.ir.rules.onnx.call import OnnxCall, named, of_rank
from planish.ir.rules.onnx.sizes import joined, joined_shape
from planish.ir.rules.onnx.window import windows


def times(one: Expression, two: Expression) -> Reads:
    """A matrix product, as NumPy's matmul."""
    if not one.shape or not two.shape:
        raise NotCovered("a product with a number")
    rows = one.shape[-2:-1]
    columns = two.shape[-1:] if len(two.shape) > 1 else ()
    lead = joined_shape([one.shape[:-2], two.shape[:-2]])
    return product_of(one, two, (*lead, *rows, *columns))


def matmul(call: OnnxCall) -> Expression:
    """`MatMul(a, b)`."""
    return replace(times(call.input(0), call.input(1)), law=Products())


def row_numbers(value: Expression, rank: int, rows: bool) -> Operand:
    """A scale or zero point of a product: one number, or one a row or column."""
    if len(value.shape) == 1 and value.shape != (1,):
        return Operand(value, (rank - 2 if rows else rank - 1,))
    if len(value.shape) <= 1:
        return Operand(value, ("number",) * len(value.shape))
    tags = list(range(rank - len(value.shape), rank))
    # It has size 1 along the dimension that the product sums over, and another operand's size
    # does not matter there.
    return Operand(value, (*tags[:-2], *((tags[-2], "inner") if rows else ("inner", tags[-1]))))


def with_numbers(
    out: Expression, left: list[Expression], right: list[Expression], both: list[Expression]
) -> Expression:
    """A product that also reads scales and zero points of either operand, and of the result."""
    rank = len(out.shape)
    operands = [Operand(out, tuple(range(rank)))]
    operands += [row_numbers(one, rank, rows=True) for one in left]
    operands += [row_numbers(one, rank, rows=False) for one in right]
    operands += [Operand(one, tuple(f"n{d}" for d in range(len(one.shape)))) for one in both]
    return Reads(out.shape, tuple(operands), "linear")


def _present(*several: Expression | None) -> list[Expression]:
    return [one for one in several if one is not None]


def matmul_integer(call: OnnxCall) -> Expression:
    """`MatMulInteger(a, b, zero of a, zero of b)`."""
    out = times(call.input(0), call.input(1))
    return with_numbers(out, _present(call.optional(2)), _present(call.optional(3)), [])


def qlinear_matmul(call: OnnxCall) -> Expression:
    """`QLinearMatMul(a, its scale and zero, b, its scale and zero, scale and zero of y)`."""
    out = times(call.input(0), call.input(3))
    left, right = [call.input(1), call.input(2)], [call.input(4), call.input(5)]
    y = [call.input(6), call.input(7)]
    if any(len(one.shape) > 1 or one.shape not in ((), (1,)) for one in y):
        return with_numbers(out, [*left, *y], right, [])
    return with_numbers(out, left, right, y)


def gemm(call: OnnxCall) -> Expression:
    """`Gemm(a, b, c)`: a b + c, of matrices that may be transposed."""
    call.ignore("alpha", "beta", "broadcast")
    one, two, more = of_rank(call.input(0), 2), of_rank(call.input(1), 2), call.optional(2)
    one = permuted(one, (1, 0)) if call.attribute("transA", 0) else one
    two = permuted(two, (1, 0)) if call.attribute("transB", 0) else two
    out = times(one, two)
    return out if more is None else pointwise("add", out, more, shape=out.shape)


def einsum(call: OnnxCall) -> Expression:
    """`Einsum(equation, values)`."""
    equation, values = call["equation"], call.inputs()
    if not isinstance(equation, str):
        raise NotCovered("no equation")
    equation = equation.replace(" ", "")
    return summed(equation, values, _summed_shape(equation, values))


def _summed_shape(equation: str, values: list[Expression]) -> Shape:
    left, arrow, right = equation.partition("->")
    sizes: dict[str, Count] = {}
    dots: list[Shape] = []
    for term, value in zip(left.split(","), values, strict=True):
        before, ellipsis, after = term.partition("...")
        extra = len(value.shape) - len(before) - len(after)
        if extra < 0 or (extra and not ellipsis):
            raise NotCovered("an equation that does not fit")
        middle = value.shape[len(before) : len(before) + extra]
        ends = (*value.shape[: len(before)], *value.shape[len(before) + extra :])
        dots += [middle] if ellipsis else []
        for letter, size in zip(before + after, ends, strict=True):
            sizes[letter] = joined(sizes.get(letter, 1), size)
    if not arrow:
        once = sorted(letter for letter in sizes if left.count(letter) == 1)
        right = ("..." if dots else "") + "".join(once)
    shape: list[Count] = []
    for letter in right.replace("...", "."):
        shape += joined_shape(dots) if letter == "." else [sizes[letter]]
    return tuple(shape)


def conv(call: OnnxCall) -> Expression:
    """`Conv(x, weight, bias)`."""
    return convolution(call, call.input(0), call.input(1), call.optional(2))


def convolution(
    call: OnnxCall, value: Expression, weight: Expression, bias: Expression | None
) -> Expression:
    """A convolution of [N, C, ...] with the attributes of `Conv`."""
    if len(value.shape) != len(weight.shape):
        raise NotCovered("a weight of another rank")
    kernel = call.integers("kernel_shape")
    if kernel is None:
        kernel = [size if isinstance(size, int) else 0 for size in weight.shape[2:]]
    spatial = windows(call, value.shape[2:], kernel)
    shape = (value.shape[0], weight.shape[0], *spatial)
    return convolved(value, weight, bias, call.attribute("group", 1), shape)


def channel_numbers(value: Expression, rank: int) -> Expression:
    """A scale or zero point of one number, or one an output channel, along dimension 1."""
    if len(value.shape) == 1 and value.shape != (1,):
        return Reshape(value, (value.shape[0], *(1,) * (rank - 2)))
    return value


def conv_integer(call: OnnxCall) -> Expression:
    """`ConvInteger(x, weight, zero of x, zero of the weight)`."""
    out = convolution(call, call.input(0), call.input(1), None)
    zeros = _present(call.optional(2), call.optional(3))
    numbers = [channel_numbers(one, len(out.shape)) for one in zeros]
    return pointwise("linear", out, *numbers, shape=out.shape)


def qlinear_conv(call: OnnxCall) -> Expression:
    """`QLinearConv`: x and the weight with scales and zeros, those of y, and a bias."""
    out = convolution(call, call.input(0), call.input(3), call.optional(8))
    numbers = [channel_numbers(call.input(n), len(out.shape)) for n in (1, 2, 4, 5, 6, 7)]
    return pointwise("linear", out, *numbers, shape=out.shape)


def conv_transpose(call: OnnxCall) -> Expression:
    """`ConvTranspose(x, weight, bias)`."""
    value, weight, bias = call.input(0), call.input(1), call.optional(2)
    groups = call.attribute("group", 1)
    places = len(value.shape) - 2
    kernel = call.integers("kernel_shape") or [
        size if isinstance(size, int) else 0 for size in weight.shape[2:]
    ]
    strides = call.integers("strides") or [1] * places
    dilations = call.integers("dilations") or [1] * places
    pads = call.integers("pads") or [0] * (2 * places)
    extra = call.integers("output_padding") or [0] * places
    mode = call.attribute("auto_pad", "NOTSET")
    given = call.integers("output_shape")
    spatial: list[Count] = []
    for n, size in enumerate(value.shape[2:]):
        if given is not None:
            spatial.append(given[len(given) - places + n])
        elif mode in ("SAME_UPPER", "SAME_LOWER"):
            spatial.append(size * strides[n])
        else:
            reach = dilations[n] * (kernel[n] - 1) + 1
            around = 0 if mode == "VALID" else pads[n] + pads[n + places]
            spatial.append(strides[n] * (size - 1) + extra[n] + reach - around)
    shape = (value.shape[0], weight.shape[1] * groups, *spatial)
    return convolved(value, weight, bias, groups, shape, transposed=True)


def deform_conv(call: OnnxCall) -> Result:
    """`DeformConv(x, weight, offset, bias, mask)`: offsets say where a sample is read."""
    value, weight, offset = call.input(0), call.input(1), call.input(2)
    call.ignore("offset_group")
    out = convolution(call, value, weight, call.optional(3))
    others = _present(offset, call.optional(4))
    rank = len(out.shape)
    tags = (0, "tap", *range(2, rank))
    operands = (Operand(out, tuple(range(rank))), *(Operand(one, tags) for one in others))
    return Reads(out.shape, operands, "contract")


RULES = (
    named(matmul, "MatMul")
    | named(matmul_integer, "MatMulInteger")
    | named(qlinear_matmul, "QLinearMatMul")
    | named(gemm, "Gemm")
    | named(einsum, "Einsum")
    | named(conv, "Conv")
    | named(conv_integer, "ConvInteger")
    | named(qlinear_conv, "QLinearConv")
    | named(conv_transpose, "ConvTranspose")
    | named(deform_conv, "DeformConv")
)
