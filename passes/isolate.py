"""Keep the requests of a batch apart, where a local change does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Any, ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import fx

from planish.ir.edit import Edit
from planish.ir.flow.fx import read_program
from planish.ir.isolation.digits import Map
from planish.ir.isolation.programs import analyse_program, explain, requests_of
from planish.ir.isolation.verdict import Finding
from planish.ir.operators import schema
from planish.ir.program import Program
from planish.ir.shapes import describe
from planish.passes.contract import OPTIONS, Contract, NotApplicable, Pass
from planish.passes.ranges import RANGES, Range, pointwise, readers_by_place, spread

aten = torch.ops.aten


@dataclass(frozen=True, config=OPTIONS)
class Isolate(Pass):
    """Repair what lets one request of a batch reach another, where a local change does it.

    The range of a quantization over the whole batch becomes one range a row, so that a request is
    given what the model gives it alone (the leak: Foerster et al., 2026, arXiv:2604.26505); where
    rows of one request were folded into the batch (tokens), each has a range of its own. A batch
    norm in training mode takes its running statistics; memory that nobody wrote begins as zeros.
    Everything else that leaks is refused, and named.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="repaired")

    partial: bool = False
    """Repair what can be repaired, even if something is left that cannot."""

    def __call__(self, program: Program) -> Program:
        """Mend every finding of the analysis.

        Raises:
            NotApplicable: if there is none; if one cannot be repaired, unless `partial`; or if a
                repair would change a shape or dtype besides.
        """
        findings = _wrong(program)
        if not findings:
            raise NotApplicable(
                f"isolate: {program.source.name} is proven isolated already; leave this pass out."
            )
        with program.edit() as edit:
            repair = _Repair(edit, requests_of(program), pointwise(read_program(program)))
            left, scales = repair.mend([one.node for one in findings])
        after = edit.program
        _check_unchanged(program, after, scales)
        left |= {
            one.node: "it is still there after the repair"
            for one in _wrong(after)
            if one.node not in left
        }
        some = len(after.changes) > len(program.changes)
        if left and not (self.partial and some):
            at = {one.node: one for one in findings}
            told = [f"{explain(at[n]) if n in at else n} ({why})" for n, why in left.items()]
            more = f"; and {len(told) - 3} more" if len(told) > 3 else ""
            hint = " With partial: true the others are repaired." if some else ""
            raise NotApplicable(
                f"isolate: of {len(findings)} findings {len(left)} have no local repair: "
                f"{'; '.join(told[:3])}{more}.{hint}"
            )
        return after


def _wrong(program: Program) -> list[Finding]:
    return [one for one in analyse_program(program).findings if not one.advisory]


def _check_unchanged(before: Program, after: Program, scales: frozenset[str]) -> None:
    """Whatever is not part of a repair has the shape and dtype it had."""
    old = {node.name: node.meta.get("val") for node in before.graph.nodes}
    for node in after.graph.nodes:
        new, known = node.meta.get("val"), old.get(node.name)
        if not isinstance(new, torch.Tensor) or not isinstance(known, torch.Tensor):
            continue
        shapes = [str(one.shape) for one in (known, new)]
        if node.name not in scales and (known.dtype != new.dtype or shapes[0] != shapes[1]):
            raise NotApplicable(
                f"isolate: {describe(node)} would become {new.dtype} of {shapes[1]} instead of "
                f"{known.dtype} of {shapes[0]}; cast the scale to the dtype of what it scales."
            )


@plain_dataclass(frozen=True)
class _Repair:
    """A graph being repaired.

    Attributes:
        edit: the graph.
        requests: whose each element of a value is, by node.
        pointwise: the nodes that compute each element from those at its place.
    """

    edit: Edit
    requests: Mapping[str, frozenset[Map]]
    pointwise: frozenset[str]

    def mend(self, names: Iterable[str]) -> tuple[dict[str, str], frozenset[str]]:
        """Mend nodes: those that could not be, with the reason, and the scales of the others."""
        nodes = {node.name: node for node in self.edit.nodes()}
        left: dict[str, str] = {}
        ranges: list[Range] = []
        for name in names:
            node = nodes.get(name)
            target: Any = node.target if node is not None else None
            if node is None or target not in (*RANGES, *_MENDS):
                left[name] = "no local repair is known"
            elif target in _MENDS:
                if why := _MENDS[target](self, node):
                    left[name] = why
            elif isinstance(one := self._range(node), str):
                left[name] = one
            else:
                ranges.append(one)
        found = spread(ranges, self.pointwise, self.requests)
        for one in ranges:
            if one.node.name not in found.blocked:
                self._one_a_request(one)
        return left | dict(found.blocked), found.scales

    def _range(self, node: fx.Node) -> Range | str:
        """How to find the range of each request, or why it is not to be found."""
        value: Any = node.args[0]
        rank = value.meta["val"].dim()
        arguments = {**dict(zip(("dim", "keepdim"), node.args[1:], strict=False)), **node.kwargs}
        dims: Any = arguments.get("dim")
        several = [dims] if isinstance(dims, int) else dims
        over = {dim % rank for dim in several} if several else set(range(rank))
        own = {digit.dim for one in self.requests[value.name] for digit in one.digits}
        if not own & over or not over - own:
            return "it spans nothing but the batch"
        if not arguments.get("keepdim") and over != set(range(len(over))):
            return "its range is along dimensions in the middle"
        values = readers_by_place(node) if RANGES[node.target] is None else {0: node}
        finds = (aten.amin.default, aten.amax.default)
        found = tuple((one, RANGES[node.target] or finds[place]) for place, one in values.items())
        return Range(node, value, tuple(sorted(over - own)), rank, found)

    def _one_a_request(self, one: Range) -> None:
        over = ", ".join(map(str, one.over))
        for value, target in one.values:
            new = self.edit.call(target, one.of, list(one.over), True, before=value)
            self.edit.replace(value, new, f"one range a row, over dimension {over}")

    def shared(self, node: object) -> bool:
        """Whether a value is the same for all requests."""
        return isinstance(node, fx.Node) and not self.requests.get(node.name)


def _running_statistics(repair: _Repair, node: fx.Node) -> str | None:
    """A batch norm in training mode as in evaluation mode."""
    names = [one.name for one in schema(node.target).arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if not (repair.shared(given["running_mean"]) and repair.shared(given["running_var"])):
        return "it has no running statistics"
    order = ("input", "weight", "bias", "running_mean", "running_var")
    values = [given[name] for name in order]
    if node.target is aten.batch_norm.default:
        rest = [False, given["momentum"], given["eps"], given["cudnn_enabled"]]
        new = repair.edit.call(aten.batch_norm.default, *values, *rest, before=node)
    else:
        if [place for place in readers_by_place(node) if place != 0]:
            return "its updated statistics are read"
        target = aten._native_batch_norm_legit_no_training.default
        new = repair.edit.call(target, *values, given["momentum"], given["eps"], before=node)
    repair.edit.replace(node, new, "running statistics instead of the batch's")
    return None


def _zeros(repair: _Repair, node: fx.Node) -> str | None:
    """Memory that nobody wrote as zeros."""
    target: Any = _ZEROS[node.target]
    takes = {one.name for one in schema(target).arguments}
    kept = {name: value for name, value in node.kwargs.items() if name in takes}
    args = node.args[: 1 if target is aten.zeros.default else 2]
    new = repair.edit.call(target, *args, before=node, **kept)
    repair.edit.replace(node, new, "zeros instead of what lay in memory")
    return None


_ZEROS: dict[Any, Any] = {
    aten.empty.memory_format: aten.zeros.default,
    aten.empty_permuted.default: aten.zeros.default,
    aten.empty_like.default: aten.zeros_like.default,
    aten.new_empty.default: aten.new_zeros.default,
}

_MENDS: dict[Any, Callable[[_Repair, fx.Node], str | None]] = {
    **dict.fromkeys(_ZEROS, _zeros),
    aten.batch_norm.default: _running_statistics,
    aten._native_batch_norm_legit_functional.default: _running_statistics,
}
"""What mends which operator; each says why it could not."""
