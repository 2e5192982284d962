"""`audit`: whether requests in one batch stay apart, in one's own models and other people's."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from planish import audit_targets
from planish.audit_spec import read_spec
from planish.confirm import confirm
from planish.ir.flow.call import Call
from planish.ir.flow.contracts import Contract
from planish.ir.flow.contracts import parse as contracts_of
from planish.ir.isolation.labels import Labels, Owners
from planish.ir.isolation.programs import EXIT_CODES, NOT_COVERED
from planish.ir.isolation.verdict import Analysis, Finding, verdict_of
from planish.runtime.contracts import tried
from planish.runtime.runnable import CannotRun
from planish.runtime.witness import Witness
from planish.waivers import Waiver, applied, parse


@dataclass(frozen=True, kw_only=True)
class AuditReport(Analysis):
    """What an audit found: an analysis, of what, and whose rows were whose.

    Attributes:
        target: what was audited.
        seconds: how long the analysis took, reading the file included.
        owners: which rows belong to one request.
        numerics: what was seen of rounding when the model was run (`planish.confirm`).
        waivers: those that cover a finding and hold today.
        warnings: waivers that are over, or cover nothing.
        confirmed: whether the model was run, to search for witnesses and to check proofs.
        witnesses: pairs of batches by which rows of another request move.
    """

    target: str
    seconds: float
    owners: Owners = field(default_factory=Owners)
    numerics: tuple[str, ...] = ()
    waivers: tuple[Waiver, ...] = ()
    warnings: tuple[str, ...] = ()
    confirmed: bool = False
    witnesses: tuple[Witness, ...] = field(default=(), compare=False)

    def waiver(self, finding: Finding) -> Waiver | None:
        """The waiver that covers a finding, if one does."""
        return next((one for one in self.waivers if one.covers(finding)), None)

    @property
    def live(self) -> tuple[Finding, ...]:
        """The findings that no waiver covers."""
        return tuple(one for one in self.findings if self.waiver(one) is None)

    @property
    def exit_code(self) -> int:
        """0 isolated, 1 leaks, 3 unproven; what is waived does not count."""
        return EXIT_CODES[verdict_of(one.kind for one in self.live)]

    def to_json(self) -> dict[str, Any]:
        """As JSON values, `planish.audit/1`."""
        return {
            "schema": "planish.audit/1",
            "target": self.target,
            "verdict": self.verdict,
            "outputs": [asdict(one) for one in self.outputs],
            "findings": [
                {
                    "kind": one.kind,
                    "operator": one.operator,
                    "node": one.node,
                    "why": one.why,
                    "where": one.where,
                    "outputs": list(one.outputs),
                    "path": [asdict(place) for place in one.path],
                    "fix": one.fix,
                    "witness": one.witness,
                    "waived": waived.to_json() if (waived := self.waiver(one)) else None,
                }
                for one in self.findings
            ],
            "unknown_operators": [
                {"operator": name, "count": count}
                for name, count in sorted(self.unknown_operators.items())
            ],
            "assumptions": list(self.assumptions),
            "warnings": list(self.warnings),
            "numerics": list(self.numerics),
            "not_covered": list(NOT_COVERED),
            "seconds": round(self.seconds, 3),
            "nodes": self.nodes,
        }


@dataclass(frozen=True)
class Unreadable:
    """One of several targets that could not be audited, and why."""

    target: str
    error: str
    exit_code: int = 2

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"schema": "planish.audit/1", "target": self.target, "error": self.error}


def audit(
    target: Any,
    *,
    inputs: Any = None,
    batch_axes: Mapping[str, int | None] | None = None,
    output_axes: Mapping[str, int] | None = None,
    shared: Sequence[str] = (),
    internal: Sequence[str] = (),
    owner_map: int | Sequence[int] | str | None = None,
    cu_seqlens: Sequence[str] = (),
    segment_ids: Sequence[str] = (),
    disjoint: Sequence[str] = (),
    pages: Sequence[str] = (),
    spec: str | Path | None = None,
    symbolic_batch: bool = True,
    optimized: bool = False,
    contracts: Mapping[str, Contract | Mapping[str, Any] | str] | None = None,
    custom_ops: Sequence[str | Path] = (),
    waivers: Sequence[Waiver | Mapping[str, Any]] = (),
    witness: bool | str | Path = False,
) -> AuditReport:
    """Prove that requests in one batch stay apart, or show how one reaches another.

    The proof is non-interference: for all weights, inputs, batch sizes and lengths that the graph
    admits, what one request is given does not depend on the others in its batch. Unless told
    otherwise, every input holds the batch along axis 0, each row is a request, and nothing is
    shared; nothing of this is read from the model.

    Args:
        target: the path of an ONNX file, of a checkpoint's folder, of an artifact or of a saved
            program; an `nn.Module` with `inputs`, as it stands (training mode included); an
            `ExportedProgram`; a `Program`, whose inputs declare their batch axes.
        inputs: for an `nn.Module`, example tensors: in order, or by argument name.
        batch_axes: for inputs whose batch is not along axis 0; None for one that is all of one
            request, where a batch is one.
        output_axes: for outputs whose batch is not along axis 0.
        shared: inputs that are the same for all requests.
        internal: outputs that no request is given.
        owner_map: how many neighbouring rows belong to one request, or the owner of each row of
            an example: `[0, 1, 0, 1]`.
        cu_seqlens: of a packed batch, whose rows along the batch axes lie one request after
            another: inputs that hold where each begins, and where the last one ends.
        segment_ids: of a packed batch, inputs that hold for each row whose it is.
        disjoint: tables each of whose rows names pages of its request alone.
        pages: inputs that hold the pages, one after another along their batch axis.
        spec: a YAML or JSON file with the nine options before this one, and `contracts`,
            `custom_ops` and `waivers`.
        symbolic_batch: for an `nn.Module`, export with a batch of any size.
        optimized: audit an ONNX file as ONNX Runtime rewrites it for the CPU before it runs it:
            fused operators are others than those of the file. This loads the weights.
        contracts: what operators without a rule read, by name (`my.domain::Op`, `my::op`):
            `"elementwise"`, or a mapping with `rows`, the axis of each input's rows or
            `"public"`, `outputs` and `shapes` (`planish.ir.flow.contracts`). Each is tried on the
            operator, where that can be run, and is an assumption of the verdict.
        custom_ops: libraries of custom operators for ONNX Runtime. Their code is run.
        waivers: findings that were looked at and accepted: mappings with `reason`, `expires`, and
            `operator` or `node` (globs) or both, and perhaps `kind`. They change the exit code,
            not the verdict.
        witness: run the model, too: search for witnesses of what leaks, and check what is proven.
            A path is the folder to which witnesses are written.

    Raises:
        planish.confirm.Contradicted: if running the model contradicts its proof.
        planish.confirm.CannotRun: with `witness`, if it cannot be run.
        planish.audit_targets.BadTarget: if the target cannot be read or exported.
        planish.ir.flow.contracts.BadContract: if a contract cannot be understood.
        planish.runtime.contracts.Refuted: if an operator does not do what its contract says.
        planish.waivers.BadWaiver: if a waiver says no reason, no last day, or what it is about.
        planish.audit_spec.BadSpec: if the file cannot be understood.
        planish.ir.isolation.labels.BadLabels: if a name is not one of the model's.
    """
    told = read_spec(spec) if spec is not None else {}
    labels = Labels(
        {**told.get("batch_axes", {}), **(batch_axes or {})},
        {**told.get("output_axes", {}), **(output_axes or {})},
        (*told.get("shared", ()), *shared),
        (*told.get("internal", ()), *internal),
        Owners.parse(owner_map if owner_map is not None else told.get("owner_map")),
        (*told.get("cu_seqlens", ()), *cu_seqlens),
        (*told.get("segment_ids", ()), *segment_ids),
        (*told.get("disjoint", ()), *disjoint),
        (*told.get("pages", ()), *pages),
    )
    if (labels.packed or labels.pages) and witness is not False:
        what = "a packed batch" if labels.packed else "a batch whose requests have pages"
        raise CannotRun(f"{what} is not run yet: leave out the search for witnesses.")
    accepted = parse([*told.get("waivers", ()), *waivers])
    met: dict[Contract, dict[str, Call]] = {}  # a graph may be read twice: its last calls count
    declared = {
        name: one.rule(
            lambda contract, call: met.setdefault(contract, {}).update({call.outputs[0].name: call})
        )
        for name, one in contracts_of({**told.get("contracts", {}), **(contracts or {})}).items()
    }
    libraries = (*told.get("custom_ops", ()), *map(str, custom_ops))
    said = audit_targets.Told(labels, declared, libraries)
    start = time.perf_counter()
    if optimized:
        subject = audit_targets.optimized(target, said)
    else:
        subject = audit_targets.analysed(target, inputs, said, symbolic_batch)
    calls = {contract: one.values() for contract, one in met.items()}
    assumed = tried(calls, subject.operator)
    analysis = dataclasses.replace(
        subject.analysis, assumptions=(*subject.analysis.assumptions, *assumed)
    )
    seconds = time.perf_counter() - start
    hold, warnings = applied(accepted, analysis.findings, date.today())
    report = AuditReport(
        **vars(analysis),
        target=subject.name,
        seconds=seconds,
        owners=labels.owners,
        waivers=hold,
        warnings=warnings,
    )
    if witness is False:
        return report
    this: Any = report  # type checkers may see this file under two names
    made: Any = confirm(this, subject.runnable(), None if witness is True else Path(witness))
    confirmed: AuditReport = made
    return confirmed


def summarize(reports: Sequence[AuditReport | Unreadable]) -> dict[str, Any]:
    """Many reports as JSON values: each under `targets`, with counts of the verdicts."""
    words = ["unreadable" if isinstance(one, Unreadable) else one.verdict for one in reports]
    counts = {word: words.count(word) for word in ("isolated", "leaks", "unproven", "unreadable")}
    return {
        "schema": "planish.audit/1",
        "summary": counts,
        "targets": [one.to_json() for one in reports],
    }


def exit_code(reports: Sequence[AuditReport | Unreadable]) -> int:
    """Of several: 1 if any leaks, else 2 if any cannot be read, else 3 if any is unproven."""
    codes = {one.exit_code for one in reports}
    return next((code for code in (1, 2, 3) if code in codes), 0)
