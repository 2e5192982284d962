"""Operators of com.microsoft that ONNX Runtime's optimizers put in the place of standard ones.

Their attributes are those of ONNX Runtime 1.31; one that a rule does not know makes the call
unknown.
"""

from __future__ import annotations

from planish.ir.flow.call import NotCovered, Result
from planish.ir.flow.vocabulary import (
    Expression,
    Operand,
    Reads,
    Reshape,
    along,
    contraction,
    everything,
    inserted,
    permuted,
    pointwise,
    reduction,
)
from planish.ir.rules.onnx.call import OnnxCall, named, of_rank
from planish.ir.rules.onnx.pointwise import together, trilu
from planish.ir.rules.onnx.product import conv, gemm, times

DOMAIN = "com.microsoft"


def activation(call: OnnxCall) -> Expression:
    """`Gelu`, `QuickGelu`, `FastGelu(x, bias)`, `BiasGelu(x, bias)`."""
    call.ignore("alpha")
    return together("nonlinear", *call.inputs())


def fused_matmul(call: OnnxCall) -> Expression:
    """`FusedMatMul(a, b)`: of tensors that may be transposed, scaled, and activated after."""
    call.ignore("alpha", "activation", *_ACTIVATION)
    one, two = call.input(0), call.input(1)
    sides = []
    for value, letter in ((one, "A"), (two, "B")):
        rank = len(value.shape)
        order = list(range(rank))
        if call.attribute(f"transBatch{letter}", 0) and rank > 2:
            order = [*order[1:-1], order[0], order[-1]]
        if call.attribute(f"trans{letter}", 0) and rank > 1:
            order[-2:] = order[:-3:-1]
        sides.append(permuted(value, order))
    return times(*sides)


_ACTIVATION = [
    "activation_alpha",
    "activation_axis",
    "activation_beta",
    "activation_gamma",
    "activation_params",
]


def fused_conv(call: OnnxCall) -> Expression:
    """`FusedConv(x, weight, bias, z)`: a convolution, a sum with z, an activation."""
    call.ignore("activation", "activation_params")
    out = conv(call)
    more = call.optional(3)
    return out if more is None else pointwise("nonlinear", out, more, shape=out.shape)


def fused_gemm(call: OnnxCall) -> Expression:
    """`FusedGemm(a, b, c)`: a product with an activation."""
    call.ignore("activation", *_ACTIVATION)
    return gemm(call)


def skip_layer_norm(call: OnnxCall) -> Result:
    """`SkipLayerNormalization(x, skip, gamma, beta, bias)` and its kin without mean.

    The results are the norm, a mean, an inverse deviation, and the sum that was normed.
    """
    call.ignore("epsilon")
    value, skip = call.input(0), call.input(1)
    simplified = "Simplified" in call.name
    bias = call.optional(3 if simplified else 4)
    gamma = [call.input(2)]
    beta = [] if simplified or not call.given(3) else [call.input(3)]
    terms = [skip, *([bias] if bias is not None else [])]
    total = pointwise("add", value, *terms, shape=value.shape)
    last = len(value.shape) - 1
    statistic = reduction("statistic", total, (last,), keep=True)
    results = (along("norm", total, (last,), *gamma, *beta), statistic, statistic, total)
    return results[: len(call.outputs)]


def embed_layer_norm(call: OnnxCall) -> Result:
    """`EmbedLayerNormalization(words, segments, three tables, gamma, beta, mask, positions)`.

    The results are [B, T, E], a length for each sample, and the sum before the norm.
    """
    call.ignore("epsilon", "mask_index_type")
    words = of_rank(call.input(0), 2)
    rows = [one for one in (words, call.optional(1), call.optional(8)) if one is not None]
    tables = [call.input(2), call.input(3)] + ([call.input(4)] if call.given(4) else [])
    parameters = [call.input(5), call.input(6)]
    shape = (*words.shape, tables[0].shape[1])
    operands = [Operand(one, (0, 1)) for one in rows]
    operands += [Operand(table, ("entry", 2)) for table in tables]
    total = Reads(shape, tuple(operands), "gather")
    mask = call.optional(7)
    counted = words if mask is None else mask
    length = reduction("sum", counted, (1,))
    results = (along("norm", total, (2,), *parameters), length, total)
    return results[: len(call.outputs)]


def matmul_nbits(call: OnnxCall) -> Expression:
    """`MatMulNBits(x [..., K], packed weight, scales, zeros, group index, bias)` to [..., N]."""
    call.ignore("bits", "block_size", "accuracy_level", "weight_prepacked")
    value, packed = call.input(0), call.inputs(1)
    inner, outer = call["K"], call["N"]
    if not isinstance(inner, int) or not isinstance(outer, int):
        raise NotCovered("no sizes")
    shape = (*value.shape[:-1], outer)
    parameters = [
        (one, [f"{n}.{d}" for d in range(len(one.shape))]) for n, one in enumerate(packed)
    ]
    last = len(shape) - 1
    return contraction(shape, (value, (*range(last), "inner")), *parameters)


def gather_block_quantized(call: OnnxCall) -> Expression:
    """`GatherBlockQuantized(table, indices, scales, zeros)`: rows of a table in few bits."""
    table, one, others = call.input(0), call.input(1), call.inputs(2)
    bits, block = call.attribute("bits", 4), call["block_size"]
    axis, along_axis = call.attribute("gather_axis", 0), call.attribute("quantize_axis", 1)
    rank = len(table.shape)
    if not isinstance(block, int) or call.place(axis, rank) != 0:
        raise NotCovered("a gather along another axis")
    row = list(table.shape[1:])
    # What is stored as bytes holds several numbers each; ONNX's own 4-bit types hold one.
    if getattr(table, "dtype", None) in ("UINT8", None) and row:
        place = call.place(along_axis, rank) - 1
        row[place] = row[place] * (8 // bits)
    shape = (*one.shape, *row)
    joint = len(one.shape)
    whole = [Operand(v, tuple(f"e{d}" for d in range(len(v.shape)))) for v in (table, *others)]
    return Reads(shape, (Operand(one, tuple(range(joint))), *whole), "gather")


def bias_add(call: OnnxCall) -> Expression:
    """`BiasAdd(x, bias, skip)`, `BiasDropout(x, bias, residual, ratio, training)`."""
    call.ignore("seed")
    return pointwise("add", *call.inputs(), shape=call.input(0).shape)


def bias_softmax(call: OnnxCall) -> Expression:
    """`BiasSoftmax(x, bias)`: over all dimensions from `axis` on."""
    value, bias = call.input(0), call.input(1)
    if len(bias.shape) != len(value.shape):
        raise NotCovered("a bias of another rank")
    call.ignore("is_inner_broadcast")
    axis = call.place(call.attribute("axis", 1), len(value.shape))
    total = pointwise("add", value, bias, shape=value.shape)
    return along("softmax", total, range(axis, len(value.shape)))


def group_norm(call: OnnxCall) -> Expression:
    """`GroupNorm(x [N, ...])`: within one sample."""
    call.ignore("activation", "channels_last", "epsilon", "groups")
    value = call.input(0)
    parameters = [Operand(call.input(n), (f"channel{n}",)) for n in (1, 2)]
    mixed = along("norm", value, range(1, len(value.shape)))
    return Reads(value.shape, (*mixed.operands, *parameters), "norm", mixed.mixed)


def experts(call: OnnxCall) -> Expression:
    """`MoE` and `QMoE(x [..., H], router [N, E], ...)`: each token by itself, without capacity."""
    (value, router, *weights) = call.tensors()
    rank = len(value.shape)
    if call.given(14) or len(router.shape) != 2:
        raise NotCovered("a second router")
    router = Reshape(router, (*value.shape[:-1], router.shape[1]))
    own = (Operand(router, (*range(rank - 1), "expert")),)
    whole = (
        Operand(w, tuple(f"{n}.{d}" for d in range(len(w.shape)))) for n, w in enumerate(weights)
    )
    operands = (*along("statistic", value, (rank - 1,)).operands, *own, *whole)
    return Reads(value.shape, operands, "statistic", frozenset({rank - 1}))


def expand_dims(call: OnnxCall) -> Expression:
    """`ExpandDims(x, axis)`."""
    value = call.input(0)
    return inserted(value, call.place(call.integer(1), len(value.shape) + 1))


def inverse(call: OnnxCall) -> Expression:
    """`Inverse(x [..., M, M])`."""
    value = call.input(0)
    rank = len(value.shape)
    return along("statistic", value, (rank - 2, rank - 1))


def all_finite(call: OnnxCall) -> Expression:
    """`IsAllFinite(values)`: one answer for all."""
    return everything("statistic", (), *call.tensors())


def distances(call: OnnxCall) -> Expression:
    """`CDist(a [M, K], b [N, K])`: every pair of rows."""
    call.ignore("metric")
    one, two = call.input(0), call.input(1)
    pair = (one, (0, "width")), (two, (1, "width"))
    return contraction((one.shape[0], two.shape[0]), *pair, kind="statistic")


def gemm_gelu(call: OnnxCall) -> Expression:
    """`GemmFastGelu(x, weight, bias)`."""
    out = times(call.input(0), call.input(1))
    return pointwise("nonlinear", out, *call.inputs(2), shape=out.shape)


RULES = (
    named(activation, "Gelu QuickGelu FastGelu BiasGelu", DOMAIN)
    | named(fused_matmul, "FusedMatMul TransposeMatMul FusedMatMulActivation", DOMAIN)
    | named(fused_conv, "FusedConv", DOMAIN)
    | named(fused_gemm, "FusedGemm", DOMAIN)
    | named(skip_layer_norm, "SkipLayerNormalization SkipSimplifiedLayerNormalization", DOMAIN)
    | named(embed_layer_norm, "EmbedLayerNormalization", DOMAIN)
    | named(matmul_nbits, "MatMulNBits", DOMAIN)
    | named(gather_block_quantized, "GatherBlockQuantized", DOMAIN)
    | named(bias_add, "BiasAdd BiasDropout", DOMAIN)
    | named(bias_softmax, "BiasSoftmax", DOMAIN)
    | named(group_norm, "GroupNorm", DOMAIN)
    | named(experts, "MoE QMoE", DOMAIN)
    | named(expand_dims, "ExpandDims", DOMAIN)
    | named(inverse, "Inverse", DOMAIN)
    | named(all_finite, "IsAllFinite", DOMAIN)
    | named(distances, "CDist", DOMAIN)
    | named(gemm_gelu, "GemmFastGelu", DOMAIN)
    | named(trilu, "Trilu", DOMAIN)
)
