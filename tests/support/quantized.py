"""Random quantized weights, to multiply with."""

import torch
from torch import Tensor

from planish.ir.quant import QuantizedTensor, QuantScheme
from planish.lowering.triton.plans import Product
from planish.lowering.triton.specs import GroupScaled, WeightOnly


def random_weight(spec: WeightOnly | GroupScaled, seed: int = 0) -> QuantizedTensor:
    """Codes, scales and zero points over their whole range, as a specification says."""
    draw = torch.Generator().manual_seed(seed)
    group = None if spec.group == spec.k else spec.group
    scheme = QuantScheme(
        4 if isinstance(spec, GroupScaled) else spec.bits, group, symmetric=not spec.zeros
    )
    low, above = int(scheme.low), int(scheme.high) + 1

    def whole(*shape: int) -> Tensor:
        return torch.randint(low, above, shape, generator=draw, dtype=torch.int8)

    shape = (spec.n, scheme.groups(spec.k))
    scale = torch.rand(shape, generator=draw) + 0.25
    scale[::5] *= -1  # signs are theirs to choose
    scale[1::7] = 0
    return QuantizedTensor.from_codes(
        scheme,
        getattr(torch, spec.dtype),
        whole(spec.n, spec.k),
        scale.to(getattr(torch, spec.scale_dtype)),
        whole(*shape) if spec.zeros else None,
    )


def random_operands(spec: Product, rows: int, seed: int = 0) -> dict[str, Tensor]:
    """X, and what the epilogue reads, by name."""
    draw = torch.Generator().manual_seed(seed + 1)
    dtype = getattr(torch, spec.dtype)
    shapes = {"x": (rows, spec.k), "bias": (spec.n,)}
    shapes |= dict.fromkeys(("multiply", "residual"), (rows, spec.n))
    taken = ("x", *spec.epilogue.operands)
    return {name: torch.randn(shapes[name], generator=draw).to(dtype) for name in taken}


def exactly(weight: QuantizedTensor) -> Tensor:
    """A weight [N, K] in float64, without rounding (code - zero point) · scale."""
    codes = weight.codes.double().unflatten(1, (weight.scale.shape[1], -1))
    zeros = weight.zeros
    if zeros is not None:
        codes = codes - zeros.double()[:, :, None]
    exact: Tensor = (codes * weight.scale.double()[:, :, None]).flatten(1)
    return exact


def distance(found: Tensor, wanted: Tensor) -> float:
    """The largest error beyond a rounding to the dtype of what was found, relative.

    Args:
        found: in some dtype.
        wanted: in float64.

    Returns:
        A fraction of the root mean square of what is wanted.
    """
    size = wanted.square().mean().sqrt().clamp_min(1e-30)
    rounding = torch.finfo(found.dtype).eps / 2 * wanted.abs()
    return float((((found.double() - wanted).abs() - rounding) / size).max())
