"""Waivers: what they change (the exit code) and what they do not (the verdict)."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import onnx
import pytest

import planish
from planish import cli
from planish.audit_spec import BadSpec
from planish.waivers import BadWaiver, Waiver
from support.graphs import onnx_model

ACCEPTED = {
    "operator": "ai.onnx::ReduceMax@*",
    "reason": "one tenant a batch",
    "expires": "2999-01-31",
}


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    onnx.save(onnx_model("Relu", "ReduceMax"), tmp_path / "bad.onnx")
    return tmp_path / "bad.onnx"


def spec(folder: Path, **changed: str) -> Path:
    path = folder / "spec.yaml"
    path.write_text(json.dumps({"waivers": [{**ACCEPTED, **changed}]}))
    return path


def test_a_waived_finding_is_shown_and_does_not_fail(
    leaking: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--spec", str(spec(leaking.parent))]
    assert cli.main(["audit", str(leaking), *told]) == 0
    out = capsys.readouterr().out
    assert "LEAKS" in out
    assert "waived until 2999-01-31: one tenant a batch" in out
    assert cli.main(["audit", str(leaking), *told, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["verdict"] == "leaks"
    assert made["findings"][0]["waived"] == {
        "reason": "one tenant a batch",
        "expires": "2999-01-31",
    }
    assert cli.main(["audit", str(leaking), *told, "--format", "html"]) == 0
    assert "until 2999-01-31: one tenant a batch" in capsys.readouterr().out
    assert cli.main(["audit", str(leaking), *told, "--format", "sarif"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    (suppressed,) = run["results"][0]["suppressions"]
    assert suppressed["kind"] == "external"
    assert suppressed["justification"] == "one tenant a batch (until 2999-01-31)"


def test_the_last_day_counts_and_the_next_does_not(leaking: Path) -> None:
    today = date.today()
    report = planish.audit(leaking, waivers=[{**ACCEPTED, "expires": today}])
    assert (report.exit_code, report.live, report.warnings) == (0, (), ())
    late = planish.audit(leaking, waivers=[{**ACCEPTED, "expires": "2026-01-31"}])
    assert late.exit_code == 1
    assert late.live == late.findings
    (warning,) = late.warnings
    assert "expired on 2026-01-31 and is not applied" in warning


def test_a_day_with_an_hour_is_a_day(leaking: Path) -> None:
    path = leaking.parent / "spec.yaml"
    path.write_text(
        "waivers: [{node: '*', reason: accepted, expires: 2999-01-31 12:00:00}]", encoding="utf-8"
    )
    report = planish.audit(leaking, spec=path)
    assert report.waivers[0].expires == date(2999, 1, 31)
    assert report.exit_code == 0


@pytest.mark.parametrize("changed", [{"operator": "*Softmax*"}, {"node": "x"}, {"kind": "state"}])
def test_what_covers_nothing_is_warned_of(
    leaking: Path, changed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["audit", str(leaking), "--spec", str(spec(leaking.parent, **changed))]) == 1
    assert "covers no finding" in capsys.readouterr().out.replace("\n", " ")


def test_other_findings_still_fail(tmp_path: Path) -> None:
    model = onnx_model("ReduceMax", "Relu")
    model.graph.node.append(onnx.helper.make_node("ReduceMean", ["x"], ["z"], name="mean"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, None))
    onnx.save(model, tmp_path / "two.onnx")
    report = planish.audit(tmp_path / "two.onnx", waivers=[ACCEPTED])
    assert [one.operator for one in report.live] == ["ai.onnx::ReduceMean@18"]
    assert report.exit_code == 1
    both: list[Any] = [ACCEPTED, Waiver("accepted", date(2999, 1, 1), node="mean*")]
    assert planish.audit(tmp_path / "two.onnx", waivers=both).exit_code == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reason": " "}, "gives no reason"),
        ({"expires": "soon"}, "no day on which it expires"),
        ({"operator": ""}, "would cover everything"),
    ],
)
def test_a_waiver_says_what_why_and_until_when(
    leaking: Path, changed: dict[str, str], message: str
) -> None:
    with pytest.raises(BadWaiver, match=message):
        planish.audit(leaking, spec=spec(leaking.parent, **changed))
    with pytest.raises(BadSpec, match="a list of mappings with the keys operator"):
        planish.audit(leaking, spec=spec(leaking.parent, because="so"))
