"""Running what was audited: a witness for each leak, and a check of each proof."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from planish.ir.errors import PlanishError
from planish.ir.flow.polynomial import Count, Polynomial, substitute
from planish.ir.isolation.verdict import Given
from planish.lowering.artifact import model_file, sha256
from planish.runtime.values import Array
from planish.runtime.witness import (
    InputSpec,
    Run,
    Witness,
    random_input,
    replay,
    search,
)

if TYPE_CHECKING:
    from planish.auditing import AuditReport

REQUESTS = 3
"""Requests in the batches that are made."""

LENGTHS = (6, 4, 8, 16)
"""Sizes for all other dimensions that are symbols, tried until the model runs."""


class Contradicted(PlanishError):
    """A proof, and a run that it does not allow: a defect of the analysis."""

    exit_code = 4


class CannotRun(PlanishError):
    """The model cannot be run on batches made here, so nothing is confirmed."""


def confirm(report: AuditReport, target: Path, folder: Path) -> AuditReport:
    """Search for witnesses of what was found, or check what was proven.

    Args:
        report: of the audit of `target`.
        target: an ONNX file, an artifact or a saved program.
        folder: where witnesses are written.

    Returns:
        The report with the witnesses' paths in its findings, and with a note on rounding.

    Raises:
        Contradicted: if a row moves that was proven not to.
        CannotRun: if the model cannot be run.
    """
    file = _file(target)
    run, dtypes = _runner(file)
    specs = _specs(report.inputs, dtypes, run)
    owner = report.owners.of_row
    found = list(search(run, specs, report.output_axes, owner, model=sha256(file)))
    verdicts = {one.name: one.verdict for one in report.outputs}
    written: dict[str, str] = {}
    notes = []
    for one in found:
        if one.rounding:
            notes.append(
                f"the rows of {one.output} move by up to {one.difference:.1e} (of {one.size:.1e}) "
                "with what other rows hold: rounding in a kernel"
            )
            continue
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{target.stem}-{_safe(one.output)}.npz"
        one.save(path)
        if verdicts.get(one.output) == "isolated":
            raise Contradicted(
                f"{target}: the output {one.output} was proven isolated, yet rows {one.rows} move "
                f"by {one.difference:.3g} when rows {one.changed} are changed ({one.how}). This is "
                f"a defect of Planish: please report it with {path} and the model."
            )
        written[one.output] = str(path)
    findings = tuple(
        dataclasses.replace(
            one, witness=next((written[out] for out in one.outputs if out in written), None)
        )
        for one in report.findings
    )
    return dataclasses.replace(report, findings=findings, numerics=tuple(notes))


def replayed(path: Path, target: Path) -> Witness:
    """A witness, run again on a model.

    Raises:
        planish.runtime.witness.BadWitness: if the file is none, or not one of this model.
        CannotRun: if the model cannot be run on it.
    """
    witness = Witness.load(path)
    run, _ = _runner(_file(target))
    return replay(witness, run)


def compared_alone(one: Path, other: Path, report: AuditReport) -> dict[str, float]:
    """How far two models differ on one request alone, by output: relative L2 error.

    Args:
        one: a file.
        other: another, with the same inputs.
        report: of the audit of either.

    Returns:
        Nothing if they do not run on what is made here.
    """
    run, dtypes = _runner(one)
    run_other, _ = _runner(other)
    try:
        specs = _specs(report.inputs, dtypes, run)
    except CannotRun:
        return {}
    chance = np.random.default_rng(0)
    feeds = {spec.name: _alone(random_input(spec, chance), spec.axis) for spec in specs}
    before, after = run(feeds), run_other(feeds)
    return {
        name: _relative(after[name], value)
        for name, value in before.items()
        if value.dtype.kind == "f"
    }


def _relative(got: Array, expected: Array) -> float:
    size = float(np.linalg.norm(expected.astype(np.float64)))
    return float(np.linalg.norm(got.astype(np.float64) - expected)) / max(size, 1e-30)


def _alone(value: Array, axis: int | None) -> Array:
    return value if axis is None else value.take([0], axis)


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)


def _file(target: Path) -> Path:
    """The file that is run: of an artifact its ONNX model, else its program."""
    program = target / "program.json"
    found = model_file(target) or (program if program.is_file() else target)
    if found.is_file() and found.suffix != ".gguf":
        return found
    raise CannotRun(
        f"{target} has no weights in a form that can be run here; convert it first, and confirm "
        "the audit of the result."
    )


def _runner(file: Path) -> tuple[Run, dict[str, str]]:
    """Something to run, and the dtype of each input as numpy names it."""
    backend: Any
    if file.name == "program.json":
        from planish.runtime.torch_backend import TorchBackend  # noqa: PLC0415

        backend = TorchBackend(file.parent)
    else:
        from planish.runtime.ort_backend import OnnxBackend  # noqa: PLC0415

        backend = OnnxBackend(file, "cpu")
    return backend.run, {one.name: str(one.array_dtype) for one in backend.inputs}


def _specs(inputs: Sequence[Given], dtypes: Mapping[str, str], run: Run) -> list[InputSpec]:
    """Inputs with numbers for all sizes, on which the model runs."""
    reason = ""
    for length in LENGTHS:
        specs = []
        for one in inputs:
            shape = tuple(_number(size, length) for size in one.shape)
            specs.append(InputSpec(one.name, shape, dtypes[one.name], one.axis))
        try:
            next(search(run, specs, {}, tries=1), None)
        except Exception as error:  # whatever the backend raises
            reason = str(error)
            continue
        return specs
    raise CannotRun(f"the model does not run on the batches that were made for it: {reason}")


def _number(size: Count, length: int) -> int:
    """A size in numbers: `B` requests, and `length` for what else is a symbol."""
    if isinstance(size, int):
        return size
    values: dict[str, Count] = {}
    for name in size.symbols:
        values[name] = REQUESTS if name == "B" else _named(name, length)
    number = substitute(size, values)
    if isinstance(number, Polynomial):
        raise CannotRun(f"the size {size} cannot be chosen")
    return number


def _named(name: str, length: int) -> int:
    """A number for a name; names such as `past + sequence` are sums of those they name."""
    try:
        tree = ast.parse(name, mode="eval").body
    except SyntaxError:
        return length
    return _total(tree, length)


def _total(tree: ast.expr, length: int) -> int:
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        return _total(tree.left, length) + _total(tree.right, length)
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
        return tree.value
    return length


def lines(report: AuditReport) -> Iterator[str]:
    """What was confirmed, for people."""
    if report.verdict == "isolated":
        yield "checked by running: no row moved when other rows were replaced, up to 1e4, NaN, Inf"
    witnesses = sorted({one.witness for one in report.findings if one.witness})
    for path in witnesses:
        yield f"witness: {path} (planish audit TARGET --replay {path})"
    if report.verdict == "leaks" and not witnesses:
        yield "no witness was found by running; the finding stands on the graph alone"
    yield from report.numerics
