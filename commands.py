"""What the commands do, and how they show it. `cli.py` holds only their options."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from planish import api, console, display, recipes
from planish.ir.errors import PlanishError
from planish.ir.program import Program
from planish.ir.serialize import GRAPH_FILE
from planish.lowering.programs import program_in
from planish.passes import PASSES
from planish.runtime.bench import bench as measure_speed
from planish.runtime.choices import choose
from planish.runtime.evaluate import evaluate as perplexity_of
from planish.runtime.session import Session


class BadUsage(PlanishError):
    """An argument of the command line makes no sense."""


WRITING = 4
"""Stages of writing an artifact: checkpoint, lowering, layers compared, report."""


@dataclass(frozen=True)
class Conversion:
    """The options of `convert` besides model, recipe and output."""

    target: str | None = None
    samples: str | None = None
    isolation: str | None = None
    input_shapes: tuple[str, ...] = ()
    opset_only: bool = False
    resume: Path | None = None
    gguf: bool = False
    gate: tuple[int, ...] = ()


def resolve(model: str, input_shapes: Sequence[str] = ()) -> api.Model:
    """The model that the command line names.

    `package.module:function` calls the user's own code; everything else is a path or a name.

    Raises:
        BadUsage: if there is no such function.
    """
    if (Path(model) / GRAPH_FILE).is_file():
        return program_in(Path(model))
    return api.capture(*example(model, input_shapes)) if is_function(model) else model


def example(model: str, input_shapes: Sequence[str] = ()) -> tuple[Any, Any]:
    """The model and the inputs that `package.module:function` makes.

    Raises:
        BadUsage: if there is no such function.
    """
    made = _called(model)
    if isinstance(made, tuple):
        return made[0], made[1]
    return made, [_example(shape) for shape in input_shapes] or None


def is_function(model: str) -> bool:
    """Whether a name is one of the user's own functions."""
    named = re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", model)
    return named is not None and not Path(model).exists()


def _called(model: str) -> Any:
    module, _, function = model.partition(":")
    try:
        return getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise BadUsage(f"{model}: {error}.") from error


def _example(shape: str) -> torch.Tensor:
    extents = shape.split(",")
    if not all(extent.strip().isdigit() for extent in extents):
        raise BadUsage(f"--input-shape {shape}: give numbers with commas, such as 1,3,224,224.")
    generator = torch.Generator().manual_seed(0)
    return torch.rand([int(extent) for extent in extents], generator=generator)


def convert(
    model: str, recipe: str, output: Path, options: Conversion, *, quiet: bool
) -> api.Result:
    """Run a recipe and write the artifact, with a bar over the stages."""
    for name, value, allowed in (
        ("--target", options.target, (None, *get_args(api.Target))),
        ("--isolation", options.isolation, (None, *get_args(api.Isolation))),
    ):
        if value not in allowed:
            offered = ", ".join(word for word in allowed if word)
            raise BadUsage(f"{name} {value}: choose one of {offered}.")
    chosen = recipes.load(recipe)
    passes = len(chosen.passes) + len(chosen.decode)
    stages = 1 + passes + WRITING + options.gguf + bool(options.gate)
    with console.stages(stages, quiet=quiet) as progress:
        return api.optimize(
            resolve(model, options.input_shapes),
            chosen,
            samples=options.samples,
            output=output,
            target=options.target,  # type: ignore[arg-type]
            isolation=options.isolation,  # type: ignore[arg-type]
            opset_only=options.opset_only,
            resume=options.resume,
            gguf=options.gguf,
            gate=options.gate,
            progress=progress,
        )


def show_result(result: api.Result, *, as_json: bool) -> None:
    """Say what was done, how large the result is, and where it lies."""
    if as_json:
        console.print_json(result.to_json())
        return
    console.table(
        "",
        ["pass", "rewrites", "relative error", "before", "after"],
        [
            [
                step.name,
                str(len(step.changes)),
                "-" if step.error is None else f"{step.error:.2e}",
                *map(console.size, step.nbytes),
            ]
            for step in result.all_steps
        ],
    )
    for note in result.notes:
        console.out.print(f"note: {note}", markup=False, soft_wrap=True)
    before, after = result.original.nbytes, result.nbytes
    console.figures(
        {
            "tensors": f"{console.size(before)} -> {console.size(after)}"
            + (f" ({after / before:.3f})" if before else ""),
            **{name: console.size(nbytes) for name, nbytes in result.files.items()},
            "isolation": result.isolation,
            "report": str((result.folder or Path()) / "report.html"),
        }
    )


def plan(model: str, recipe: str, *, as_json: bool) -> None:
    """Show what a recipe would do to a model, without reading weights."""
    from planish.plan import plan as make_plan  # noqa: PLC0415

    planned = make_plan(model, recipe)
    if as_json:
        console.print_json(planned.to_json())
    else:
        console.out.print(planned.text(), markup=False, soft_wrap=True)


def evaluate(
    artifact: Path,
    text: Path | None,
    choices: Path | None,
    against: str | None,
    *,
    window: int,
    stride: int | None,
    limit: int | None,
    one_by_one: bool,
    as_json: bool,
) -> None:
    """Measure perplexity or multiple-choice accuracy."""
    if (text is None) == (choices is None):
        raise BadUsage("give either --text FILE or --choices FILE.jsonl.")
    if one_by_one and text is None:
        raise BadUsage("--one-by-one is for --text; questions are always read whole.")
    session = Session.open(artifact)
    baseline = _against(against)
    with console.counting("evaluate", quiet=as_json) as bar:
        if text is not None:
            found: Any = perplexity_of(
                session, text, window, stride, baseline, limit, bar, one_by_one=one_by_one
            )
        else:
            found = choose(session, choices or Path(), baseline, limit, bar)
    if as_json:
        console.print_json(found.to_json())
    elif text is not None:
        display.show_evaluation(found)
    else:
        display.show_choices(found)


def _against(name: str | None) -> Any:
    """An artifact as a session, a user's own module as it is; the rest goes to transformers."""
    if name is not None and (Path(name) / "planish.json").is_file():
        return Session.open(name)
    if name is not None and is_function(name):
        made = _called(name)
        return made[0] if isinstance(made, tuple) else made
    return name


def bench(
    artifact: Path,
    against: str | None,
    *,
    batch_sizes: tuple[int, ...],
    prompt: int,
    new_tokens: int,
    compiled: bool,
    as_json: bool,
) -> None:
    """Measure speed."""
    with console.counting("bench", quiet=as_json) as bar:
        found = measure_speed(
            Session.open(artifact, compile=compiled),
            _against(against),
            batch_sizes=batch_sizes,
            prompt=prompt,
            new_tokens=new_tokens,
            progress=bar,
        )
    if as_json:
        console.print_json(found.to_json())
    else:
        display.show_benchmark(found)


def generate(artifact: Path, prompts: list[str], *, as_json: bool, **options: Any) -> None:
    """Continue prompts; one alone is printed as it is made."""
    session = Session.open(artifact)
    if as_json or len(prompts) > 1:
        completions = session.generate(prompts, **options)
        if as_json:
            console.print_json([dataclasses.asdict(completion) for completion in completions])
            return
        for prompt, completion in zip(prompts, completions, strict=True):
            console.out.print(f"> {prompt}\n{completion.text}\n", markup=False)
        return
    for piece in session.stream(prompts[0], **options):
        console.out.print(piece.text, markup=False, end="", soft_wrap=True)
    console.out.print()


def list_recipes(*, as_json: bool) -> None:
    """List the ready recipes."""
    zoo = recipes.zoo()
    if as_json:
        console.print_json(zoo)
    else:
        console.figures(zoo)


def list_passes(*, as_json: bool) -> None:
    """List the passes with their promises and options."""
    described = {name: describe_pass(kind) for name, kind in PASSES.items()}
    if as_json:
        console.print_json(described)
        return
    for name, about in described.items():
        console.out.print(
            f"[bold]{name}[/bold]  ({about['numerics']}, isolation {about['isolation']})"
        )
        console.out.print(f"  {about['about']}", markup=False)
        for option, text in about["options"].items():
            console.out.print(f"    {option}: {text}", markup=False)


def describe_pass(kind: Any) -> dict[str, Any]:
    """A pass as data: what it does, promises and takes."""
    return {
        "about": (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " "),
        "numerics": kind.contract.numerics,
        "isolation": kind.contract.isolation,
        "options": {
            name: f"{' '.join((field.description or '').split())} ({_default(field)})"
            for name, field in kind.__pydantic_fields__.items()
        },
    }


def _default(field: Any) -> str:
    return "required" if field.is_required() else f"default {field.default!r}"


def show_axes(model: str, input_shapes: Sequence[str], *, as_json: bool) -> None:
    """Print the axes of a model, read without its weights where that is possible."""
    from planish.ir.axes.axes import find, find_in, text, to_json  # noqa: PLC0415
    from planish.ir.capture.meta import from_config  # noqa: PLC0415
    from planish.ir.carried import pairs  # noqa: PLC0415
    from planish.ir.flow.onnx import read_model  # noqa: PLC0415

    if model.endswith(".onnx"):
        flow = read_model(model)
        found = find_in(flow, pairs((one.name for one in flow.inputs), flow.outputs))
    else:
        resolved = resolve(model, input_shapes)
        program = resolved if isinstance(resolved, Program) else from_config(str(resolved))
        found = find(program)
    if as_json:
        console.print_json(to_json(found))
        return
    console.out.print(text(found), markup=False, soft_wrap=True, end="")
    for reason in found.reasons:
        console.out.print(f"not understood: {reason}", markup=False, soft_wrap=True)
