"""Rounding the values that flow: what a product of integers or of 8-bit floats reads.

A weight is rounded once and stored (`planish.ir.quant`). An activation is rounded in every run, to
a scale of its own (dynamic) or to one that calibration fixed (static). In a graph both are
`planish::fake_quantize`, which gives the rounded value in the dtype of what it read: what it
means can be run and compared anywhere, and a lowering that has a kernel for the product of two
rounded values takes codes and scales instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.library import Library

from planish.ir.quant import FP8

INT8 = torch.int8


@dataclass(frozen=True)
class ActivationScheme:
    """How an activation is rounded: value = code · scale.

    Attributes:
        dtype: of a code: `torch.int8` or `torch.float8_e4m3fn`.
        dynamic: whether the scale is that of the values at hand, not one that is stored.
        per_token: whether each row (everything but the last dimension) has a scale of its own.
    """

    dtype: torch.dtype = INT8
    dynamic: bool = True
    per_token: bool = True

    @staticmethod
    def read_by(node: fx.Node) -> ActivationScheme:
        """The scheme of a `fake_quantize` node."""
        _, scale, dtype, per_token = node.args
        return ActivationScheme(dtype, scale is None, bool(per_token))  # type: ignore[arg-type]

    def __str__(self) -> str:
        """The scheme in words: `int8, per token, dynamic`."""
        name = {INT8: "int8", FP8: "fp8 (E4M3)"}[self.dtype]
        extent = "per token" if self.per_token else "per tensor"
        return f"{name}, {extent}, {'dynamic' if self.dynamic else 'static'}"


def reach(dtype: torch.dtype) -> float:
    """The code that the largest magnitude becomes: 127 for int8, 448 for E4M3.

    127 as in vLLM's kernels. With 127.5, which compressed-tensors divides by, the largest number
    of every row would lie halfway between two codes, and kernels would differ by a step there.
    """
    return 127.0 if dtype == INT8 else float(torch.finfo(dtype).max)


def scales(x: Tensor, dtype: torch.dtype, *, per_token: bool) -> Tensor:
    """The dynamic scales of a value [..., K]: float32 [..., 1], or [] for one of the whole."""
    wide = x.float().abs()
    largest = wide.amax(-1, keepdim=True) if per_token or not x.numel() else wide.amax()
    scale = largest / reach(dtype)
    return scale.masked_fill(scale == 0, torch.finfo(torch.float32).eps)


def _fake_quantize(x: Tensor, scale: Tensor | None, dtype: torch.dtype, per_token: bool) -> Tensor:
    used = scales(x, dtype, per_token=per_token) if scale is None else scale.float()
    divided = x.float() / used
    if dtype == INT8:  # stays in floating point: integers have no NaN, which must not be lost
        rounded = divided.round().clamp(-128, 127)
    else:
        limit = torch.finfo(dtype).max
        rounded = divided.clamp(-limit, limit).to(dtype).float()
    return (rounded * used).to(x.dtype)


def _fake_quantize_fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_LIBRARY = Library("planish", "FRAGMENT")
_LIBRARY.define(
    "fake_quantize(Tensor x, Tensor? scale, ScalarType dtype, bool per_token) -> Tensor"
)
_LIBRARY.impl("fake_quantize", _fake_quantize, "CompositeExplicitAutograd")
torch.library.register_fake("planish::fake_quantize", _fake_quantize_fake, lib=_LIBRARY)

fake_quantize = torch.ops.planish.fake_quantize.default
"""`fake_quantize(x [..., K], scale?, dtype, per_token)`: x rounded to codes of `dtype` times a
scale, [] or what broadcasts to x, symmetric, computed in float32, in the dtype of x. Without a
scale, each row has that of its largest magnitude if `per_token`, else the whole tensor has one."""
