"""Long work: telling how far it is, and keeping what is finished for a run that is interrupted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from planish.ir.errors import PlanishError
from planish.ir.program import Program
from planish.ir.serialize import graph_json

HEAD = "work.json"
"""The file that says what a folder's work belongs to."""


class StaleWork(PlanishError):
    """Work that was kept belongs to something else, or is damaged."""


class CannotKeep(PlanishError):
    """A finished piece of work could not be written."""


@dataclass(frozen=True)
class Journal:
    """A folder with the finished pieces of one pass over one program, as safetensors files.

    Attributes:
        folder: made when the first piece is kept.
        belongs_to: a digest of everything that the pieces depend on.
    """

    folder: Path
    belongs_to: str
    _checked: list[bool] = field(default_factory=list, init=False, compare=False)

    def load(self, piece: str) -> dict[str, Tensor] | None:
        """The tensors of a finished piece; None if it is not there.

        Raises:
            StaleWork: if the folder belongs to another model, other samples or options, or the
                piece is damaged.
        """
        path = self._path(piece)
        self._check()
        if not path.exists():
            return None
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise StaleWork(
                f"{path} is damaged ({error}); delete it, and its layers are done anew."
            ) from error

    def keep(self, piece: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a finished piece. A file appears whole or not at all.

        Raises:
            CannotKeep: if the disk is full, or the folder may not be written.
        """
        self.claim()
        path = self._path(piece)
        part = path.with_suffix(".part")
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
            os.replace(part, path)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            raise CannotKeep(
                f"{path} could not be written ({error}). Make room in {self.folder}; the same "
                "command goes on from the pieces that are finished."
            ) from error

    def claim(self) -> None:
        """Say in the folder what its work belongs to, before there is any.

        Raises:
            StaleWork: if it belongs to something else.
        """
        self._check()
        if self._checked:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = (self.folder / HEAD).with_suffix(".part")
        draft.write_text(json.dumps({"belongs_to": self.belongs_to}) + "\n", encoding="utf-8")
        os.replace(draft, self.folder / HEAD)
        self._checked.append(True)

    def _path(self, piece: str) -> Path:
        return self.folder / f"{piece}.safetensors"

    def _check(self) -> None:
        head = self.folder / HEAD
        # A recipe that was refused before anything was done may be put right.
        is_begun = head.exists() and any(one.name != HEAD for one in self.folder.iterdir())
        if self._checked or not is_begun:
            return
        try:
            found = json.loads(head.read_text(encoding="utf-8")).get("belongs_to")
        except (ValueError, AttributeError):
            found = None
        if found != self.belongs_to:
            raise StaleWork(
                f"{self.folder} keeps work on another model, other samples or another recipe. "
                "Name another folder to resume from, or delete this one to begin anew."
            )
        self._checked.append(True)


@dataclass(frozen=True)
class Work:
    """What a long pass is given besides the program.

    Attributes:
        tell: called with how many pieces of work are done, and of how many.
        journal: where finished pieces are kept; None if they are not.
        original: the model before the first pass of the recipe, which a pass that repairs or heals
            may come close to; None where the pass is called alone.
    """

    tell: Callable[[int, int], None] = lambda _done, _total: None
    journal: Journal | None = None
    original: Program | None = None

    def part(self, options: str) -> Work:
        """The work of a pass that this one runs, with a journal of its own.

        Args:
            options: of that pass, as text.
        """
        if self.journal is None:
            return self
        name = hashlib.sha256(options.encode()).hexdigest()[:16]
        belongs_to = f"{self.journal.belongs_to} {name}"
        return replace(self, journal=Journal(self.journal.folder / name, belongs_to))


def from_text(text: str) -> Tensor:
    """A text as a tensor, for a journal."""
    return torch.tensor([*text.encode()], dtype=torch.uint8)


def as_text(tensor: Tensor) -> str:
    """A text that was kept as a tensor."""
    return bytes(tensor.tolist()).decode()


UNSEEN = Work()
"""Work that nobody watches, of which nothing is kept."""


def digest(program: Program, options: str) -> str:
    """A digest of a program, its samples, what is about to be done with it, and by which version.

    Args:
        program: graph, tensors and samples all count.
        options: of the pass, as text.
    """
    found = hashlib.sha256(f"{version('planish')} {options}".encode())
    found.update(json.dumps(graph_json(program), sort_keys=True).encode())
    samples = program.calibration or program.samples
    for group in (program.tensors, *samples):
        for name in sorted(group):
            tensor = group[name].detach().contiguous()
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
