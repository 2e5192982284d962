"""The program that a folder of an artifact holds, whichever target it was written for."""

from __future__ import annotations

from pathlib import Path

from planish.ir.program import Program
from planish.lowering.artifact import KERNELS


def program_in(folder: Path) -> Program:
    """A program as its passes left it, or lowered to generated kernels, which are checked.

    Args:
        folder: that holds `program.json`; beside it `kernels.json` if kernels were generated.

    Raises:
        planish.ir.serialize.MalformedProgram: if the program is damaged.
        planish.lowering.artifact.BadArtifact: if its kernels are not those that its
            specifications generate.
    """
    if not (folder / KERNELS).is_file():
        return Program.load(folder)
    from planish.lowering.triton.load import load  # noqa: PLC0415

    return load(folder)[0]
