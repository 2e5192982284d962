"""How passes multiply matrices while they learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def quick_products() -> Iterator[None]:
    """Let float32 matrices be multiplied by the fastest kernels that the processor has.

    Torch then gives products on the CPU to oneDNN, which takes AVX-512 on processors of any maker,
    to the same precision. Where a processor multiplies bfloat16 (AVX-512 BF16, AMX), factors are
    rounded to it and sums stay float32: fit for activations that are learned from and for training,
    not for what has to be the same function. The setting is the process's, and is put back in the
    end.
    """
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def multiplies_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 faster than float32; False where torch can't tell.

    Others compute such products in float32, at the cost of conversions.
    """
    told: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(told.get(name)) for name in ("avx512_bf16", "amx_bf16"))
