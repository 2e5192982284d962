"""Audits as SARIF 2.1.0, the format that code scanning reads."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from planish.report.audit_rules import RULES, Json, Rule, rule_of, short_operator

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)

ROOT = "SRCROOT"
"""Stands for the folder that the audit was started in; its place on the machine is not told."""

UNREADABLE = "unreadable-target"


def sarif(
    reports: Sequence[Json],
    *,
    version: str = "",
    command: str = "",
    exit_code: int | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """The reports as one run of SARIF 2.1.0.

    Args:
        reports: what `AuditReport.to_json` and `Unreadable.to_json` give, one each target.
        version: Planish's.
        command: that made the reports.
        exit_code: that it ended with.
        folder: to which paths are made relative; by default the working directory.
    """
    base = folder or Path.cwd()
    places = [place for one in reports if (place := _artifact(one["target"], base)) is not None]
    driver: dict[str, Any] = {
        "name": "Planish",
        "rules": [_rule(one) for one in RULES],
        "notifications": [
            {
                "id": UNREADABLE,
                "shortDescription": {"text": "A target could not be audited."},
            }
        ],
    }
    if version:
        driver["semanticVersion"] = version
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "invocations": [_invocation(reports, command, exit_code, base)],
                "originalUriBaseIds": {
                    ROOT: {"description": {"text": "The folder that the audit was started in."}}
                },
                "artifacts": [
                    {"location": place}
                    for number, place in enumerate(places)
                    if place not in places[:number]
                ],
                "results": [found for one in reports for found in _results(one, base)],
                "columnKind": "unicodeCodePoints",
                "properties": {"targets": [_summary(one) for one in reports]},
            }
        ],
    }


def _rule(rule: Rule) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "security-severity": rule.severity,
        "tags": ["security", "batch-isolation"],
    }
    if rule.weakness:
        properties["tags"].append(f"external/cwe/cwe-{rule.weakness}")
    return {
        "id": rule.id,
        "name": rule.name,
        "shortDescription": {"text": rule.short},
        "fullDescription": {"text": f"{rule.short} {rule.full}"},
        "help": {"text": rule.full},
        "defaultConfiguration": {"level": rule.level},
        "properties": properties,
    }


def _invocation(
    reports: Sequence[Json], command: str, exit_code: int | None, base: Path
) -> dict[str, Any]:
    told: dict[str, Any] = {"executionSuccessful": not any("error" in one for one in reports)}
    if command:
        told["commandLine"] = command
    if exit_code is not None:
        told["exitCode"] = exit_code
    told["toolExecutionNotifications"] = [
        {
            "descriptor": {"id": UNREADABLE, "index": 0},
            "level": "error",
            "message": {"text": plain(f"{one['target']}: {one['error']}")},
            "locations": [_location(one["target"], "", "", base)],
        }
        for one in reports
        if "error" in one
    ]
    return told


def _summary(report: Json) -> dict[str, Any]:
    """What SARIF has no place for: verdicts of outputs, assumptions, what is not covered."""
    kept = [
        "target",
        "verdict",
        "error",
        "outputs",
        "assumptions",
        "warnings",
        "not_covered",
        "numerics",
    ]
    return {key: report[key] for key in kept if key in report}


def _results(report: Json, base: Path) -> Iterator[dict[str, Any]]:
    seen: Counter[str] = Counter()
    for finding in report.get("findings", ()):
        rule = rule_of(finding)
        digest = fingerprint(rule, finding)
        seen[digest] += 1
        # Blocks of a model repeat, so many findings are alike but for their place among them.
        numbered = f"{digest}:{seen[digest]}"
        unknown = finding["kind"] == "unknown"
        target = report["target"]
        at = _location(target, finding["node"], finding["where"], base)
        result: dict[str, Any] = {
            "ruleId": rule.id,
            "ruleIndex": RULES.index(rule),
            "kind": "open" if unknown else "fail",
            "level": "none" if unknown else rule.level,  # none unless it fails: SARIF 3.27.10
            "message": {"text": message(finding)},
            "locations": [at],
            # The name under which GitHub looks for a fingerprint; it would otherwise hash a line
            # of the file, and of a binary file that is one and the same for all findings.
            "partialFingerprints": {
                "planishFinding/v1": numbered,
                "primaryLocationLineHash": numbered,
            },
            "properties": {
                "kind": finding["kind"],
                "operator": finding["operator"],
                "node": finding["node"],
                "outputs": list(finding["outputs"]),
            },
        }
        if finding["path"]:
            result["codeFlows"] = [{"threadFlows": [{"locations": _steps(report, finding, base)}]}]
        if finding.get("waived"):
            result["suppressions"] = [_suppression(finding["waived"])]
        if finding["witness"]:
            result["properties"]["witness"] = PurePath(finding["witness"]).name
        yield result


def _suppression(waived: Json) -> dict[str, str]:
    """A waiver, which stands outside the model: `external` (SARIF 3.35.2)."""
    until = f"{waived['reason']} (until {waived['expires']})"
    return {"kind": "external", "status": "accepted", "justification": plain(until)}


def message(finding: Json) -> str:
    """A finding in a paragraph."""
    said = {"unknown": "Requests may meet in", "numerics": "Rounding may differ in"}
    meet = (
        said.get(finding["kind"], "Requests meet in")
        + f" {short_operator(finding['operator'])} (node {finding['node']})"
    )
    reached = ", ".join(finding["outputs"])
    text = f"{meet}: {finding['why']}. It reaches {reached}. What would help: {finding['fix']}."
    return plain(text)


def plain(text: str) -> str:
    """Text that no reader of SARIF takes for a link or for a placeholder (3.11.5, 3.11.6)."""
    return text.replace("](", "] (").replace("{", "{{").replace("}", "}}")


def fingerprint(rule: Rule, finding: Json) -> str:
    """The same for the same leak, on any machine, after any change that does not touch its way."""
    steps = [re.sub(r"@\d+$", "", place["operator"]) for place in finding["path"]]
    said = [rule.id, finding["operator"].partition("@")[0], *steps, "", *sorted(finding["outputs"])]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]


def _steps(report: Json, finding: Json, base: Path) -> list[dict[str, Any]]:
    steps = []
    for place in finding["path"]:
        at = _location(report["target"], place["node"], place["where"], base)
        at["message"] = {"text": plain(f"{short_operator(place['operator'])} {place['node']}")}
        meets = place["node"] == finding["node"]
        steps.append({"location": at, "importance": "essential" if meets else "important"})
    return steps


def _location(target: str, node: str, where: str, base: Path) -> dict[str, Any]:
    """A line of the model's source if it is known, else the model's file; and the node."""
    found: dict[str, Any] = {}
    file, _, line = where.rpartition(":")
    artifact = _artifact(target, base)
    number = 1  # a model has no lines, and code scanning refuses places without one
    in_source = bool(file) and line.isdigit() and int(line) > 0
    if in_source:
        artifact, number = _relative(file, base), int(line)
    if artifact is not None:
        found["physicalLocation"] = {
            "artifactLocation": artifact,
            "region": {"startLine": number},
        }
    logical: dict[str, Any] = {"fullyQualifiedName": target}
    if node:
        logical = {"name": node, "fullyQualifiedName": f"{target}::{node}", "kind": "node"}
    found["logicalLocations"] = [logical]
    if where and not in_source:
        found["logicalLocations"].append({"fullyQualifiedName": where, "kind": "module"})
    return found


def _artifact(target: str, base: Path) -> dict[str, Any] | None:
    """The file of a target; None for what is no file, such as a class of one's own."""
    return _relative(target, base) if (base / target).exists() else None


def _relative(path: str, base: Path) -> dict[str, Any]:
    one = Path(path)
    if one.is_absolute():
        if not one.is_relative_to(base):
            return {"uri": one.as_uri()}
        one = one.relative_to(base)
    return {"uri": quote(one.as_posix()), "uriBaseId": ROOT}
