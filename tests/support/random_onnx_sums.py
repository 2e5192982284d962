"""The moves of random ONNX graphs that read several elements: statistics, products, windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from support.random_onnx import Builder, Dims, Held, Misfit, Move, has_batch
from support.random_onnx_lookups import counted

REDUCTIONS = """
    ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare
    ReduceLogSumExp ReduceLogSum
"""
POOLS = "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool"
MICROSOFT = "com.microsoft"


def _without(dims: Dims, dim: int, keep: bool) -> Dims:
    return (*dims[:dim], *((1,) if keep else ()), *dims[dim + 1 :])


def reduce(b: Builder, x: Held) -> Held:
    dim, keep = b.dim(x), b.chance.random() < 0.5
    operator = b.chance.choice(REDUCTIONS.split())
    dims = _without(x.dims, dim, keep)
    if b.version < (13 if operator == "ReduceSum" else 18):
        return b.call(operator, x, dims=dims, axes=[dim], keepdims=int(keep))
    return b.call(operator, x, b.integers(dim), dims=dims, keepdims=int(keep))


def place_of_best(b: Builder, x: Held) -> Held:
    dim = b.dim(x)
    operator = b.chance.choice(["ArgMax", "ArgMin"])
    dims = _without(x.dims, dim, keep=True)
    place = b.call(operator, x, dims=dims, dtype="int", axis=dim)
    return b.call("Add", x, b.call("Cast", place, dims=dims, to=1), dims=x.dims)


def mixed_along(b: Builder, x: Held) -> Held:
    operator = b.chance.choice(["Softmax", "LogSoftmax", "Hardmax", "LpNormalization"])
    dim = b.dim(x)
    if b.version < 13 and operator != "LpNormalization":
        dim = x.rank - 1 if b.careful else dim  # it reads all dimensions from there on
        if b.careful and has_batch(x.dims[dim]):
            raise Misfit("it mixes")
    return b.call(operator, x, dims=x.dims, axis=dim)


def running(b: Builder, x: Held) -> Held:
    more: dict[str, Any] = {name: b.chance.randrange(2) for name in ("exclusive", "reverse")}
    return b.call("CumSum", x, b.constant(b.dim(x), np.int64), dims=x.dims, **more)


def best(b: Builder, x: Held) -> Held:
    dim = b.dim(x)
    if x.dims[dim] == 1:
        raise Misfit("one")
    dims = (*x.dims[:dim], 2, *x.dims[dim + 1 :])
    values, places = b.several("TopK", [x, b.integers(2)], [dims, dims], axis=dim)
    if b.chance.random() < 0.5:
        return values
    return b.call("GatherElements", x, Held(places.name, dims, "int"), dims=dims, axis=dim)


def _channels(b: Builder, x: Held) -> tuple[Held, int]:
    """A value with a fixed number of channels along dimension 1, and something behind them."""
    x = b.fit(x, lambda dims: len(dims) > 2 and isinstance(dims[1], int))
    channels = x.dims[1]
    assert isinstance(channels, int)
    return x, channels


def normalized(b: Builder, x: Held) -> Held:
    """Along the last dimensions."""
    last = x.dims[-1] if x.dims else None
    if not isinstance(last, int):
        raise Misfit("no fixed size at the end")
    way = b.chance.randrange(4)
    if way == 0 and b.version >= 17:
        return b.call("LayerNormalization", x, b.weight(last), dims=x.dims)
    if way == 1 and b.version >= 23:
        return b.call("RMSNormalization", x, b.weight(last), dims=x.dims)
    if way == 2 and not b.closed:  # ONNX Runtime 1.31 crashes where a function has one
        return b.call("SimplifiedLayerNormalization", x, b.weight(last), dims=x.dims, axis=-1)
    if x.rank != 3:
        raise Misfit("of another rank")
    operator = "SkipLayerNormalization"
    return b.call(operator, x, b.like(x), b.weight(last), dims=x.dims, domain=MICROSOFT)


def normalized_channels(b: Builder, x: Held) -> Held:
    x, n = _channels(b, x)
    way = b.chance.randrange(4)
    if way == 0:
        return b.call("InstanceNormalization", x, b.weight(n), b.weight(n), dims=x.dims)
    if way == 1 and b.version >= 21 and n % 2 == 0:
        pair = b.weight(n), b.weight(n)
        return b.call("GroupNormalization", x, *pair, dims=x.dims, num_groups=2)
    if way == 2 and b.version >= 13:
        axes = [dim for dim in range(x.rank) if dim != 1 and not (b.careful and dim == 0)]
        return b.call("MeanVarianceNormalization", x, dims=x.dims, axes=axes)
    four = b.weight(n), b.weight(n), b.weight(n), b.constant(np.ones(n))
    if b.careful or b.version < 14 or b.chance.random() < 0.6:
        return b.call("BatchNormalization", x, *four, dims=x.dims)
    dims = [x.dims, (n,), (n,)]
    return b.several("BatchNormalization", [x, *four], dims, training_mode=1)[0]


def near_channels(b: Builder, x: Held) -> Held:
    x = b.fit(x, lambda dims: len(dims) == 4)
    return b.call("LRN", x, dims=x.dims, size=3)


def linear(b: Builder, x: Held) -> Held:
    last = x.dims[-1] if x.dims else None
    if x.rank < 2 or not isinstance(last, int):
        raise Misfit("no fixed size at the end")
    dims = (*x.dims[:-1], 4)
    way = b.chance.randrange(4)
    if way == 0 and x.rank == 2:
        return b.call("Gemm", x, b.weight(4, last), b.weight(4), dims=dims, transB=1)
    if way == 1:
        made = b.call("MatMul", x, b.weight(last, 4), dims=dims)
        return b.call("BiasGelu", made, b.weight(4), dims=dims, domain=MICROSOFT)
    if way == 2:
        more: dict[str, Any] = {"domain": MICROSOFT, "transB": 1}
        return b.call("FusedMatMul", x, b.weight(4, last), dims=dims, **more)
    return b.call("MatMul", x, b.weight(last, 4), dims=dims)


def matmul(b: Builder, x: Held) -> Held:
    """x @ y^T, or x^T @ y."""
    x = b.fit(x, lambda dims: len(dims) > 1)
    other = b.like(x)
    *outer, rows, columns = x.dims
    order = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    turned = (*outer, columns, rows)
    if b.careful or b.chance.random() < 0.6:
        other = b.call("Transpose", other, dims=turned, perm=order)
        return b.call("MatMul", x, other, dims=(*outer, rows, rows))
    x = b.call("Transpose", x, dims=turned, perm=order)
    return b.call("MatMul", x, other, dims=(*outer, columns, columns))


def einsum(b: Builder, x: Held) -> Held:
    x = b.fit(x, bool)
    if b.version < 12:
        raise Misfit("not yet there")
    letters = "abcde"[: x.rank]
    sizes = dict(zip(letters, x.dims, strict=True))
    kept = [letter for letter in letters if has_batch(sizes[letter])]
    if not b.careful:
        kept = b.chance.sample(letters, b.chance.randint(1, len(letters)))
    rest = [letter for letter in letters if letter not in kept and b.chance.random() < 0.5]
    result = "".join(dict.fromkeys([*kept, *rest]))
    dims = tuple(sizes[letter] for letter in result)
    equation = f"{letters},{letters}->{result}"
    return b.call("Einsum", x, b.like(x), dims=dims, equation=equation)


def convolution(b: Builder, x: Held) -> Held:
    x = b.fit(x, lambda dims: len(dims) == 3 and isinstance(dims[1], int))
    n = x.dims[1]
    assert isinstance(n, int)
    groups = b.chance.choice([1, n])
    more: dict[str, Any] = {"pads": [1, 1], "group": groups}
    operator = b.chance.choice(["Conv", "ConvTranspose"])
    return b.call(operator, x, b.weight(n, n // groups, 3), dims=x.dims, **more)


def pooled(b: Builder, x: Held) -> Held:
    x = b.fit(x, lambda dims: len(dims) == 3)
    operator = b.chance.choice(POOLS.split())
    if operator.startswith("Global"):
        return b.call(operator, x, dims=(*x.dims[:2], 1))
    return b.call(operator, x, dims=x.dims, kernel_shape=[3], pads=[1, 1])


def resized(b: Builder, x: Held) -> Held:
    x = b.fit(x, lambda dims: len(dims) == 3)
    dim = b.dim(x) if not b.careful else 2
    if b.version < 13 or (b.careful and has_batch(x.dims[2])):
        raise Misfit("it mixes, or wants more")
    scales = [2.0 if one == dim else 1.0 for one in range(3)]
    dims = (*x.dims[:dim], x.dims[dim] * 2, *x.dims[dim + 1 :])
    more = {"mode": b.chance.choice(["nearest", "linear"])}
    return b.call("Resize", x, "", b.constant(scales), dims=dims, **more)


def spectrum(b: Builder, x: Held) -> Held:
    if b.version < 20:
        raise Misfit("not yet there")
    x = b.fit(x, lambda dims: len(dims) > 1)
    dim = b.dim(x)
    wide = b.call("Unsqueeze", x, b.integers(x.rank), dims=(*x.dims, 1))
    return b.call("DFT", wide, "", b.constant(dim, np.int64), dims=(*x.dims, 2))


def quantized(b: Builder, x: Held) -> Held:
    """There and back: by one scale of the model's, of the tensor, or of each row."""
    zero = b.constant(3, np.uint8)
    way = b.chance.randrange(2 if b.careful else 4)
    if way == 0:
        scale = b.constant(0.1)
    elif way == 1:
        dim = b.dim(x)
        largest = _largest(b, x, dim)
        scale = b.call("Mul", largest, b.constant(1 / 127), dims=largest.dims)
        codes = b.call("Round", b.call("Div", x, scale, dims=x.dims), dims=x.dims)
        return b.call("Mul", codes, scale, dims=x.dims)
    else:
        codes, scale, zero = b.several("DynamicQuantizeLinear", [x], [x.dims, (), ()])
        return b.call("DequantizeLinear", codes, scale, zero, dims=x.dims)
    codes = b.call("QuantizeLinear", x, scale, zero, dims=x.dims)
    return b.call("DequantizeLinear", codes, scale, zero, dims=x.dims)


def _largest(b: Builder, x: Held, dim: int) -> Held:
    size = b.call("Abs", x, dims=x.dims)
    dims = _without(x.dims, dim, keep=True)
    if b.version < 18:
        return b.call("ReduceMax", size, dims=dims, axes=[dim], keepdims=1)
    return b.call("ReduceMax", size, b.integers(dim), dims=dims, keepdims=1)


def integer_product(b: Builder, x: Held) -> Held:
    """A product of codes, whose scale is the model's or the tensor's."""
    last = x.dims[-1] if x.dims else None
    if x.rank < 2 or not isinstance(last, int):
        raise Misfit("no fixed size at the end")
    if b.careful or b.chance.random() < 0.5:
        scale, zero = b.constant(0.1), b.constant(3, np.uint8)
        codes = b.call("QuantizeLinear", x, scale, zero, dims=x.dims)
    else:
        codes, scale, zero = b.several("DynamicQuantizeLinear", [x], [x.dims, (), ()])
    chance = np.random.default_rng(b.chance.randrange(1 << 30))
    weight = b.constant(chance.integers(-9, 9, (last, 4)), np.int8)
    dims = (*x.dims[:-1], 4)
    whole = b.call("MatMulInteger", codes, weight, zero, dims=dims)
    return b.call("Mul", b.call("Cast", whole, dims=dims, to=1), scale, dims=dims)


def sum_of_codes(b: Builder, x: Held) -> Held:
    """com.microsoft's sum of codes, whose scales are the model's."""
    scale, zero = b.constant(0.1), b.constant(3, np.uint8)
    codes = [b.call("QuantizeLinear", one, scale, zero, dims=x.dims) for one in (x, b.like(x))]
    side = [[one, scale, zero] for one in codes]
    operands = [*side[0], *side[1], scale, zero]
    whole = b.call("QLinearAdd", *operands, dims=x.dims, domain=MICROSOFT)
    return b.call("DequantizeLinear", whole, scale, zero, dims=x.dims)


def recurrent(b: Builder, x: Held) -> Held:
    """Over the first dimension; the second one is taken for the batch."""
    x = b.fit(x, lambda dims: len(dims) == 3 and isinstance(dims[2], int))
    n = x.dims[2]
    assert isinstance(n, int)
    if b.careful and has_batch(x.dims[0]):
        turned = (x.dims[1], x.dims[0], n)
        x = b.call("Transpose", x, dims=turned, perm=[1, 0, 2])
    operator, gates = b.chance.choice([("RNN", 1), ("GRU", 3), ("LSTM", 4)])
    way, several = b.chance.choice([("forward", 1), ("reverse", 1), ("bidirectional", 2)])
    weights = b.weight(several, gates * 2, n), b.weight(several, gates * 2, 2)
    dims = (x.dims[0], several, x.dims[1], 2)
    return b.call(operator, x, *weights, dims=dims, hidden_size=2, direction=way)


def attention(b: Builder, x: Held) -> Held:
    x = b.fit(x, lambda dims: len(dims) == 3 and isinstance(dims[2], int) and dims[2] % 2 == 0)
    others = b.like(x), b.like(x)
    more: dict[str, Any]
    if b.version >= 23 and b.chance.random() < 0.5:
        more = {"q_num_heads": 2, "kv_num_heads": 2, "is_causal": b.chance.randrange(2)}
        return b.call("Attention", x, *others, dims=x.dims, **more)
    more = {"domain": MICROSOFT, "num_heads": 2}
    return b.call("MultiHeadAttention", x, *others, dims=x.dims, **more)


def fused(b: Builder, x: Held) -> Held:
    operator = b.chance.choice(["QuickGelu", "Gelu", "FastGelu"])
    return b.call(operator, x, dims=x.dims, domain=MICROSOFT)


def transposed_product(b: Builder, x: Held) -> Held:
    """com.microsoft's product of x^T and x, or the like."""
    x = b.fit(x, lambda dims: len(dims) > 1)
    first = b.careful or b.chance.random() < 0.5
    *outer, rows, columns = x.dims
    dims = (*outer, rows, rows) if first else (*outer, columns, columns)
    more: dict[str, Any] = {"transB": 1} if first else {"transA": 1}
    return b.call("FusedMatMul", x, b.like(x), dims=dims, domain=MICROSOFT, **more)


def filled(b: Builder, x: Held) -> Held:
    """Something of x's shape and of nothing else."""
    if x.rank == 0:
        raise Misfit("a number")
    shape = b.call("Shape", x, dims=(x.rank,), dtype="int")
    zeros = b.call("ConstantOfShape", shape, dims=x.dims)
    return b.call("Add", x, zeros, dims=x.dims)


def diagonal(b: Builder, x: Held) -> Held:
    x = b.fit(x, lambda dims: len(dims) == 2)
    return b.call("Add", x, b.call("EyeLike", x, dims=x.dims), dims=x.dims)


def positions(b: Builder, x: Held) -> Held:
    """Numbers of places along the last dimension, added."""
    if not x.dims:
        raise Misfit("a number")
    places = counted(b, x, x.rank - 1)
    return b.call("Add", x, b.call("Cast", places, dims=places.dims, to=1), dims=x.dims)


def classical(b: Builder, x: Held) -> Held:
    """ai.onnx.ml: by element, by row."""
    operator = b.chance.choice(["Scaler", "Normalizer", "LinearRegressor", "Binarizer"])
    ml = {"domain": "ai.onnx.ml"}
    if operator == "Scaler":
        return b.call(operator, x, dims=x.dims, offset=[0.5], scale=[2.0], **ml)
    if operator == "Binarizer":
        return b.call(operator, x, dims=x.dims, threshold=0.1, **ml)
    x = b.fit(x, lambda dims: len(dims) == 2 and dims[1] == 4)
    if operator == "Normalizer":
        return b.call(operator, x, dims=x.dims, norm="L2", **ml)
    numbers = [0.5, -1.0, 2.0, 0.25]
    return b.call(operator, x, dims=(x.dims[0], 1), coefficients=numbers, intercepts=[0.1], **ml)


def sequences(b: Builder, x: Held) -> Held:
    """Put into a sequence and taken out again."""
    other = b.like(x)
    if b.chance.random() < 0.5:
        pair = b.call("SequenceConstruct", x, other, dims=(), dtype="sequence")
        place = b.constant(b.chance.randrange(2), np.int64)
        return b.call("SequenceAt", pair, place, dims=x.dims)
    dim = b.dim(x)
    size = x.dims[dim]
    if not isinstance(size, int):
        raise Misfit("of unknown length")
    parts = b.call("SplitToSequence", x, dims=(), dtype="sequence", axis=dim, keepdims=1)
    if b.careful or b.chance.random() < 0.5:
        return b.call("ConcatFromSequence", parts, dims=x.dims, axis=dim)
    last = b.constant(-1, np.int64)
    return b.call("SequenceAt", parts, last, dims=_without(x.dims, dim, keep=True))


SUMS: list[Move] = [
    reduce, reduce, place_of_best, mixed_along, mixed_along, running, best, normalized,
    normalized_channels, near_channels, linear, linear, matmul, einsum, convolution, pooled,
    resized, spectrum, quantized, integer_product, sum_of_codes, recurrent, attention, fused,
    transposed_product, filled, diagonal, positions, classical, sequences,
]  # fmt: skip
