"""Calls of the operators that read whole dimensions, windows, or statistics."""

from __future__ import annotations

from typing import Any

import torch

from support.refute import Sample
from support.tensors import b, f, i

A, S = (3, 4, 2), (3, 3, 3)
"""A shape of different sizes, and one where dimensions cannot be told apart by size."""

Call = tuple[Any, ...]


def _one_dim(*more: Any) -> list[Call]:
    return [(f(*A), 0, *more), (f(*A), -1, *more), (f(*S), 1, *more), (f(3), 0, *more)]


def _dims(*before: Any) -> list[Call]:
    """Several dimensions, kept or not, or all."""
    lists: list[list[int]] = [[0], [1, -1], [-3], []]
    calls: list[Call] = [(f(*A), *before, dims, keep) for dims in lists for keep in (False, True)]
    return [(f(*S), *before, [1]), *calls]


def _kept() -> list[Call]:
    return [*_one_dim(), (f(*S), 1, True), (f(*A), -2, True)]


def _norms(*flags: Any) -> list[Call]:
    """Statistics and parameters of four channels."""
    return [(f(3, 4, 2), f(4), f(4), f(4), f(4).abs(), *flags)]


CALLS: dict[str, list[Call]] = {
    **{
        f"{name}.default": [(f(*A),), (f(3, 3),)]
        for name in ["mean", "max", "min", "all", "any", "std", "var", "count_nonzero", "median"]
    },
    "prod.default": [(f(*A),)],
    "sum.default": [(f(*A),)],
    "nansum.default": [(f(*A),), *_dims()[:-2]],
    **{name: _dims() for name in ("sum.dim_IntList", "mean.dim", "amax.default", "amin.default")},
    "logsumexp.default": _dims()[:-2],
    "std.dim": [(f(*A), [0], True, True), (f(*A), [1, -1], True), (f(*S), [-1], False, True)],
    "var.dim": [(f(*A), [0], True, True), (f(*A), [1, -1], True), (f(*S), [-1], False, True)],
    "std_mean.dim": [(f(*A), [0], True, True), (f(*S), [1, -1], True)],
    "var_mean.dim": [(f(*A), [0], True, True), (f(*S), [1, -1], True)],
    **{
        f"{name}.correction": [(f(*A), [1]), (f(*S), [-1, 0]), (f(*A),)]
        for name in ("std", "var", "std_mean", "var_mean")
    },
    **{name: _dims() for name in ("any.dims", "all.dims", "count_nonzero.dim_IntList")},
    "count_nonzero.dim_IntList": [(f(*A), [0]), (f(*S), [1, -1])],
    "aminmax.default": [(f(*A),)],
    **{name: _kept() for name in ("all.dim", "any.dim", "argmax.default", "argmin.default")},
    **{name: _kept() for name in ("max.dim", "min.dim", "median.dim", "mode.default")},
    **{name: _kept() for name in ("nanmedian.dim", "prod.dim_int", "nanmean.default")},
    "linalg_vector_norm.default": [(f(*A),), *_dims(2)],
    "norm.Scalar": [(f(*A),)],
    "norm.ScalarOpt_dim": _dims(2),
    "quantile.scalar": [(f(*A), 0.5, 1), (f(*A), 0.5), (f(*S), 0.25, -1, True)],
    "kthvalue.default": [(f(*A), 2, 0), (f(*S), 1, -1, True), (f(*A), 2, 1)],
    "_softmax.default": _one_dim(False),
    "_log_softmax.default": _one_dim(False),
    **{name: _one_dim() for name in ("softmax.int", "log_softmax.int", "_safe_softmax.default")},
    **{
        f"{name}.default": _one_dim()
        for name in ["cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "argsort"]
    },
    "msort.default": [(f(*A),), (f(*S),)],
    "topk.default": [(f(*A), 2, 1), (f(*S), 1, 0), (f(*S), 3), (f(*A), 2, -1)],
    "layer_norm.default": [(f(*A), [2], f(2), f(2)), (f(*S), [3, 3], f(3, 3)), (f(*S), [3])],
    "native_layer_norm.default": [
        (f(*A), [2], f(2), f(2), 1e-5),
        (f(*S), [3, 3], None, f(3, 3), 1e-5),
    ],
    "batch_norm.default": [
        *((*call, True) for flag in (True, False) for call in _norms(flag, 0.1, 1e-5)),
        (f(3, 3), f(3), f(3), None, None, True, 0.1, 1e-5, True),
        (f(3, 3, 3, 3), f(3), None, f(3), f(3).abs(), False, 0.1, 1e-5, True),
    ],
    "native_batch_norm.default": [*_norms(True, 0.1, 1e-5), *_norms(False, 0.1, 1e-5)],
    "_native_batch_norm_legit.default": [*_norms(True, 0.1, 1e-5), *_norms(False, 0.1, 1e-5)],
    "_batch_norm_with_update.default": _norms(0.1, 1e-5),
    "_native_batch_norm_legit.no_stats": [(f(3, 4, 2), f(4), f(4), True, 0.1, 1e-5)],
    "_native_batch_norm_legit_functional.default": [
        *_norms(True, 0.1, 1e-5),
        *_norms(False, 0.1, 1e-5),
    ],
    "_native_batch_norm_legit_no_training.default": [
        *_norms(0.1, 1e-5),
        (f(3, 3, 3), f(3), f(3), f(3), f(3).abs(), 0.1, 1e-5),
    ],
    "_batch_norm_with_update_functional.default": _norms(0.1, 1e-5),
    "_batch_norm_no_update.default": _norms(0.1, 1e-5),
    "instance_norm.default": [
        (f(3, 4, 5), f(4), f(4), None, None, True, 0.1, 1e-5, True),
        (f(3, 3, 3), None, None, None, None, True, 0.1, 1e-5, True),
        (f(3, 4, 5), f(4), f(4), f(4), f(4).abs(), False, 0.1, 1e-5, True),
        (f(3, 4, 5), f(4), f(4), f(4), f(4).abs(), True, 0.1, 1e-5, True),
    ],
    "group_norm.default": [
        (f(3, 4, 5), 2, f(4), f(4)),
        (f(2, 4, 2, 2), 4),
        (f(1, 6, 3), 3, f(6)),
        (f(3, 4), 2),
    ],
    "native_group_norm.default": [
        (f(3, 4, 5), f(4), f(4), 3, 4, 5, 2, 1e-5),
        (f(4, 2, 6), None, None, 2, 4, 6, 1, 1e-5),
    ],
    "rms_norm.default": [(f(*A), [2], f(2)), (f(*S), [3, 3], f(3, 3)), (f(*S), [3])],
    "_fused_rms_norm.default": [(f(*A), [2], f(2), 1e-5), (f(*S), [3, 3], f(3, 3), 1e-5)],
    "cdist.default": [(f(3, 2), f(3, 2)), (f(2, 3, 2), f(3, 2)), (f(3, 3, 3), f(1, 3, 3))],
    "_cdist_forward.default": [(f(2, 3, 2), f(2, 4, 2), 2.0, None)],
    "histc.default": [(f(3, 4),)],
    "bincount.default": [(i(4, 6),)],
    "pdist.default": [(f(3, 4),)],
    "_pdist_forward.default": [(f(3, 4),)],
    "adaptive_avg_pool1d.default": [(f(3, 2, 4), [2])],
    **{
        name: [(f(2, 3, 4, 4), [2, 2]), (f(3, 4, 4), [3, 1])]
        for name in ("adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default")
    },
    **{
        name: [(f(2, 2, 3, 3, 3), [2, 1, 2])]
        for name in ("adaptive_avg_pool3d.default", "_adaptive_avg_pool3d.default")
    },
    "adaptive_max_pool2d.default": [(f(2, 3, 4, 4), [2, 2]), (f(3, 4, 4), [2, 2])],
    "grid_sampler.default": [(f(2, 3, 4, 4), f(2, 3, 3, 2).tanh(), 0, 0, False)],
    "grid_sampler_2d.default": [(f(3, 3, 3, 3), f(3, 3, 3, 2).tanh(), 0, 1, True)],
    "grid_sampler_3d.default": [(f(2, 3, 3, 3, 3), f(2, 2, 2, 2, 3).tanh(), 0, 0, False)],
    "glu.default": [(f(3, 4, 2),), (f(4, 4), 0), (f(3, 4, 2), 1)],
    "_fft_r2c.default": [(f(*A), [1], 0, True), (f(*S), [0, 2], 0, False)],
    "_fft_c2c.default": [(f(*A).to(f().dtype.to_complex()), [1], 0, True)],
    "_fft_c2r.default": [(f(*A).to(f().dtype.to_complex()), [1], 0, 6)],
    "fft_rfft.default": [(f(*A),), (f(*A), 3, 1), (f(*S), 6, 0)],
    "renorm.default": [(f(*A), 2, 0, 1.0), (f(*S), 2, -1, 0.5)],
    "max_pool1d.default": [(f(3, 2, 4), [2]), (f(3, 4), [2], [1], [1])],
    "avg_pool1d.default": [(f(3, 2, 4), [2])],
    **{
        f"{name}.default": [(f(2, 3, 4, 4), [2, 2]), (f(3, 4, 4), [3, 3], [1, 1], [1, 1])]
        for name in ("max_pool2d", "max_pool2d_with_indices", "avg_pool2d")
    },
    **{
        f"{name}.default": [(f(2, 2, 3, 3, 3), [2, 2, 2], [1, 1, 1])]
        for name in ("max_pool3d", "max_pool3d_with_indices", "avg_pool3d")
    },
    "upsample_nearest1d.default": [(f(3, 2, 4), [7])],
    "upsample_nearest1d.vec": [(f(3, 2, 4), None, [2.0])],
    "upsample_linear1d.default": [(f(3, 2, 4), [7], False)],
    "upsample_linear1d.vec": [(f(3, 2, 4), [7], False, None)],
    "im2col.default": [
        (f(2, 2, 3, 3), [2, 2], [1, 1], [0, 0], [1, 1]),
        (f(2, 3, 3), [2, 2], [1, 1], [0, 0], [1, 1]),
    ],
    "col2im.default": [
        (f(2, 8, 4), [3, 3], [2, 2], [1, 1], [0, 0], [1, 1]),
        (f(8, 4), [3, 3], [2, 2], [1, 1], [0, 0], [1, 1]),
    ],
    **{
        f"{name}.default": [(f(2, 3, 3, 3), [5, 2])]
        for name in ("upsample_nearest2d", "_upsample_nearest_exact2d")
    },
    **{
        f"{name}.vec": [(f(2, 3, 3, 3), None, [2.0, 2.0])]
        for name in ("upsample_nearest2d", "_upsample_nearest_exact2d")
    },
    **{
        f"{name}.default": [(f(2, 3, 3, 3), [5, 2], False)]
        for name in (
            "upsample_bilinear2d",
            "upsample_bicubic2d",
            "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa",
        )
    },
    **{
        f"{name}.vec": [(f(2, 3, 3, 3), [5, 4], True, None)]
        for name in (
            "upsample_bilinear2d",
            "upsample_bicubic2d",
            "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa",
        )
    },
    "upsample_nearest3d.default": [(f(2, 2, 2, 2, 2), [3, 4, 2])],
    "upsample_nearest3d.vec": [(f(2, 2, 2, 2, 2), None, [2.0, 2.0, 2.0])],
    "upsample_trilinear3d.vec": [(f(2, 2, 2, 2, 2), [3, 4, 2], False, None)],
}
"""By operator, without the namespace."""

UNTRACED = () if torch.__version__ >= "2.13" else ("quantile.scalar",)
"""Operators whose shapes this version of torch computes from data only."""

SAMPLES = [
    Sample(f"aten.{name}", args)
    for name, calls in CALLS.items()
    for args in calls
    if name not in UNTRACED
]
SAMPLES += [
    *(
        Sample(f"aten.{name}.stable", (f(*A),), {"stable": True, "dim": 1})
        for name in ("sort", "argsort")
    ),
    *(Sample("aten.sort.stable", (f(*S),), {"stable": False, "dim": d}) for d in (0, -1)),
    *(
        Sample("aten.aminmax.default", (f(*S),), {"dim": 1, "keepdim": keep})
        for keep in (True, False)
    ),
    Sample("aten.norm.ScalarOpt_dim_dtype", (f(*A), 2, [1], False), {"dtype": f().dtype}),
    Sample("aten.bincount.default", (i(4, 6), f(6))),
    Sample("aten.any.dim", (b(*S), -1)),
]
