"""`planish sensitivity`: what it prints, the page, and the recipe that makes the choice again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from planish import api, cli, commands, recipes, sensitivity_command
from planish.passes.choice import Target
from planish.passes.mixed_precision import MixedPrecision
from planish.report.sensitivity_html import render
from support.captured import captured
from support.pages import Page

MODEL = "model"


@pytest.fixture(autouse=True)
def _a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command line find a language model of four blocks, with its samples."""
    monkeypatch.setattr(commands, "resolve", lambda *_: captured("llama", 4)[1])


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["sensitivity", *arguments])
    caught = capsys.readouterr()
    return code, caught.out, caught.err


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """What the command prints as JSON, measured once."""
    program = captured("llama", 4)[1]
    one = MixedPrecision(Target(bits=5.0))
    layers = one.measured(program)
    return sensitivity_command.findings(program, one, layers, one.decide(program, layers))


def test_json_has_everything(measured: dict[str, Any]) -> None:
    found = json.loads(json.dumps(measured))
    assert (found["target"], found["met"], found["unit"]) == ("bits: 5", True, "nats a token")
    assert len(found["layers"]) == 28
    assert found["figures"]["bits"] <= 5
    numbers = sum(layer["numbers"] for layer in found["layers"])
    stored = 8 * sum(layer["chosen_bytes"] for layer in found["layers"])
    assert stored / numbers == pytest.approx(found["figures"]["bits"])
    losses = sum(layer["chosen_loss"] for layer in found["layers"])
    assert losses == pytest.approx(found["figures"]["loss"])
    assert 0 < sum(layer["decoding"] for layer in found["layers"]) < 1
    front = [(trade["bits"], trade["loss"]) for trade in found["front"]]
    assert front == sorted(front)
    assert [loss for _, loss in front] == sorted((loss for _, loss in front), reverse=True)


def test_the_recipe_makes_the_choice_again(measured: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "chosen.yaml"
    path.write_text(measured["recipe"])
    program = captured("llama", 4)[1]
    again = api.optimize(program, path, isolation="off").program
    mixed = MixedPrecision(Target(bits=5.0))(program)
    assert again.text() == mixed.text()
    assert all(torch.equal(again.tensors[name], mixed.tensors[name]) for name in mixed.tensors)
    assert recipes.load(path).description == "Chosen by planish sensitivity for bits: 5."


def test_the_command_prints_a_table_and_writes_the_page(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    code, out, _ = run(capsys, MODEL, "--target", "size=0.5", "--html", str(path))
    assert code == 0
    for said in ("mlp.down_proj", "and 8 more, which lose less", "size: 0.5: met", str(path)):
        assert said in out
    assert "size: 0.5" in Page(path.read_text(encoding="utf-8")).text


def test_the_page(measured: dict[str, Any]) -> None:
    text = render(measured, version="1.2.3", command="planish sensitivity x")
    made = Page(text)
    ids = made.values("id")
    assert len(ids) == len(set(ids))
    assert {one[:1] for one in made.values("href")} <= {"#"}
    assert not made.values("src")
    assert made.count("script") == made.count("link") == 0
    assert "http" not in text.replace("http://www.w3.org", "")
    assert made.count("svg") == 8  # four pictures, each for a screen and a phone
    for said in ("bits: 5", "Pareto front", "all 28 layers", "quantize_weights", "down_proj"):
        assert said in made.text


def test_names_cannot_break_the_page(measured: dict[str, Any]) -> None:
    bad = "\"'><script>alert(1)</script><b>"
    first = {**measured["layers"][0], "layer": bad}
    made = Page(render({**measured, "model": bad, "layers": [first, *measured["layers"][1:]]}))
    assert made.count("script") == 0
    assert "<script>alert(1)</script>" in made.text


@pytest.mark.parametrize("target", ["bits", "bits=many", "bit=4", "size=2", "bits=-1"])
def test_a_target_that_is_none(capsys: pytest.CaptureFixture[str], target: str) -> None:
    code, _, err = run(capsys, MODEL, "--target", target)
    assert code == 2
    assert f"--target {target}: give one of bits=NUMBER, size=NUMBER" in err
