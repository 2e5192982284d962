"""The page of an audit: well-formed, self-contained, grouped, and safe whatever names there are."""

import re

import pytest

from planish.report.audit_html import render
from planish.report.audit_picture import Row, draw, rows, shortened
from support.audits import UNKNOWN, Json, finding, place, report, unreadable
from support.pages import Page

HOSTILE = "\"'><script>alert(1)</script><b>"


def page(*reports: Json, command: str = "planish audit x.onnx") -> Page:
    text = render(reports, version="1.2.3", command=command)
    made = Page(text)
    ids = made.values("id")
    assert len(ids) == len(set(ids))
    assert {one[1:] for one in made.values("href") if one.startswith("#")} <= set(ids)
    assert {one[:1] for one in made.values("href")} <= {"#"}
    assert not made.values("src")
    assert made.count("script") == made.count("link") == 0
    assert not re.search(r"url\(|@import|https?:", text)
    return made


def test_one_target_says_everything() -> None:
    made = page(report(finding(), UNKNOWN), command="planish audit 'a b.onnx' --shared t")
    for said in (
        "model.onnx → leaks",
        "One request can reach another.",
        "A statistic over dimension 0 (of size B).",
        "Compute one scale for each row: the pass isolate.",
        "BIC002 CrossRequestAggregate, CWE-488",
        "Not understood: Odd",
        "x holds the batch along axis 0",
        "timing, power and caches of the machine",
        "planish audit 'a b.onnx' --shared t",
        "1,234",
        "Planish 1.2.3",
    ):
        assert said in made.text
    assert made.count("svg") == 2


def test_a_proof_has_no_findings() -> None:
    made = page(report())
    assert "Requests stay apart." in made.text
    assert "its own request's" in made.text
    assert "Findings" not in made.text
    assert made.count("svg") == 0


def test_findings_that_are_alike_share_one_picture() -> None:
    made = page(report(*(finding(node=f"/layer.{n}/Quantize") for n in range(48)), UNKNOWN))
    assert "48 places" in made.text
    assert made.count("svg") == 2
    assert all(f"/layer.{n}/Quantize" in made.text for n in range(48))


def test_many_kinds_of_findings_open_on_demand() -> None:
    made = page(report(*(finding(why=f"a mean over dimension {n}") for n in range(9))))
    assert "3 more kinds of findings" in made.text
    assert made.count("svg") == 9


def test_many_outputs_and_assumptions_open_on_demand() -> None:
    outputs = [{"name": f"y{n}", "verdict": "isolated", "requests": "own"} for n in range(30)]
    made = page(report(outputs=outputs, assumptions=[f"x{n} is so" for n in range(30)]))
    assert "18 more outputs" in made.text
    assert "18 more" in made.text
    assert "x29 is so" in made.text


@pytest.mark.parametrize(
    ("verdict", "requests", "said"),
    [
        ("leaks", "own", "mixed: something of every request"),
        ("leaks", "(i1 mod B)", "request (i1 mod B)"),
        ("unproven", "none", "not known"),
        ("isolated", "none", "the same for all requests"),
    ],
)
def test_whose_an_output_is(verdict: str, requests: str, said: str) -> None:
    output = {"name": "y", "verdict": verdict, "requests": requests}
    assert said in page(report(outputs=[output], verdict=verdict)).text


def test_many_targets_begin_with_an_overview() -> None:
    made = page(report(finding()), report(target="models/good.onnx"), unreadable())
    assert "3 targets" in made.text
    assert {"#target-1", "#target-2", "#target-3", "#finding-1-1"} <= set(made.values("href"))
    assert "it is no model" in made.text
    assert made.text.count("Each picture shows") == 1


def test_one_unreadable_target() -> None:
    assert "It could not be audited." in page(unreadable()).text


def test_witnesses_and_what_was_seen_are_shown() -> None:
    first = finding(witness="found/model-y.npz")
    made = page(report(first, numerics=["the rows of y move by up to 1e-6"]))
    assert "found/model-y.npz" in made.text
    assert "the rows of y move" in made.text


def test_hostile_names_stay_text() -> None:
    way = [place(HOSTILE, "input"), place(HOSTILE, HOSTILE, HOSTILE), place(HOSTILE, "output")]
    odd = finding(
        node=HOSTILE, operator=HOSTILE, why=HOSTILE, fix=HOSTILE, where=HOSTILE, path=way,
        outputs=[HOSTILE], witness=HOSTILE,
    )  # fmt: skip
    output = {"name": HOSTILE, "verdict": "leaks", "requests": HOSTILE}
    told = report(
        odd,
        target=HOSTILE,
        outputs=[output],
        assumptions=[HOSTILE],
        unknown_operators=[{"operator": HOSTILE, "count": 1}],
        numerics=[HOSTILE],
        not_covered=[HOSTILE],
    )
    for made in (page(told, command=HOSTILE), page(told, unreadable(HOSTILE, HOSTILE))):
        assert made.count("b") == 0
        assert "<script>alert(1)</script>" in made.text


def test_the_way_leads_from_an_input_over_the_meeting_to_an_output() -> None:
    forms = [row.form for row in rows(finding())]
    assert forms == ["input", "node", "meet", "node", "output"]
    steps = [place(f"n{n}", "ai.onnx::Add@14") for n in range(30)]
    long = finding(node="n12", path=[place("x", "input"), *steps, place("y", "output")])
    found = rows(long)
    assert [row.form for row in found].count("gap") == 2
    assert found[1] == Row("gap", "8 more nodes")
    assert [row.detail for row in found[2:6]] == ["n8", "n9", "n10", "n11"]
    assert found[6].form == "meet"
    assert found[-1].title == "y"


def test_a_meeting_inside_a_loop_stands_where_the_loop_does() -> None:
    way = [place("x", "input"), place("loop", "ai.onnx::Loop@16"), place("y", "output")]
    found = rows(finding(node="loop/inner", path=way))
    assert [row.form for row in found] == ["input", "meet", "output"]


def test_a_way_that_is_not_known_has_gaps() -> None:
    found = rows(finding(path=[place("y", "output")]))
    assert [row.form for row in found] == ["input", "gap", "meet", "gap", "output"]


def test_an_input_of_nobody_is_the_meeting_itself() -> None:
    way = [place("x", "input"), place("y", "output")]
    odd = finding(kind="unknown", operator="input", node="x", path=way)
    assert [row.form for row in rows(odd)] == ["meet", "output"]
    assert "is not known" in draw(odd, "a")


def test_long_names_lose_their_middle() -> None:
    name = "/encoder/layer.0/attention/self/query/MatMul_output_0_QuantizeLinear#312"
    assert len(shortened(name, 30)) == 30
    assert shortened(name, 30).endswith("QuantizeLinear#312")
    assert shortened("short", 30) == "short"
    assert name in draw(finding(node=name), "a")
