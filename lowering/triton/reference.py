"""What each kernel computes, in plain torch: to check kernels with, and to run where none can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from planish.ir import ops
from planish.ir.activations import INT8, scales
from planish.ir.ops import ACTIVATIONS
from planish.ir.quant import FP8
from planish.lowering.triton.fields import Epilogue
from planish.lowering.triton.float_specs import Floating
from planish.lowering.triton.layout import dense, unpack_nibbles
from planish.lowering.triton.routed_specs import Alone, Routed
from planish.lowering.triton.row_specs import RowWise
from planish.lowering.triton.specs import CodesProduct, GroupScaled, Scaled, WeightOnly


def finish(given: Epilogue, y: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """An epilogue after its bias, one operator after another, each rounding to y's dtype."""
    if given.activation:
        y = ACTIVATIONS[given.activation](y)
    if given.multiply:
        y = y * tensors["multiply"]
    return y + tensors["residual"] if given.residual else y


def product(
    spec: WeightOnly | Floating, x: Tensor, weight: Tensor, tensors: Mapping[str, Tensor]
) -> Tensor:
    """Give y [M, N] of a weight in floating point, by ordinary operators."""
    return finish(spec.epilogue, functional.linear(x, weight, tensors.get("bias")), tensors)


def weight_only(spec: WeightOnly, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Give y [M, N]: the packed weight in floating point, then ordinary operators."""
    return product(spec, x, dense(dict(tensors), spec).to(x.dtype), tensors)


def scaled(spec: Scaled, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Give y [M, N]: codes as float64, in which their sums are exact, then the scales."""
    sums = functional.linear(x.double(), tensors["codes"].double()).float()
    return _finished(spec, sums * tensors["scales"] * tensors["row_scales"][:, None], tensors)


def _finished(spec: CodesProduct, y: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """A float32 product after its epilogue."""
    if spec.epilogue.bias:
        y = y + tensors["bias"].float()
    return finish(spec.epilogue, y.to(getattr(torch, spec.dtype)), tensors)


def group_scaled(spec: GroupScaled, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Give y [M, N]: codes times their scales as float64, then the scales of rows."""
    codes = unpack_nibbles(tensors["nibbles"], spec).double().unflatten(1, (-1, spec.group))
    scales = tensors["scales"][: codes.shape[1]].mT.double()
    weight = (codes * scales[:, :, None]).flatten(1)
    y = functional.linear(x.double(), weight).float() * tensors["row_scales"][:, None]
    return _finished(spec, y, tensors)


def of_codes(spec: CodesProduct, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Give y [M, N] of codes x [M, K]."""
    if isinstance(spec, Scaled):
        return scaled(spec, x, tensors)
    return group_scaled(spec, x, tensors)


def alone(spec: Alone, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Give y [M, N] of a product with a single weight."""
    if isinstance(spec, WeightOnly):
        return weight_only(spec, x, tensors)
    if isinstance(spec, Floating):
        return product(spec, x, tensors["weight"], tensors)
    return of_codes(spec, x, tensors)


def routed(spec: Routed, x: Tensor, chosen: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Give y [M, C, N], 0 where a number is no expert's.

    Each expert that was chosen works on all rows, of which its own are kept. With its own alone
    their last bits would tell how many there were, which other requests decide.
    """
    bare = replace(spec.product, epilogue=Epilogue(bias=spec.epilogue.bias))
    rows, of_experts = x.reshape(-1, spec.k), {*spec.stored, "bias"} & tensors.keys()
    y = x.new_zeros((*chosen.shape, spec.n), dtype=getattr(torch, spec.dtype))
    for expert in range(spec.experts):
        hits = (chosen == expert)[..., None]
        if hits.any():
            given = {**tensors, **{name: tensors[name][expert] for name in of_experts}}
            made = alone(bare, rows, given).reshape(*x.shape[:-1], spec.n)
            y = torch.where(hits, made[:, None] if spec.shared else made, y)
    finished = finish(spec.epilogue, y.flatten(0, 1), tensors).reshape(y.shape)
    return torch.where(((chosen >= 0) & (chosen < spec.experts))[..., None], finished, 0.0)


def row_wise(spec: RowWise, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Give y [M, K]; or its codes, and scales float32 [M]."""
    y = tensors["x"]
    if spec.norm == "layer":
        affine = tensors.get("weight"), tensors.get("bias")
        y = functional.layer_norm(y, (spec.width,), *affine, spec.eps)
    if spec.norm == "rms":
        y = ops.rms_norm(y, tensors.get("weight"), spec.eps)
    if spec.activation:
        y = ops.gated(y, tensors["up"], spec.activation)
    return (y,) if spec.codes is None else codes_of(y, INT8 if spec.codes == "int8" else FP8)


def codes_of(y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The codes of rows, and their scales: NaN for a row that is not finite, with codes 0."""
    scale = scales(y, dtype, per_token=True)
    odd = ~torch.isfinite(scale)
    limit = 127.0 if dtype == INT8 else torch.finfo(dtype).max
    divided = torch.where(odd, 0.0, y.float() / scale).clamp(-limit, limit)
    codes = divided.round() if dtype == INT8 else divided
    return codes.to(dtype), scale.masked_fill(odd, torch.nan).squeeze(-1)
