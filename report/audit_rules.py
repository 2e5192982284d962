"""The ways by which requests meet, as rules with stable ids, for reports of an audit.

Ids and names are part of what other tools remember (waivers, dashboards): they never change their
meaning, and new kinds get new ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planish.ir.isolation.interpret import READING

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """One class of findings.

    Attributes:
        id: stable.
        name: for machines that show names, in one word.
        short: what happens, in a sentence.
        full: what it means, and what helps in general.
        level: of SARIF: error, warning or note.
        severity: of GitHub's scale from 0 to 10.
        weakness: the CWE it is an instance of; none where nothing is shown to be wrong.
    """

    id: str
    name: str
    short: str
    full: str
    level: str
    severity: str
    weakness: str = ""


DATA = Rule(
    "BIC001",
    "CrossRequestData",
    "Values of one request reach what another is given.",
    "An operator copies, looks up or contracts along the dimension that holds the requests, or "
    "moves rows to other requests. Keep operators within one request, or declare what is meant: "
    "which rows belong together, which inputs all share, which outputs no request is given.",
    "error",
    "9.1",
    "488",
)
AGGREGATE = Rule(
    "BIC002",
    "CrossRequestAggregate",
    "A statistic over several requests reaches what each of them is given.",
    "One mean, maximum, norm or quantization scale is computed for the whole batch, so that what "
    "one request holds moves the answers to the others. Compute it for each row.",
    "error",
    "7.5",
    "488",
)
CONTROL = Rule(
    "BIC003",
    "CrossRequestControl",
    "What one request holds decides how the others are computed.",
    "A branch, the length of a loop or an argument of an operator depends on the data of the whole "
    "batch. Decide for each request by a mask, or take a fixed number of steps.",
    "error",
    "7.0",
    "203",
)
SHAPE = Rule(
    "BIC004",
    "CrossRequestShape",
    "What one request holds decides the size or order of what the others are given.",
    "An operator picks rows by their values, so that sizes and places depend on all requests. Keep "
    "the shape, and mask.",
    "warning",
    "5.3",
    "203",
)
STATE = Rule(
    "BIC005",
    "CrossRequestState",
    "Something of one request is kept and can reach a later one.",
    "A buffer is written in one call and read in the next, or memory is read that nobody wrote. "
    "Keep nothing between calls, or one slot for each request.",
    "error",
    "8.6",
    "488",
)
NUMERICS = Rule(
    "BIC006",
    "CrossRequestRounding",
    "Rounding may differ with what other requests hold; in exact arithmetic nothing does.",
    "Rows are multiplied in groups whose sizes or order data decide, as by experts, so that a "
    "kernel may cut its blocks elsewhere. Told for information: the verdict does not depend on it.",
    "note",
    "1.0",
)
UNKNOWN = Rule(
    "BIC007",
    "UnknownOperator",
    "Nothing is known of what an operator reads, so nothing is proven of what follows it.",
    "The operator has no rule, or its arguments are such that its rule does not apply. Declare "
    "what it reads, or replace it by operators that have rules.",
    "warning",
    "4.0",
)
UNLABELLED = Rule(
    "BIC010",
    "UnlabelledInput",
    "It is not known whose an input is.",
    "The input does not have the batch along the axis that was assumed. Say which axis holds the "
    "batch, or that all requests share the input.",
    "error",
    "4.0",
)

RULES = (DATA, AGGREGATE, CONTROL, SHAPE, STATE, NUMERICS, UNKNOWN, UNLABELLED)

_STATISTICS = tuple(
    READING[kind] for kind in ("softmax", "norm", "sum", "mean", "extreme", "statistic")
)

_BY_KIND = {
    "control": CONTROL,
    "shape": SHAPE,
    "state": STATE,
    "numerics": NUMERICS,
    "unknown": UNKNOWN,
}


def rule_of(finding: Json) -> Rule:
    """The rule that a finding falls under."""
    if finding["kind"] == "value":
        return AGGREGATE if finding["why"].startswith(_STATISTICS) else DATA
    if finding["operator"] == "input" and finding["kind"] == "unknown":
        return UNLABELLED
    return _BY_KIND[finding["kind"]]


def short_operator(operator: str) -> str:
    """An operator without domain, overload and version: `ReduceMax`, `amax`.

    `ai.onnx::ReduceMax@18` and `aten.amax.default` are what the graph calls them.
    """
    name = operator.rpartition("::")[2].partition("@")[0] or operator
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[0] in _NAMESPACES and parts[1] else name


_NAMESPACES = ("aten", "planish", "prims", "higher_order")
