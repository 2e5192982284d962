"""The policy: what `optimize` and `convert` do with a model that lets requests meet."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import planish
from planish import cli
from planish.api import BadCall, NotIsolated
from planish.ir.isolation.labels import Labels
from planish.ir.isolation.programs import Refused, analyse_onnx
from planish.lowering import artifact
from planish.verification import verify
from support.graphs import onnx_model


class Centered(nn.Module):
    """Subtracts the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x - x.mean(0))


def centered() -> tuple[nn.Module, Tensor]:
    return Centered().eval(), torch.randn(3, 8)


MODEL = """
import torch
from torch import nn

class Centered(nn.Module):
    def forward(self, x):
        return x - x.mean(0)

def centered():
    return Centered().eval(), torch.randn(3, 8)
"""


def test_a_leak_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    model, inputs = centered()
    with pytest.raises(Refused) as caught:
        planish.optimize(model, "bf16", inputs=inputs, output=tmp_path / "out")
    message = str(caught.value)
    assert "aten.mean" in message
    assert "--isolation warn" in message
    assert caught.value.exit_code == 1
    assert not (tmp_path / "out").exists()


def test_a_leak_is_written_with_a_warning_if_asked_for(tmp_path: Path) -> None:
    model, inputs = centered()
    with pytest.warns(NotIsolated, match="the verdict on the result is leaks"):
        result = planish.optimize(
            model, "bf16", inputs=inputs, output=tmp_path / "out", isolation="warn"
        )
    assert result.isolation == "leaks"
    manifest = artifact.read_manifest(tmp_path / "out")
    assert manifest["isolation"] == "leaks"
    assert "aten.mean" in manifest["certificate"]["findings"][0]


def test_nothing_is_asked_if_it_is_off() -> None:
    model, inputs = centered()
    result = planish.optimize(model, "bf16", inputs=inputs, isolation="off")
    assert (result.isolation, result.certificate) == ("unproven (not analysed)", {})


def test_bitwise_needs_kernels_and_asks_what_enforce_asks() -> None:
    model, inputs = centered()
    with pytest.raises(BadCall, match="bitwise needs target triton"):
        planish.optimize(model, "bf16", inputs=inputs, isolation="bitwise")
    with pytest.raises(Refused, match="bitwise"):
        planish.optimize(model, "bf16", inputs=inputs, isolation="bitwise", target="triton")


def test_the_command_line_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "centered_model.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "out"
    command = ["convert", "centered_model:centered", "--recipe", "bf16", "--output", str(out)]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert error.strip().startswith("error: isolation: enforce asks for a proof")
    assert not out.exists()
    assert cli.main([*command, "--isolation", "warn"]) == 0
    assert out.exists()


def test_an_artifact_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    out = tmp_path / "out"
    for target in ("onnx", "torch"):
        planish.optimize(model, "bf16", inputs=torch.randn(3, 8), output=out, target=target)
        assert cli.main(["verify", str(out), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["verdict"], found["certified"]) == ("isolated", "isolated")
        assert found["same_rules"]
        assert cli.main(["verify", str(out)]) == 0
        assert "proven anew" in capsys.readouterr().out
    weights = next((out / "torch").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert cli.main(["verify", str(out)]) == 2
    assert "not as written" in capsys.readouterr().err.replace("\n", " ")


def test_a_model_put_in_place_of_the_proven_one_is_noticed(tmp_path: Path) -> None:
    """Even where the list of hashes was changed with it."""
    out = tmp_path / "out"
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    planish.optimize(model, "bf16", inputs=torch.randn(3, 8), output=out)
    other = onnx_model("Relu", "ReduceMax")
    other.graph.input[0].name = other.graph.node[0].input[0] = "input"
    onnx.save(other, out / "onnx" / "model.onnx")
    manifest = json.loads((out / "planish.json").read_text())
    manifest["files"] = artifact.files_of(out)
    (out / "planish.json").write_text(json.dumps(manifest))
    with pytest.raises(artifact.BadArtifact, match="is not the file that the certificate"):
        verify(out)
    manifest["certificate"]["lowered"]["sha256"] = artifact.sha256(out / "onnx" / "model.onnx")
    (out / "planish.json").write_text(json.dumps(manifest))
    found = verify(out)
    assert (found.verdict, found.certified, found.exit_code) == ("leaks", "isolated", 1)


def test_the_lowered_model_is_proven_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(*_: Any) -> Any:
        return audit_of(onnx_model("Relu", "ReduceMax"), tmp_path)

    monkeypatch.setattr("planish.release.analyse_onnx", leaking)
    model = nn.Linear(8, 8).eval()
    with pytest.raises(Refused, match="in the lowered ONNX model: at ai"):
        planish.optimize(model, "bf16", inputs=torch.randn(3, 8), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def audit_of(model: onnx.ModelProto, folder: Path) -> Any:
    onnx.save(model, folder / "m.onnx")
    return analyse_onnx(folder / "m.onnx", Labels())


def test_a_recipe_ends_at_the_pass_whose_result_is_not_proven(tmp_path: Path) -> None:
    torch.manual_seed(0)
    passes = [
        {"quantize_activations": {"granularity": "tensor"}},
        {"gptq": {"bits": 8, "group_size": None}},
    ]
    begun: list[str] = []
    with pytest.raises(Refused, match="in what quantize_activations made"):
        planish.optimize(
            nn.Sequential(nn.Linear(32, 32)).eval(),
            {"passes": passes},
            inputs=torch.randn(4, 32),
            output=tmp_path / "out",
            progress=lambda name, _done, _total: begun.append(name),
        )
    assert "quantize_activations" in begun
    assert "gptq" not in begun
