"""Pages of a pool that requests share: each case is judged, and run."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import planish
from planish.ir.flow.fx import read_exported
from planish.ir.isolation.cases import analyse
from planish.ir.isolation.labels import BadLabels, Labels
from planish.ir.isolation.verdict import Analysis
from planish.runtime.runnable import CannotRun
from support.corpus_pages import ISOLATED, LEAKS, All, Case

AUTO = torch.export.Dim.AUTO
TABLE = torch.tensor([[0, 4], [5, 1], [2, 6]])
OTHER = torch.tensor([[0, 1], [2, 3], [4, 5]])
SAID = Labels(disjoint=("table",), pages=("keys",))


def exported(cases: dict[str, Case]) -> Any:
    given = (torch.randn(3, 8), torch.randn(8, 4, 8), TABLE, OTHER)
    sizes = ({0: AUTO},) * 4
    return torch.export.export(All(cases), given, dynamic_shapes=sizes).run_decompositions({})


def analysed(program: Any, labels: Labels = SAID) -> Analysis:
    return analyse(lambda ties: read_exported(program, ties), labels)


@cache
def verdicts(isolated: bool) -> tuple[Mapping[str, str], dict[str, bool], Analysis]:
    """What is said of each case, and whether another request's row and pages change it."""
    torch.manual_seed(0)
    cases = ISOLATED if isolated else LEAKS
    program = exported(cases)
    found = analysed(program)
    said = {name: one.verdict for name, one in zip(cases, found.outputs, strict=True)}
    run, moved = program.module(), dict.fromkeys(cases, False)
    x, keys = torch.randn(3, 8), torch.randn(8, 4, 8)
    before = run(x, keys, TABLE, OTHER)
    for request in range(3):
        changed, pages, table = x.clone(), keys.clone(), TABLE.clone()
        changed[request] = torch.randn(8) * 9
        pages[TABLE[request]] = torch.randn(2, 4, 8) * 9
        table[request] = table[request].flip(0)
        after = run(changed, pages, table, OTHER)
        others = torch.arange(3) != request
        for name, one, two in zip(cases, before, after, strict=True):
            moved[name] |= not torch.equal(one[others], two[others])
            assert not torch.equal(one[request], two[request])
    return said, moved, found


@pytest.mark.parametrize("name", ISOLATED)
def test_isolated(name: str) -> None:
    said, moved, found = verdicts(True)
    assert (said[name], moved[name]) == ("isolated", False)
    assert any("table has a row for each request" in one for one in found.assumptions)


@pytest.mark.parametrize("name", LEAKS)
def test_leaks(name: str) -> None:
    said, moved, _ = verdicts(False)
    assert (said[name], moved[name]) == ("leaks", True)


def test_without_the_contract() -> None:
    """T08."""
    program = exported({"": ISOLATED["T07 pages by a row of the table"]})
    assert analysed(program, Labels()).verdict == "leaks"
    assert analysed(program, Labels(disjoint=("other",), pages=("keys",))).verdict == "leaks"
    assert analysed(program, Labels(disjoint=("table",), pages=("x",))).verdict != "isolated"
    for labels in (Labels(disjoint=("table",)), Labels(pages=("keys",))):
        with pytest.raises(BadLabels, match="declared together"):
            analysed(program, labels)


def test_by_the_api_and_a_file(tmp_path: Path) -> None:
    program = exported({"": ISOLATED["T07 pages by a row of the table"]})
    report = planish.audit(program, disjoint=["table"], pages=["keys"])
    assert report.verdict == "isolated"
    assert "keys holds pages of all requests (as declared)" in report.assumptions
    spec = tmp_path / "audit.yaml"
    spec.write_text("disjoint: [table]\npages: [keys]\n")
    assert planish.audit(program, spec=spec).verdict == "isolated"
    with pytest.raises(CannotRun, match="have pages is not run"):
        planish.audit(program, spec=spec, witness=True)
