"""Operators that read whole dimensions: sums, softmax, norms, sorting, running sums."""

from __future__ import annotations

from dataclasses import replace

import torch

from planish.ir.flow.call import Call, NotCovered, Result, Rule
from planish.ir.flow.laws import (
    Arrangement,
    Below,
    Histogram,
    Picked,
    Places,
    RunningSum,
    Sorting,
)
from planish.ir.flow.polynomial import Count, quotient
from planish.ir.flow.vocabulary import (
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
    everything,
    pointwise,
    reduction,
)
from planish.ir.rules.aten.table import named

REDUCTIONS = {
    "sum": "sum.default sum.dim_IntList nansum.default",
    "mean": "mean.default mean.dim",
    "extreme": "amax.default amin.default aminmax.default max.default min.default",
    "statistic": """
        all.default all.dim all.dims any.default any.dim any.dims argmax.default argmin.default
        count_nonzero.default count_nonzero.dim_IntList
        linalg_vector_norm.default logsumexp.default max.dim median.dim median.default min.dim
        mode.default nanmedian.dim norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype
        prod.default prod.dim_int std.default std.dim std.correction std_mean.correction
        std_mean.dim var.default var.dim var.correction var_mean.correction var_mean.dim
        kthvalue.default nanmean.default quantile.scalar
    """,
}

ALONG = {
    "softmax": """
        _softmax.default _log_softmax.default softmax.int log_softmax.int _safe_softmax.default
    """,
    "scan": """
        cumprod.default logcumsumexp.default cummax.default cummin.default
    """,
}


def _dims(call: Call, rank: int) -> tuple[int, ...]:
    """The dimensions that a call names, all if it names none."""
    given = call.get("dim", call.get("axis"))
    if given == [] and call.operator in ("aten.any.dims", "aten.all.dims"):
        return ()  # unlike the others, these then reduce nothing
    if given == [] and call.operator == "aten.nansum.default":
        raise NotCovered("no dimensions, of which torch's kernel and shapes disagree")
    return call.dims(None if given == [] else given, rank)


def _reduce(kind: str) -> Rule:
    def rule(call: Call) -> Result:
        value, *others = call.tensors()
        if others:
            raise NotCovered("a second tensor")
        dims = _dims(call, len(value.shape))
        kept = len(call.shape) == len(value.shape)
        return tuple(reduction(kind, value, dims, kept) for _ in call.outputs)

    return rule


def _along(kind: str) -> Rule:
    def rule(call: Call) -> Result:
        (value,) = call.tensors()
        rank = len(value.shape)
        dims = call.dims(call.get("dim", 0), rank)  # msort has none: it sorts along the first
        return tuple(along(kind, value, dims) for _ in call.outputs)

    return rule


def sort(call: Call) -> tuple[Expression, ...]:
    """`sort(x, dim, descending)` and `msort(x)`: the sorted elements, and where they were."""
    value, places, dim = _sorted(call)
    read = along("order", value, (dim,))
    if places is None:
        return (read,) * len(call.outputs)
    picked = replace(read, law=Picked(places.arrangement, value))
    return (picked, replace(read, law=places))[: len(call.outputs)]


def argsort(call: Call) -> Expression:
    """`argsort(x, dim, descending)`: where the elements were."""
    value, places, dim = _sorted(call)
    return along("order", value, (dim,), law=places)


def _sorted(call: Call) -> tuple[Expression, Places | None, int]:
    """What is sorted, the law of the places if it has one dimension, and along which."""
    (value,) = call.tensors()
    rank = len(value.shape)
    dim = call.dim(call.get("dim", 0), rank)  # msort has none: it sorts along the first
    sorting = Sorting(value, ascending=not call.get("descending", False))
    return value, Places(Arrangement(value.shape, sorting)) if rank == 1 else None, dim


_WIDE = (torch.int64, torch.int32, torch.float64, torch.float32)
"""Types that hold every integer up to 2^24."""


def cumsum(call: Call) -> Expression:
    """`cumsum(x, dim)`."""
    (value,) = call.tensors()
    rank = len(value.shape)
    law = RunningSum(value) if rank == 1 and call.outputs[0].dtype in _WIDE else None
    return along("scan", value, call.dims(call["dim"], rank), law=law)


def topk(call: Call) -> tuple[Expression, ...]:
    """`topk(x, k, dim)`: values and indices, chosen from the whole dimension."""
    (value,) = call.tensors()
    rank = len(value.shape)
    dim = call.dim(call["dim"], rank)
    read = tuple(chosen(value, dim, output.shape) for output in call.outputs)
    return (read[0], replace(read[1], law=Below(value.shape[dim]))) if rank else read


def chosen(value: Expression, dim: int, shape: Shape, kind: str = "order") -> Reads:
    """Elements that each read all of `value` along `dim`, of which there are more or fewer."""
    tags = tuple("chosen" if place == dim else place for place in range(len(shape)))
    return Reads(shape, (Operand(value, tags),), kind)


def layer_norm(call: Call) -> Result:
    """`layer_norm` and `native_layer_norm(x, normalized_shape, weight, bias, eps)`."""
    value = call["input"]
    rank, inner = len(value.shape), len(call["normalized_shape"])
    dims = range(rank - inner, rank)
    call["eps"]
    call.get("cudnn_enable")
    out = affine(along("norm", value, dims), call["weight"], call["bias"])
    statistics = reduction("statistic", value, dims, keep=True)
    return (out, *(statistics for _ in call.outputs[1:]))


def batch_norm(call: Call) -> Result:
    """Every batch norm: by given statistics, or by those of the batch, which it may update.

    In training mode each element reads all of its channel: the batch and every position.
    """
    value = call["input"]
    rank = len(value.shape)
    given = {name: call[name] for name in _STATISTICS if call.get(name) is not None}
    training = _training(call)
    weight, bias, mean, variance = (_channels(given.get(name), rank) for name in _STATISTICS)
    dims = [dim for dim in range(rank) if dim != 1] if training else []
    own = along("norm", value, dims) if training else value
    out = _standardized(own, weight, bias, mean, variance)
    results: list[Expression] = [out]
    for output in call.outputs[1:]:
        if not training or len(output.shape) != 1 or output.shape[0] == 0:
            # What inference returns beside the result is empty, or a parameter's.
            same = [one for one in given.values() if one.shape == output.shape]
            results.append(pointwise("nonlinear", *same) if same else Fill(output.shape))
            continue
        statistic = reduction("statistic", value, dims)
        old = [given[name] for name in _STATISTICS[2:] if name in given]
        results.append(pointwise("linear", statistic, *old))
    return tuple(results)


_STATISTICS = ("weight", "bias", "running_mean", "running_var")


def _standardized(
    value: Expression,
    weight: Expression | None,
    bias: Expression | None,
    mean: Expression | None,
    variance: Expression | None,
) -> Expression:
    """`(value - mean) / sqrt(variance + eps) * weight + bias`, all of one number a channel."""
    if variance is not None:
        variance = pointwise("nonlinear", variance)
    return affine(affine(affine(value, None, mean), variance, None), weight, bias)


def _training(call: Call) -> bool:
    for name in ("momentum", "eps", "cudnn_enabled"):
        call.get(name)
    if "no_training" in call.operator:
        return False
    return bool(call.get("training", call.get("train", True)))


def _channels(parameter: Expression | None, rank: int) -> Expression | None:
    """A parameter of one number a channel, shaped so that it lies along dimension 1."""
    if parameter is None:
        return None
    return Reshape(parameter, (parameter.shape[0], *(1,) * (rank - 2)))


def instance_norm(call: Call) -> Expression:
    """`instance_norm(x [N, C, ...])`: statistics of each channel of each sample, or given ones."""
    value = call["input"]
    rank = len(value.shape)
    weight, bias, mean, variance = (_channels(call[name], rank) for name in _STATISTICS)
    own = call["use_input_stats"]
    call["momentum"], call["eps"], call["cudnn_enabled"]
    if own and mean is not None:
        raise NotCovered("it updates running statistics")
    if own:
        return affine(along("norm", value, range(2, rank)), weight, bias)
    return _standardized(value, weight, bias, mean, variance)


def group_norm(call: Call) -> Result:
    """`group_norm(x [N, C, ...], groups)` and `native_group_norm`: each group of channels."""
    native = "native" in call.operator
    value = call["input"]
    groups = call["group"] if native else call["num_groups"]
    for name in ("N", "C", "HxW") if native else ("cudnn_enabled",):
        call[name]
    if native and (call["N"], call["C"]) != (value.shape[0], value.shape[1]):
        raise NotCovered("sizes that are not the tensor's")
    call["eps"]
    rank = len(value.shape)
    batch, channels, *rest = value.shape
    width = _width(channels, groups)
    grouped = Reshape(value, (batch, groups, width, *rest))
    inner = range(2, rank + 1)
    normed = Reshape(along("norm", grouped, inner), value.shape)
    out = affine(normed, *(_channels(call[name], rank) for name in ("weight", "bias")))
    statistics = reduction("statistic", grouped, inner)
    return (out, *(statistics for _ in call.outputs[1:]))


def _width(channels: Count, groups: Count) -> Count:
    width = quotient(channels, groups)
    if width is None:
        raise NotCovered("a number of channels that groups do not divide")
    return width


def rms_norm(call: Call) -> Result:
    """`rms_norm(x, normalized_shape, weight, eps)`, and its fused form with the statistic."""
    value = call["input"]
    rank, inner = len(value.shape), len(call["normalized_shape"])
    dims = range(rank - inner, rank)
    call["eps"]
    out = affine(along("rms norm", value, dims), call["weight"], None)
    statistics = reduction("statistic", value, dims, keep=True)
    return (out, *(statistics for _ in call.outputs[1:]))


def cdist(call: Call) -> Expression:
    """`cdist(x1 [..., P, M], x2 [..., R, M])` to [..., P, R]: every pair of rows."""
    one, two = call["x1"], call["x2"]
    call.tensors()
    rank = len(call.shape)

    def tags(value: Expression, row: int) -> tuple[int | str, ...]:
        lead = range(rank - len(value.shape), rank - 2)
        return (*lead, row, "width")

    pair = (Operand(one, tags(one, rank - 2)), Operand(two, tags(two, rank - 1)))
    return Reads(call.shape, pair, "statistic")


def histogram(call: Call) -> Expression:
    """`histc(x, bins, min, max)` and `bincount`: counts over all elements."""
    tensors = call.tensors()
    read = everything("statistic", call.shape, *tensors)
    if call.operator != "aten.histc.default" or len(tensors) != 1:
        return read
    return replace(read, law=Histogram(tensors[0], call["bins"], call["min"], call["max"]))


def pool_whole(call: Call) -> Expression:
    """Adaptive pooling: each element reads a window, counted as all of the spatial dimensions."""
    value, *_ = call.tensors()
    rank, spatial = len(value.shape), int(call.operator.partition("pool")[2][0])
    tags = tuple(dim if dim < rank - spatial else f"window{dim}" for dim in range(rank))
    return Reads(call.shape, (Operand(value, tags),), "window")


def windows(spatial: int) -> Rule:
    """Operators that read windows of the last `spatial` dimensions; all of them, to be safe."""

    def rule(call: Call) -> Result:
        value, *others = call.tensors()
        results = []
        for output in call.outputs:
            rank = len(output.shape)
            tags = tuple(d if d < rank - spatial else f"window{d}" for d in range(rank))
            results.append(Reads(output.shape, (Operand(value, tags),), "window"))
        if others:
            raise NotCovered("a second tensor")
        return tuple(results)

    return rule


def grid_sample(call: Call) -> Expression:
    """`grid_sampler(x [N, C, ...], grid [N, ..., n])`: each place reads its sample's image."""
    value, grid = call["input"], call["grid"]
    call.tensors()
    rank = len(value.shape)
    image = Operand(value, (0, 1, *(f"window{dim}" for dim in range(2, rank))))
    places = Operand(grid, (0, *range(2, rank), "coordinate"))
    return Reads(call.shape, (image, places), "window")


def columns(call: Call) -> Expression:
    """`im2col` and `col2im` of [N, C, ...], or [C, ...]: windows of each sample by itself."""
    (value,) = call.tensors()
    batched = len(value.shape) == (4 if "im2col" in call.operator else 3)
    lead: tuple[Tag, ...] = (0,) if batched else ()
    rest = (f"window{dim}" for dim in range(len(lead), len(value.shape)))
    return Reads(call.shape, (Operand(value, (*lead, *rest)),), "window")


def glu(call: Call) -> Expression:
    """`glu(x, dim)`: one half gates the other."""
    value = call["self"]
    dim = call.dim(call["dim"], len(value.shape))
    size = call.shape[dim]
    halves = (Slice(value, dim, 0, 1, size), Slice(value, dim, size, 1, size))
    return pointwise("nonlinear", *halves)


def fft(call: Call) -> Expression:
    """Fourier transforms along `dim`, whose size may change."""
    value = call["self"]
    call.tensors()
    dims = call.dims(call["dim"], len(value.shape))
    tags = tuple(f"whole{d}" if d in dims else d for d in range(len(value.shape)))
    return Reads(call.shape, (Operand(value, tags),), "transform")


def renorm(call: Call) -> Expression:
    """`renorm(x, p, dim, maxnorm)`: norms over all other dimensions."""
    value = call["self"]
    call.tensors()
    rank = len(value.shape)
    kept = call["dim"] % rank
    return along("norm", value, [dim for dim in range(rank) if dim != kept])


WINDOWS = {
    1: """max_pool1d.default avg_pool1d.default upsample_nearest1d.default upsample_linear1d.default
        upsample_nearest1d.vec upsample_linear1d.vec""",
    2: """max_pool2d.default max_pool2d_with_indices.default avg_pool2d.default
        upsample_nearest2d.default upsample_nearest2d.vec upsample_bilinear2d.default
        upsample_bilinear2d.vec upsample_bicubic2d.default upsample_bicubic2d.vec
        _upsample_nearest_exact2d.default _upsample_bilinear2d_aa.default
        _upsample_bilinear2d_aa.vec _upsample_bicubic2d_aa.default _upsample_bicubic2d_aa.vec
        _upsample_nearest_exact2d.vec""",
    3: """max_pool3d.default max_pool3d_with_indices.default avg_pool3d.default
        upsample_nearest3d.default upsample_nearest3d.vec upsample_trilinear3d.vec""",
}

RULES: dict[str, Rule] = (
    {f"aten.{name}": _reduce(kind) for kind, ops in REDUCTIONS.items() for name in ops.split()}
    | {f"aten.{name}": _along(kind) for kind, ops in ALONG.items() for name in ops.split()}
    | {f"aten.{name}": windows(n) for n, ops in WINDOWS.items() for name in ops.split()}
    | named(topk, "topk.default")
    | named(layer_norm, "layer_norm.default native_layer_norm.default")
    | named(
        batch_norm,
        """batch_norm.default native_batch_norm.default
        _native_batch_norm_legit.no_stats _native_batch_norm_legit_functional.default
        _native_batch_norm_legit_no_training.default
        _batch_norm_with_update_functional.default _batch_norm_no_update.default""",
    )
    | named(instance_norm, "instance_norm.default")
    | named(group_norm, "group_norm.default native_group_norm.default")
    | named(rms_norm, "rms_norm.default _fused_rms_norm.default")
    | named(sort, "sort.default sort.stable msort.default")
    | named(argsort, "argsort.default argsort.stable")
    | named(cumsum, "cumsum.default")
    | named(cdist, "cdist.default _cdist_forward.default")
    | named(histogram, "histc.default bincount.default pdist.default _pdist_forward.default")
    | named(
        pool_whole,
        """adaptive_avg_pool1d.default adaptive_avg_pool2d.default
        _adaptive_avg_pool2d.default adaptive_avg_pool3d.default _adaptive_avg_pool3d.default""",
    )
    | named(windows(2), "adaptive_max_pool2d.default")
    | named(grid_sample, "grid_sampler.default grid_sampler_2d.default grid_sampler_3d.default")
    | named(glu, "glu.default")
    | named(columns, "im2col.default col2im.default")
    | named(fft, "_fft_r2c.default _fft_c2c.default _fft_c2r.default fft_rfft.default")
    | named(renorm, "renorm.default")
)
