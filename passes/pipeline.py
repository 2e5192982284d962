"""Running passes: a for loop, and after every pass a check of what it promised."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planish.ir.carried import pairs
from planish.ir.errors import PlanishError
from planish.ir.finite import is_finite
from planish.ir.isolation.programs import analyse_program, explain, require
from planish.ir.isolation.verdict import Analysis
from planish.ir.program import Change, Program
from planish.ir.progress import Progress, silent
from planish.ir.shapes import well_formed
from planish.passes.contract import LongPass, Pass, options_of
from planish.passes.products import quick_products
from planish.passes.spill import put_back, return_freed, spilled
from planish.passes.work import Journal, Work, digest

Outputs = list[dict[str, Tensor]]

TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""The relative error that counts as rounding for an exact pass, by the coarsest dtype at work."""

UNANALYSED = "unproven (not analysed)"
"""The isolation verdict where none was asked for."""

LARGE = 1 << 25
"""Bytes of an output that waits for the pass in a file."""

_AT_ONCE = 1 << 22
"""Numbers that are compared at a time: logits of a few rows would be gigabytes in float64."""

_VERDICTS = ("isolated", "unproven", "leaks")
"""What verdicts on isolation start with, the best first."""


def severity(verdict: str) -> int:
    """How bad a verdict on isolation is, from 0."""
    return next(place for place, word in enumerate(_VERDICTS) if verdict.startswith(word))


class BrokenPromise(PlanishError):
    """A pass did not keep its contract: a defect of the pass, not of the model."""


@dataclass(frozen=True)
class Step:
    """What one pass did.

    Attributes:
        name: of the pass, as in `PASSES`.
        options: its fields.
        numerics: what its contract promises.
        changes: each rewrite, in order.
        error: relative L2 error of the outputs against those before the pass, the largest over
            samples and outputs; None for a program without samples.
        parameters: numbers stored, before and after.
        nbytes: bytes of all tensors, before and after.
        isolation: the verdict after the pass.
        seconds: how long the pass took, checks left out.
    """

    name: str
    options: dict[str, Any]
    numerics: str
    changes: tuple[Change, ...]
    error: float | None
    parameters: tuple[int, int]
    nbytes: tuple[int, int]
    isolation: str
    seconds: float


def apply(
    program: Program,
    passes: Sequence[Pass],
    *,
    names: Callable[[Pass], str],
    isolation: bool = True,
    strict: str | None = None,
    progress: Progress = silent,
    resume: Path | None = None,
) -> tuple[Program, tuple[Step, ...]]:
    """Run `passes` in order and check each.

    Args:
        program: the input; it stays as it is.
        passes: what to run.
        names: gives the name of a pass, for the steps and for errors.
        isolation: whether to ask, after each pass, if requests in one batch stay apart.
        strict: the policy, if it asks for a proof: then no pass is run on what has none, unless one
            that repairs is to come.
        progress: told the name of each pass when it begins, and how far long ones are.
        resume: a folder where long passes keep what is finished, and find it again.

    Raises:
        planish.passes.contract.NotApplicable: if a pass refuses the program.
        planish.passes.work.StaleWork: if `resume` keeps work on something else.
        planish.ir.isolation.programs.Refused: under `strict`.
        BrokenPromise: if a result is ill-formed, not finite, further off than promised, or less
            isolated than before.
    """
    steps = []
    original = program
    outputs = evaluated(program)
    verdict = analyse_program(program).verdict if isolation else UNANALYSED
    if resume is not None:
        recipe = "; ".join(f"{names(one)} {options_of(one)}" for one in passes)
        Journal(resume, digest(program, recipe)).claim()
    for place, one in enumerate(passes):
        name = names(one)
        progress(name, 0, 0)
        start = time.perf_counter()
        folder = resume and resume / f"{place}-{name}"
        after = _run(name, one, program, original, progress, folder)
        seconds = time.perf_counter() - start
        return_freed()
        well_formed(after)
        outputs_after = evaluated(after)
        error = _error(name, one, outputs, outputs_after, _states(program))
        if isolation:
            analysis = analyse_program(after)
            _check_isolation(name, one, verdict, analysis)
            verdict = analysis.verdict
            if strict and not any(_repairs(later) for later in passes[place + 1 :]):
                require(analysis, strict, f"what {name} made")
        steps.append(
            Step(
                name=name,
                options=options_of(one),
                numerics=one.contract.numerics,
                changes=after.changes[len(program.changes) :],
                error=error,
                parameters=(program.parameters, after.parameters),
                nbytes=(program.nbytes, after.nbytes),
                isolation=verdict,
                seconds=seconds,
            )
        )
        program, outputs = after, outputs_after
    return program, tuple(steps)


def _run(
    name: str,
    one: Pass,
    program: Program,
    original: Program,
    progress: Progress,
    folder: Path | None,
) -> Program:
    journal = None
    if folder is not None and isinstance(one, LongPass):
        journal = Journal(folder, digest(program, f"{name} {options_of(one)}"))
    work = Work(lambda done, total: progress(name, done, total), journal, original)
    with quick_products() if one.contract.numerics == "lossy" else nullcontext():
        return one(program, work) if isinstance(one, LongPass) else one(program)


def _check_isolation(name: str, one: Pass, before: str, found: Analysis) -> None:
    """The verdict after a pass against its promise."""
    if one.contract.isolation != "may break" and severity(found.verdict) > severity(before):
        raise BrokenPromise(
            f"{name} promises to keep requests of a batch apart as they were ({before}), and now "
            f"the verdict is: {found.verdict}, {explain(found.findings[0])}."
        )


def _repairs(one: Pass) -> bool:
    return one.contract.isolation == "repaired"


def evaluated(program: Program) -> Outputs:
    """What a program gives for each of its samples; what is large lies in files."""
    # A pass may change the dtype of inputs (a KV cache in bfloat16), never their meaning.
    dtypes = {spec.name: spec.dtype for spec in program.inputs}
    found = []
    for sample in program.samples:
        fed = {name: tensor.to(dtypes[name]) for name, tensor in sample.items()}
        given = program.run(**fed)
        # Logits would lie in memory for as long as the pass runs.
        found.append({name: spilled(t) if t.nbytes > LARGE else t for name, t in given.items()})
    return found


def _states(program: Program) -> set[str]:
    """The outputs that only the program itself reads, when it is called again."""
    if program.source.task != "causal-lm":
        return set()
    return set(pairs((spec.name for spec in program.inputs), program.outputs).values())


def _error(name: str, one: Pass, before: Outputs, after: Outputs, states: set[str]) -> float | None:
    """The largest relative error, checked against the promise.

    An exact pass may write states, such as caches, in other coordinates, and moves those of samples
    along; whether they are read as they are written shows in the other outputs. States that a pass
    took away, as with a block, or made narrower, as by a head, have nothing to be compared with;
    where some are gone, those that are left are counted anew, and none is compared.
    """
    moved = states if one.contract.numerics == "exact" else set()
    worst: float | None = None
    for old, new in zip(before, after, strict=True):
        gone = {name for name in states if name not in new or new[name].shape != old[name].shape}
        gone = states if any(name not in new for name in states) else gone
        for output, expected in old.items():
            if not expected.is_floating_point() or output in gone:
                continue
            got = new[output]
            if not is_finite(got) and is_finite(expected):
                raise BrokenPromise(f"{name}: {output} is not finite any more after this pass.")
            if output in moved:
                continue
            error = relative_error(got, expected)
            put_back(expected)
            put_back(got)
            worst = max(worst or 0.0, error)
            tolerance = max(TOLERANCE[got.dtype], TOLERANCE[expected.dtype])
            if one.contract.numerics == "exact" and error > tolerance:
                raise BrokenPromise(
                    f"{name} promises the same function, yet {output} differs by "
                    f"{error:.1e} of its size (rounding would be under {tolerance:.0e})."
                )
    return worst


def relative_error(got: Tensor, expected: Tensor) -> float:
    """‖got - expected‖ / ‖expected‖ in float64, over the finite entries of `expected`."""
    wrong = size = 0.0
    parts = zip(got.flatten().split(_AT_ONCE), expected.flatten().split(_AT_ONCE), strict=True)
    for one, other in parts:
        finite = torch.isfinite(other)
        wide = other.double()[finite]
        wrong += float((one.double()[finite] - wide).square().sum())
        size += float(wide.square().sum())
    return math.sqrt(wrong / max(size, torch.finfo(torch.float64).tiny))
