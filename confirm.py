"""Running what was audited: a witness for each leak, and a check of each proof."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from planish.ir.errors import PlanishError
from planish.lowering.artifact import model_file
from planish.runtime.batches import specs_of, tiled
from planish.runtime.runnable import CannotRun, Runnable, of_file
from planish.runtime.search import InputSpec, Owner, random_input, search
from planish.runtime.values import Array
from planish.runtime.witness import ROUNDING, Feeds, Witness, replay

if TYPE_CHECKING:
    from planish.auditing import AuditReport


class Contradicted(PlanishError):
    """A proof, and a run that it does not allow: a defect of the analysis.

    Attributes:
        witness: the run.
    """

    exit_code = 4

    def __init__(self, message: str, witness: Witness) -> None:
        super().__init__(message)
        self.witness = witness


def confirm(report: AuditReport, model: Runnable, folder: Path | None = None) -> AuditReport:
    """Search for witnesses of what was found, or check what was proven.

    Args:
        report: of the audit of the model.
        model: to run.
        folder: where witnesses are written; by default they are in the report alone.

    Returns:
        The report with the witnesses, their paths in its findings, and notes on rounding and on
        what a request is given alone or in another place of the batch.

    Raises:
        Contradicted: if a row moves that was proven not to.
        CannotRun: if the model cannot be run.
    """
    specs = specs_of(report.inputs, model, report.owners.rows)
    owner = report.owners.of_row
    base = tiled(specs, model.example)
    found = search(
        model.run,
        specs,
        report.output_axes,
        owner,
        base=base,
        slope=model.slope,
        model=model.model,
    )
    verdicts = {one.name: one.verdict for one in report.outputs}
    kept: list[Witness] = []
    written: dict[str, str] = {}
    notes = []
    for one in found:
        if one.rounding:
            notes.append(
                f"the rows of {one.output} move by up to {one.difference:.1e} (of {one.size:.1e}) "
                "with what other rows hold: rounding in a kernel"
            )
            continue
        where = ""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{_safe(Path(report.target).stem)}-{_safe(one.output)}.npz"
            one.save(path)
            where = written[one.output] = str(path)
        if verdicts.get(one.output) == "isolated":
            raise Contradicted(
                f"{report.target}: the output {one.output} was proven isolated, yet rows "
                f"{one.rows} move by {one.difference:.3g} when rows {one.changed} are changed "
                f"({one.how}). This is a defect of Planish: please report it with the model and "
                f"{where or 'the `witness` of this error'}.",
                one,
            )
        kept.append(one)
    notes += advice(model, specs, report.output_axes, owner, base)
    findings = tuple(
        one
        if one.advisory
        else dataclasses.replace(
            one, witness=next((written[out] for out in one.outputs if out in written), None)
        )
        for one in report.findings
    )
    return dataclasses.replace(
        report, findings=findings, numerics=tuple(notes), witnesses=tuple(kept), confirmed=True
    )


def advice(
    model: Runnable,
    specs: Sequence[InputSpec],
    outputs: Mapping[str, int],
    owner: Owner,
    base: Feeds,
) -> Iterator[str]:
    """How far a request is given something else alone, or in another place of the batch.

    Both are allowed: `x / batch_size` keeps requests apart. So this is for information.
    """
    chance = np.random.default_rng(0)
    feeds = {spec.name: random_input(spec, chance) for spec in specs} | dict(base)
    together = model.run(feeds)
    counts = [spec.shape[spec.axis] for spec in specs if spec.axis is not None]
    if len(set(counts)) != 1 or owner(counts[0] - 1, counts[0]) != counts[0] - 1:
        return  # several rows a request: what is alone or in order then is another question
    reverse = list(range(counts[0]))[::-1]
    for rows, what in (([0], "alone"), (reverse, "in a batch in another order")):
        chosen = {
            spec.name: feeds[spec.name]
            if spec.axis is None
            else feeds[spec.name].take(rows, spec.axis)
            for spec in specs
        }
        try:
            apart = model.run(chosen)
        except Exception:
            continue
        for name, axis in outputs.items():
            if together[name].dtype.kind != "f":
                continue
            expected = together[name].take(rows, axis)
            far = (
                _relative(apart[name], expected)
                if apart[name].shape == expected.shape
                else float("inf")
            )
            if far > ROUNDING * 10:
                yield f"{name}: a request {what} is given something else, by {far:.1e} of its size"


def replayed(path: Path, target: Path) -> Witness:
    """A witness, run again on a model.

    Raises:
        planish.runtime.witness.BadWitness: if the file is none, or not one of this model.
        CannotRun: if the model cannot be run on it.
    """
    witness = Witness.load(path)
    return replay(witness, runnable(target).run)


def compared_alone(one: Path, other: Path, report: AuditReport) -> dict[str, float]:
    """How far two models differ on one request alone, by output: relative L2 error.

    Args:
        one: a file.
        other: another, with the same inputs.
        report: of the audit of either.

    Returns:
        Nothing if they do not run on what is made here.
    """
    model = of_file(one)
    try:
        specs = specs_of(report.inputs, model, report.owners.rows)
    except CannotRun:
        return {}
    chance = np.random.default_rng(0)
    feeds = {spec.name: _alone(random_input(spec, chance), spec.axis) for spec in specs}
    before, after = model.run(feeds), of_file(other).run(feeds)
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


def runnable(target: Path, libraries: Sequence[str] = ()) -> Runnable:
    """What can be run of a target: of an artifact its ONNX model, else its program.

    Args:
        target: a file, or a folder that holds one.
        libraries: of custom operators, which ONNX Runtime loads.

    Raises:
        CannotRun: if it holds nothing that runs, such as a checkpoint.
    """
    program = target / "program.json"
    found = model_file(target) or (program if program.is_file() else target)
    if found.is_file() and found.suffix != ".gguf":
        return of_file(found, tuple(libraries))
    raise CannotRun(
        f"{target} has no weights in a form that can be run here; convert it first, and confirm "
        "the audit of the result."
    )


def lines(report: AuditReport) -> Iterator[str]:
    """What was confirmed, for people."""
    if not report.confirmed:
        return
    if report.verdict == "isolated":
        yield "checked by running: no row moved when other rows were replaced, up to 1e4, NaN, Inf"
    witnesses = sorted({one.witness for one in report.findings if one.witness})
    for path in witnesses:
        yield f"witness: {path} (planish audit TARGET --replay {path})"
    for one in report.witnesses if not witnesses else ():
        moved = f"rows {list(one.rows)} of {one.output} move by {one.difference:.3g}"
        yield f"witness: {moved} when rows {list(one.changed)} are changed ({one.how})"
    if report.verdict == "leaks" and not report.witnesses:
        yield "no witness was found by running; the finding stands on the graph alone"
    yield from report.numerics
