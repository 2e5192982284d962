"""Anything that was audited, in a form in which it can be run: a file, a program, an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planish.ir.errors import PlanishError
from planish.lowering.artifact import sha256
from planish.runtime.search import Slope
from planish.runtime.witness import Feeds, Run


class CannotRun(PlanishError):
    """The model cannot be run on batches made here, so nothing is confirmed."""


@dataclass(frozen=True)
class Runnable:
    """A model to run.

    Attributes:
        run: evaluates it: inputs by name to outputs by name.
        dtypes: of its inputs, as numpy names them.
        example: inputs that it is known to run on; of some inputs or of none.
        slope: gives gradients, where there are any.
        model: SHA-256 of the file, if it is one.
    """

    run: Run
    dtypes: Mapping[str, str]
    example: Feeds = field(default_factory=dict)
    slope: Slope | None = None
    model: str = ""


def of_file(file: Path, libraries: tuple[str, ...] = ()) -> Runnable:
    """An ONNX file, or the `program.json` of a saved program.

    Args:
        file: the file.
        libraries: of custom operators of ONNX Runtime, whose code is loaded.

    Raises:
        planish.runtime.backend.CannotOpen: if it cannot be loaded.
    """
    backend: Any
    if file.name == "program.json":
        from planish.lowering.programs import program_in  # noqa: PLC0415
        from planish.runtime.slopes import of_program  # noqa: PLC0415

        program: Any = program_in(file.parent)  # type checkers may see that file under two names
        made: Any = of_program(program, sha256(file))
        found: Runnable = made
        return found
    from planish.runtime.ort_backend import OnnxBackend  # noqa: PLC0415

    backend = OnnxBackend(file, "cpu", libraries=libraries)
    dtypes = {one.name: str(one.array_dtype) for one in backend.inputs}
    return Runnable(backend.run, dtypes, model=sha256(file))
