"""The artifact: a folder that is there whole or not at all, and its manifest."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from planish.ir.errors import PlanishError
from planish.lowering.lock import hold

MANIFEST = "planish.json"
MEASUREMENTS = "measurements.json"
REPORT = "report.html"
ONNX_MODEL = "onnx/model.onnx"
TORCH_PROGRAM = "torch/program.json"
TRITON_PROGRAM = "triton/program.json"
KERNELS = "kernels.json"
FORMAT = 1

UNHASHED = frozenset({MANIFEST, MEASUREMENTS, REPORT})
"""Files that hold times and speeds, or the hashes themselves: outside the promise of same bytes."""

_ASIDE = ".planish-"


class NotOurs(PlanishError):
    """The output folder exists and is not an artifact."""


class NoSpace(PlanishError):
    """The disk has too little room."""


class BadArtifact(PlanishError):
    """A folder is no artifact, or its files are not those it was written with."""


@dataclass(frozen=True)
class Manifest:
    """What `planish.json` says.

    Attributes:
        model: class, task and name of what was optimized.
        recipe: its name and its text with every option spelled out.
        target: `"onnx"`, `"torch"` or `"triton"`.
        inputs: SHA-256 of each file of the checkpoint, by name.
        versions: of what took part.
        steps: one a pass: name, options, promise, rewrites, error, sizes.
        layers: one a layer: sizes and shapes before and after, error of the weights.
        groups: one an axis that became shorter: what it is, its sizes, all that it runs through.
        parameters: before and after.
        tensor_bytes: before and after.
        isolation: the verdict.
        certificate: what it speaks of, what it rests on, what it does not cover.
        notes: what did not go as usual.
        files: SHA-256 and bytes of every file written.
    """

    model: Mapping[str, Any]
    recipe: Mapping[str, Any]
    target: str
    inputs: Mapping[str, str]
    versions: Mapping[str, str]
    steps: tuple[Mapping[str, Any], ...]
    layers: tuple[Mapping[str, Any], ...]
    groups: tuple[Mapping[str, Any], ...]
    parameters: tuple[int, int]
    tensor_bytes: tuple[int, int]
    isolation: str
    certificate: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"format": FORMAT, **asdict(self)}


def model_file(folder: Path) -> Path | None:
    """The file that an artifact runs: its ONNX model, else its program; None if it holds none."""
    files = (folder / name for name in (ONNX_MODEL, TORCH_PROGRAM, TRITON_PROGRAM))
    return next((file for file in files if file.is_file()), None)


def sha256(path: Path) -> str:
    """The hash of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Hash and bytes of every file below a folder, save those of `UNHASHED`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: {"sha256": sha256(path), "bytes": path.stat().st_size}
        for name, path in names.items()
        if name not in UNHASHED
    }


def write_json(path: Path, value: Any) -> None:
    """JSON as artifacts hold it: sorted by nothing, indented, ending in a newline."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def check_target(folder: Path) -> None:
    """Refuse to replace what is not an artifact.

    Raises:
        NotOurs: for a file, or a folder with contents and without a manifest.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise NotOurs(f"{folder} is a file; name a folder to write.")
    if any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise NotOurs(
            f"{folder} exists and was not written by Planish (it holds no {MANIFEST}), so it is "
            "left alone. Name a new folder, or remove this one first."
        )


def check_space(folder: Path, needed: int) -> None:
    """Make sure that a folder's disk has room before anything is written.

    Args:
        folder: to be written; need not exist.
        needed: bytes.

    Raises:
        NoSpace: with what there is and what is needed.
    """
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise NoSpace(
            f"{folder}: about {needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free. "
            "Make room, or write to another disk."
        )


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` on leaving without an exception.

    It lies beside `folder`, so that renaming it is one step; until then, what was at `folder`
    stays, and an interrupted run leaves it as it was. Of several runs at once each fills a folder
    of its own, and the last to end stays.

    Raises:
        NotOurs: if `folder` may not be replaced.
        NoSpace: if the disk fills up on the way.
    """
    check_target(folder)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with hold(folder.parent, wait=True):
            _clear_leftovers(folder)
            staging = Path(tempfile.mkdtemp(prefix=_aside(folder, "new"), dir=folder.parent))
            held.enter_context(hold(staging))
        try:
            yield staging
            with hold(folder.parent, wait=True):
                check_target(folder)  # again: it may have come up meanwhile
                _swap(staging, folder)
        except (OSError, SafetensorError) as error:
            if not _is_full(error):
                raise
            raise NoSpace(
                f"{folder}: the disk filled up while writing; what was there before is untouched."
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _aside(folder: Path, what: str) -> str:
    return f"{_ASIDE}{folder.name}-{what}-"


def _is_full(error: Exception) -> bool:
    """Whether a disk or a quota is used up; safetensors says so only in words."""
    number = getattr(error, "errno", None)
    return number in {errno.ENOSPC, errno.EDQUOT} or f"os error {errno.ENOSPC}" in str(error)


def _clear_leftovers(folder: Path) -> None:
    """Remove what killed runs left beside the folder, and put back what one had moved away."""
    for path in _left(folder, "old"):
        if not folder.exists() and (path / "old").exists():
            (path / "old").rename(folder)
        shutil.rmtree(path, ignore_errors=True)
    for path in _left(folder, "new"):
        with hold(path) as abandoned:
            if abandoned:
                shutil.rmtree(path, ignore_errors=True)


def _left(folder: Path, what: str) -> list[Path]:
    # The length of mkdtemp's part tells `out` and a folder named `out-new` apart.
    name = re.compile(re.escape(_aside(folder, what)) + "[a-z0-9_]{8}")
    return [path for path in folder.parent.iterdir() if name.fullmatch(path.name)]


def _swap(staging: Path, folder: Path) -> None:
    _open_to_readers(staging)
    if not folder.exists():
        staging.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=_aside(folder, "old"), dir=folder.parent))
    folder.rename(old / "old")
    try:
        staging.rename(folder)
    except OSError:
        (old / "old").rename(folder)
        raise
    finally:
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def _open_to_readers(folder: Path) -> None:
    """Give a folder the usual permissions: temporary ones are for their owner only."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact, as JSON values.

    Raises:
        BadArtifact: if there is none, or it is damaged or of another version.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadArtifact(f"{folder} is no artifact: it holds no {MANIFEST}.") from None
    except (OSError, ValueError) as error:
        raise BadArtifact(f"{path} cannot be read: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BadArtifact(f"{path} is not a manifest of format {FORMAT}.")
    return manifest


def read_measurements(folder: Path) -> dict[str, Any]:
    """What was measured on an artifact; empty if nothing was."""
    try:
        measured: dict[str, Any] = json.loads((folder / MEASUREMENTS).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return measured


def verify(folder: Path) -> None:
    """Compare every file of an artifact with the hash in its manifest.

    Raises:
        BadArtifact: naming the files that are missing or changed.
    """
    recorded = read_manifest(folder)["files"]
    there = files_of(folder)
    wrong = [name for name, entry in recorded.items() if there.get(name) != entry]
    if wrong:
        raise BadArtifact(
            f"{folder}: {', '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} missing or not as "
            "written. Convert the model again."
        )
