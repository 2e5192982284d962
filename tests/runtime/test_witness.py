"""Witnesses: found by running, stored, replayed; and proofs that a run contradicts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from planish import cli, confirm
from planish.runtime.runnable import CannotRun
from planish.runtime.search import InputSpec, search
from planish.runtime.witness import BadWitness, Witness, replay
from support.graphs import onnx_model
from support.wrong_proofs import believe_everything

X = [InputSpec("x", (3, 4), "float32", 0)]
Arrays = Mapping[str, Any]
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")


def own(feeds: Arrays) -> Arrays:
    return {"y": np.tanh(feeds["x"])}


def centered(feeds: Arrays) -> Arrays:
    return {"y": feeds["x"] - feeds["x"].mean(0)}


def quantized(feeds: Arrays) -> Arrays:
    scale = max(np.abs(feeds["x"]).max(), 10) / 127
    return {"y": np.round(feeds["x"] / scale) * scale}


def test_what_keeps_to_its_row_has_no_witness() -> None:
    assert list(search(own, X, {"y": 0})) == []


def test_a_mean_over_the_batch_shows_at_once() -> None:
    (found,) = search(centered, X, {"y": 0})
    assert found.how == "other values"
    assert found.difference > 0.01
    assert found.how == "other values"
    assert set(found.rows).isdisjoint(found.changed)
    assert not found.rounding
    for row in set(range(3)) - set(found.changed):
        assert np.array_equal(found.first["x"][row], found.second["x"][row])


def test_a_scale_over_the_batch_shows_when_the_range_grows() -> None:
    (found,) = search(quantized, X, {"y": 0})
    assert found.how == "times 100"


def test_rounding_is_told_apart() -> None:
    def rounds(feeds: Arrays) -> Arrays:
        return {
            "y": feeds["x"] * np.float32(1 + 1e-6 * np.nan_to_num(feeds["x"][0, 0]).clip(-1, 1))
        }

    (found,) = search(rounds, X, {"y": 0})
    assert found.rounding


def test_rows_of_one_request_change_together() -> None:
    def pairs(feeds: Arrays) -> Arrays:
        x = feeds["x"].reshape(-1, 2, 4)
        return {"y": (x - x.mean(1, keepdims=True)).reshape(-1, 4)}

    four = [InputSpec("x", (4, 4), "float32", 0)]
    assert list(search(pairs, four, {"y": 0}, lambda row, _: row // 2)) == []
    assert list(search(pairs, four, {"y": 0}))


def test_a_witness_is_stored_and_replayed(tmp_path: Path) -> None:
    (found,) = search(centered, X, {"y": 0}, model="abc")
    found.save(tmp_path / "w.npz")
    again = Witness.load(tmp_path / "w.npz")
    assert (again.output, again.rows, again.changed, again.model) == (
        found.output,
        found.rows,
        found.changed,
        "abc",
    )
    assert replay(again, centered).difference == found.difference
    assert replay(again, own).difference == 0
    with pytest.raises(BadWitness, match="no output 'y'"):
        replay(again, lambda _: {"z": np.zeros(3)})


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + b"x" * 40])
def test_what_is_no_witness_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(BadWitness):
        Witness.load(tmp_path / "w.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(BadWitness):
        Witness.load(tmp_path / "other.npz")


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    model = onnx_model("Relu", "Softmax")
    model.graph.node[1].attribute.append(onnx.helper.make_attribute("axis", 0))
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_the_command_line_writes_and_replays(
    leaking: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = leaking.parent / "found"
    assert cli.main(["audit", str(leaking), "--witness", str(folder)]) == 1
    (path,) = folder.iterdir()
    assert f"witness: {path}" in capsys.readouterr().out.replace("\n", "")
    assert cli.main(["audit", str(leaking), "--replay", str(path)]) == 1
    assert "moved by" in capsys.readouterr().out
    onnx.save(onnx_model("Relu", "Tanh"), leaking)
    assert cli.main(["audit", str(leaking), "--replay", str(path)]) == 0
    assert cli.main(["audit", str(leaking), "--witness", str(folder)]) == 0
    assert "no row moved" in capsys.readouterr().out


def test_a_proof_that_a_run_contradicts_exits_with_4(
    leaking: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    believe_everything(monkeypatch)
    assert cli.main(["audit", str(leaking), "--witness", str(leaking.parent / "found")]) == 4
    error = capsys.readouterr().err
    assert "proven isolated" in error
    assert list((leaking.parent / "found").iterdir())


def test_a_checkpoint_without_an_export_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="convert it first"):
        confirm.replayed(_saved(tmp_path), tmp_path)


def _saved(folder: Path) -> Path:
    (found,) = search(centered, X, {"y": 0})
    found.save(folder / "w.npz")
    return folder / "w.npz"
