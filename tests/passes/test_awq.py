"""AWQ: less error once rounded, no factors where none help, and what is told."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.ir.capture.export import from_module
from planish.ir.program import Program
from planish.passes.awq import Awq
from planish.passes.contract import NotApplicable
from planish.passes.pipeline import relative_error
from planish.passes.quantize_weights import QuantizeWeights

TEXT = """\
program Normed for 1 <= B
  %x: f32[B, 64] = input
  %layer_norm: f32[B, 64] = aten.layer_norm(%x, [64], @norm.weight, @norm.bias, 1e-05)
  %linear: f32[B, 96] = aten.linear(%layer_norm, @left.weight, @left.bias)
  %linear_1: f32[B, 96] = aten.linear(%layer_norm, @right.weight)
  %mul: f32[B, 96] = aten.mul.Tensor(%linear, %linear_1)
  %linear_2: f32[B, 32] = aten.linear(%mul, @last.weight, @last.bias)
  return output=%linear_2
"""


class Normed(nn.Module):
    """Two layers behind a norm with a few large channels, and one behind their product."""

    def __init__(self, loud: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.norm.weight.data[::16] *= loud
        self.left, self.right = nn.Linear(64, 96), nn.Linear(64, 96, bias=False)
        self.last = nn.Linear(96, 32)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        y: Tensor = self.last(self.left(normed) * self.right(normed))
        return y


def normed(loud: float = 20.0) -> Program:
    torch.manual_seed(0)
    made = from_module(Normed(loud).eval(), {"x": torch.randn(5, 64)})
    return dataclasses.replace(made, calibration=({"x": torch.randn(300, 64)},) * 2)


def awq(**options: Any) -> Awq:
    return Awq(**{"bits": 4, "group_size": 32, **options})


def rounded_error(scaled: Program, program: Program, symmetric: bool) -> float:
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(7))
    rounded = QuantizeWeights(bits=4, group_size=32, symmetric=symmetric)(scaled)
    return relative_error(rounded.run(x=x)["output"], program.run(x=x)["output"])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("duo", [True, False])
def test_rounding_loses_less_afterwards(symmetric: bool, duo: bool) -> None:
    program = normed()
    scaled = awq(symmetric=symmetric, duo_scaling=duo)(program)
    assert program.text() == scaled.text() == TEXT
    x = program.calibration[0]["x"]
    assert relative_error(scaled.run(x=x)["output"], program.run(x=x)["output"]) < 1e-6
    lost = rounded_error(scaled, program, symmetric)
    assert lost < 0.85 * rounded_error(program, program, symmetric)


def test_what_changed_is_told() -> None:
    first, second = awq()(normed()).changes
    assert (first.node, second.node) == ("linear", "linear_2")
    assert first.what.startswith("left.weight, right.weight: |x|^")
    share = float(first.what.split("error of its output ")[1].split(" of what")[0])
    assert 0 < share < 0.8


def test_where_no_factors_help_nothing_is_scaled() -> None:
    """Weights that are codes already are rounded without any error, by no other factors."""
    program = normed()
    tensors = dict(program.tensors)
    for name in ("left.weight", "right.weight", "last.weight"):
        codes = torch.randint(-7, 8, tensors[name].shape)
        codes[:, ::32] = -8
        tensors[name] = codes * 0.125
    exact = dataclasses.replace(program, tensors=tensors)
    scaled = awq()(exact)
    assert [one.what.partition(": ")[2] for one in scaled.changes] == [
        "no factors lower the error of its output"
    ] * 2
    assert all(torch.equal(scaled.tensors[name], tensors[name]) for name in tensors)


def test_channels_that_are_always_zero_take_no_factor() -> None:
    program = normed()
    tensors = dict(program.tensors)
    tensors["norm.weight"] = tensors["norm.weight"].clone()
    tensors["norm.weight"][3] = 0
    tensors["left.weight"] = tensors["left.weight"].clone()
    tensors["left.weight"][:, 5] = 0
    scaled = awq()(dataclasses.replace(program, tensors=tensors))
    assert all(bool(tensor.isfinite().all()) for tensor in scaled.tensors.values())
    assert scaled.tensors["norm.weight"][3] == 0


def why_not(program: Program, **options: Any) -> str:
    with pytest.raises(NotApplicable) as raised:
        awq(**options)(program)
    return str(raised.value)


def test_refusals() -> None:
    program = normed()
    assert why_not(program, group_size=128).startswith(
        "awq: a group size of 128 does not divide the input features of left, right, last (64, 96)"
    )
    assert "'lost' matches none" in why_not(program, targets=("lost",))
    bare = dataclasses.replace(program, samples=(), calibration=())
    assert why_not(bare) == (
        "awq: there are no calibration samples; pass --samples FILE or samples=."
    )
    packed = QuantizeWeights(bits=4, group_size=32)(program)
    assert "not quantized yet; scale before quantizing" in why_not(packed)
