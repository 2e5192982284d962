"""Audits as JSON values, for tests of what is made of them."""

from typing import Any

from planish.ir.isolation.verdict import verdict_of

Json = dict[str, Any]

QUANTIZE = "ai.onnx::DynamicQuantizeLinear@11"


def place(node: str, operator: str, where: str = "") -> Json:
    return {"node": node, "operator": operator, "where": where}


def finding(**changed: Any) -> Json:
    node = changed.get("node", "/layer.0/Quantize#3")
    operator = changed.get("operator", QUANTIZE)
    return {
        "kind": "value",
        "operator": operator,
        "node": node,
        "why": "a statistic over dimension 0 (of size B)",
        "where": "",
        "outputs": ["y"],
        "path": [
            place("x", "input"),
            place("/layer.0/Mul#2", "ai.onnx::Mul@14"),
            place(node, operator, changed.get("where", "")),
            place("/layer.0/MatMul#4", "ai.onnx::MatMulInteger@10"),
            place("y", "output"),
        ],
        "fix": "compute one scale for each row: the pass `isolate`",
        "witness": None,
        **changed,
    }


def report(*findings: Json, **changed: Any) -> Json:
    kinds = {one["kind"] for one in findings}
    verdict = verdict_of(kinds)
    return {
        "schema": "planish.audit/1",
        "target": "models/model.onnx",
        "verdict": verdict,
        "outputs": [{"name": "y", "verdict": verdict, "requests": "own"}],
        "findings": list(findings),
        "unknown_operators": [],
        "assumptions": ["x holds the batch along axis 0"],
        "numerics": [],
        "not_covered": ["timing, power and caches of the machine"],
        "seconds": 0.25,
        "nodes": 1234,
        **changed,
    }


def unreadable(target: str = "models/broken.onnx", error: str = "it is no model") -> Json:
    return {"schema": "planish.audit/1", "target": target, "error": error}


UNKNOWN = finding(
    kind="unknown",
    operator="com.example::Odd@1",
    node="Odd_7",
    why="there is no rule for com.example::Odd@1",
)
