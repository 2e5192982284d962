"""The verdict on a program, and the certificate that an artifact carries."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import onnx

from planish.ir.errors import PlanishError
from planish.ir.flow.call import Rule
from planish.ir.flow.fx import read_program
from planish.ir.flow.onnx import checked, input_shapes, read_cases
from planish.ir.flow.polynomial import substitute
from planish.ir.flow.vocabulary import Unranked
from planish.ir.isolation.cases import analyse, analyse_cases
from planish.ir.isolation.digits import Map
from planish.ir.isolation.interpret import Interpreter
from planish.ir.isolation.labels import Labels
from planish.ir.isolation.verdict import Analysis, Finding
from planish.ir.program import Program

NOT_COVERED = (
    "timing, power and caches of the machine",
    "rounding that differs with the size or the contents of a batch (kernels)",
    "what happens outside the graph: tokenizer, scheduler, memory of the server",
    "indices beyond their dimension, which the runtime has to refuse",
)
"""What no verdict speaks of."""


class Refused(PlanishError):
    """The isolation that was asked for could not be proven; nothing was written."""

    def __init__(self, message: str, verdict: str) -> None:
        super().__init__(message)
        self.exit_code = EXIT_CODES[verdict]


EXIT_CODES = {"isolated": 0, "leaks": 1, "unproven": 3}
"""What the command line answers with, by verdict."""


def labels_of(program: Program) -> Labels:
    """The labels that the program's inputs declare: batch axes, and what is shared."""
    return Labels(
        batch_axes={
            spec.name: spec.batch_axis for spec in program.inputs if spec.batch_axis is not None
        },
        shared=tuple(spec.name for spec in program.inputs if spec.batch_axis is None),
    )


def analyse_program(program: Program, labels: Labels | None = None) -> Analysis:
    """Whether requests in one batch stay apart in a program.

    Args:
        program: what to analyse.
        labels: which rows belong to whom; by default what the program's inputs declare.
    """
    return analyse(lambda ties: read_program(program, ties), labels or labels_of(program))


def requests_of(program: Program) -> dict[str, frozenset[Map]]:
    """Whose each element of a program's values is, by node; of several results all together.

    A value behind a leak is taken as if that had been repaired.
    """
    flow, labels = read_program(program), labels_of(program)
    batch = labels.batch(flow.inputs)
    found = Interpreter({value: labels.of_input(value, batch) for value in flow.inputs})
    found.run(flow)
    maps = {value.name: found.dependences[value].maps for value in flow.inputs}
    for node in flow.nodes:
        maps[node.name] = frozenset().union(*(found.dependences[one].maps for one in node.outputs))
    return maps


def analyse_onnx(
    model: Path | onnx.ModelProto, labels: Labels, declared: Mapping[str, Rule] | None = None
) -> Analysis:
    """Whether requests in one batch stay apart in an ONNX model.

    Args:
        model: the file, whose weights are not loaded, or what was read from it.
        labels: which rows belong to whom.
        declared: rules for operators without one, by name: `my.domain::Op`.

    Raises:
        planish.ir.flow.lint.Malformed: if the file is no ONNX model.
    """
    sound = checked(model)

    given = input_shapes(sound)
    ties = labels.ties(given)
    shapes = {
        name: tuple(substitute(one, ties) for one in shape)
        for name, shape in given.items()
        if not isinstance(shape, Unranked)
    }
    return analyse_cases(read_cases(sound, shapes, declared, labels.shared), labels, ties)


def graph_hash(program: Program) -> str:
    """SHA-256 of a program's text, by which a certificate names the graph it speaks of."""
    return hashlib.sha256(program.text().encode()).hexdigest()


def explain(finding: Finding) -> str:
    """A finding in one sentence: where, what, and the way."""
    where = f" ({finding.where})" if finding.where else ""
    steps = [place.node for place in finding.path]
    shown = steps if len(steps) <= 7 else [*steps[:3], "...", *steps[-3:]]
    way = f", on the way {' -> '.join(shown)}" if len(steps) > 1 else ""
    return f"at {finding.operator} %{finding.node}{where}: {finding.why}{way}"


def require(analysis: Analysis, asked: str, what: str) -> None:
    """Refuse anything but a proof.

    Args:
        analysis: of what would be written.
        asked: the policy, for the message.
        what: that was analysed, for the message.

    Raises:
        Refused: naming the first finding and what would help.
    """
    if analysis.verdict == "isolated":
        return
    first = analysis.findings[0]
    more = f" There are {len(analysis.findings) - 1} more." if len(analysis.findings) > 1 else ""
    meaning = (
        "requests in one batch reach each other"
        if analysis.verdict == "leaks"
        else "it is not proven that requests in one batch stay apart"
    )
    raise Refused(
        f"isolation: {asked} asks for a proof, and {meaning} in {what}: {explain(first)}.{more} "
        f"What would help: {first.fix}. To write it all the same: --isolation warn.",
        analysis.verdict,
    )


def certificate(program: Program, analysis: Analysis) -> dict[str, Any]:
    """What was proven of which graph, by which rules, under which assumptions."""
    labels = labels_of(program)
    return {
        "verdict": analysis.verdict,
        "outputs": {one.name: one.verdict for one in analysis.outputs},
        "findings": [explain(one) for one in analysis.findings],
        "assumptions": list(analysis.assumptions),
        "labels": {"batch_axes": dict(labels.batch_axes), "shared": list(labels.shared)},
        "not_covered": list(NOT_COVERED),
        "graph_sha256": graph_hash(program),
        "rules_sha256": rules_hash(),
    }


@cache
def rules_hash() -> str:
    """A hash over the source of the rules and of the analysis that interprets them."""
    digest = hashlib.sha256()
    for package in ("flow", "rules", "rules.aten", "rules.onnx", "isolation"):
        folder = files(f"planish.ir.{package}")
        for file in sorted(folder.iterdir(), key=lambda one: one.name):
            if file.name.endswith(".py"):
                digest.update(file.read_bytes())
    return digest.hexdigest()
