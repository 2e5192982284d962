"""The policy: what `optimize` and `convert` do with a model that lets requests meet."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planish
from planish import cli
from planish.api import BadCall, NotIsolated
from planish.ir.isolation.programs import Refused
from planish.lowering import artifact


class Centered(nn.Module):
    """Subtracts the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x - x.mean(0))


def centered() -> tuple[nn.Module, Tensor]:
    return Centered().eval(), torch.randn(3, 8)


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


def test_bitwise_is_not_promised_yet() -> None:
    model, inputs = centered()
    with pytest.raises(BadCall, match="bitwise is not available yet"):
        planish.optimize(model, "bf16", inputs=inputs, isolation="bitwise")


def test_the_command_line_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "centered_model.py").write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "out"
    command = ["convert", "centered_model:centered", "--recipe", "bf16", "--output", str(out)]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert error.strip().startswith("error: isolation: enforce asks for a proof")
    assert not out.exists()
    assert cli.main([*command, "--isolation", "warn"]) == 0
    assert out.exists()
