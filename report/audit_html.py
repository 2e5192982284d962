"""Audits as one HTML page that loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from planish.report.audit_picture import draw
from planish.report.audit_rules import Json, rule_of, short_operator
from planish.report.html import template

MOST_GROUPS = 6
"""So many groups of findings of a target are shown at once; the others open on demand."""

MOST_ROWS = 12
"""So many rows of outputs or assumptions are shown at once."""

TONES = {"isolated": "good", "leaks": "bad", "unproven": "warn", "unreadable": "warn"}

GROUP_TONES = {"unknown": "warn", "numerics": ""}
HEADINGS = {"unknown": "Not understood:", "numerics": "Rounding may differ in"}

HEADLINES = {
    "isolated": "Requests stay apart.",
    "leaks": "One request can reach another.",
    "unproven": "Nothing is proven, in either direction.",
    "unreadable": "It could not be audited.",
}

MEANINGS = {
    "isolated": "For all weights, inputs, batch sizes and lengths that the graph admits, no "
    "request can change what another in its batch is given, as long as what is assumed below "
    "holds.",
    "leaks": "What a request is given depends, or may depend, on what others in its batch hold. "
    "Do not serve requests of different owners in one batch.",
    "unproven": "Nothing was found to leak, but part of the graph is not understood, and nothing "
    "is proven of what depends on it. Do not take it for safe.",
    "unreadable": "Nothing is known of this target.",
}


def render(reports: Sequence[Json], *, version: str = "", command: str = "") -> str:
    """The page. The same reports give the same page, but for the seconds they took.

    Args:
        reports: what `AuditReport.to_json` and `Unreadable.to_json` give, one each target.
        version: Planish's.
        command: that made the reports.
    """
    targets = [_target(one, place) for place, one in enumerate(reports, 1)]
    for first in [one for one in targets if one["groups"]][:1]:
        first["legend"] = True  # how to read the pictures is said once
    page: str = template("audit.html.j2").render(
        title=targets[0]["name"] if len(targets) == 1 else f"{len(targets)} targets",
        verdict=_worst(targets),
        tones=TONES,
        tiles=_tiles(targets[0]) if len(targets) == 1 else _counts(targets),
        targets=targets,
        not_covered=_not_covered(reports),
        command=command,
        version=version,
        most_groups=MOST_GROUPS,
        most_rows=MOST_ROWS,
    )
    return page


def _target(report: Json, place: int) -> dict[str, Any]:
    """What the page says of one target."""
    verdict = report.get("verdict", "unreadable")
    groups = list(_groups(report, place))
    return {
        "anchor": f"target-{place}",
        "target": report["target"],
        "name": PurePath(report["target"]).name or report["target"],
        "verdict": verdict,
        "tone": TONES[verdict],
        "headline": HEADLINES[verdict],
        "meaning": MEANINGS[verdict],
        "legend": False,
        "error": report.get("error", ""),
        "nodes": report.get("nodes"),
        "seconds": report.get("seconds"),
        "outputs": [_output(one, groups) for one in report.get("outputs", ())],
        "groups": groups,
        "findings": len(report.get("findings", ())),
        "unknown": report.get("unknown_operators", ()),
        "assumptions": report.get("assumptions", ()),
        "numerics": report.get("numerics", ()),
        "warnings": report.get("warnings", ()),
    }


def _groups(report: Json, place: int) -> Iterator[dict[str, Any]]:
    """Findings that are alike but for where they are: one picture, and a list of places."""
    alike: dict[tuple[Any, ...], list[Json]] = {}
    for finding in report.get("findings", ()):
        key = (
            *(finding[name] for name in ("kind", "operator", "why", "fix")),
            str(finding.get("waived")),
            *finding["outputs"],
        )
        alike.setdefault(key, []).append(finding)
    for number, members in enumerate(alike.values(), 1):
        first = members[0]
        rule = rule_of(first)
        advisory = first["kind"] == "numerics"  # nothing meets that a picture could show
        yield {
            "number": number,
            "anchor": f"finding-{place}-{number}",
            "rule": rule,
            "heading": HEADINGS.get(first["kind"], "Requests meet in"),
            "tone": GROUP_TONES.get(first["kind"], "bad"),
            "kind": first["kind"],
            "operator": first["operator"],
            "short": short_operator(first["operator"]),
            "why": _sentence(first["why"]),
            "fix": _pieces(first["fix"]),
            "outputs": first["outputs"],
            "waived": first.get("waived"),
            "witness": next((one["witness"] for one in members if one["witness"]), None),
            "picture": "" if advisory else draw(first, f"way-{place}-{number}"),
            "members": [
                {
                    "node": one["node"],
                    "where": one["where"],
                    "path": " → ".join(step["node"] for step in one["path"]),
                }
                for one in members
            ],
        }


def _output(output: Json, groups: Sequence[Json]) -> dict[str, Any]:
    """An output, and whose each of its elements is.

    The analysis goes on behind a leak as if it had been repaired; so `own` alone would read as if
    nothing but a request's own data were in an output that leaks.
    """
    through = [group for group in groups if output["name"] in group["outputs"]]
    requests = output["requests"]
    if output["verdict"] == "isolated":
        words = {"own": "its own request's", "none": "the same for all requests"}
        said, code = words.get(requests, ""), "" if requests in words else requests
    elif output["verdict"] == "unproven":
        said, code = "not known", ""
    elif requests in ("own", "none"):
        said, code = "mixed: something of every request", ""
    else:
        said, code = "request", requests
    return {
        "name": output["name"],
        "verdict": output["verdict"],
        "tone": TONES[output["verdict"]],
        "said": said,
        "code": code,
        "through": through,
    }


def _tiles(target: Json) -> list[Json]:
    """The few figures that the page of one target begins with."""
    found = [_tile("verdict", target["verdict"], _aside(target), target["tone"])]
    if target["error"]:
        return found
    clear = sum(one["verdict"] == "isolated" for one in target["outputs"])
    count = len(target["outputs"])
    places = f"in {_many(len(target['groups']), 'group')}" if target["groups"] else "none"
    return [
        *found,
        _tile("outputs isolated", f"{clear} of {count}", "states kept between calls included"),
        _tile("findings", str(target["findings"]), places),
        _tile("nodes", f"{target['nodes']:,}", f"analysed in {target['seconds']:.2f} s"),
    ]


def _aside(target: Json) -> str:
    asides = {
        "isolated": "proven",
        "leaks": "one request reaches another",
        "unproven": "neither proven nor refuted",
        "unreadable": "not audited",
    }
    return asides[target["verdict"]]


def _counts(targets: Sequence[Json]) -> list[Json]:
    """The figures of many targets: how many have which verdict."""
    asides = {
        "leaks": "one request reaches another",
        "unreadable": "not audited",
        "unproven": "neither proven nor refuted",
        "isolated": "proven",
    }
    verdicts = [one["verdict"] for one in targets]
    return [
        _tile(word, str(verdicts.count(word)), aside, TONES[word] if word in verdicts else "")
        for word, aside in asides.items()
    ]


def _worst(targets: Sequence[Json]) -> str:
    verdicts = {one["verdict"] for one in targets}
    order = ("leaks", "unreadable", "unproven", "isolated")
    return next((word for word in order if word in verdicts), "isolated")


def _not_covered(reports: Sequence[Json]) -> list[str]:
    """What no verdict speaks of: the same for all targets, said once."""
    return list(dict.fromkeys(line for one in reports for line in one.get("not_covered", ())))


def _pieces(text: str) -> list[tuple[str, bool]]:
    """Text in pieces, and which of them stood between backticks."""
    return [(piece, place % 2 == 1) for place, piece in enumerate(_sentence(text).split("`"))]


def _sentence(text: str) -> str:
    """Text that begins with a capital, unless it begins with a name."""
    return text[:1].upper() + text[1:] if text.partition(" ")[0].isalpha() else text


def _many(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _tile(label: str, figure: str, detail: str, tone: str = "") -> Json:
    return {"label": label, "figure": figure, "detail": detail, "tone": tone}
