"""Two linear layers, and the text of their program before and after their weights are packed."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from planish.ir.capture.export import from_module
from planish.ir.program import Program
from support.tensors import correlated

BEFORE = """\
program Pair for 1 <= B
  %x: f32[B, 64] = input
  %linear: f32[B, 32] = aten.linear(%x, @first.weight, @first.bias)
  %relu: f32[B, 32] = aten.relu(%linear)
  %linear_1: f32[B, 8] = aten.linear(%relu, @second.weight)
  return output=%linear_1
"""


class Pair(nn.Module):
    """One layer with a bias, and one without."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(64, width)
        self.second = nn.Linear(width, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Give [B, 8] for x [B, 64]."""
        result: Tensor = self.second(self.first(x).relu())
        return result


def calibrated_pair() -> Program:
    """A pair of seed 0, with 200 rows to learn from."""
    torch.manual_seed(0)
    made = from_module(Pair().eval(), {"x": correlated(3, 0)})
    return dataclasses.replace(made, calibration=({"x": correlated(200, 1)},))


def packed_text(bits: int) -> str:
    """The program with codes of so many bits in groups of 32."""
    return f"""\
program Pair for 1 <= B
  %x: f32[B, 64] = input
  %dequantize: f32[32, 64] = planish.dequantize(@first.weight_packed, @first.weight_scale, None, \
{bits}, 32, [32, 64], f32)
  %linear: f32[B, 32] = aten.linear(%x, %dequantize, @first.bias)
  %relu: f32[B, 32] = aten.relu(%linear)
  %dequantize_1: f32[8, 32] = planish.dequantize(@second.weight_packed, @second.weight_scale, \
None, {bits}, 32, [8, 32], f32)
  %linear_1: f32[B, 8] = aten.linear(%relu, %dequantize_1)
  return output=%linear_1
"""
