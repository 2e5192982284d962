"""Audits and verifications as text, for people."""

from __future__ import annotations

from collections.abc import Sequence

from planish import auditing, confirm, console
from planish.auditing import AuditReport, Unreadable
from planish.ir.isolation.verdict import Finding
from planish.verification import Verification
from planish.waivers import Waiver

_STYLES = {"isolated": "green", "leaks": "bold red", "unproven": "yellow"}
_TONES = {"unknown": "yellow", "numerics": "cyan"}


def show(reports: Sequence[AuditReport | Unreadable]) -> None:
    """Print the verdicts for people: findings in full for one target, a table for many."""
    if len(reports) > 1:
        _table(reports)
    for report in reports:
        if isinstance(report, AuditReport) and (len(reports) == 1 or report.findings):
            _show_one(report)


def _table(reports: Sequence[AuditReport | Unreadable]) -> None:
    rows = []
    for one in reports:
        if isinstance(one, Unreadable):
            rows.append([one.target, "unreadable", "-", "-", one.error])
        else:
            why = one.findings[0].operator if one.verdict != "isolated" else ""
            rows.append([one.target, one.verdict, str(one.nodes), f"{one.seconds:.2f}", why])
    console.table("", ["target", "verdict", "nodes", "seconds", "why"], rows)
    counts = auditing.summarize(reports)["summary"]
    console.out.print(", ".join(f"{count} {word}" for word, count in counts.items() if count))


def _show_one(report: AuditReport) -> None:
    out = console.out
    out.print()
    out.print(report.target, markup=False, soft_wrap=True)
    counted = f"{len(report.outputs)} outputs, {report.nodes} nodes, {report.seconds:.2f} s"
    out.print(report.verdict.upper(), style=_STYLES[report.verdict], end="")
    out.print(f"  ({counted})", markup=False)
    if len(report.outputs) > 1 and report.findings:
        for output in report.outputs[:20]:
            out.print(f"  {output.name}: {output.verdict}", markup=False, soft_wrap=True)
    for number, finding in enumerate(report.findings, 1):
        _show_finding(number, finding, report.waiver(finding))
    for line in confirm.lines(report):
        out.print(line, markup=False, soft_wrap=True)
    for line in report.warnings:
        out.print(f"warning: {line}", style="yellow", markup=False, soft_wrap=True)
    _show_grounds(report)


def _show_grounds(report: AuditReport) -> None:
    """What is not understood, and what was taken for granted."""
    out = console.out
    if report.unknown_operators:
        named = ", ".join(f"{name} ({count})" for name, count in report.unknown_operators.items())
        out.print(f"operators without a rule: {named}", markup=False, soft_wrap=True)
    if report.assumptions:
        out.print("assumed:")
        for line in report.assumptions[:8]:
            out.print(f"  {line}", markup=False, soft_wrap=True)
        if len(report.assumptions) > 8:
            out.print(f"  and {len(report.assumptions) - 8} more (--format json has them all)")


def _show_finding(number: int, finding: Finding, waiver: Waiver | None) -> None:
    out = console.out
    where = f" ({finding.where})" if finding.where else ""
    out.print()
    out.print(
        f"{number}. {finding.kind}: {finding.operator} %{finding.node}{where}",
        style=_TONES.get(finding.kind, "red"),
        markup=False,
        soft_wrap=True,
    )
    if waiver is not None:
        told = f"   waived until {waiver.expires}: {waiver.reason}"
        out.print(told, style="cyan", markup=False, soft_wrap=True)
    out.print(f"   {finding.why}", markup=False, soft_wrap=True)
    steps = finding.path if len(finding.path) <= 9 else (*finding.path[:4], *finding.path[-4:])
    out.print(
        "   path: " + " -> ".join(place.node for place in steps), markup=False, soft_wrap=True
    )
    out.print(f"   reaches: {', '.join(finding.outputs)}", markup=False, soft_wrap=True)
    out.print(f"   fix: {finding.fix}", markup=False, soft_wrap=True)


def show_verification(found: Verification, *, as_json: bool) -> int:
    """Print what `planish verify` found.

    Returns:
        The exit code.
    """
    if as_json:
        console.print_json(found.to_json())
        return found.exit_code
    rules = "the same rules" if found.same_rules else "other rules than those of the certificate"
    console.figures(
        {
            "files": f"{found.files} as written",
            "isolation": f"{found.verdict}, proven anew by {rules}"
            if found.verdict == "isolated"
            else f"{found.verdict} (certificate: {found.certified})",
        }
    )
    for line in found.findings:
        console.out.print(line, markup=False, soft_wrap=True)
    console.out.print(f"assumed: {'; '.join(found.assumptions)}", markup=False, soft_wrap=True)
    return found.exit_code
