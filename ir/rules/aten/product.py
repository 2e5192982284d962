"""Contractions: matrix products, convolutions, attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planish.ir.flow.call import Call, NotCovered, Result, Rule
from planish.ir.flow.laws import ByPlace, GroupedProduct
from planish.ir.flow.polynomial import Count, quotient
from planish.ir.flow.vocabulary import (
    Concat,
    Expression,
    Fill,
    Operand,
    Reads,
    Reshape,
    Shape,
    Slice,
    Tag,
    affine,
    along,
    contraction,
    inserted,
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
    return product_of(one, two, call.shape)


def product_of(one: Expression, two: Expression, shape: Shape) -> Expression:
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


def attention(call: Call) -> Result:
    """`scaled_dot_product_attention` in all its forms, and `planish::attention`."""
    query, key, value = call["query"], call["key"], call["value"]
    mask = None
    for name in ("attn_mask", "mask", "attn_bias"):
        mask = mask if mask is not None else call.get(name)
    for name in (
        "is_causal",
        "dropout_p",
        "scale",
        "enable_gqa",
        "softcap",
        "compute_log_sumexp",
        "return_debug_mask",
    ):
        call.get(name)
    shape = call.shape
    bias = mask if isinstance(mask, Expression) else None
    out = attended(query, key, value, bias, shape)
    rest = [_statistics(query, key, bias, output.shape) for output in call.outputs[1:]]
    return (out, *rest)


def attended(
    query: Expression,
    key: Expression,
    value: Expression,
    mask: Expression | None,
    shape: Shape,
) -> Expression:
    """Attention of [..., H, T, D] over [..., K, S, D] and [..., K, S, V], K dividing H.

    Each position reads all of the query's width, all positions of its key head, and its row of
    the mask. A mask that forbids a position does not keep what is not finite there from being
    read, so it does not keep requests apart.
    """
    rank = len(shape)
    lead = rank - 2
    query, key, value = (_ranked(one, rank) for one in (query, key, value))
    heads = query.shape[lead - 1] if lead else 1
    shared = key.shape[lead - 1] if lead else 1
    if lead and shared not in (heads, 1):
        if value.shape[lead - 1] != shared:
            raise NotCovered("keys and values of different numbers of heads")
        return _grouped(query, key, value, mask, shape)
    places = tuple(range(lead))
    scores: Expression = contraction(
        (*shape[:-1], key.shape[-2]),
        (query, (*places, lead, "width")),
        (key, (*places, lead + 1, "width")),
    )
    if mask is not None:
        scores = pointwise("nonlinear", scores, mask, shape=scores.shape)
    weights = along("softmax", scores, (lead + 1,), law=ByPlace())  # it may be causal
    return contraction(
        shape,
        (weights, (*places, lead, "positions")),
        (value, (*places, "positions", lead + 1)),
    )


def _ranked(value: Expression, rank: int) -> Expression:
    missing = rank - len(value.shape)
    return Reshape(value, (*(1,) * missing, *value.shape)) if missing > 0 else value


def _grouped(
    query: Expression, key: Expression, value: Expression, mask: Expression | None, shape: Shape
) -> Expression:
    """Grouped queries: H heads as K groups of H / K, which broadcast over their key head."""
    lead = len(shape) - 3
    heads, shared = query.shape[lead], key.shape[lead]
    if not (isinstance(heads, int) and isinstance(shared, int)) or heads % shared:
        raise NotCovered("query heads that key heads do not divide")
    split = (shared, heads // shared)

    def parted(one: Expression) -> Expression:
        return Reshape(one, (*one.shape[:lead], *split, *one.shape[lead + 1 :]))

    def lone(one: Expression) -> Expression:
        return Reshape(one, (*one.shape[:lead], shared, 1, *one.shape[lead + 1 :]))

    if mask is not None and len(mask.shape) > 2:
        own = mask.shape[-3]
        parts = split if own == heads else (own, 1)
        mask = Reshape(mask, (*mask.shape[:-3], *parts, *mask.shape[-2:]))
    wide = (*shape[:lead], *split, *shape[lead + 1 :])
    return Reshape(attended(parted(query), lone(key), lone(value), mask, wide), shape)


def _statistics(
    query: Expression, key: Expression, mask: Expression | None, shape: Shape
) -> Expression:
    """What fused kernels return beside the result: one number a query row, or a seed."""
    if len(shape) != len(query.shape) - 1:
        return Fill(shape, "random")
    lead = len(shape) - 1
    q = Operand(query, (*range(lead + 1), "width"))
    k = Operand(key, (*range(lead - 1), "heads", "positions", "width"))
    operands = [q, k]
    if mask is not None:
        first = lead + 2 - len(mask.shape)
        operands.append(Operand(mask, (*range(first, lead + 1), "positions")))
    return Reads(shape, tuple(operands), "statistic", law=ByPlace())


def rotary(call: Call) -> Expression:
    """`planish::rotary(x [..., T, D], cos, sin)`: each coordinate and its partner are turned.

    Partners are the halves of the first R coordinates, or neighbours if `interleaved`.
    """
    value, cos, sin = call["x"], call["cos"], call["sin"]
    interleaved = call["interleaved"]
    last = len(value.shape) - 1
    width, turned = value.shape[-1], cos.shape[-1]
    if not isinstance(width, int) or not isinstance(turned, int) or turned % 2:
        raise NotCovered("a width that is not an even number")

    def partners(one: Expression) -> tuple[Expression, Expression]:
        dim = len(one.shape) - 1
        half = turned // 2
        if not interleaved:
            return Slice(one, dim, 0, 1, half), Slice(one, dim, half, 1, half)
        pairs = Reshape(Slice(one, dim, 0, 1, turned), (*one.shape[:-1], half, 2))
        return tuple(  # type: ignore[return-value]
            Reshape(Slice(pairs, dim + 1, which, 1, 1), (*one.shape[:-1], half)) for which in (0, 1)
        )

    first, second = partners(value)
    sides = [
        pointwise("hadamard", one, c, other, s)
        for one, other, c, s in zip(
            (first, second), (second, first), partners(cos), partners(sin), strict=True
        )
    ]
    if interleaved:
        stacked = Concat(tuple(inserted(side, last + 1) for side in sides), last + 1)
        out: Expression = Reshape(stacked, (*value.shape[:-1], turned))
    else:
        out = Concat(tuple(sides), last)
    if turned == width:
        return out
    return Concat((out, Slice(value, last, turned, 1, width - turned)), last)


def planish_rms_norm(call: Call) -> Expression:
    """`planish::rms_norm(x, weight, eps)` over the last dimension."""
    value = call["x"]
    call["eps"]
    normed = along("rms norm", value, (len(value.shape) - 1,))
    return affine(normed, call["weight"], None)


def gated(call: Call) -> Expression:
    """`planish::gated(gate, up)`."""
    gate, up = call["gate"], call["up"]
    call.tensors()
    return pointwise("hadamard", pointwise("nonlinear", gate), up, shape=call.shape)


def selective_scan(call: Call) -> tuple[Expression, ...]:
    """`planish::selective_scan`: a recurrence over positions, each sample by itself.

    Heads are split into groups of those that share b and c.
    """
    x, dt, a, b, c, d, state = (call[name] for name in ("x", "dt", "a", "b", "c", "d", "state"))
    batch, length, heads, width = x.shape
    groups, columns = b.shape[2:]
    inner = quotient(heads, groups)
    if inner is None:
        raise NotCovered("heads that groups do not divide")
    x = Reshape(x, (batch, length, groups, inner, width))
    dt = Reshape(dt, (batch, length, groups, inner))
    a = Reshape(a, (groups, inner, a.shape[1]))
    before = Reshape(state, (batch, groups, inner, width, columns))
    skip = [Operand(Reshape(d, (groups, inner)), (2, 3))] if d is not None else []
    y = Reads(
        (batch, length, groups, inner, width),
        (
            Operand(x, (0, 1, 2, 3, 4)),
            Operand(dt, (0, 1, 2, 3)),
            Operand(a, (2, 3, "columns")),
            Operand(b, (0, 1, 2, "columns")),
            Operand(c, (0, 1, 2, "columns")),
            Operand(before, (0, 2, 3, 4, "columns")),
            *skip,
        ),
        "scan",
        frozenset({1}),
    )
    after = Reads(
        before.shape,
        (
            Operand(x, (0, "positions", 1, 2, 3)),
            Operand(dt, (0, "positions", 1, 2)),
            Operand(a, (1, 2, 4)),
            Operand(b, (0, "positions", 1, 4)),
            Operand(before, (0, 1, 2, 3, 4)),
        ),
        "scan",
    )
    return Reshape(y, call.outputs[0].shape), Reshape(after, call.outputs[1].shape)


def _whole(value: Expression) -> tuple[str, ...]:
    return tuple(f"whole{dim}" for dim in range(len(value.shape)))


def dequantize(call: Call) -> Expression:
    """`planish::dequantize`: a weight out of codes and scales, each element out of any."""
    values = call.tensors()
    return Reads(call.shape, tuple(Operand(one, _whole(one)) for one in values), "statistic")


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
    return Reads(shape, tuple(operands), "contract")


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
    | named(
        attention,
        """scaled_dot_product_attention.default
        _scaled_dot_product_flash_attention_for_cpu.default
        _scaled_dot_product_efficient_attention.default""",
    )
    | {
        "planish.attention": attention,
        "planish.rotary": rotary,
        "planish.rms_norm": planish_rms_norm,
        "planish.gated": gated,
        "planish.selective_scan": selective_scan,
        "planish.dequantize": dequantize,
    }
)
