"""Whether tensors hold numbers, a piece at a time: a mask of a large table is large, too."""

from __future__ import annotations

import torch
from torch import Tensor

_AT_ONCE = 1 << 22


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    return not not_finite(tensor)


def not_finite(tensor: Tensor) -> int:
    """How many entries are NaN or infinite."""
    pieces = tensor.flatten().split(_AT_ONCE)
    return sum(int((~torch.isfinite(piece)).sum()) for piece in pieces)
