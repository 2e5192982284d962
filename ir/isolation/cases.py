"""One verdict on a graph, which may have been read as several cases: each run is one of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from planish.ir.flow.graph import Flow
from planish.ir.flow.polynomial import Count, Polynomial
from planish.ir.isolation.assumptions import assumptions
from planish.ir.isolation.labels import Labels
from planish.ir.isolation.verdict import (
    Analysis,
    Finding,
    OutputVerdict,
    judged,
    verdict_of,
    weight,
)

Read = Callable[[Mapping[str, Count]], Flow]
"""Gives the flow of a model, some of whose symbolic sizes are tied to others."""

_NUMBER = re.compile(r"#\d+(?=/|$)")
"""What tells nodes of one name apart; it may differ from case to case."""


def analyse(read: Read, labels: Labels) -> Analysis:
    """Whether requests in one batch stay apart.

    Args:
        read: gives the flow.
        labels: which rows belong to whom.

    Raises:
        planish.ir.isolation.labels.BadLabels: if they name what is not there.
    """
    flow = read({})
    labels.check([value.name for value in flow.inputs], list(flow.outputs))
    ties = labels.ties({value.name: value.shape for value in flow.inputs})
    if any(str(size) != name for name, size in ties.items()):
        flow = read(ties)
    return analyse_cases([flow], labels, ties)


def analyse_cases(cases: Sequence[Flow], labels: Labels, ties: Mapping[str, Count]) -> Analysis:
    """What holds whichever case a run is: of each output the worst verdict, and all findings.

    Inputs, axes and what the labels assume are of the case that leaves most sizes open; what
    another case fixes is no property of the model.

    Args:
        cases: the flows of a model, one at least, whose sizes of the batch are tied.
        labels: which rows belong to whom.
        ties: by symbol, the size that it was replaced by.

    Raises:
        planish.ir.isolation.labels.BadLabels: if they name what is not there.
    """
    first, *_ = cases
    labels.check([value.name for value in first.inputs], list(first.outputs))
    widest = max(cases, key=_open_sizes)
    assumed = assumptions(widest, labels, ties)
    found = {flow: judged(flow, labels) for flow in cases}
    several = list(found.values())
    findings = _merged(several)
    unknown: Counter[str] = Counter()
    for one in several:
        unknown |= Counter(one.unknown_operators)
    return replace(
        found[widest],
        verdict=verdict_of(one.kind for one in findings),
        outputs=_worst(several),
        findings=findings,
        unknown_operators=dict(unknown),
        assumptions=tuple(
            dict.fromkeys((*assumed, *(text for one in several for text in one.assumptions)))
        ),
        nodes=max(one.nodes for one in several),
    )


def _open_sizes(flow: Flow) -> int:
    return sum(isinstance(size, Polynomial) for value in flow.inputs for size in value.shape)


def _worst(several: Sequence[Analysis]) -> tuple[OutputVerdict, ...]:
    """Of each output the worst that is said of it."""
    order = ("leaks", "unproven", "isolated")
    found: dict[str, OutputVerdict] = {}
    for analysis in several:
        for one in analysis.outputs:
            said = found.setdefault(one.name, one)
            if order.index(one.verdict) < order.index(said.verdict):
                found[one.name] = one
    return tuple(found.values())


def _merged(several: Sequence[Analysis]) -> tuple[Finding, ...]:
    """The findings of all cases; what each finds at the same node of the model is told once."""
    found: dict[tuple[object, ...], Finding] = {}
    for analysis in several:
        before: Counter[tuple[str, ...]] = Counter()
        for one in analysis.findings:
            place = one.kind, one.operator, _NUMBER.sub("", one.node)
            key = (*place, before[place])
            before[place] += 1
            first = found.setdefault(key, one)
            outputs = tuple(dict.fromkeys((*first.outputs, *one.outputs)))
            found[key] = replace(first, outputs=outputs)
    return tuple(sorted(found.values(), key=lambda one: weight(one.kind)))
