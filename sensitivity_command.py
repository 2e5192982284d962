"""`planish sensitivity`: what rounding each layer costs, and the formats that fit a target."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planish import __version__, api, commands, console, recipes
from planish.ir.program import Program
from planish.passes.choice import Choice, Target, Trades
from planish.passes.mixed_precision import MixedPrecision
from planish.passes.sensitivity import Option, Sensitivity, decode_bytes
from planish.passes.trials import Decision
from planish.passes.work import Work
from planish.report.sensitivity_html import render
from planish.samples import with_samples

SHOWN = 20
"""So many layers are printed, those that lose most."""

POINTS = 200
"""So many trades of the front are told at most."""


def main(
    model: str,
    target: str,
    samples: str | None,
    input_shapes: Sequence[str],
    *,
    html: Path | None,
    as_json: bool,
) -> None:
    """Measure, choose, and show it."""
    one = MixedPrecision(parse_target(target))
    program = _program(model, samples, input_shapes)
    with console.counting("sensitivity", quiet=as_json) as bar:
        layers = one.measured(program, bar)
        decision = one.decide(program, layers, Work(lambda *far: bar("choices", *far)))
    found = findings(program, one, layers, decision)
    if html is not None:
        command = shlex.join(["planish", *sys.argv[1:]])
        html.write_text(render(found, version=__version__, command=command), encoding="utf-8")
    if as_json:
        console.print_json(found)
    else:
        _show(found, html)


def parse_target(text: str) -> Target:
    """What `--target bits=4.5` asks for.

    Raises:
        BadUsage: if it is none.
    """
    names = [field.name for field in dataclasses.fields(Target)]
    kind, _, value = text.partition("=")
    try:
        return Target(**{kind: float(value)})
    except (TypeError, ValueError):
        offered = ", ".join(f"{name}=NUMBER" for name in names)
        raise commands.BadUsage(
            f"--target {text}: give one of {offered}; numbers are above 0, and size and recovery "
            "at most 1."
        ) from None


def _program(model: str, samples: str | None, input_shapes: Sequence[str]) -> Program:
    program = api.capture(commands.resolve(model, input_shapes))
    return program if samples is None else with_samples(program, samples)


def findings(
    program: Program, one: MixedPrecision, layers: Sequence[Sensitivity], decision: Decision
) -> dict[str, Any]:
    """What was measured and chosen, as JSON values."""
    trades, choice = one.trades(program, layers), decision.choice
    moved = decode_bytes(program)
    logits = "logits" in program.outputs
    return {
        "model": program.source.name,
        "target": str(one.target),
        "met": choice.met,
        "said": decision.said,
        "unit": "nats a token" if logits else "half the squared change of outputs",
        "reference": str(_reference(layers[0]).scheme),
        "figures": choice.figures._asdict(),
        "layers": [_layer(layer, choice.options[layer.name], moved) for layer in layers],
        "front": _front(trades),
        "recipe": _recipe(one, choice),
    }


def _reference(layer: Sensitivity) -> Option:
    """The option that layers are compared by: of 4 bits, or nearly."""
    rounded = [option for option in layer.options if option.scheme is not None]
    return min(rounded, key=lambda option: abs(option.scheme.bits - 4) if option.scheme else 0)


def _layer(layer: Sensitivity, chosen: Option, moved: int) -> dict[str, Any]:
    reference = _reference(layer)
    return {
        "layer": layer.name.removesuffix(".weight"),
        "together": layer.group.removesuffix(".weight"),
        "numbers": layer.numbers,
        "nbytes": layer.nbytes,
        "decoding": layer.readers * layer.nbytes / moved,
        "error": reference.error,
        "loss": reference.loss,
        "chosen": _form(chosen),
        "bits": 8 * chosen.nbytes / layer.numbers,
        "chosen_bytes": chosen.nbytes,
        "chosen_loss": chosen.loss,
        "options": [
            {**dataclasses.asdict(option), "scheme": _form(option)} for option in layer.options
        ],
    }


def _form(option: Option) -> str:
    return "as it is" if option.scheme is None else str(option.scheme)


def _front(trades: Trades) -> list[dict[str, float]]:
    return [figures._asdict() for figures in trades.figures(POINTS)]


def _recipe(one: MixedPrecision, choice: Choice) -> str:
    description = f"Chosen by planish sensitivity for {choice.target}."
    passes = tuple(one.passes(choice))
    return recipes.Recipe("chosen", passes, description=description).to_yaml()


def _show(found: Mapping[str, Any], html: Path | None) -> None:
    ranked = sorted(found["layers"], key=lambda layer: -layer["loss"])
    console.table(
        f"layers by estimated loss as {found['reference']} ({found['unit']})",
        ["layer", "bytes", "of a step", "output error", "loss", "chosen"],
        [
            [
                layer["layer"],
                console.size(layer["nbytes"]),
                f"{layer['decoding']:.2%}",
                f"{layer['error']:.4f}",
                f"{layer['loss']:.2e}",
                layer["chosen"],
            ]
            for layer in ranked[:SHOWN]
        ],
    )
    if len(ranked) > SHOWN:
        console.out.print(f"and {len(ranked) - SHOWN} more, which lose less")
    console.out.print(found["said"], markup=False, soft_wrap=True)
    if html is None:
        console.out.print(f"\n{found['recipe']}", markup=False, soft_wrap=True)
    else:
        console.figures({"page, with the recipe": str(html)})
