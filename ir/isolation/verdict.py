"""From what every value depends on to a verdict, with the path of each finding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from planish.ir.flow.graph import Flow
from planish.ir.flow.polynomial import Count, quotient
from planish.ir.flow.vocabulary import Shape, Value
from planish.ir.isolation.arranged import put_back
from planish.ir.isolation.dependence import ADVISORY, Cause, Dependence, Kind
from planish.ir.isolation.digits import Digit, Map, make
from planish.ir.isolation.fixes import fix_for
from planish.ir.isolation.interpret import Interpreter
from planish.ir.isolation.labels import Labels
from planish.ir.isolation.pages import Pages
from planish.ir.isolation.parts import resolve
from planish.ir.isolation.paths import Paths, Place
from planish.ir.isolation.segments import Segments
from planish.ir.rules.aten import TRUSTED

Verdict = Literal["isolated", "leaks", "unproven"]


@dataclass(frozen=True)
class Finding:
    """One way by which requests meet, or may meet.

    Attributes:
        kind: how (`planish.ir.isolation.dependence.Kind`).
        operator: where they meet.
        node: its node.
        why: what happens there, for people.
        path: from an input over that node to an output.
        outputs: every output that it reaches.
        fix: what would help.
        where: the module or source line, if known.
        witness: the file with two batches that show it, if one was searched for and found.
    """

    kind: Kind
    operator: str
    node: str
    why: str
    path: tuple[Place, ...]
    outputs: tuple[str, ...]
    fix: str
    where: str = ""
    witness: str | None = None

    @property
    def advisory(self) -> bool:
        """Whether it is told for information, and no verdict depends on it."""
        return self.kind == ADVISORY


@dataclass(frozen=True)
class OutputVerdict:
    """What was found of one output; `requests` says whose each element is."""

    name: str
    verdict: Verdict
    requests: str


@dataclass(frozen=True)
class Given:
    """An input: its shape, sizes of the batch tied, and its batch axis; None if it is shared."""

    name: str
    shape: Shape
    axis: int | None


@dataclass(frozen=True)
class Analysis:
    """The result of analysing one graph.

    Attributes:
        verdict: the worst of the outputs': `leaks`, else `unproven`, else `isolated`.
        outputs: each output, and what is kept from call to call (`state NAME`).
        findings: definite ones first, those for information last.
        unknown_operators: how often each operator without a rule occurs.
        assumptions: what the verdict rests on besides the graph.
        nodes: how many were analysed.
        inputs: as declared, for whoever wants to run the model.
        output_axes: the batch axis of each output that has one; where a batch is one request, an
            output of several rows has none.
    """

    verdict: Verdict
    outputs: tuple[OutputVerdict, ...]
    findings: tuple[Finding, ...]
    unknown_operators: Mapping[str, int]
    assumptions: tuple[str, ...]
    nodes: int
    inputs: tuple[Given, ...] = ()
    output_axes: Mapping[str, int] = field(default_factory=dict)


def judged(flow: Flow, labels: Labels) -> Analysis:
    """Whether requests in one batch stay apart in a graph, its sizes of the batch tied.

    What the labels themselves assume is not among the assumptions.
    """
    batch = labels.batch(flow.inputs)
    number = len(flow.nodes)
    trusted = {TRUSTED[node.operator] for node in flow.nodes if node.operator in TRUSTED}
    flow, assumed = put_back(resolve(flow))
    segments = Segments(flow, labels.cu_seqlens, labels.segment_dims(flow.inputs))
    given = {value: labels.of_input(value, batch) for value in flow.inputs}
    pages = Pages(flow, labels.disjoint, labels.page_dims(flow.inputs))
    interpreter = Interpreter(given, segments, pages)
    interpreter.run(flow)
    outputs = list(_judged(flow, labels, batch, interpreter.dependences))
    findings = _findings(outputs, Paths(flow, interpreter.dependences))
    return Analysis(
        verdict_of(finding.kind for finding in findings),
        tuple(OutputVerdict(one.name, one.verdict, one.requests) for one in outputs),
        findings,
        flow.unknown_operators,
        tuple(sorted(assumed | segments.assumed | trusted)),
        number,
        tuple(
            Given(
                one.name,
                one.shape,
                None if labels.is_apart(one.name) else labels.axis(one.name, one.shape),
            )
            for one in flow.inputs
        ),
        {
            name: axis
            for name, value in flow.outputs.items()
            if name not in labels.internal
            and (axis := labels.output_axis(name, value.shape)) is not None
            and (batch != 1 or value.shape[axis] == 1)
        },
    )


def verdict_of(kinds: Iterable[Kind]) -> Verdict:
    """What findings of these kinds come to."""
    wrong = set(kinds) - {ADVISORY}
    if wrong - {"unknown"}:
        return "leaks"
    return "unproven" if wrong else "isolated"


@dataclass(frozen=True)
class _Judged:
    """An output or a state: its value, what it depends on, and what is wrong with that."""

    name: str
    value: Value
    causes: frozenset[Cause]
    wrong: frozenset[Map]
    requests: str
    state: bool = False

    @property
    def verdict(self) -> Verdict:
        kinds: set[Kind] = {cause.kind for cause in self.causes}
        if self.wrong:
            kinds.add("value")
        return verdict_of(kinds)


def _judged(
    flow: Flow, labels: Labels, batch: Count | None, found: Mapping[Value, Dependence]
) -> Iterable[_Judged]:
    for name, value in flow.outputs.items():
        if name in labels.internal:
            continue
        has = found[value]
        allowed = _allowed(name, value, labels, batch)
        wrong = frozenset(one for one in has.maps if one not in allowed)
        yield _Judged(name, value, has.causes, wrong, _requests(has.maps, wrong))
    for state in flow.states:
        has = found[state.after]
        before = found.get(state.before)
        own = before.maps if before is not None and state.before in flow.inputs else frozenset()
        wrong = frozenset(one for one in has.maps if one not in own)
        name = f"state {state.name}"
        yield _Judged(name, state.after, has.causes, wrong, _requests(has.maps, wrong), True)


def _allowed(name: str, value: Value, labels: Labels, batch: Count | None) -> frozenset[Map]:
    """The maps that say: each row belongs to its own request.

    An output has a row for each of the inputs', or several (the batch folded with what follows
    it), or one for each request, where requests have several rows.
    """
    axis = labels.output_axis(name, value.shape)
    owners = labels.owners
    if axis is None or batch is None:
        only = owners.map(0, 1) if batch == 1 else None
        return frozenset() if only is None else frozenset({only})
    size = value.shape[axis]
    found: list[Map | None] = []
    requests = quotient(batch, owners.rows)
    if size == batch:
        found.append(owners.map(axis, size))
    if requests is not None and size == requests:
        found.append(make(0, [Digit(axis, 1, requests)]))
    each = quotient(size, batch)
    if each is not None and requests is not None and owners.adjacent:
        found.append(make(0, [Digit(axis, each * owners.rows, requests)]))
    return frozenset(one for one in found if one is not None)


def _requests(maps: frozenset[Map], wrong: frozenset[Map]) -> str:
    """Whose each element is, as people read it."""
    if not maps:
        return "none"
    if not wrong:
        return "own"
    return ", ".join(sorted(map(str, maps)))


def _findings(judged: list[_Judged], paths: Paths) -> tuple[Finding, ...]:
    causes: dict[Cause, list[_Judged]] = {}
    for one in judged:
        for cause in one.causes:
            causes.setdefault(cause, []).append(one)
        if one.wrong:
            cause = paths.origin(one.name, one.value, one.wrong)
            causes.setdefault(cause, []).append(one)
    _merge_advice(causes, paths)
    found = []
    for cause, reached in causes.items():
        first = min(reached, key=lambda one: (one.state, one.name))
        softer = cause.kind in _SOFTER
        kind: Kind = "state" if all(one.state for one in reached) and not softer else cause.kind
        path = paths.through(cause, first.name, first.value)
        found.append(
            Finding(
                kind,
                cause.operator,
                cause.node,
                cause.why,
                path,
                tuple(one.name for one in reached),
                fix_for(cause),
                cause.where,
            )
        )
    return tuple(sorted(found, key=lambda one: (weight(one.kind), paths.order(one.node))))


def _merge_advice(causes: dict[Cause, list[_Judged]], paths: Paths) -> None:
    """Of advice on many nodes of one operator, such as one for each expert, keep one."""
    alike: dict[str, list[Cause]] = {}
    for cause in sorted(causes, key=lambda one: paths.order(one.node)):
        if cause.kind == ADVISORY:
            alike.setdefault(cause.operator, []).append(cause)
    for first, *others in alike.values():
        reached = [judged for one in (first, *others) for judged in causes.pop(one)]
        more = f" (as at {len(others)} other nodes)" if others else ""
        causes[replace(first, why=first.why + more)] = list(dict.fromkeys(reached))


_SOFTER: tuple[Kind, ...] = ("unknown", ADVISORY)


def weight(kind: Kind) -> int:
    """By which findings are ordered: definite ones come before others."""
    return _SOFTER.index(kind) + 1 if kind in _SOFTER else 0
