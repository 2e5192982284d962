"""Layers as products of two narrow ones: graph, numbers, ranks, refusals."""

import dataclasses

import pytest
import torch

from planish.ir.isolation.programs import analyse_program
from planish.ir.program import Program
from planish.passes import name_of
from planish.passes.contract import NotApplicable
from planish.passes.low_rank import LowRank
from planish.passes.pipeline import apply, relative_error
from support.pair import BEFORE, calibrated_pair

AFTER = """\
program Pair for 1 <= B
  %x: f32[B, 64] = input
  %linear_2: f32[B, 16] = aten.linear(%x, @first.weight_right)
  %linear_3: f32[B, 32] = aten.linear(%linear_2, @first.weight_left, @first.bias)
  %relu: f32[B, 32] = aten.relu(%linear_3)
  %linear_1: f32[B, 8] = aten.linear(%relu, @second.weight)
  return output=%linear_1
"""


@pytest.fixture
def program() -> Program:
    return calibrated_pair()


def test_a_layer_becomes_two_narrow_ones(program: Program) -> None:
    after, (step,) = apply(program, [LowRank(ratio=0.8, targets=("first",))], names=name_of)
    assert str(program) == BEFORE
    assert str(after) == AFTER
    (change,) = step.changes
    assert change.what.startswith("first.weight: rank 16 of 32; relative error 0.")
    removed = program.parameters - after.parameters
    assert removed == 32 * 64 - 16 * (32 + 64)
    assert analyse_program(after).verdict == "isolated"


def test_the_inputs_tell_which_directions_count(program: Program) -> None:
    """What they read lies in few directions, so few are enough."""
    sample = program.calibration[0]
    exact = program.run(**sample)["output"]
    errors = {}
    for how in ("inputs", "none"):
        low = LowRank(ratio=0.4, targets=("first",), calibration=how)(program)
        errors[how] = relative_error(low.run(**sample)["output"], exact)
    assert errors["inputs"] < 0.75 * errors["none"]


def test_a_weight_of_that_rank_stays_the_same(program: Program) -> None:
    low = torch.randn(32, 8) @ torch.randn(8, 64)
    tensors = {**program.tensors, "first.weight": low}
    thin = dataclasses.replace(program, tensors=tensors)
    after = LowRank(ratio=0.4, targets=("first",))(thin)
    sample = program.samples[0]
    assert relative_error(after.run(**sample)["output"], thin.run(**sample)["output"]) < 1e-5


def test_refusals(program: Program) -> None:
    with pytest.raises(NotApplicable, match=r"^low_rank: 0.1 of second.weight, 8 x 32, allows no"):
        LowRank(ratio=0.1, targets=("second",))(program)
    bare = dataclasses.replace(program, samples=(), calibration=())
    with pytest.raises(NotApplicable, match=r"^low_rank: there are no calibration samples"):
        LowRank(targets=("first",))(bare)
    assert LowRank(targets=("first",), calibration="none")(bare).changes
    with pytest.raises(NotApplicable, match=r"^low_rank: .*frist"):
        LowRank(targets=("frist",))(program)


def test_singular_moments_are_told(program: Program) -> None:
    wrong = {"x": torch.full((200, 64), torch.inf)}
    after = LowRank(targets=("first",))(dataclasses.replace(program, calibration=(wrong,)))
    assert "singular: not calibrated" in after.changes[0].what
