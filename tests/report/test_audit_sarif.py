"""SARIF: valid, stable over runs and machines, and the same whatever names a model has."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft4Validator

from planish.report.audit_rules import RULES, rule_of, short_operator
from planish.report.audit_sarif import sarif
from support.audits import UNKNOWN, finding, place, report, unreadable

SCHEMA = json.loads((Path(__file__).parent / "sarif-schema-2.1.0.json").read_text())
HOSTILE = "\"><script>alert('1')</script>](http://evil.example) {0} \\ \u202e\x07"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    for name in ("model.onnx", "broken.onnx"):
        (tmp_path / "models" / name).touch()
    return tmp_path


def run_of(made: dict[str, Any]) -> dict[str, Any]:
    Draft4Validator(SCHEMA).validate(made)
    (run,) = json.loads(json.dumps(made))["runs"]
    assert isinstance(run, dict)
    return run


def results(folder: Path, *findings: dict[str, Any]) -> list[dict[str, Any]]:
    found = run_of(sarif([report(*findings)], folder=folder))["results"]
    assert isinstance(found, list)
    return found


def test_a_finding_is_a_failure_with_its_place_and_its_path(folder: Path) -> None:
    (result,) = results(folder, finding())
    assert (result["ruleId"], result["kind"], result["level"]) == ("BIC002", "fail", "error")
    assert "DynamicQuantizeLinear" in result["message"]["text"]
    (at,) = result["locations"]
    assert at["physicalLocation"]["artifactLocation"] == {
        "uri": "models/model.onnx",
        "uriBaseId": "SRCROOT",
    }
    assert at["logicalLocations"][0]["name"] == "/layer.0/Quantize#3"
    ((flow,),) = [one["threadFlows"] for one in result["codeFlows"]]
    names = [one["location"]["logicalLocations"][0]["name"] for one in flow["locations"]]
    assert names == ["x", "/layer.0/Mul#2", "/layer.0/Quantize#3", "/layer.0/MatMul#4", "y"]
    assert [one["importance"] for one in flow["locations"]].count("essential") == 1


def test_a_source_line_is_the_place_where_it_is_known(folder: Path) -> None:
    (result,) = results(folder, finding(where="model.py:23"))
    physical = result["locations"][0]["physicalLocation"]
    assert physical["artifactLocation"]["uri"] == "model.py"
    assert physical["region"] == {"startLine": 23}
    (result,) = results(folder, finding(where="encoder.layers.0"))
    at = result["locations"][0]
    assert at["physicalLocation"]["artifactLocation"]["uri"] == "models/model.onnx"
    assert at["logicalLocations"][1]["fullyQualifiedName"] == "encoder.layers.0"


def test_what_is_not_understood_is_open_and_nothing_of_it_fails(folder: Path) -> None:
    unlabelled = finding(kind="unknown", operator="input", node="x", path=[])
    odd, whose = results(folder, UNKNOWN, unlabelled)
    assert (odd["ruleId"], odd["kind"], odd["level"]) == ("BIC007", "open", "none")
    assert (whose["ruleId"], whose["kind"]) == ("BIC010", "open")
    assert "codeFlows" not in whose


def test_every_kind_has_a_rule_of_its_own() -> None:
    why = "a contraction over dimension 0 (of size B)"
    kinds = [finding(why=why), *(finding(kind=one) for one in ("control", "shape", "state"))]
    assert [rule_of(one).id for one in kinds] == ["BIC001", "BIC003", "BIC004", "BIC005"]
    assert len({rule.id for rule in RULES}) == len(RULES)
    assert rule_of(finding(kind="control", operator="input")).id == "BIC003"


def test_fingerprints_tell_alike_findings_apart_and_survive_moves(folder: Path) -> None:
    def prints(found: list[dict[str, Any]]) -> list[str]:
        return [one["partialFingerprints"]["primaryLocationLineHash"] for one in found]

    twice = prints(results(folder, finding(), finding(node="/layer.1/Quantize#9")))
    assert len(set(twice)) == 2
    assert twice[0] == prints(results(folder, finding(node="renamed", where="other.py:99")))[0]
    assert twice[0] != prints(results(folder, finding(outputs=["z"])))[0]
    assert twice[0] != prints(results(folder, finding(kind="control")))[0]
    newer = finding()
    newer["path"][1] = place("/layer.0/Mul#2", "ai.onnx::Mul@22")
    assert prints(results(folder, newer)) == twice[:1]


def test_an_unreadable_target_is_a_notification(folder: Path) -> None:
    run = run_of(sarif([report(), unreadable()], folder=folder, exit_code=2, command="planish"))
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    assert (invocation["exitCode"], invocation["commandLine"]) == (2, "planish")
    (told,) = invocation["toolExecutionNotifications"]
    assert "it is no model" in told["message"]["text"]
    at = told["locations"][0]["physicalLocation"]["artifactLocation"]
    assert at["uri"] == "models/broken.onnx"
    assert run["results"] == []
    assert [one["location"]["uri"] for one in run["artifacts"]] == [
        "models/model.onnx",
        "models/broken.onnx",
    ]
    assert run["properties"]["targets"][0]["verdict"] == "isolated"


def test_no_path_of_the_machine_is_told_of_files_below_the_folder(folder: Path) -> None:
    inside = report(finding(), target=str(folder / "models" / "model.onnx"))
    made = json.dumps(sarif([inside], folder=folder)["runs"][0]["artifacts"])
    assert str(folder) not in made
    outside = run_of(sarif([report(target=str(folder))], folder=folder / "models"))
    assert outside["artifacts"][0]["location"]["uri"] == folder.as_uri()


def test_a_target_that_is_no_file_has_no_physical_place(folder: Path) -> None:
    run = run_of(sarif([report(finding(), target="Linear")], folder=folder))
    assert run["artifacts"] == []
    assert "physicalLocation" not in run["results"][0]["locations"][0]


def test_hostile_names_stay_text(folder: Path) -> None:
    odd = finding(node=HOSTILE, outputs=[HOSTILE], why=HOSTILE, operator=HOSTILE)
    (result,) = results(folder, odd)
    assert result["locations"][0]["logicalLocations"][0]["name"] == HOSTILE
    assert "](http" not in result["message"]["text"]  # no link
    assert "{{0}}" in result["message"]["text"]  # no placeholder
    name = "a b#?%[].onnx"
    (folder / name).touch()
    run = run_of(sarif([report(target=name), unreadable(HOSTILE, HOSTILE)], folder=folder))
    assert run["artifacts"][0]["location"]["uri"] == "a%20b%23%3F%25%5B%5D.onnx"


def test_the_same_reports_give_the_same_document(folder: Path) -> None:
    one, other = (report(finding(), UNKNOWN, seconds=seconds) for seconds in (0.1, 0.2))
    assert sarif([one], folder=folder) == sarif([other], folder=folder)


@pytest.mark.parametrize(
    ("operator", "short"),
    [
        ("ai.onnx::ReduceMax@18", "ReduceMax"),
        ("aten.amax.default", "amax"),
        ("planish.rms_norm", "rms_norm"),
        ("input", "input"),
        ("mylib.op.default", "mylib.op.default"),
        ("", ""),
    ],
)
def test_operators_in_short(operator: str, short: str) -> None:
    assert short_operator(operator) == short
