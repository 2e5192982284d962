"""Witnesses by gradients, of modules, exported programs and programs in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planish
from planish import cli, confirm
from planish.ir.capture.export import from_module
from planish.runtime.batches import specs_of
from planish.runtime.search import search
from planish.runtime.slopes import of_program
from planish.runtime.witness import Witness, replay
from support.wrong_proofs import believe_everything

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
CHANCE = torch.Generator().manual_seed(0)
DIRECTION = nn.functional.normalize(torch.randn(64, generator=CHANCE), dim=0)
X = torch.randn(3, 64, generator=CHANCE)


class Trigger(nn.Module):
    """Rows move others only if they lie at one place along one direction."""

    def __init__(self) -> None:
        super().__init__()
        self.direction = nn.Parameter(DIRECTION)

    def forward(self, x: Tensor) -> Tensor:
        along = x @ self.direction
        bump: Tensor = torch.exp(-((along - 8) ** 2) / 2).sum()
        return x + bump


class Word(nn.Module):
    """One word of a thousand in one request is seen by all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(1000, 32)
        vectors = nn.functional.normalize(torch.randn(1000, 32), dim=1)
        self.embedding.weight = nn.Parameter(vectors)
        self.wanted = nn.Parameter(vectors[777].clone())

    def forward(self, input_ids: Tensor) -> Tensor:
        found = self.embedding(input_ids) @ self.wanted
        own: Tensor = self.embedding(input_ids).sum(1)
        seen: Tensor = torch.relu(found - 0.9).sum() + 1e-12 * found.sum()
        return own + seen


class Scaled(nn.Module):
    """Divides by the largest number of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().amax()


def test_a_gradient_finds_what_chance_does_not() -> None:
    program = from_module(Trigger().eval(), X)
    report = planish.audit(program)
    model = of_program(program)
    specs = specs_of(report.inputs, model, 1)
    for one in search(model.run, specs, {"output": 0}):
        assert one.rounding or one.difference == float("inf")  # chance needs what is not finite
    (found,) = search(model.run, specs, {"output": 0}, slope=model.slope)
    assert found.how.startswith("along the gradient of output")
    assert 0.01 < found.difference < 2
    assert replay(found, model.run).difference == found.difference


def test_a_word_is_found_by_the_gradient_of_its_vector() -> None:
    codes = torch.randint(0, 700, (3, 5), generator=CHANCE)
    report = planish.audit(Word(), inputs={"input_ids": codes}, witness=True)
    assert report.verdict == "leaks"
    (found,) = report.witnesses
    assert (found.second["input_ids"][list(found.changed)] == 777).all()
    assert found.difference == pytest.approx(0.5, abs=0.1)


def targets() -> dict[str, tuple[Any, Any]]:
    sizes = {"x": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(Scaled(), (X,), dynamic_shapes=sizes)
    return {
        "module": (Scaled(), X),
        "exported": (exported, None),
        "program": (from_module(Scaled().eval(), X), None),
    }


@pytest.mark.parametrize("kind", ["module", "exported", "program"])
def test_everything_in_memory_has_witnesses(kind: str, tmp_path: Path) -> None:
    target, inputs = targets()[kind]
    report = planish.audit(target, inputs=inputs, witness=tmp_path)
    assert report.verdict == "leaks"
    (found,) = report.witnesses
    assert set(found.rows).isdisjoint(found.changed)
    (path,) = tmp_path.iterdir()
    assert report.findings[0].witness == str(path)
    assert Witness.load(path).difference == found.difference


def test_proofs_in_memory_are_checked() -> None:
    report = planish.audit(nn.Linear(64, 4), inputs=X, witness=True)
    assert (report.verdict, report.confirmed, report.witnesses) == ("isolated", True, ())
    assert "no row moved" in next(confirm.lines(report))
    norm = planish.audit(nn.BatchNorm1d(64), inputs=X, witness=True)
    assert norm.verdict == "leaks"
    assert norm.witnesses


def test_a_conditional_is_run_with_the_graphs_in_it() -> None:
    class Gated(nn.Module):
        def forward(self, x: Tensor) -> Any:
            def left(y: Tensor) -> Tensor:
                return y + 1

            def right(y: Tensor) -> Tensor:
                return y - 1

            return torch.cond(x.sum() > 0, left, right, (x,))

    report = planish.audit(Gated(), inputs=X, witness=True)
    assert {one.kind for one in report.findings} == {"control"}
    assert report.witnesses


def test_what_a_request_is_given_alone_is_for_information() -> None:
    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / x.shape[0]

    report = planish.audit(Counting(), inputs=X, witness=True)
    assert report.verdict == "isolated"
    (line,) = report.numerics
    assert "a request alone is given something else, by 2.0e+00 of its size" in line
    assert report.exit_code == 0


MODULE = """
import torch

class Scaled(torch.nn.Module):
    def forward(self, x):
        return x / x.abs().amax()

def model():
    return Scaled(), torch.randn(3, 8)
"""


def test_a_contradicted_proof_of_a_module_exits_with_4(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    believe_everything(monkeypatch)
    with pytest.raises(confirm.Contradicted, match="proven isolated, yet rows") as caught:
        planish.audit(Scaled(), inputs=X, witness=True)
    assert caught.value.witness.difference > 0
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(["audit", "mine:model", "--witness", str(tmp_path / "found")]) == 4
    assert "proven isolated" in capsys.readouterr().err
    assert list((tmp_path / "found").iterdir())
