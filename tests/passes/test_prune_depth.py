"""Which layers go: by influence, by loss, evenly; and what is refused."""

import dataclasses
from pathlib import Path

import pydantic
import pytest
import torch
from torch import Tensor, nn

from planish.ir.capture.export import from_module
from planish.ir.program import Program
from planish.passes import name_of
from planish.passes.blocks import find_blocks
from planish.passes.contract import NotApplicable
from planish.passes.depth import without
from planish.passes.pipeline import apply
from planish.passes.prune_depth import PruneDepth
from planish.passes.skipping import Losses, next_token_loss
from planish.passes.work import Journal, Work
from support.captured import captured

BEFORE = """\
program Stream for 1 <= B
  %x: f32[B, 5, 12] = input
  %linear: f32[B, 5, 12] = aten.linear(%x, @blocks.0.0.weight)
  %relu: f32[B, 5, 12] = aten.relu(%linear)
  %add: f32[B, 5, 12] = aten.add.Tensor(%x, %relu)
  %linear_1: f32[B, 5, 12] = aten.linear(%add, @blocks.1.0.weight)
  %relu_1: f32[B, 5, 12] = aten.relu(%linear_1)
  %add_1: f32[B, 5, 12] = aten.add.Tensor(%add, %relu_1)
  %linear_2: f32[B, 5, 12] = aten.linear(%add_1, @blocks.2.0.weight)
  %relu_2: f32[B, 5, 12] = aten.relu(%linear_2)
  %add_2: f32[B, 5, 12] = aten.add.Tensor(%add_1, %relu_2)
  return output=%add_2
"""

AFTER = """\
program Stream for 1 <= B
  %x: f32[B, 5, 12] = input
  %linear: f32[B, 5, 12] = aten.linear(%x, @blocks.0.0.weight)
  %relu: f32[B, 5, 12] = aten.relu(%linear)
  %add: f32[B, 5, 12] = aten.add.Tensor(%x, %relu)
  %linear_2: f32[B, 5, 12] = aten.linear(%add, @blocks.2.0.weight)
  %relu_2: f32[B, 5, 12] = aten.relu(%linear_2)
  %add_2: f32[B, 5, 12] = aten.add.Tensor(%add, %relu_2)
  return output=%add_2
"""


class Stream(nn.Module):
    """Residual blocks of which each adds a given share of what it could."""

    def __init__(self, *shares: float) -> None:
        super().__init__()
        parts = [nn.Sequential(nn.Linear(12, 12, bias=False), nn.ReLU()) for _ in shares]
        self.blocks = nn.ModuleList(parts)
        for part, share in zip(parts, shares, strict=True):
            part[0].weight.data.mul_(share)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def made(*shares: float) -> Program:
    torch.manual_seed(0)
    return from_module(Stream(*shares).eval(), {"x": torch.randn(4, 5, 12)})


def left(program: Program) -> list[int]:
    return [int(name.split(".")[1]) for name in program.tensors]


def test_a_block_goes_and_the_stream_goes_on() -> None:
    program = made(1, 1, 1)
    after, (step,) = apply(program, [PruneDepth(layers=1, choose="even")], names=name_of)
    assert program.text() == BEFORE
    assert after.text() == AFTER
    assert [(one.node, one.what) for one in step.changes] == [("add_1", "blocks.1.0: left out")]
    assert step.parameters == (432, 288)
    assert step.isolation == "isolated"


@pytest.mark.parametrize("choose", ["influence", "perplexity"])
def test_the_blocks_that_do_least_go(choose: str) -> None:
    program = made(1, 1, 0.01, 1, 0.1, 1)
    for count, gone in ((1, {2}), (2, {2, 4})):
        after = PruneDepth(layers=count, choose=choose)(program)  # type: ignore[arg-type]
        assert set(range(6)) - set(left(after)) == gone


def test_the_first_and_last_stay_unless_they_may_go() -> None:
    program = made(0.001, 1, 0.1, 1, 0.001)
    assert left(PruneDepth(layers=1)(program)) == [0, 1, 3, 4]
    assert left(PruneDepth(layers=2, protected=0)(program)) == [1, 2, 3]


def test_a_speed_says_how_many_go_and_they_are_evenly_spaced() -> None:
    program = made(*[1] * 10)
    for speed, gone in ((1.1, {5}), (1.25, {3, 7}), (2.0, {1, 3, 5, 6, 8})):
        after = PruneDepth(speed=speed, choose="even")(program)
        assert set(range(10)) - set(left(after)) == gone


def test_a_ratio_is_reached() -> None:
    program = made(*[1] * 10)
    for choose in ("even", "influence", "perplexity"):
        after = PruneDepth(ratio=0.25, choose=choose)(program)
        assert after.parameters == 7 * 144


def test_tried_losses_are_those_of_the_program_without() -> None:
    """Of a language model: what is forked gives what the program gives without the block."""
    _, program = captured("llama", 4)
    sample = program.samples[0]
    blocks = find_blocks(program)
    removed = [blocks[1]]
    candidates = [blocks[3], blocks[0], blocks[2].branches[0]]
    base, found = Losses(program, [sample])(removed, candidates)
    for loss, more in (
        (base, []),
        *((one, [block]) for one, block in zip(found, candidates, strict=True)),
    ):
        after = without(program, [*removed, *more])
        total, count = next_token_loss(after.run(**after.samples[0])["logits"], sample)
        assert loss == pytest.approx(total / count, rel=1e-6)


def test_parallel_branches_are_tried_and_left_out_one_by_one() -> None:
    _, program = captured("phi", 3)
    block = find_blocks(program)[1]
    expected = without(program, [block])
    after = without(program, block.branches)
    assert after.tensors.keys() >= expected.tensors.keys()
    sample = after.samples[0]
    torch.testing.assert_close(
        after.run(**sample)["logits"], expected.run(**expected.samples[0])["logits"]
    )
    losses = Losses(program, program.samples[:1])
    assert losses([block])[0] == pytest.approx(losses(list(block.branches))[0], rel=1e-6)
    for branch, one in zip(block.branches, losses([], block.branches)[1], strict=True):
        alone = without(program, [branch])
        total, count = next_token_loss(alone.run(**alone.samples[0])["logits"], sample)
        assert one == pytest.approx(total / count, rel=1e-6)


def test_greedy_finds_the_best_pair() -> None:
    """Against trying all pairs, where blocks do not depend on each other much."""
    program = made(1, 0.5, 0.02, 0.9, 0.03, 1)
    losses, blocks = Losses(program, program.samples), find_blocks(program)
    pairs = {
        (a, b): losses([blocks[a], blocks[b]])[0] for a in range(1, 4) for b in range(a + 1, 5)
    }
    best = min(pairs, key=pairs.__getitem__)
    assert set(range(6)) - set(left(PruneDepth(layers=2)(program))) == set(best)


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    program = made(1, 1, 0.01, 1, 0.1, 1)
    one = PruneDepth(layers=2)
    whole = one(program, Work(journal=Journal(tmp_path, "x")))
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == ["step-0", "step-1"]
    (tmp_path / "step-1.safetensors").unlink()
    told: list[tuple[int, int]] = []
    again = one(program, Work(lambda *far: told.append(far), Journal(tmp_path, "x")))
    assert again.text() == whole.text()
    assert told == [(50, 100), (100, 100)]
    kept = {"best": torch.tensor(1), "costs": torch.zeros(4, dtype=torch.float64)}
    Journal(tmp_path, "x").keep("step-0", kept)
    assert 2 not in left(one(program, Work(journal=Journal(tmp_path, "x"))))[:1]


def test_exactly_one_amount_is_asked_for() -> None:
    for options in ({}, {"layers": 1, "ratio": 0.1}, {"speed": 2.0, "ratio": 0.1}):
        with pytest.raises(
            pydantic.ValidationError, match="exactly one of layers, ratio and speed"
        ):
            PruneDepth(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": 3}, "prune_depth: 3 of 4 layers are to go, and only 2 may: 1 layers at either"),
        ({"ratio": 0.9}, "prune_depth: 0.9 of the parameters are to go, and the 2 layers that may"),
        ({"ratio": 0.9, "choose": "even"}, r"that may have 0.500 of them. Ask for less"),
        ({"ratio": 0.9, "choose": "influence"}, r"that may have 0.500 of them. Ask for less"),
    ],
)
def test_it_refuses_to_leave_out_more_than_there_is(options: dict[str, object], said: str) -> None:
    with pytest.raises(NotApplicable, match=said):
        PruneDepth(**options)(made(1, 1, 1, 1))  # type: ignore[arg-type]


def test_it_refuses_what_has_no_blocks_and_no_samples() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    program = from_module(model.eval(), {"input": torch.randn(2, 4)})
    with pytest.raises(NotApplicable, match="prune_depth: Sequential has no residual blocks"):
        PruneDepth(layers=1)(program)
    silent = dataclasses.replace(made(1, 1, 1), samples=())
    with pytest.raises(NotApplicable, match="prune_depth: there are no calibration samples"):
        PruneDepth(layers=1)(silent)


def test_some_state_has_to_stay() -> None:
    _, program = captured("llama")
    with pytest.raises(NotApplicable, match="the last state that tells the length P"):
        PruneDepth(layers=2, protected=0, choose="even")(program)
