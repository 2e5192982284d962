"""Artifacts are there whole or not at all, and know their files."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from planish.lowering import artifact
from planish.lowering.artifact import MANIFEST, BadArtifact, NoSpace, NotOurs


def _write(folder: Path, text: str) -> None:
    with artifact.writing(folder) as staging:
        (staging / "onnx").mkdir()
        (staging / "onnx" / "model.onnx").write_text(text)
        manifest = {"format": artifact.FORMAT, "files": artifact.files_of(staging)}
        artifact.write_json(staging / MANIFEST, manifest)


def test_replaces_an_artifact_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    _write(folder, "one")
    _write(folder, "two")
    assert (folder / "onnx" / "model.onnx").read_text() == "two"
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    artifact.verify(folder)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_an_interrupted_run_leaves_the_old_artifact(
    tmp_path: Path, stop: type[BaseException]
) -> None:
    folder = tmp_path / "out"
    _write(folder, "one")
    with pytest.raises(stop), artifact.writing(folder) as staging:  # noqa: PT012
        (staging / "half").write_text("...")
        raise stop
    assert (folder / "onnx" / "model.onnx").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
    ],
    ids=repr,
)
def test_a_full_disk_is_said_and_leaves_the_old_artifact(tmp_path: Path, error: Exception) -> None:
    folder = tmp_path / "out"
    _write(folder, "one")
    with pytest.raises(NoSpace, match="filled up"), artifact.writing(folder):
        raise error
    artifact.verify(folder)


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError), artifact.writing(tmp_path / "out"):
        raise SafetensorError("a tensor shares memory")


def test_refuses_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("meow")
    with pytest.raises(NotOurs, match="was not written by Planish"):
        _write(tmp_path / "photos", "one")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotOurs, match="is a file"):
        _write(tmp_path / "file", "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos"]


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    _write(tmp_path / "out", "one")
    artifact.verify(tmp_path / "out")


def test_leftovers_of_killed_runs_go(tmp_path: Path) -> None:
    (tmp_path / ".planish-out-new-abcd_123").mkdir()
    (tmp_path / ".planish-out-new-new-abcd_123").mkdir()  # of a folder named out-new
    _write(tmp_path / "out", "one")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".planish-out-new-new-abcd_123", "out"]


def test_two_runs_at_once_leave_each_other_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with artifact.writing(out) as first:
        (first / "half").write_text("first")
        _write(out, "second")
        artifact.verify(out)
        assert (first / "half").read_text() == "first"
        artifact.write_json(first / MANIFEST, {"format": artifact.FORMAT})
    assert (out / "half").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from planish.lowering import artifact
with artifact.writing(Path(sys.argv[1])) as staging:
    (staging / "half").write_text("...")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_held_goes(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "out")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    _write(tmp_path / "out", "one")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_came_up_meanwhile_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(NotOurs), artifact.writing(out):  # noqa: PT012
        out.mkdir()
        (out / "cat.png").write_text("meow")
    assert [path.name for path in out.iterdir()] == ["cat.png"]


def test_what_a_run_killed_between_two_renames_moved_away_comes_back(tmp_path: Path) -> None:
    _write(tmp_path / "out", "one")
    away = tmp_path / ".planish-out-old-abcd_123"
    away.mkdir()
    (tmp_path / "out").rename(away / "old")
    with pytest.raises(ValueError, match="stop"), artifact.writing(tmp_path / "out"):
        raise ValueError("stop")
    artifact.verify(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_asks_for_space_before_writing(tmp_path: Path) -> None:
    artifact.check_space(tmp_path / "not" / "there", 1)
    with pytest.raises(NoSpace, match="are needed and"):
        artifact.check_space(tmp_path / "not" / "there", 10**18)


def test_verify_names_what_changed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    _write(folder, "one")
    (folder / "onnx" / "model.onnx").write_text("changed")
    with pytest.raises(BadArtifact, match=r"onnx/model\.onnx is missing or not as written"):
        artifact.verify(folder)
    (folder / MANIFEST).write_text(json.dumps({"format": 99}))
    with pytest.raises(BadArtifact, match="not a manifest of format 1"):
        artifact.verify(folder)
    with pytest.raises(BadArtifact, match=r"holds no planish\.json"):
        artifact.read_manifest(tmp_path)
