"""A residual stream of one layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Stream(nn.Module):
    """A residual stream whose table is tied to what reads it last."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(tokens, 12), nn.RMSNorm(12, eps=1e-6)
        self.up, self.down = nn.Linear(12, 8, bias=False), nn.Linear(8, 12, bias=False)
        nn.init.uniform_(self.norm.weight, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Give logits [B, T, tokens] for tokens [B, T]."""
        stream = self.table(x)
        stream = stream + self.down(torch.relu(self.up(self.norm(stream))))
        y: Tensor = nn.functional.linear(stream, self.table.weight)
        return y
