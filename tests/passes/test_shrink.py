"""A budget over layers, heads and channels: what is tried, what is chosen, what is said."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
from torch import nn

from planish.ir.capture.export import from_module
from planish.ir.isolation.programs import analyse_program
from planish.ir.program import Program
from planish.passes import name_of
from planish.passes.contract import NotApplicable
from planish.passes.goal import Goal
from planish.passes.mixed_precision import GoalMissed
from planish.passes.mixtures import Mixture, Ways
from planish.passes.pipeline import apply
from planish.passes.prune_depth import PruneDepth
from planish.passes.shrink import Shrink
from planish.passes.work import Journal, Work
from support.captured import captured


@pytest.fixture(scope="module")
def llama() -> Program:
    return captured("llama", 4)[1]


def shapes(program: Program) -> Program:
    tensors = {name: tensor.to("meta") for name, tensor in program.tensors.items()}
    return dataclasses.replace(program, tensors=tensors)


def ways(program: Program, goal: Goal, *kinds: Any) -> Ways:
    order = PruneDepth(layers=1, choose="even").order(program) if "depth" in kinds else []
    return Ways(shapes(program), order, kinds, goal, 4, repair=False)


def test_mixtures_leave_just_what_may_be_left(llama: Program) -> None:
    goal = Goal(parameters=0.8)
    found = ways(llama, goal, "depth", "channels")
    mixtures = found.reaching(0.8)
    assert len(mixtures) == 2
    assert mixtures[0].layers == 0
    assert mixtures[1].layers == 1
    for mixture in mixtures:
        made = found.made(llama, mixture)
        assert 0.76 < goal.left(made, llama) <= 0.8
        assert made.run(**made.samples[0])["logits"].shape[:2] == (2, 9)


def test_what_cannot_be_reached_gives_the_nearest(llama: Program) -> None:
    goal = Goal(parameters=0.2)
    (mixture,) = ways(llama, goal, "heads").reaching(0.2)
    assert mixture.heads > 0
    assert mixture.layers == 0
    with pytest.warns(GoalMissed, match=r"^shrink: parameters: 0.2: not met, this is the nearest"):
        after = Shrink(target=goal, kinds=("heads",))(llama)
    assert 0.2 < goal.left(after, llama) < 1


@pytest.mark.parametrize("goal", [Goal(parameters=0.8), Goal(flops=0.75), Goal(speed=1.25)])
def test_the_goal_is_met_and_told(goal: Goal, llama: Program) -> None:
    text = llama.text()
    after, (step,) = apply(llama, [Shrink(target=goal, round_to=4)], names=name_of)
    assert llama.text() == text
    assert goal.left(after, llama) <= goal.share
    said = step.changes[0].what
    assert said.startswith(f"{goal}: met; without ")
    assert "nats a token lost on other samples, of " in said
    assert len(step.changes) > 1
    tried = step.changes[0].tried
    assert tried is not None
    assert (tried.counted, tried.unit) == (goal.counted, "nats a token")
    assert f"of {len(tried.made)} tried" in said
    (chosen,) = [one for one in tried.made if one.chosen]
    assert chosen.what in said
    assert f"{chosen.lost:.4f} nats" in said
    assert chosen.lost == min(one.lost for one in tried.made)
    assert chosen.left == pytest.approx(goal.left(after, llama))
    assert all(one.left <= goal.share for one in tried.made)
    assert analyse_program(after).verdict == "isolated"


def test_recovery_is_measured(llama: Program) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", GoalMissed)
        after = Shrink(target=Goal(recovery=0.5), kinds=("channels",), round_to=4)(llama)
    assert after.changes[0].what.startswith("recovery: 0.5: met; without ")
    assert after.parameters < llama.parameters


def test_sizes_alone_can_be_planned(llama: Program) -> None:
    goal = Goal(parameters=0.8)
    planned = Shrink(target=goal, round_to=4)(shapes(llama))
    assert all(tensor.is_meta for tensor in planned.tensors.values())
    assert goal.left(planned, llama) <= 0.8


def test_an_interrupted_run_goes_on(llama: Program, tmp_path: Path) -> None:
    one = Shrink(target=Goal(parameters=0.8), kinds=("channels",), round_to=4)
    work = Work(journal=Journal(tmp_path, "one"))
    first, second = one(llama, work), one(llama, work)
    assert list(tmp_path.rglob("*.safetensors"))
    assert first.changes == second.changes
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_refusals(llama: Program) -> None:
    _, encoder = captured("bert")
    with pytest.raises(NotApplicable, match=r"^shrink: recovery is a ratio of perplexities"):
        Shrink(target=Goal(recovery=0.9))(encoder)
    bare = dataclasses.replace(llama, samples=(), calibration=())
    with pytest.raises(NotApplicable, match=r"^shrink: there are no calibration samples"):
        Shrink(target=Goal(parameters=0.8))(bare)
    alone = from_module(nn.Linear(8, 8).eval(), torch.randn(3, 8))
    with pytest.raises(NotApplicable, match=r"^shrink: Linear has no depth and no channels that"):
        Shrink(target=Goal(parameters=0.8))(alone)
    with pytest.raises(pydantic.ValidationError, match="at least 1 item"):
        Shrink(target=Goal(parameters=0.8), kinds=())
    with pytest.raises(pydantic.ValidationError, match="exactly one of parameters, flops, speed"):
        Goal(parameters=0.8, speed=2.0)


def test_mixtures_and_goals_are_told_in_words() -> None:
    assert str(Mixture(2, 0.25, 0.1)) == "2 layers, 25.0% of heads, 10.0% of channels"
    assert str(Mixture()) == "nothing"
    assert str(Goal(speed=1.5)) == "speed: 1.5"
    assert Goal(speed=2.0).share == 0.5
