"""`audit`, from Python and from the command line."""

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import planish
from planish import audit_targets, cli, waivers
from planish.audit_spec import KEYS, BadSpec, read_spec
from planish.audit_targets import BadTarget
from planish.ir.capture.export import from_module
from planish.ir.flow import contracts, lint
from support.graphs import onnx_model


class Scaled(nn.Module):
    """Divides by the largest number of the batch."""

    def forward(self, x: Tensor) -> Any:
        return x / x.abs().amax()


def scaled() -> tuple[nn.Module, Tensor]:
    return Scaled(), torch.randn(3, 8)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    onnx.save(onnx_model("Relu", "Tanh"), tmp_path / "good.onnx")
    onnx.save(onnx_model("Relu", "ReduceMax"), tmp_path / "bad.onnx")
    return tmp_path


def test_a_module_as_it_stands() -> None:
    model, x = scaled()
    report = planish.audit(model, inputs=x)
    assert report.verdict == "leaks"
    assert report.exit_code == 1
    (finding,) = report.findings
    assert finding.operator == "aten.amax.default"
    assert finding.where.startswith("test_audit.py:")
    norm = nn.BatchNorm1d(8)
    assert planish.audit(norm.eval(), inputs=x).verdict == "isolated"
    training = planish.audit(norm.train(), inputs=x)
    assert training.verdict == "leaks"
    assert {one.kind for one in training.findings} == {"state", "value"}
    assert any(one.name == "state running_mean" for one in training.outputs)


def test_a_batch_of_one_is_audited_for_any_size() -> None:
    model, x = scaled()
    assert planish.audit(model, inputs={"x": x[:1]}).verdict == "leaks"
    fixed = planish.audit(model, inputs=x[:1], symbolic_batch=False)
    assert fixed.verdict == "isolated"
    assert any("one row" in line for line in fixed.assumptions)


def test_an_exported_program_and_a_program() -> None:
    model, x = scaled()
    sizes = {"x": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(model, (x,), dynamic_shapes=sizes)
    assert planish.audit(exported).verdict == "leaks"
    program = from_module(nn.Linear(8, 8).eval(), x)
    assert planish.audit(program).verdict == "isolated"


def test_json_says_everything(files: Path) -> None:
    made = planish.audit(files / "bad.onnx").to_json()
    assert made["schema"] == "planish.audit/1"
    assert made["verdict"] == made["outputs"][0]["verdict"] == "leaks"
    (finding,) = made["findings"]
    assert finding["operator"] == "ai.onnx::ReduceMax@18"
    assert finding["path"][0]["operator"] == "input"
    assert finding["path"][-1] == {"node": "y", "operator": "output", "where": ""}
    assert made["unknown_operators"] == []
    assert made["assumptions"] == [
        "x holds the batch along axis 0",
        "sizes that are left open are at least 1",
    ]
    json.dumps(made)


def test_options_and_a_spec_file_say_the_same(files: Path) -> None:
    told = files / "spec.yaml"
    told.write_text("shared: [x]\n")
    assert planish.audit(files / "bad.onnx", spec=told).verdict == "isolated"
    assert planish.audit(files / "bad.onnx", shared=["x"]).verdict == "isolated"
    assert planish.audit(files / "bad.onnx", internal=["y"]).verdict == "isolated"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("share: [x]", "did you mean shared"),
        ("shared: x", "give a list of names"),
        ("batch_axes: [x]", "give names with a number each"),
        ("a: [", "neither YAML nor JSON"),
        ("- x", "give keys and values"),
    ],
)
def test_a_spec_file_is_read_strictly(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(BadSpec, match=message):
        planish.audit("any.onnx", spec=tmp_path / "spec.yaml")


def test_a_file_is_read_and_checked_once(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its batch is called otherwise than B, so that its flow is made twice."""
    loaded: list[Path] = []

    def counted(path: Path) -> onnx.ModelProto:
        loaded.append(path)
        return lint.load(path)

    monkeypatch.setattr("planish.ir.flow.onnx.load", counted)
    assert planish.audit(files / "good.onnx").verdict == "isolated"
    assert loaded == [files / "good.onnx"]


def test_the_spec_files_of_the_documentation_are_understood(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "audit.md").read_text(encoding="utf-8")
    blocks = [
        one for one in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "uses:" not in one
    ]
    (tmp_path / "spec.yaml").write_text("".join(blocks))
    told = read_spec(tmp_path / "spec.yaml")
    assert set(told) == set(KEYS)
    assert len(contracts.parse(told["contracts"])) == 3
    assert waivers.parse(told["waivers"])[0].expires == date(2027, 1, 31)


def test_what_cannot_be_audited_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadTarget, match="no such file or folder"):
        planish.audit(tmp_path / "not there.onnx")
    with pytest.raises(BadTarget, match="pass example tensors as inputs="):
        planish.audit(nn.Linear(2, 2))
    with pytest.raises(BadTarget, match="dict is nothing that can be audited"):
        planish.audit({})


def test_the_command_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", str(files / "good.onnx")]) == 0
    assert "ISOLATED" in capsys.readouterr().out
    assert cli.main(["audit", str(files / "bad.onnx")]) == 1
    out = capsys.readouterr().out
    assert "LEAKS" in out
    assert "1. value: ai.onnx::ReduceMax@18" in out
    assert "fix: " in out
    assert cli.main(["audit", str(files / "bad.onnx"), "--shared", "x"]) == 0


def test_as_onnx_runtime_optimizes_it(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = planish.audit(files / "bad.onnx", optimized=True)
    assert report.verdict == "leaks"
    assert report.target.endswith("bad.onnx (optimized)")
    assert cli.main(["audit", str(files / "good.onnx"), "--optimized"]) == 0
    assert "(optimized)" in capsys.readouterr().out.replace("\n", " ")
    with pytest.raises(BadTarget, match="only ONNX files"):
        planish.audit(nn.Linear(2, 2), optimized=True)


def test_the_command_that_makes_a_report_again_says_optimized(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    assert cli.main(["audit", "good.onnx", "--optimized", "--format", "sarif"]) == 0
    (made,) = json.loads(capsys.readouterr().out)["runs"]
    assert made["invocations"][0]["commandLine"] == "planish audit good.onnx --optimized"


def test_many_targets(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "broken.onnx").write_bytes(b"no model")
    assert cli.main(["audit", str(files), "--json"]) == 1
    made = json.loads(capsys.readouterr().out)
    assert made["summary"] == {"isolated": 1, "leaks": 1, "unproven": 0, "unreadable": 1}
    assert [Path(one["target"]).name for one in made["targets"]] == [
        "bad.onnx",
        "broken.onnx",
        "good.onnx",
    ]
    assert cli.main(["audit", str(files / "good.onnx"), str(files / "broken.onnx")]) == 2
    assert "unreadable" in capsys.readouterr().out


def test_json_into_a_file(files: Path) -> None:
    command = ["audit", str(files / "good.onnx"), "--format", "json", "-o", str(files / "a.json")]
    assert cli.main(command) == 0
    assert json.loads((files / "a.json").read_text())["verdict"] == "isolated"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["not there.onnx"], "no ONNX file and no checkpoint"),
        (["good.onnx", "--format", "xml"], "choose one of text, json, sarif, html"),
        (["good.onnx", "--batch-axis", "x"], "give a name and a number"),
        (["good.onnx", "--batch-axis", "z=1"], "no input named 'z'"),
        (["good.onnx", "--owner-map", "0,1,1"], "owner map"),
    ],
)
def test_wrong_usage_exits_with_2(
    files: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    path, *rest = arguments
    assert cli.main(["audit", str(files / path), *rest]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_targets_come_once(files: Path) -> None:
    found = list(audit_targets.targets([str(files), str(files / "good.onnx")]))
    assert [path.name for path in found] == ["bad.onnx", "good.onnx"]
