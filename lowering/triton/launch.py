"""Running a kernel on tensors: allocation, grid, and what the interpreter needs besides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from planish.lowering.triton.build import function_of, interpreted, source_of
from planish.lowering.triton.compiled import OPTIONS
from planish.lowering.triton.generators import Spec, warps_and_stages
from planish.lowering.triton.routed_specs import Alone, Routed
from planish.lowering.triton.routes import routes, tiles
from planish.lowering.triton.row_specs import RowWise

_SCRATCH: dict[tuple[Any, ...], Tensor] = {}
"""Counters by device, stream and tile count: zero between launches, so that none is cleared."""


def run(spec: Alone, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Evaluate a product's kernel.

    Args:
        spec: of the kernel.
        x: [M, K]: of the specification's dtype, or its codes.
        tensors: the others that the kernel reads, by name: the stored weight's, the epilogue's,
            and for codes `row_scales` float32 [M].

    Returns:
        y [M, N].
    """
    x = aligned(x)
    given = {"x": x, **{name: aligned(each) for name, each in tensors.items()}}
    y = x.new_empty((x.shape[0], spec.n), dtype=getattr(torch, spec.dtype))
    if not y.numel():
        return y
    _multiply(spec, given, y, -(-x.shape[0] // spec.tiling.rows))
    return y


def run_routed(spec: Routed, x: Tensor, chosen: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Evaluate the kernel of a product whose rows each choose their weight.

    Args:
        spec: of the kernel.
        x: [M, K], or [M, C, K] if it is not shared; of the specification's dtype, or its codes.
        chosen: the experts' numbers, integers [M, C].
        tensors: the others that the kernel reads; see `run`.

    Returns:
        y [M, C, N], 0 in rows whose number is no expert's.
    """
    x = aligned(x)
    given = {"x": x, **{name: aligned(each) for name, each in tensors.items()}}
    y = x.new_zeros((*chosen.shape, spec.n), dtype=getattr(torch, spec.dtype))
    if not y.numel():
        return y
    given |= routes(chosen, spec.experts)
    _multiply(spec, given, y, tiles(chosen.numel(), spec.experts, spec.tiling.rows))
    return y


def _multiply(spec: Alone | Routed, given: dict[str, Tensor], y: Tensor, down: int) -> None:
    """Start a product's kernel, with so many tiles of rows."""
    tiling, rows = spec.tiling, y.numel() // spec.n
    across, parts = -(-spec.n // tiling.columns), tiling.slices if tiling.parallel else 1
    if tiling.parallel:
        given["partial"] = y.new_empty((parts, *y.shape), dtype=torch.float32)
        given["arrived"] = _counters(y.device, across * down)
    launch(spec, (across, down, parts), {**given, "y": y}, rows)


def run_rows(spec: RowWise, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Evaluate a row-wise kernel.

    Args:
        spec: of the kernel.
        tensors: `x` [M, K] and maybe `up` and `weight`.

    Returns:
        y [M, K]; or its codes, and scales float32 [M].
    """
    given = {name: aligned(each) for name, each in tensors.items()}
    x = given["x"]
    made = {"y": torch.empty_like(x, dtype=getattr(torch, spec.codes or spec.dtype))}
    if spec.codes:
        made["row_scales"] = x.new_empty(x.shape[0], dtype=torch.float32)
    if x.shape[0]:
        launch(spec, (x.shape[0],), {**given, **made}, x.shape[0])
    return tuple(made.values())


def launch(spec: Spec, grid: tuple[int, ...], tensors: dict[str, Tensor], rows: int) -> None:
    """Start a kernel; what it writes is written into the tensors given.

    In the interpreter 16-bit floats are widened before and narrowed after: its arithmetic on
    bfloat16 is wrong, being numpy's on the bits.
    """
    used = {name: tensors[name] for name in source_of(spec).tensors}
    function = function_of(spec)
    if not interpreted():
        options = {**warps_and_stages(spec), **OPTIONS}
        function[grid](*used.values(), rows, PLAIN=False, **options)
        return
    wide = {name: _widened(tensor) for name, tensor in used.items()}
    function[grid](*wide.values(), rows, PLAIN=True)
    for name, tensor in used.items():
        if wide[name] is not tensor:
            tensor.copy_(wide[name])


def aligned(tensor: Tensor) -> Tensor:
    """A tensor without gaps that starts at a multiple of 16 bytes, copied if it has to be.

    Kernels read 16 bytes at a time; Triton would compile a slow variant for a crooked start.
    """
    whole = tensor.contiguous()
    return whole.clone() if whole.data_ptr() % 16 else whole


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in {torch.bfloat16, torch.float16} else tensor


def _counters(device: torch.device, count: int) -> Tensor:
    """Zeros that concurrent launches on another stream do not use."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key = (device, stream, count)
    if key not in _SCRATCH:
        _SCRATCH[key] = torch.zeros(count, dtype=torch.int32, device=device)
    return _SCRATCH[key]
