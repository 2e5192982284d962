"""Healing: the loss falls, the best is kept, and interrupted runs go on to the same numbers."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from planish.ir.capture.huggingface import from_checkpoint
from planish.ir.program import Program
from planish.lowering.checkpoint import write_checkpoint
from planish.passes import name_of
from planish.passes.contract import NotApplicable
from planish.passes.distill import Distill
from planish.passes.healing import (
    apart,
    linear_in_bfloat16,
    moved,
    rate,
    said,
    shared_states,
)
from planish.passes.pipeline import apply
from planish.passes.prune_depth import PruneDepth
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.slice import Slice
from planish.passes.work import Journal, StaleWork, Work
from support.captured import captured
from support.models import tiny_folder

FAST: dict[str, Any] = {"steps": 12, "every": 4, "batch": 3, "learning_rate": 3e-3}


def calibrated(program: Program, batches: int = 4) -> Program:
    """With so many times 3 rows of tokens to learn from."""
    generator = torch.Generator().manual_seed(1)
    samples = []
    for _ in range(batches):
        sample = {
            spec.name: torch.zeros([n if isinstance(n, int) else 0 for n in spec.shape[1:]])
            .expand(3, *(n if isinstance(n, int) else 0 for n in spec.shape[1:]))
            .contiguous()
            for spec in program.inputs
        }
        sample["input_ids"] = torch.randint(3, 100, (3, 10), generator=generator)
        sample["attention_mask"] = torch.ones(3, 10, dtype=torch.int64)
        sample["position_ids"] = torch.arange(10).expand(3, 10).contiguous()
        samples.append({spec.name: sample[spec.name] for spec in program.inputs})
    return dataclasses.replace(program, calibration=tuple(samples))


@pytest.fixture(scope="module")
def original() -> Program:
    return calibrated(captured("llama", 3)[1])


@pytest.fixture(scope="module")
def pruned(original: Program) -> Program:
    return PruneDepth(layers=1, choose="even")(original)


def divergence(one: Program, other: Program) -> float:
    """KL(original ‖ healed) on tokens that neither pass has seen."""
    ids = torch.randint(3, 100, (4, 10), generator=torch.Generator().manual_seed(9))
    logits = []
    for program in (one, other):
        sample = {
            spec.name: torch.zeros(4, 2, 0, 16)
            for spec in program.inputs
            if spec.name.startswith("past_")
        }
        positions = torch.arange(10).expand(4, 10).contiguous()
        mask = torch.ones(4, 10, dtype=torch.int64)
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        logits.append(program.run(**given, **sample)["logits"].log_softmax(-1).flatten(0, 1))
    return float(functional.kl_div(logits[1], logits[0], log_target=True, reduction="batchmean"))


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_it_comes_closer_to_the_original(original: Program, mode: str) -> None:
    original = calibrated(original, batches=16)
    options = {**FAST, "steps": 40, "mode": mode, "rank": 8}
    passes = [PruneDepth(layers=1, choose="even"), Distill(**options)]
    healed, (cut, step) = apply(original, passes, names=name_of)
    pruned = PruneDepth(layers=1, choose="even")(original)
    assert divergence(original, healed) < divergence(original, pruned)
    assert step.parameters == (cut.parameters[1], cut.parameters[1])
    assert step.isolation == "isolated"
    (change,) = step.changes
    assert change.what.startswith("14 weights trained; loss on 5 samples held out: ")
    assert change.what.endswith(" after 40 steps")
    assert healed.text() == pruned.text()
    changed = {
        name
        for name, tensor in pruned.tensors.items()
        if not torch.equal(healed.tensors[name], tensor)
    }
    assert len(changed) == 14
    assert all("proj.weight" in name for name in changed)  # no norms, embeddings or head
    if mode == "lora":
        name = "model.layers.0.mlp.up_proj.weight"
        change_of = healed.tensors[name] - pruned.tensors[name]
        assert torch.linalg.matrix_rank(change_of, atol=1e-5) <= 8


def test_twice_gives_the_same_and_other_seeds_others(original: Program, pruned: Program) -> None:
    work = Work(original=original)
    first, second = Distill(**FAST)(pruned, work), Distill(**FAST)(pruned, work)
    other = Distill(**FAST, seed=1)(pruned, work)
    name = "model.layers.0.mlp.up_proj.weight"
    assert all(torch.equal(first.tensors[one], second.tensors[one]) for one in first.tensors)
    assert not torch.equal(first.tensors[name], other.tensors[name])


def test_an_interrupted_run_goes_on_to_the_same_numbers(
    original: Program, pruned: Program, tmp_path: Path
) -> None:
    class Interrupted(Exception):
        pass

    def stop(done: int, _total: int) -> None:
        if done >= 500:
            raise Interrupted

    whole = Distill(**FAST)(pruned, Work(original=original))
    with pytest.raises(Interrupted):
        Distill(**FAST)(pruned, Work(stop, Journal(tmp_path, "x"), original))
    told: list[int] = []
    work = Work(lambda done, _: told.append(done), Journal(tmp_path, "x"), original)
    again = Distill(**FAST)(pruned, work)
    assert len(told) == 8  # from the fourth step on
    assert again.changes == whole.changes
    assert all(torch.equal(again.tensors[name], whole.tensors[name]) for name in whole.tensors)
    with pytest.raises(StaleWork, match="another model, other samples or another recipe"):
        Distill(**FAST)(pruned, Work(journal=Journal(tmp_path, "y"), original=original))


def test_it_never_gets_worse(original: Program, pruned: Program) -> None:
    one = Distill(**{**FAST, "learning_rate": 3.0, "steps": 4})
    after = one(pruned, Work(original=original))
    assert all(torch.equal(after.tensors[name], pruned.tensors[name]) for name in after.tensors)
    assert after.changes[-1].what.endswith("steps at best, so the weights stay as they were")


def test_hidden_states_of_the_blocks_that_are_left_come_closer(
    original: Program, pruned: Program
) -> None:
    mine, theirs = shared_states(pruned, original)
    assert [*mine.values()] == [*theirs.values()] == ["model.layers.0", "model.layers.2"]
    sample = original.calibration[0]
    left = {one.name: sample[one.name] for one in pruned.inputs}
    exact = said(original, sample, theirs).hidden

    def far(program: Program) -> float:
        states = said(program, left, mine).hidden
        return sum(moved(states[name], exact[name], left)[0] for name in exact)

    options = {**FAST, "steps": 40}
    plain = Distill(**options)(pruned, Work(original=original))
    shown = Distill(**options, hidden=4.0)(pruned, Work(original=original))
    assert far(shown) < min(far(plain), far(pruned))


def test_hidden_states_are_compared_row_by_row() -> None:
    """A row a hundred times as large counts no more; padding counts nothing."""
    aim = torch.randn(1, 3, 8) * torch.tensor([1.0, 100.0, 1.0])[:, None]
    state = (aim * 1.1).requires_grad_()
    ids = torch.zeros(1, 3, dtype=torch.int64)
    loss, gradient = moved(state, aim, {"input_ids": ids})
    assert loss == pytest.approx(0.01, rel=1e-4)
    size = aim.square().sum(-1, keepdim=True)
    by_hand = ((state - aim).square() / size).sum() / 3
    by_hand.backward()
    assert state.grad is not None
    torch.testing.assert_close(gradient, state.grad)
    padded = {"input_ids": ids, "attention_mask": torch.tensor([[0, 1, 1]])}
    loss, gradient = moved(state, torch.cat([aim[:, :1] * 9, aim[:, 1:]], 1), padded)
    assert loss == pytest.approx(0.01, rel=1e-4)
    assert not gradient[:, 0].any()


def test_hidden_states_of_a_narrower_stream_are_refused(original: Program) -> None:
    passes = [Slice(ratio=0.25, round_to=1), Distill(**FAST, hidden=1.0)]
    with pytest.raises(NotApplicable, match=r"no residual stream of .* is as wide as the original"):
        apply(original, passes, names=name_of)


def test_time_can_be_the_limit(original: Program, pruned: Program) -> None:
    told: list[tuple[int, int]] = []
    work = Work(lambda *far: told.append(far), original=original)
    after = Distill(**{**FAST, "steps": 100_000}, minutes=0.02)(pruned, work)
    assert told[-1] == (1000, 1000)
    assert "weights trained; loss on 1 samples" in after.changes[-1].what


def test_outputs_without_logits_are_compared_by_their_squares() -> None:
    y = {"y": torch.tensor([[1.0, 2.0]], requires_grad=True)}
    loss, gradients = apart(y, {"y": torch.tensor([[1.0, 1.0]])}, {}, 1.0)
    assert loss == pytest.approx(0.5)
    torch.testing.assert_close(gradients["y"], torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_divergence_and_its_gradient_are_those_of_autograd(temperature: float) -> None:
    torch.manual_seed(0)
    mine, theirs = torch.randn(2, 3, 7, requires_grad=True), torch.randn(2, 3, 7)
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    sample = {"input_ids": torch.zeros(2, 3, dtype=torch.int64), "attention_mask": mask}
    loss, gradients = apart({"logits": mine}, {"logits": theirs}, sample, temperature)
    rows = [(one / temperature).log_softmax(-1)[mask.bool()] for one in (mine, theirs)]
    expected: Tensor = temperature**2 * functional.kl_div(
        rows[0], rows[1], log_target=True, reduction="batchmean"
    )
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(gradients["logits"], mine.grad)


def test_the_rate_rises_then_falls_to_a_tenth() -> None:
    assert rate(0.0) < 0.2
    assert rate(0.05) == pytest.approx(1.0)
    assert rate(0.5) < rate(0.3) < 1
    assert rate(1.0) == pytest.approx(0.1)


def test_refusals(original: Program, pruned: Program) -> None:
    work = Work(original=original)
    with pytest.raises(NotApplicable, match="distill: there is no original to come close to"):
        Distill()(pruned)
    rounded = QuantizeWeights(bits=8, group_size=None)(pruned)
    with pytest.raises(NotApplicable, match=r"are quantized .*before those that round"):
        Distill()(rounded, work)
    silent = dataclasses.replace(pruned, samples=(), calibration=())
    with pytest.raises(NotApplicable, match="distill: there are no calibration samples"):
        Distill()(silent, work)
    name = "model.layers.0.mlp.up_proj.weight"
    broken = {**pruned.tensors, name: pruned.tensors[name] * torch.nan}
    with pytest.raises(
        NotApplicable, match=r"the loss is nan after 0 steps .* smaller learning_rate"
    ):
        Distill()(dataclasses.replace(pruned, tensors=broken), work)


def test_shapes_alone_suffice(pruned: Program) -> None:
    empty = {name: tensor.to("meta") for name, tensor in pruned.tensors.items()}
    planned = Distill()(dataclasses.replace(pruned, tensors=empty))
    assert planned.changes[-1].what == "14 weights to be trained"
    assert planned.nbytes == pruned.nbytes


def test_a_healed_model_is_a_plain_checkpoint(tmp_path: Path) -> None:
    program = calibrated(from_checkpoint(tiny_folder("llama", tmp_path / "source", 3)))
    passes = [PruneDepth(layers=1, choose="even"), Distill(**{**FAST, "steps": 2})]
    healed, _ = apply(program, passes, names=name_of, isolation=False)
    (tmp_path / "out").mkdir()
    write_checkpoint(healed, program, tmp_path / "out")
    again = from_checkpoint(tmp_path / "out")
    assert again.parameters == healed.parameters
    ids = healed.samples[0]["input_ids"]
    sample = {**again.samples[0], "input_ids": ids}
    mine = {
        **healed.samples[0],
        **{name: sample[name] for name in ("attention_mask", "position_ids")},
    }
    torch.testing.assert_close(again.run(**sample)["logits"], healed.run(**mine)["logits"])


def test_linear_layers_in_bfloat16_have_its_precision_there_and_back() -> None:
    """The result and all gradients are those of float32 to about 1%, in the dtypes of theirs."""
    torch.manual_seed(0)
    given = [torch.randn(2, 5, 16), torch.randn(8, 16), torch.randn(8)]
    results = []
    for linear in (functional.linear, linear_in_bfloat16):
        arguments = [one.clone().requires_grad_() for one in given]
        y = linear(*arguments)
        (y.square().sum()).backward()
        results.append([y.detach(), *(one.grad for one in arguments)])
    for exact, rounded in zip(*results, strict=True):
        assert rounded is not None
        assert exact is not None
        assert rounded.dtype == torch.float32
        error = float((rounded - exact).norm() / exact.norm())
        assert 0 < error < 0.01
