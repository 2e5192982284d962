"""Rounding that other requests may move: advice, which no verdict depends on."""

from typing import Any

import pytest
import torch
from torch import Tensor

import planish
from planish.report.audit_html import render
from planish.report.audit_sarif import sarif
from support import corpus_experts
from support.corpus import ROWS, Model


def audited(function: Any) -> Any:
    return planish.audit(Model(function), inputs=(torch.randn(ROWS),))


@pytest.mark.parametrize("experts", [corpus_experts.grouped, corpus_experts.eager])
def test_products_of_rows_that_move_are_advice(experts: Any) -> None:
    report = audited(experts)
    assert report.verdict == "isolated"
    assert report.exit_code == 0
    (finding,) = report.findings
    assert finding.kind == "numerics"
    assert finding.advisory
    assert finding.path[0].operator == "input"
    assert ("other nodes" in finding.why) == (experts is corpus_experts.eager)


def test_rows_that_are_only_moved_round_nothing() -> None:
    assert not audited(corpus_experts.sorted_and_back).findings


def test_advice_comes_after_a_leak_and_hides_none() -> None:
    def swapped(m: Model, x: Tensor) -> Tensor:
        return corpus_experts.grouped(m, x).flip(0)

    report = audited(swapped)
    assert [one.kind for one in report.findings] == ["value", "numerics"]
    assert report.exit_code == 1


def test_a_choice_by_what_was_rounded_is_not_a_leak() -> None:
    def chosen(m: Model, x: Tensor) -> Tensor:
        y = corpus_experts.grouped(m, x)
        return y.gather(1, y.argmax(1, keepdim=True))

    assert audited(chosen).verdict == "isolated"


def test_reports_tell_it_as_a_note() -> None:
    report = audited(corpus_experts.grouped).to_json()
    (result,) = sarif([report])["runs"][0]["results"]
    assert (result["ruleId"], result["level"], result["kind"]) == ("BIC006", "note", "fail")
    assert result["message"]["text"].startswith("Rounding may differ in")
    page = render([report])
    assert "Rounding may differ in" in page
    assert "Requests meet in" not in page
