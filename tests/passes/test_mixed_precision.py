"""Mixed precision: what is chosen, what it comes to, and that the passes it names make the same."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from planish import recipes
from planish.ir.capture.export import from_module
from planish.ir.program import Program
from planish.passes import name_of
from planish.passes.choice import Choice, Target
from planish.passes.contract import NotApplicable, options_of
from planish.passes.format import Format
from planish.passes.gptq import Gptq
from planish.passes.mixed_precision import GoalMissed, MixedPrecision
from planish.passes.pipeline import apply
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.trials import surprise
from planish.samples import as_samples
from support.captured import captured

FOUR = tuple(Format(bits, 32) for bits in (8, 4, 3, 2))


class Uneven(nn.Module):
    """Layers of one size, of which one is nearly ignored and one hardly may be touched."""

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.quiet, self.plain = (nn.Linear(64, 64, bias=False) for _ in range(3))
        self.top = nn.Linear(64, 10, bias=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = 5 * torch.tanh(self.loud(x)) + 0.01 * torch.tanh(self.quiet(x))
        return {"logits": self.top(y + self.plain(torch.sin(x)))}


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    return from_module(Uneven().eval(), {"x": torch.randn(4, 40, 64)})


def schemes(after: Program) -> dict[str, str]:
    """How each layer was rounded, by what the changes say."""
    found = (re.match(r"(\w+)\.weight: (int\d)", change.what) for change in after.changes)
    return {one[1]: one[2] for one in found if one}


def test_bits_go_where_they_count(program: Program) -> None:
    made = MixedPrecision(Target(bits=5.5), FOUR, together=False)(program)
    assert schemes(made) == {"loud": "int8", "quiet": "int2", "plain": "int3"}
    said, *told = [change.what for change in made.changes]
    assert said.startswith("bits: 5.5: met; ")
    assert len(told) == 3
    assert all(
        re.search(r"relative error 0\.\d+; estimated loss \d\.\d+e-\d+$", one) for one in told
    )


def test_it_loses_less_than_one_format_of_the_same_size(program: Program) -> None:
    def loss(after: Program) -> float:
        p, q = (one.run(**program.samples[0])["logits"].log_softmax(-1) for one in (program, after))
        return float((p.exp() * (p - q)).sum(-1).mean())

    uniform = QuantizeWeights(bits=4, group_size=32, clip_search="inputs")(program)
    mixed = MixedPrecision(Target(bits=5.0), FOUR, together=False)(program)
    assert mixed.nbytes <= uniform.nbytes
    assert loss(mixed) < 0.7 * loss(uniform)


def test_layers_that_read_one_value_go_together_if_asked(program: Program) -> None:
    made = MixedPrecision(Target(bits=5.0), FOUR)(program)
    # loud and quiet read x, plain reads its sine
    assert schemes(made)["loud"] == schemes(made)["quiet"]
    apart = MixedPrecision(Target(bits=5.0), FOUR, together=False)(program)
    assert schemes(apart)["loud"] != schemes(apart)["quiet"]


@pytest.mark.parametrize(
    "target",
    [Target(bits=4.7), Target(size=0.4), Target(speed=1.15), Target(loss=0.01)],
    ids=lambda target: target.kind,
)
def test_targets_are_met_and_measured_as_said(program: Program, target: Target) -> None:
    one = MixedPrecision(target, FOUR)
    choice = one.trades(program, one.measured(program)).choose()
    made = one(program)
    assert choice.met
    assert made.nbytes == pytest.approx(choice.figures.size * program.nbytes)
    kept = made.nbytes - made.tensors["top.weight"].nbytes
    assert kept == pytest.approx(choice.figures.bits / 8 * 3 * 64 * 64)
    figures = choice.figures._asdict()
    if target.kind in ("bits", "size", "loss"):
        assert figures[target.kind] <= target.value
    else:
        assert figures["speed"] >= target.value


def test_the_front_goes_from_small_to_good(program: Program) -> None:
    one = MixedPrecision(Target(bits=4.0), FOUR, together=False)
    trades = one.trades(program, one.measured(program))
    every = trades.figures(1000)
    assert (every[0].bits, every[-1].bits) == (3.0, 9.0)
    assert [each.loss for each in every] == sorted((each.loss for each in every), reverse=True)
    assert trades.choose().figures in every
    some = trades.figures(5)
    assert (len(some), some[0], some[-1]) == (5, every[0], every[-1])


def test_what_cannot_be_met_gives_the_nearest_and_says_so(program: Program) -> None:
    with pytest.warns(GoalMissed, match="bits: 1: not met, this is the nearest there is; 3.000"):
        made = MixedPrecision(Target(bits=1.0), FOUR)(program)
    assert set(schemes(made).values()) == {"int2"}
    with pytest.warns(GoalMissed, match="not met"):
        made = MixedPrecision(Target(loss=1e-9), FOUR)(program)
    assert set(schemes(made).values()) == {"int8"}


def test_where_everything_may_stay_nothing_changes(program: Program) -> None:
    made = MixedPrecision(Target(size=1.0), FOUR, dense=True)(program)
    assert made.text() == program.text()
    assert all(made.tensors[name] is tensor for name, tensor in program.tensors.items())
    assert [change.node for change in made.changes] == ["output"]


def test_some_layers_may_stay_as_they_are(program: Program) -> None:
    made = MixedPrecision(Target(bits=13.0), FOUR[1:], dense=True, together=False)(program)
    assert schemes(made) == {"quiet": "int2", "plain": "int3"}
    assert made.tensors["loud.weight"] is program.tensors["loud.weight"]


@pytest.mark.parametrize("algorithm", ["nearest", "gptq"])
def test_the_passes_that_it_names_make_the_same(program: Program, algorithm: str) -> None:
    one = MixedPrecision(Target(bits=5.0), FOUR, algorithm=algorithm)  # type: ignore[arg-type]
    choice = one.trades(program, one.measured(program)).choose()
    named = one.passes(choice)
    assert {type(each) for each in named} == {Gptq if algorithm == "gptq" else QuantizeWeights}
    again = recipes.load({"passes": [{name_of(each): options_of(each)} for each in named]}).passes
    made, steps = apply(program, [one], names=name_of)
    by_hand, _ = apply(program, again, names=name_of)
    assert made.text() == by_hand.text()
    assert all(torch.equal(made.tensors[name], by_hand.tensors[name]) for name in made.tensors)
    assert steps[0].isolation == "isolated"


def test_layers_that_gptq_finished_are_kept(program: Program, tmp_path: Path) -> None:
    one = MixedPrecision(Target(bits=5.0), FOUR, algorithm="gptq")
    told: list[tuple[str, int, int]] = []
    made, _ = apply(
        program,
        [one],
        names=name_of,
        resume=tmp_path,
        progress=lambda *what: told.append(what),
    )
    pieces = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert pieces
    assert {name for name, *_ in told} == {"mixed_precision"}
    again, _ = apply(program, [one], names=name_of, resume=tmp_path)
    assert all(path.stat().st_mtime_ns == written for path, written in pieces.items())
    assert all(torch.equal(made.tensors[name], again.tensors[name]) for name in made.tensors)


@pytest.fixture(scope="module")
def spoken() -> Program:
    """A language model, and text that it wrote itself, of which rounding makes it less sure."""
    program = captured("llama")[1]
    chance = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 100, (8, 1), generator=chance)
    for _ in range(31):
        (sample,) = as_samples([{"input_ids": tokens}], program)
        odds = program.run(**sample)["logits"][:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(odds, 1, generator=chance)], dim=1)
    return dataclasses.replace(program, calibration=as_samples([{"input_ids": tokens}], program))


def test_recovery_is_measured(spoken: Program) -> None:
    one = MixedPrecision(Target(recovery=0.98), FOUR)
    made = one(spoken)
    lost = surprise(made, spoken.calibration) - surprise(spoken, spoken.calibration)
    assert math.exp(-lost) >= 0.98
    (said,) = [change.what for change in made.changes if change.node == "output"]
    assert said.startswith("recovery: 0.98: met; ")
    assert f"recovery {math.exp(-lost):.4f}, measured on the samples" in said
    assert made.nbytes < QuantizeWeights(bits=8, group_size=32)(spoken).nbytes


def test_choices_without_the_coarsest_formats_are_tried(spoken: Program) -> None:
    rows = spoken.calibration[0]["input_ids"]
    apart = as_samples([{"input_ids": row[None]} for row in rows], spoken)
    program = dataclasses.replace(spoken, calibration=apart)
    one = MixedPrecision(Target(bits=4.1), FOUR)
    layers = one.measured(program)
    found = one.decide(program, layers)
    tried = re.search(
        r"; (-?\d\.\d{4}) nats a token lost on other samples, the least of (\d) tried$", found.said
    )
    assert tried
    assert int(tried[2]) > 1
    assert found.choice.figures.bits <= 4.1
    learned, others = apart[::2], apart[1::2]
    small = dataclasses.replace(program, calibration=learned)

    def lost(choice: Choice) -> float:
        (rounding,) = one.passes(choice)
        return surprise(rounding(small), others) - surprise(program, others)

    assert lost(found.choice) == pytest.approx(float(tried[1]), abs=1e-3)
    assert lost(found.choice) <= lost(one.trades(program, layers).choose()) + 1e-6


def test_surprise_is_the_loss_of_next_tokens(spoken: Program) -> None:
    (sample,) = spoken.calibration
    logits = spoken.run(**sample)["logits"].double().log_softmax(-1)
    tokens = sample["input_ids"]
    scores = [
        float(logits[row, place, tokens[row, place + 1]]) for row in range(8) for place in range(31)
    ]
    assert surprise(spoken, [sample]) == pytest.approx(-sum(scores) / 248)
    padded = {**sample, "attention_mask": sample["attention_mask"].clone()}
    padded["attention_mask"][:7] = 0
    assert surprise(spoken, [padded]) == pytest.approx(-sum(scores[217:]) / 31)


def test_recovery_is_of_language_models(program: Program) -> None:
    with pytest.raises(NotApplicable, match=r"^mixed_precision: recovery .* Uneven is no language"):
        MixedPrecision(Target(recovery=0.9), FOUR)(program)


def test_without_samples_it_is_refused(program: Program) -> None:
    bare = dataclasses.replace(program, samples=())
    with pytest.raises(NotApplicable, match=r"^mixed_precision: there are no calibration samples"):
        MixedPrecision(Target(bits=4.0), FOUR)(bare)


def test_on_shapes_alone_the_bytes_are_near_the_target(program: Program) -> None:
    empty = {name: tensor.to("meta") for name, tensor in program.tensors.items()}
    planned = MixedPrecision(Target(size=0.4), FOUR)(dataclasses.replace(program, tensors=empty))
    assert 0.3 * program.nbytes < planned.nbytes <= 0.4 * program.nbytes


MISTAKES = {
    "{target: {bits: 4.5, size: 0.3}}": "target: ask for exactly one of bits, size, speed, loss,",
    "{target: {}}": "target: ask for exactly one of",
    "{target: {bit: 4.5}}": "target.bit: no such option; did you mean bits?",
    "{target: 4.5}": "target: must be a mapping of options, not 4.5",
    "{target: {size: much}}": 'target.size: must be a number, not "much"',
    "{target: {size: 2}}": "target.size: should be less than or equal to 1; it is 2",
    "{target: {bits: 4}, candidates: []}": "candidates: there must be at least one candidate.",
    "{target: {bits: 4}, candidates: [{bits: 4}]}": (
        "candidates[0]: the option group_size is missing"
    ),
    "{target: {bits: 4}, candidates: [{bits: 5, group_size: 64}]}": (
        "candidates[0].bits: cannot be 5; choose from 8, 7, 4, 3, 2"
    ),
    "{target: {bits: 4}, candidates: [{bits: 4, group_size: 64, type: float}]}": (
        "candidates[0].type: floating-point codes have 8 bits"
    ),
}


@pytest.mark.parametrize("options", MISTAKES)
def test_mistakes_in_recipes_are_named_where_they_are(options: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"passes:\n  - mixed_precision: {options}\n")
    with pytest.raises(recipes.BadRecipe) as caught:
        recipes.load(path)
    assert f"passes[0].mixed_precision.{MISTAKES[options]}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_recipes_spell_it_out_and_read_it_back(tmp_path: Path) -> None:
    made = recipes.load([MixedPrecision(Target(bits=4.5), FOUR)])
    path = tmp_path / "r.yaml"
    path.write_text(made.to_yaml())
    assert "target:\n      bits: 4.5\n" in made.to_yaml()
    assert recipes.load(path).passes == made.passes


def test_answers_that_are_not_finite_are_refused(program: Program) -> None:
    broken = {"x": torch.full((2, 40, 64), torch.nan)}
    program = dataclasses.replace(program, calibration=(broken,))
    with pytest.raises(NotApplicable, match="logits is not finite on the calibration samples"):
        MixedPrecision(Target(bits=4.5), FOUR)(program)
