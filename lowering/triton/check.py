"""Whether kernels compute what they say on the device at hand: each against plain torch.

Compilers and devices differ; a wrong kernel is replaced by the reference it was compared with.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from planish.ir.activations import INT8
from planish.ir.quant import FP8
from planish.lowering.triton import layout, reference
from planish.lowering.triton.generators import Spec
from planish.lowering.triton.launch import run, run_rows
from planish.lowering.triton.layout import offset
from planish.lowering.triton.specs import Epilogue, RowWise, Scaled, WeightOnly

ROWS = 3
"""Of the random input: few, and no multiple of a tile."""

LIMIT = {"bfloat16": 2e-2, "float16": 4e-3, "float32": 1e-4}
"""The largest error, relative to the root mean square of the result. A wrong kernel errs by about
1; the reference itself rounds to the dtype after every operator, and scaled weights as well."""

FAST = 2e-2
"""The same for FP8, whose sums keep about 14 bits inside the tensor cores."""


class WrongKernel(UserWarning):
    """A kernel does not compute on this device what it should, and is not used."""


Wrong = Callable[[Spec, torch.device], str]
"""Why a kernel is wrong on a device; empty if it is right."""


def wrong(spec: Spec, device: torch.device) -> str:
    """Why a kernel is wrong on a device: its error, or that it fails; empty if it is right."""
    try:
        found, wanted = results(spec, device)
    except Exception as error:  # a compiler's and a driver's failures have no base in common
        return f"it fails: {type(error).__name__}: {error}".strip()[:300]
    worst = max(map(distance, found, wanted))
    floating = isinstance(spec, Scaled | RowWise) and spec.codes == "float8_e4m3fn"
    limit = max(LIMIT[spec.dtype], FAST if floating else 0.0)
    return "" if worst <= limit else f"its error is {worst:.2g}, and {limit:.2g} is allowed"


def distance(found: Tensor, wanted: Tensor) -> float:
    """The largest error relative to the root mean square; infinite for a NaN."""
    size = wanted.double().square().mean().sqrt().clamp_min(1e-30)
    worst = float((found.double() - wanted.double()).abs().max() / size)
    return float("inf") if math.isnan(worst) else worst


def results(spec: Spec, device: torch.device) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What a kernel gives for a random input, and what plain torch gives."""
    with torch.device(device):
        torch_state = torch.random.get_rng_state()
        torch.manual_seed(0)
        given = _operands(spec)
        torch.random.set_rng_state(torch_state)
    if isinstance(spec, RowWise):
        return _restored(spec, run_rows(spec, given)), _restored(
            spec, reference.row_wise(spec, given)
        )
    x = given.pop("x")
    plain = reference.scaled if isinstance(spec, Scaled) else reference.weight_only
    return (run(spec, x, given),), (plain(spec, x, given),)  # type: ignore[arg-type, operator]


def _restored(spec: RowWise, found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Codes times their scale: a last bit may round to the neighbouring code."""
    return found if spec.codes is None else (found[0].float() * found[1][:, None] / 16,)


def _operands(spec: Spec) -> dict[str, Tensor]:
    if isinstance(spec, RowWise):
        dtype, shape = getattr(torch, spec.dtype), (ROWS, spec.width)
        given = {"x": torch.randn(shape).to(dtype)}
        given |= {"up": torch.randn(shape).to(dtype)} if spec.activation else {}
        return given | ({"weight": torch.rand(spec.width).to(dtype)} if spec.weight else {})
    return {**_weight(spec), **_epilogue(spec.epilogue, spec.n, getattr(torch, spec.dtype))}


def _epilogue(epilogue: Epilogue, n: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        name: torch.randn((n,) if name == "bias" else (ROWS, n)).to(dtype)
        for name in epilogue.operands
    }


def _weight(spec: WeightOnly | Scaled) -> dict[str, Tensor]:
    if isinstance(spec, Scaled):
        kind = INT8 if spec.codes == "int8" else FP8
        scale = spec.k**-0.5 / 1600
        return {
            "x": torch.randn(ROWS, spec.k).mul(40).clamp(-127, 127).to(kind),
            "codes": torch.randn(spec.n, spec.k).mul(40).clamp(-127, 127).to(kind),
            "row_scales": torch.rand(ROWS) + 0.5,
            "scales": (torch.rand(spec.n) + 0.5) * scale,
        }
    scales = getattr(torch, spec.scale_dtype)
    codes = torch.randint(-offset(spec.bits), offset(spec.bits), (spec.n, spec.k))
    shape = (spec.groups, spec.n)
    found: dict[str, Any] = {
        "x": torch.randn(ROWS, spec.k).to(getattr(torch, spec.dtype)),
        "words": layout.pack(codes, spec),
        "scales": ((torch.rand(shape) + 0.5) * spec.k**-0.5 / offset(spec.bits)).to(scales),
    }
    if spec.zeros:
        found["zeros"] = torch.randint(0, 2 * offset(spec.bits), shape).to(scales)
    return found


def wrong_ones(
    specs: Iterable[Spec], device: torch.device, judge: Wrong = wrong
) -> frozenset[Spec]:
    """Those of several kernels that are wrong on a device, each told by a warning."""
    found = set()
    for spec in specs:
        if why := judge(spec, device):
            warnings.warn(
                f"the kernel {spec.name} is not used on {device}: {why}. Plain torch computes it "
                "instead, which is right and slow.",
                WrongKernel,
                stacklevel=2,
            )
            found.add(spec)
    return frozenset(found)
