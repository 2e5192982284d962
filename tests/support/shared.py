"""A tiny model that reads one weight in two places, whose inputs differ much in size."""

import torch
from torch import Tensor, nn

from planish.ir.capture.export import from_module
from planish.ir.program import Program


class Shared(nn.Module):
    """One layer twice, and another behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(32, 32, bias=False), nn.Linear(32, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.layer(100 * torch.tanh(self.layer(x))))
        return y


def shared() -> Program:
    """It, captured; its sample has 64 rows."""
    torch.manual_seed(0)
    return from_module(Shared().eval(), {"x": torch.randn(64, 32)})
