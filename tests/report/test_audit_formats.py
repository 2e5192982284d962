"""`planish audit --format sarif` and `--format html`, from model files to files."""

import json
from pathlib import Path

import onnx
import pytest
from jsonschema import Draft4Validator
from onnx import TensorProto, helper

from planish import cli

SCHEMA = Path(__file__).parent / "sarif-schema-2.1.0.json"


def save(path: Path, *operators: str, node: str = "") -> None:
    """Write a chain of operators of one operand, over x of [batch, 8]."""
    names = ["x", *(f"v{number}" for number in range(len(operators) - 1)), "y"]
    nodes = [
        helper.make_node(one, [names[n]], [names[n + 1]], name=node and f"{node}{n}")
        for n, one in enumerate(operators)
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["batch", 8])],
        [value("y", TensorProto.FLOAT, None)],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    save(tmp_path / "models" / "good.onnx", "Relu", "Tanh")
    save(tmp_path / "models" / "bad.onnx", "Relu", "ReduceMax", node="<script>")
    return tmp_path


def test_sarif(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "models" / "broken.onnx").write_bytes(b"no model")
    command = ["audit", "models", "--shared", "x", "--format", "sarif", "-o", "a.sarif"]
    assert cli.main(command) == 2
    assert cli.main(["audit", "models", "--format", "sarif", "-o", "b.sarif"]) == 1
    capsys.readouterr()
    for name, results in (("a.sarif", 0), ("b.sarif", 1)):
        made = json.loads((files / name).read_text())
        Draft4Validator(json.loads(SCHEMA.read_text())).validate(made)
        (run,) = made["runs"]
        assert len(run["results"]) == results
        assert len(run["artifacts"]) == 3
        assert len(run["invocations"][0]["toolExecutionNotifications"]) == 1
        assert str(files) not in (files / name).read_text()
    assert cli.main(["audit", "models/bad.onnx", "--format", "sarif"]) == 1
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["invocations"][0]["commandLine"] == "planish audit models/bad.onnx"
    assert run["invocations"][0]["exitCode"] == 1


def test_html(files: Path) -> None:
    command = ["audit", "models/bad.onnx", "--output-axis", "y=1", "--format", "html", "-o", "a"]
    assert cli.main(command) == 1
    text = (files / "a").read_text()
    assert "planish audit models/bad.onnx --output-axis y=1" in text
    assert "ReduceMax" in text
    assert "&lt;script&gt;" in text
    assert "<script" not in text
    assert cli.main(["audit", "models/good.onnx", "models/bad.onnx", "-f", "html", "-o", "a"]) == 1
    assert "2 targets" in (files / "a").read_text()
