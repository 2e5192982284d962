"""Rotation: what is multiplied, what grows, and what is named where nothing rotates."""

import pytest
import torch
from torch import nn

from planish.ir.capture.export import from_module
from planish.ir.program import Program
from planish.passes import name_of
from planish.passes.contract import NotApplicable
from planish.passes.hadamard import paley, random_orthogonal, randomized_hadamard
from planish.passes.pipeline import apply
from planish.passes.rotate import Rotate
from support.captured import captured
from support.stream import Stream

BEFORE = """\
program Stream for 1 <= B
  %x: i64[B, 5] = input
  %embedding: f32[B, 5, 12] = aten.embedding(@table.weight, %x)
  %rms_norm_1: f32[B, 5, 12] = planish.rms_norm(%embedding, @norm.weight, 1e-06)
  %linear: f32[B, 5, 8] = aten.linear(%rms_norm_1, @up.weight)
  %relu: f32[B, 5, 8] = aten.relu(%linear)
  %linear_1: f32[B, 5, 12] = aten.linear(%relu, @down.weight)
  %add: f32[B, 5, 12] = aten.add.Tensor(%embedding, %linear_1)
  %linear_2: f32[B, 5, 7] = aten.linear(%add, @table.weight)
  return output=%linear_2
"""

AFTER = """\
program Stream for 1 <= B
  %x: i64[B, 5] = input
  %embedding: f32[B, 5, 12] = aten.embedding(@table.weight, %x)
  %rms_norm_1: f32[B, 5, 12] = planish.rms_norm(%embedding, None, 1e-06)
  %linear: f32[B, 5, 8] = aten.linear(%rms_norm_1, @up.weight)
  %relu: f32[B, 5, 8] = aten.relu(%linear)
  %linear_1: f32[B, 5, 12] = aten.linear(%relu, @down.weight)
  %add: f32[B, 5, 12] = aten.add.Tensor(%embedding, %linear_1)
  %linear_2: f32[B, 5, 7] = aten.linear(%add, @table.weight.of.linear_2)
  return output=%linear_2
"""


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    return from_module(Stream(7).eval(), {"x": torch.randint(0, 7, (3, 5))})


def test_the_stream_is_multiplied_by_one_matrix(program: Program) -> None:
    after, (step,) = apply(program, [Rotate(seed=5)], names=name_of)
    assert program.text() == BEFORE
    assert after.text() == AFTER
    assert step.error is not None
    assert step.error < 1e-6
    matrix = randomized_hadamard(12, torch.Generator().manual_seed(5)).float()
    folded = program.tensors["up.weight"] * program.tensors["norm.weight"]
    torch.testing.assert_close(after.tensors["up.weight"], folded @ matrix.T)
    torch.testing.assert_close(
        after.tensors["down.weight"], matrix @ program.tensors["down.weight"]
    )
    for name in ("table.weight", "table.weight.of.linear_2"):
        torch.testing.assert_close(after.tensors[name], program.tensors["table.weight"] @ matrix.T)


def test_what_changed_is_told_with_what_it_costs(program: Program) -> None:
    after = Rotate()(program)
    assert [one.what for one in after.changes] == [
        "weight norm_weight folded into its readers",
        "hadamard of 12: table.weight[1] and 3 more",
        "table.weight.of.linear_2: stored besides, 288 bytes more",
    ]
    assert after.nbytes - program.nbytes == 288
    assert [one.node for one in after.changes[1:]] == ["table_weight", "table_weight_of_linear_2"]


def test_other_seeds_and_matrices_are_other_rotations(program: Program) -> None:
    made = [Rotate(), Rotate(seed=1), Rotate(matrix="orthogonal")]
    weights = [one(program).tensors["up.weight"] for one in made]
    assert not any(
        torch.allclose(weights[n], weights[m], atol=1e-2) for n, m in ((0, 1), (0, 2), (1, 2))
    )


def test_a_stream_that_does_not_rotate_is_not_untied() -> None:
    """Heads of attention rotate; norms write to the stream, so it and its tied table stay."""
    program = captured("gemma2", 1)[1]
    after, _ = apply(program, [Rotate()], names=name_of)
    assert after.tensors.keys() == program.tensors.keys()
    assert after.text() == program.text()
    (change,) = after.changes
    assert change.what.startswith("hadamard of 32: model.layers.0.self_attn.v_proj.weight[0]")


def test_it_refuses_what_does_not_rotate_and_names_what_forbids_it() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8))
    program = from_module(model.eval(), {"input": torch.randn(2, 4)})
    with pytest.raises(NotApplicable) as raised:
        Rotate()(program)
    said = str(raised.value)
    assert said.startswith("rotate: no axis of Sequential rotates. The one that occurs most often")
    assert "of size 8 in 0.weight and 4 other places" in said
    assert "other places, cannot: layer norm at aten.layer_norm.default %layer_norm" in said


@pytest.mark.parametrize("size", [1, 2, 4, 8, 12, 20, 36, 64, 172, 576, 1536])
def test_hadamard_matrices_are_orthogonal_and_flat_where_there_are_some(size: int) -> None:
    matrix = randomized_hadamard(size, torch.Generator().manual_seed(1))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
    if size != 172:  # four times 43: none of Paley's, so its blocks of 43 are random
        torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, size**-0.5))


def test_odd_sizes_get_a_random_orthogonal_matrix() -> None:
    matrix = randomized_hadamard(9, torch.Generator().manual_seed(1))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(9, dtype=torch.float64))
    assert not torch.equal(matrix, random_orthogonal(9, torch.Generator().manual_seed(2)))


def test_paley() -> None:
    known = [order for order in range(1, 62) if paley(order) is not None]
    assert known == [1, 4, 8, 12, 20, 24, 28, 32, 36, 44, 48, 60]
