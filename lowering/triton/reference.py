"""What each kernel computes, in plain torch: to check kernels with, and to run where none can."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from planish.ir.ops import ACTIVATIONS
from planish.lowering.triton.layout import dense
from planish.lowering.triton.specs import Epilogue, WeightOnly


def finish(given: Epilogue, y: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """An epilogue after its bias, one operator after another, each rounding to y's dtype."""
    if given.activation:
        y = ACTIVATIONS[given.activation](y)
    if given.multiply:
        y = y * tensors["multiply"]
    return y + tensors["residual"] if given.residual else y


def weight_only(spec: WeightOnly, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Give y [M, N]: the weight in floating point, then ordinary operators."""
    weight = dense(dict(tensors), spec).to(x.dtype)
    return finish(spec.epilogue, functional.linear(x, weight, tensors.get("bias")), tensors)
