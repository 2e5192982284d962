"""Which rows go to which expert: sorted by its number, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor


def routes(chosen: Tensor, experts: int) -> dict[str, Tensor]:
    """The rows of each expert, one expert after another.

    Args:
        chosen: the experts' numbers, integers of any shape with R elements. A row whose number is
            no expert's is in no group.
        experts: how many there are.

    Returns:
        `order` int64 [R]: the rows sorted by expert; `bounds` int32 [experts + 1]: where in it
        those of each expert begin, and those of the last end.
    """
    numbers, order = chosen.flatten().sort(stable=True)
    each = torch.arange(experts + 1, device=chosen.device, dtype=numbers.dtype)
    return {"order": order, "bounds": torch.searchsorted(numbers, each, out_int32=True)}


def tiles(rows: int, experts: int, tile: int) -> int:
    """How many tiles of one expert's rows there are at most."""
    return min(rows, experts) + rows // tile
