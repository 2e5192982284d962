"""Findings that somebody has looked at and accepts for a while: a reason, and a last day.

A waiver changes what the exit code says, never what was proven: the verdict stays, the finding is
shown and marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from fnmatch import fnmatchcase
from typing import Any

from planish.ir.errors import PlanishError
from planish.ir.isolation.verdict import Finding

KEYS = ("operator", "node", "kind", "reason", "expires")
"""What a waiver may say: which findings it is about, why, and until when."""


class BadWaiver(PlanishError):
    """A waiver that names no finding, no reason, or no last day."""


@dataclass(frozen=True)
class Waiver:
    """Findings that are accepted.

    Attributes:
        reason: why, for whoever reads the report.
        expires: the last day on which it holds.
        operator: a glob over operators, such as `ai.onnx::DynamicQuantizeLinear@*`.
        node: a glob over names of nodes.
        kind: of the finding; any if empty.
    """

    reason: str
    expires: date
    operator: str = "*"
    node: str = "*"
    kind: str = ""

    def covers(self, finding: Finding) -> bool:
        """Whether it is about a finding."""
        return (
            fnmatchcase(finding.operator, self.operator)
            and fnmatchcase(finding.node, self.node)
            and self.kind in ("", finding.kind)
        )

    def __str__(self) -> str:
        about = [one for one in (self.operator, self.node) if one != "*"]
        return f"the waiver of {' at '.join([*about, *([self.kind] if self.kind else [])])}"

    def to_json(self) -> dict[str, str]:
        """As JSON values."""
        return {"reason": self.reason, "expires": self.expires.isoformat()}


def parse(given: Iterable[Waiver | Mapping[str, Any]]) -> tuple[Waiver, ...]:
    """Waivers from mappings, as a spec file holds them.

    Raises:
        BadWaiver: for one without a reason, a last day, or an operator or node that it is about.
    """
    return tuple(one if isinstance(one, Waiver) else _parsed(one) for one in given)


def _parsed(given: Mapping[str, Any]) -> Waiver:
    def wrong(what: str) -> BadWaiver:
        return BadWaiver(f"the waiver {dict(given)!r} {what}.")

    if unknown := sorted(set(given) - set(KEYS)):
        raise wrong(f"has no use for {', '.join(unknown)}; its keys are {', '.join(KEYS)}")
    if not str(given.get("reason") or "").strip():
        raise wrong("gives no reason; whoever reads the report has to know why it was accepted")
    if not given.get("operator") and not given.get("node"):
        raise wrong("names neither an operator nor a node, so it would cover everything")
    expires = given.get("expires")
    if isinstance(expires, datetime):  # YAML takes a day with an hour for one
        expires = expires.date()
    try:
        last = expires if isinstance(expires, date) else date.fromisoformat(str(expires))
    except ValueError:
        raise wrong("gives no day on which it expires, such as expires: 2027-01-31") from None
    return Waiver(
        str(given["reason"]).strip(),
        last,
        str(given.get("operator") or "*"),
        str(given.get("node") or "*"),
        str(given.get("kind") or ""),
    )


def applied(
    waivers: Iterable[Waiver], findings: Sequence[Finding], today: date
) -> tuple[tuple[Waiver, ...], tuple[str, ...]]:
    """The waivers that hold today, and warnings of those that are over or cover nothing."""
    hold: list[Waiver] = []
    warnings: list[str] = []
    for one in waivers:
        if one.expires < today:
            warnings.append(f"{one} expired on {one.expires} and is not applied ({one.reason})")
        elif not any(map(one.covers, findings)):
            warnings.append(f"{one} covers no finding ({one.reason})")
        else:
            hold.append(one)
    return tuple(hold), tuple(warnings)
