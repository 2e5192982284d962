"""Small random tensors, each call another, the same in every run."""

from __future__ import annotations

import torch
from torch import Tensor

from support.refute import Stored

_CHANCE = torch.Generator().manual_seed(0)


def f(*shape: int) -> Tensor:
    """Floating-point numbers around 0."""
    return torch.randn(shape, generator=_CHANCE)


def i(high: int, *shape: int) -> Tensor:
    """Integers from 0 up to `high`, without it."""
    return torch.randint(high, shape, generator=_CHANCE)


def b(*shape: int) -> Tensor:
    """Truth values."""
    return torch.rand(shape, generator=_CHANCE) > 0.5


def k(*values: object) -> Stored:
    """A stored index of these numbers."""
    return Stored(torch.tensor(values))


def count(size: int, *shape: int) -> Stored:
    """A stored `arange`, perhaps of another shape."""
    return Stored(torch.arange(size).reshape(shape or (size,)))


def correlated(rows: int, seed: int) -> Tensor:
    """Inputs [rows, 64] whose coordinates depend on each other, as those of real layers do."""
    mix = torch.randn(64, 64, generator=torch.Generator().manual_seed(9)) * torch.logspace(
        0, -2, 64
    )
    return torch.randn(rows, 64, generator=torch.Generator().manual_seed(seed)) @ mix.T
