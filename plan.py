"""What a recipe would do to a model, found out on tensors without data, before any work."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from planish import api, recipes
from planish.decoding import check_decodes, stored
from planish.ir.capture.meta import from_config
from planish.ir.cost import layers, parameters
from planish.ir.program import Program
from planish.lowering.onnx.lower import EXTERNAL_ABOVE
from planish.lowering.onnx.target import CPU
from planish.passes import name_of
from planish.passes.contract import LongPass, NotApplicable, Pass, options_of

ONNX = "onnx"


@dataclass(frozen=True)
class PlannedStep:
    """What a pass would do.

    Attributes:
        name: of the pass.
        options: its fields.
        numerics: what its contract promises.
        rewrites: how many places it would change.
        parameters: numbers of the model before and after, however they are stored.
        nbytes: bytes of all tensors, before and after.
        needs_data: whether what it does depends on the weights' values. It was left out then, and
            the figures after it are those without it.
        learns: whether it learns from samples, which the estimate leaves out.
    """

    name: str
    options: dict[str, Any]
    numerics: str
    rewrites: int
    parameters: tuple[int, int]
    nbytes: tuple[int, int]
    needs_data: bool
    learns: bool


@dataclass(frozen=True)
class Refusal:
    """A pass that cannot be applied: its name, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Estimate:
    """What `convert` would take, to within about a third but for what passes learn from samples.

    Attributes:
        peak_memory: bytes of memory that the process would hold at most.
        seconds: of one core's time; about as long as it takes, since most of it is not parallel.
        disk: bytes of the artifact. While it is written, the one it replaces still exists.
    """

    peak_memory: int
    seconds: float
    disk: int


@dataclass(frozen=True)
class Plan:
    """What a recipe would do.

    Attributes:
        model: the model's class.
        recipe: the recipe's name.
        target: what would be lowered to.
        steps: one a pass, up to one that refuses.
        refusal: the pass that refuses the model, if one does: `convert` would stop there.
        parameters: numbers of the model before and after, however they are stored.
        nbytes: bytes of all tensors, before and after.
        forms: bytes by how tensors end up stored, e.g. `int4 symmetric, groups of 64`.
        estimate: what `convert` would take.
    """

    model: str
    recipe: str
    target: str
    steps: tuple[PlannedStep, ...]
    refusal: Refusal | None
    parameters: tuple[int, int]
    nbytes: tuple[int, int]
    forms: Mapping[str, int]
    estimate: Estimate

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def text(self) -> str:
        """For people, a few lines."""
        return "\n".join(_lines(self)) + "\n"


def plan(model: api.Model, recipe: api.RecipeLike) -> Plan:
    """Run a recipe on a model's shapes.

    Args:
        model: a checkpoint, of which only the config and the heads of files are read; or a
            captured program, or a model of transformers.
        recipe: as for `planish.api.optimize`.

    Raises:
        PlanishError: if the model or the recipe is none. A pass that refuses is no error, but
            the plan's `refusal`.
    """
    chosen = recipes.load(recipe)
    start = time.process_time()
    before = _without_data(model)
    after, steps, refusal = _run(before, chosen.passes)
    made = [after]
    if chosen.decode and refusal is None:
        check_decodes(before)
        second, further, refusal = _run(before, chosen.decode)
        made.append(second)
        steps += tuple(dataclasses.replace(one, name=f"decode: {one.name}") for one in further)
    planned = time.process_time() - start
    forms: Counter[str] = Counter()
    for layer in (layer for one in made for layer in layers(one)):
        forms[layer.form] += layer.nbytes
    return Plan(
        model=before.source.name,
        recipe=chosen.name,
        target=chosen.target,
        steps=steps,
        refusal=refusal,
        parameters=(parameters(before), parameters(after)),
        nbytes=(before.nbytes, stored(*made)),
        forms=dict(forms),
        estimate=_estimate(before, made, chosen.target, planned),
    )


def _without_data(model: api.Model) -> Program:
    if isinstance(model, (str, Path)):
        return from_config(model)
    program = api.capture(model)
    tensors = {name: tensor.to("meta") for name, tensor in program.tensors.items()}
    return dataclasses.replace(program, tensors=tensors, samples=())


def _run(
    program: Program, passes: tuple[Pass, ...]
) -> tuple[Program, tuple[PlannedStep, ...], Refusal | None]:
    steps: list[PlannedStep] = []
    for one in passes:
        try:
            after, needs_data = one(program), False
        except NotApplicable as refused:
            reason = str(refused).removeprefix(f"{name_of(one)}: ")
            return program, tuple(steps), Refusal(name_of(one), reason)
        except (NotImplementedError, RuntimeError, TypeError) as error:
            if "meta" not in str(error):  # torch's word for a tensor whose numbers were asked for
                raise
            after, needs_data = program, True
        steps.append(_step(one, program, after, needs_data=needs_data))
        program = after
    return program, tuple(steps), None


def _step(one: Pass, before: Program, after: Program, *, needs_data: bool) -> PlannedStep:
    return PlannedStep(
        name=name_of(one),
        options=options_of(one),
        numerics=one.contract.numerics,
        rewrites=len(after.changes) - len(before.changes),
        parameters=(parameters(before), parameters(after)),
        nbytes=(before.nbytes, after.nbytes),
        needs_data=needs_data,
        learns=isinstance(one, LongPass) and one.learns,
    )


def _estimate(before: Program, made: Sequence[Program], target: str, planned: float) -> Estimate:
    """What `convert` would take.

    The work on graphs is the same with and without data, so its time is the time that planning
    took. The rest grows with bytes, at rates fitted to the largest resident set, and to the time
    of the process with one thread, of converting SmolLM2-135M (w4a16, bf16) and all-MiniLM-L6-v2
    (w8a16) on two cores of a server. There, memory came out right to 5% and time to 15%.
    """
    rounded = sum(_rounded(before, one) for one in made)
    kept, held = made[0].nbytes, stored(*made)  # the checkpoint holds the first form
    lowered = sum(map(_onnx_bytes, made)) if target == ONNX else kept
    buffered = _BUFFERED * lowered if target == ONNX and lowered < EXTERNAL_ABOVE else _STREAMED
    return Estimate(
        peak_memory=int(
            _LIBRARIES
            + _NODE * len(before.graph.nodes)
            + before.nbytes
            + held
            + _ROUNDING * rounded
            + buffered
        ),
        seconds=planned
        + _START
        + _READ_SECONDS * before.nbytes
        + _ROUND_SECONDS * rounded
        + _WRITE_SECONDS * (kept + lowered),
        disk=int(kept + lowered + _companions(before)),
    )


_LIBRARIES, _NODE, _ROUNDING, _BUFFERED, _STREAMED = 360e6, 150e3, 2, 3.1, 250e6
"""Memory: the imported libraries; a captured node, with what the exporter leaves; a number that
is rounded; a byte of an ONNX file, which is built and checked in memory; files written in
pieces."""

_START, _READ_SECONDS, _ROUND_SECONDS, _WRITE_SECONDS = 4.0, 3e-9, 23e-9, 8e-9
"""Time: imports and the report's pictures; to read and hash a byte; to round a number; to write,
check and hash a byte."""

_ONNX_NODE = 160
"""Bytes of a node in an ONNX file."""


def _rounded(before: Program, after: Program) -> int:
    """The numbers in layers that end up as packed integers and did not begin so."""
    forms = {layer.name: layer.form for layer in layers(before)}
    return sum(
        layer.parameters
        for layer in layers(after)
        if layer.form.startswith("int") and layer.form != forms.get(layer.name)
    )


def _onnx_bytes(program: Program) -> int:
    """Bytes of the ONNX model, tensors in the dtype that it computes in."""
    tensors = sum(
        tensor.numel() * CPU.dtype(tensor.dtype).itemsize for tensor in program.tensors.values()
    )
    return tensors + _ONNX_NODE * len(program.graph.nodes)


def _companions(program: Program) -> int:
    """Bytes of the tokenizer and the like, which are carried along."""
    folder = program.source.folder
    if folder is None:
        return 0
    return sum(
        path.stat().st_size
        for path in folder.iterdir()
        if path.is_file() and path.suffix in {".json", ".txt", ".jinja", ".model"}
    )


def _lines(found: Plan) -> Iterator[str]:
    yield f"{found.model}, {found.recipe}, to {found.target}"
    for step in found.steps:
        yield f"  {step.name}: {step.rewrites} rewrites, {_change(step.nbytes)} ({step.numerics})"
        if step.needs_data:
            yield "    depends on the weights' values, so what it does was left out here"
    if found.refusal:
        yield f"  {found.refusal.name} refuses: {found.refusal.reason}"
    before, after = found.parameters
    yield f"parameters   {before:,} -> {after:,}"
    yield f"tensors      {_change(found.nbytes)}"
    for form, nbytes in sorted(found.forms.items(), key=lambda item: -item[1]):
        yield f"               {nbytes / 1e6:,.1f} MB as {form}"
    yield f"peak memory  about {found.estimate.peak_memory / 1e9:.1f} GB"
    yield f"time         about {found.estimate.seconds:.0f} s of one core"
    if learners := [step.name for step in found.steps if step.learns]:
        yield f"               and what {', '.join(learners)} take to learn from samples: minutes,"
        yield "               and the memory of some batches"
    yield f"disk         about {found.estimate.disk / 1e6:,.0f} MB"


def _change(nbytes: tuple[int, int]) -> str:
    before, after = nbytes
    share = f" ({after / before:.3f})" if before else ""
    return f"{before / 1e6:,.1f} MB -> {after / 1e6:,.1f} MB{share}"
