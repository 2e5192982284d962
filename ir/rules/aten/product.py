"""Contractions: matrix products, convolutions, products of groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planish.ir.flow.call import Call, NotCovered, Rule
from planish.ir.flow.laws import GroupedProduct, Products
from planish.ir.flow.polynomial import Count, quotient
from planish.ir.flow.vocabulary import (
    Expression,
    Fill,
    Operand,
    Reads,
    Reshape,
    Shape,
    Tag,
    contraction,
    pointwise,
    reduction,
)
from planish.ir.rules.aten.table import named


def linear(call: Call) -> Expression:
    """`linear(x [..., I], weight [O, I], bias)`."""
    value, weight, bias = call["input"], call["weight"], call["bias"]
    last = len(call.shape) - 1
    if len(weight.shape) == 1:
        raise NotCovered("a weight of one dimension")
    product = contraction(call.shape, (value, (*range(last), "in")), (weight, (last, "in")))
    return _plus(product, bias)


def _plus(product: Expression, *others: Expression | None) -> Expression:
    terms = [term for term in others if term is not None]
    return pointwise("add", product, *terms, shape=product.shape) if terms else product


def matmul(call: Call) -> Expression:
    """`mm`, `bmm`, `matmul`: also of vectors and with broadcasting."""
    one, two = call.tensors()
    return replace(product_of(one, two, call.shape), law=Products())


def product_of(one: Expression, two: Expression, shape: Shape) -> Reads:
    """A matrix product of `one` and `two`, as NumPy's matmul."""
    rows = len(one.shape) > 1
    columns = len(two.shape) > 1
    lead = len(shape) - rows - columns
    left: list[Tag] = list(range(lead - max(len(one.shape) - 2, 0), lead))
    left += [lead] if rows else []
    right: list[Tag] = list(range(lead - max(len(two.shape) - 2, 0), lead))
    tail: list[Tag] = ["inner", lead + rows] if columns else ["inner"]
    return contraction(shape, (one, [*left, "inner"]), (two, [*right, *tail]))


def dot(call: Call) -> Expression:
    """`dot`, `vdot`: of vectors."""
    one, two = call.tensors()
    return contraction((), (one, ("inner",)), (two, ("inner",)))


def mv(call: Call) -> Expression:
    """`mv(matrix, vector)`."""
    one, two = call.tensors()
    return contraction(call.shape, (one, (0, "inner")), (two, ("inner",)))


def addmm(call: Call) -> Expression:
    """`addmm` and `baddbmm(x, a, b)`: x + a b."""
    names = ("batch1", "batch2") if "baddbmm" in call.operator else ("mat1", "mat2")
    call["beta"], call["alpha"]
    product = product_of(call[names[0]], call[names[1]], call.shape)
    return _plus(product, call["self"])


def outer(call: Call) -> Expression:
    """`outer(a, b)`."""
    one, two = call.tensors()
    pair = (Operand(one, (0,)), Operand(two, (1,)))
    return Reads(call.shape, pair, "hadamard")


def convolution(call: Call) -> Expression:
    """`convolution` and `conv1d/2d/3d`, transposed ones too."""
    value, weight, bias = call["input"], call["weight"], call["bias"]
    transposed = "transpose" in call.operator
    for name in ("stride", "padding", "dilation", "output_padding"):
        call.get(name)
    transposed = transposed or bool(call.get("transposed"))
    return convolved(value, weight, bias, call["groups"], call.shape, transposed)


def convolved(
    value: Expression,
    weight: Expression,
    bias: Expression | None,
    groups: Count,
    shape: Shape,
    transposed: bool = False,
) -> Expression:
    """A convolution of [N, C, ...] or [C, ...]; each group of channels by itself.

    The weight is [O, C / groups, ...], or [C, O / groups, ...] if transposed. Channels are split
    into groups by reshaping, so that a batch folded into the groups stays a batch.
    """
    spatial = len(weight.shape) - 2
    lead = len(shape) - spatial - 1
    inputs, outputs = value.shape[lead], shape[lead]
    width_in, width_out = quotient(inputs, groups), quotient(outputs, groups)
    if width_in is None or width_out is None:
        raise NotCovered("channels that groups do not divide")
    batch, places = shape[:lead], shape[lead + 1 :]
    kernel = tuple(f"kernel{dim}" for dim in range(spatial))
    around = tuple(f"place{dim}" for dim in range(spatial))
    x = Reshape(value, (*value.shape[:lead], groups, width_in, *value.shape[lead + 1 :]))
    sizes = weight.shape[2:]
    g, o = lead, lead + 1
    if transposed:
        w: Expression = Reshape(weight, (groups, width_in, width_out, *sizes))
        w_tags: tuple[Tag, ...] = (g, "in", o, *kernel)
    else:
        w = Reshape(weight, (groups, width_out, width_in, *sizes))
        w_tags = (g, o, "in", *kernel)
    x_tags: tuple[Tag, ...] = (*range(lead), g, "in", *around)
    grouped = contraction((*batch, groups, width_out, *places), (x, x_tags), (w, w_tags))
    out = Reshape(grouped, shape)
    if bias is None:
        return out
    return _plus(out, Reshape(bias, (outputs, *(1,) * spatial)))


def einsum(call: Call) -> Expression:
    """`einsum(equation, operands)`."""
    return summed(call["equation"], call["tensors"], call.shape)


def summed(equation: str, values: Sequence[Expression], shape: Shape) -> Expression:
    """A sum of products in Einstein's notation. A letter twice in one operand is a diagonal."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    dots = max(
        (
            len(value.shape) - len(term.replace("...", ""))
            for term, value in zip(terms, values, strict=True)
            if "..." in term
        ),
        default=0,
    )
    if not arrow:
        letters = sorted(set(left) - set(",."))
        right = ("..." if "..." in left else "") + "".join(
            letter for letter in letters if left.count(letter) == 1
        )
    place: dict[str, int] = {}
    at = 0
    for letter in right.replace("...", "."):
        if letter == ".":
            at += dots
        else:
            place[letter] = at
            at += 1
    first_dot = right.index("...") if "..." in right else None
    operands = []
    for term, value in zip(terms, values, strict=True):
        tags: list[Tag] = []
        own = len(value.shape) - len(term.replace("...", ""))
        for letter in term.replace("...", "."):
            if letter != ".":
                tags.append(place.get(letter, f"sum {letter}"))
            elif first_dot is None:
                tags += [f"dot{dots - own + n}" for n in range(own)]
            else:
                tags += [first_dot + dots - own + n for n in range(own)]
        operands.append(Operand(value, tuple(tags)))
    return Reads(shape, tuple(operands), "contract", law=Products())


def trace(call: Call) -> Expression:
    """`trace(x)`."""
    (value,) = call.tensors()
    return reduction("sum", value, range(len(value.shape)))


def grouped_or_zero(call: Call) -> Expression:
    """`grouped_mm_fallback(input, weight, offs)` of transformers: rows of no group are zero."""
    value, weight, ends = call["input"], call["weight"], call["offs"]
    return _in_groups(call, value, weight, ends)


def grouped(call: Call) -> Expression:
    """`_grouped_mm(self, mat2, offs, bias)`; rows of no group are left as memory was."""
    value, weight, ends = call["self"], call["mat2"], call["offs"]
    if ends is None or call["bias"] is not None or len(value.shape) != 2:
        raise NotCovered("other than rows in groups times a matrix each")
    return _in_groups(call, value, weight, ends, Fill(call.shape, "uninitialized"))


def _in_groups(
    call: Call, value: Expression, weight: Expression, ends: Expression, *rest: Expression
) -> Reads:
    """Rows [N, I], a group of neighbours after another, times a matrix [E, I, O] of each group."""
    if len(weight.shape) != 3:
        raise NotCovered("a matrix that is not each group's own")
    product = ((value, (0, "inner")), (weight, ("group", "inner", 1)), (ends, ("ends",)))
    read = contraction(call.shape, *product, *((one, (0, 1)) for one in rest))
    return replace(read, law=GroupedProduct(value, weight, ends))


RULES: dict[str, Rule] = (
    named(linear, "linear.default")
    | named(matmul, "mm.default bmm.default matmul.default _int_mm.default")
    | named(addmm, "addmm.default baddbmm.default")
    | named(dot, "dot.default vdot.default")
    | named(mv, "mv.default")
    | named(outer, "outer.default ger.default")
    | named(einsum, "einsum.default")
    | named(trace, "trace.default")
    | named(grouped, "_grouped_mm.default")
    | {"transformers.grouped_mm_fallback.default": grouped_or_zero}
    | named(
        convolution,
        """convolution.default conv1d.default conv2d.default conv3d.default conv1d.padding
        conv2d.padding conv3d.padding conv_transpose1d.default conv_transpose2d.input
        conv_transpose3d.input""",
    )
)
