"""Operators that read whole dimensions: sums, softmax, sorting, running sums."""

from __future__ import annotations

from dataclasses import replace

import torch

from planish.ir.flow.call import Call, NotCovered, Result, Rule
from planish.ir.flow.laws import (
    Arrangement,
    Chosen,
    Histogram,
    Picked,
    Places,
    RunningSum,
    Softmax,
    Sorting,
)
from planish.ir.flow.polynomial import product
from planish.ir.flow.vocabulary import (
    Expression,
    Operand,
    Reads,
    Shape,
    Slice,
    Tag,
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

PLACES = [
    f"aten.{name}.{overload}"
    for overload, names in (
        ("default", ("argmax", "argmin", "kthvalue", "mode")),
        ("dim", ("max", "min", "median", "nanmedian")),
    )
    for name in names
]
"""Reductions that say where: those that find an element, and those that also give it."""

ALONG = {
    "softmax": """
        _softmax.default _log_softmax.default softmax.int log_softmax.int _safe_softmax.default
    """,
    "scan": """
        cumprod.default logcumsumexp.default cummax.default cummin.default
    """,
}


SOFTMAX = ("aten._softmax.default", "aten.softmax.int", "aten._safe_softmax.default")
"""Those whose results are weights, not their logarithms."""


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
        found = [reduction(kind, value, dims, kept) for _ in call.outputs]
        if call.operator in PLACES:  # the last result says where, by one dimension or by all
            dim = dims[0] if len(dims) == 1 else None
            size = product(value.shape[one] for one in dims)
            found[-1] = replace(found[-1], law=Chosen(size, value, dim))
        return tuple(found)

    return rule


def _along(kind: str) -> Rule:
    def rule(call: Call) -> Result:
        (value,) = call.tensors()
        rank = len(value.shape)
        dims = call.dims(call.get("dim", 0), rank)  # msort has none: it sorts along the first
        law = Softmax(value) if call.operator in SOFTMAX else None
        return tuple(along(kind, value, dims, law=law) for _ in call.outputs)

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
    return (read[0], replace(read[1], law=Chosen(value.shape[dim], value, dim))) if rank else read


def chosen(value: Expression, dim: int, shape: Shape, kind: str = "order") -> Reads:
    """Elements that each read all of `value` along `dim`, of which there are more or fewer."""
    tags = tuple("chosen" if place == dim else place for place in range(len(shape)))
    return Reads(shape, (Operand(value, tags),), kind)


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
