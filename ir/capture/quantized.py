"""PyTorch's reference operators of quantization in terms of ATen, which programs consist of.

`torch.ao` and `torchao` export quantized models with `quantized_decomposed` operators. What each
computes is in `torch/ao/quantization/fx/_decomposed.py`; here the scale may have any shape, so
that a pass can give each row its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx


def decompositions(graph: fx.Graph) -> dict[Any, Callable[..., Any]]:
    """The rules for the quantization operators that a graph calls."""
    targets = {node.target for node in graph.nodes if node.op == "call_function"}
    return {target: _RULES[str(target)] for target in targets if str(target) in _RULES}


def _range(value: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest number, 0 included."""
    return value.amin().clamp_max(0), value.amax().clamp_min(0)


def _choose_asymmetric(
    value: Tensor,
    low: int,
    high: int,
    eps: float,
    dtype: torch.dtype,  # noqa: ARG001  (of the codes; the range says it all)
) -> tuple[Tensor, Tensor]:
    least, most = _range(value)
    scale = ((most - least) / float(high - low)).clamp_min(eps)
    zero = (low - torch.round(least / scale).to(torch.int32)).clamp(low, high)
    return scale.to(torch.float64), zero.to(torch.int64)


def _choose_symmetric(
    value: Tensor, low: int, high: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    least, most = _range(value)
    largest = torch.maximum(-least, most)
    scale = (largest / (float(high - low) / 2)).clamp_min(eps)
    middle = 128 if dtype == torch.uint8 else 0
    return scale.to(torch.float64), torch.full_like(scale, middle, dtype=torch.int64)


def _quantize(
    value: Tensor, scale: Tensor, zero: Tensor, low: int, high: int, dtype: torch.dtype
) -> Tensor:
    # Of a tensor without dimensions the dtype does not count, of one with a row each it would.
    inverse = (1.0 / scale).to(torch.float32)
    codes = torch.round(value.to(torch.float32) * inverse) + zero
    return codes.clamp(low, high).to(dtype)


def _dequantize(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    low: int,  # noqa: ARG001  (for whoever looks for patterns)
    high: int,  # noqa: ARG001
    dtype: torch.dtype,  # noqa: ARG001
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    wide = out_dtype or torch.float32
    return (codes.to(wide) - zero) * scale.to(wide)


_RULES: dict[str, Callable[..., Any]] = {
    "quantized_decomposed.choose_qparams.tensor": _choose_asymmetric,
    "quantized_decomposed.choose_qparams_symmetric.tensor": _choose_symmetric,
    "quantized_decomposed.quantize_per_tensor.tensor": _quantize,
    "quantized_decomposed.dequantize_per_tensor.tensor": _dequantize,
}
"""By the operator's name."""
