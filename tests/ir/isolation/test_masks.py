"""Masks of packed batches that are added to scores: each case is judged, and run."""

from collections.abc import Mapping, Sequence
from functools import cache
from math import inf
from typing import Any

import pytest
import torch

from planish.ir.flow.fx import read_exported
from planish.ir.isolation.cases import analyse
from planish.ir.isolation.labels import Labels
from planish.ir.isolation.segments import FINITE
from planish.ir.isolation.spans import ANY, FREE, Span, computed, constant
from planish.ir.isolation.verdict import Analysis
from support.corpus_masks import ISOLATED, LEAKS, All, Case, hidden, low
from support.corpus_packed import WIDTH, Packed, attended
from support.random_masks import case

AUTO = torch.export.Dim.AUTO
IDS = torch.tensor([0, 0, 0, 1, 2, 2, 2])
SAID = Labels(segment_ids=("ids",))


def exported(cases: Mapping[str, Case]) -> Any:
    torch.manual_seed(0)
    given = (torch.randn(7, WIDTH), IDS)
    made = torch.export.export(All(cases).eval(), given, dynamic_shapes=({0: AUTO},) * 2)
    return made.run_decompositions({})


def analysed(program: Any, labels: Labels = SAID) -> Analysis:
    return analyse(lambda ties: read_exported(program, ties), labels)


@cache
def verdicts(isolated: bool) -> tuple[Mapping[str, str], dict[str, bool], Analysis]:
    """What is said of each case, and whether another request's rows change it."""
    cases = ISOLATED if isolated else LEAKS
    program = exported(cases)
    found = analysed(program)
    said = {name: one.verdict for name, one in zip(cases, found.outputs, strict=True)}
    run, moved = program.module(), dict.fromkeys(cases, False)
    x = torch.randn(7, WIDTH)
    before = run(x, IDS)
    for request in range(3):
        own = IDS.eq(request)
        after = run(torch.where(own[:, None], torch.randn(7, WIDTH) * 9, x), IDS)
        for name, one, other in zip(cases, before, after, strict=True):
            moved[name] |= not torch.equal(one[~own], other[~own])
            assert not torch.equal(one[own], other[own])
    return said, moved, found


@pytest.mark.parametrize("name", ISOLATED)
def test_isolated(name: str) -> None:
    said, moved, _ = verdicts(True)
    assert (said[name], moved[name]) == ("isolated", False)


@pytest.mark.parametrize("name", LEAKS)
def test_leaks(name: str) -> None:
    said, moved, _ = verdicts(False)
    assert (said[name], moved[name]) == ("leaks", True)


def test_what_a_finite_mask_assumes_is_printed() -> None:
    """A score that is too far from 0 gets through, as the assumption says."""
    model: Case = lambda m, x, ids: attended(m, x, low(ids, -1e5))  # noqa: E731
    found = analysed(exported({"": model}))
    assert FINITE in found.assumptions
    (bound,) = (one for one in found.assumptions if "is added to" in one)
    assert "less than 2.48e+04 from 0: it lowers what it hides by 9.92e+04" in bound
    layer, x = Packed(lambda *given: given[1]), torch.randn(7, WIDTH)
    far = torch.cat([x[:4], x[4:] * 1e3])
    assert torch.equal(model(layer, x, IDS)[:4], model(layer, torch.cat([x[:4], -x[4:]]), IDS)[:4])
    assert not torch.equal(model(layer, far, IDS)[4:], model(layer, x * 1e3, IDS)[4:])
    infinite = analysed(exported({"": lambda m, x, ids: attended(m, x, low(ids))}))
    assert not any("is added to" in one for one in infinite.assumptions)


def test_what_is_not_declared_is_no_mask() -> None:
    program = exported({"": lambda m, x, ids: attended(m, x, hidden(ids))})
    assert analysed(program, Labels(shared=("ids",))).verdict == "leaks"


def test_bounds_of_numbers() -> None:
    half, single = torch.float16, torch.float32
    assert constant(-1e9, half).low == -inf
    assert computed("mul", [Span(0, 0), constant(-1e9, half)], half) == ANY  # 0 times infinity
    assert computed("mul", [Span(0, 0), constant(-1e9, single)], single) == Span(0, 0)
    lost = computed("add", [Span(-1e4, -1e4), Span(1e13, 1e13)], single)
    assert computed("sub", [lost, Span(1e13, 1e13)], single).high > 0
    assert computed("mul", [Span(1e-30, 1e-30)] * 2, single).low == 0
    assert computed("add", [FREE, FREE], single) == Span(0, 0, 2)
    assert computed("mul", [FREE, Span(0, 0)], single) == Span(0, 0)
    assert computed("cast", [Span(-200, -200)], torch.int8) == ANY
    assert computed("cast", [Span(2, 2)], torch.bool) == Span(0, 1)


def judged(seeds: Sequence[int]) -> tuple[int, int]:
    """How many masks are called isolated, and how many of those that are not do leak."""
    cases = {str(seed): case(seed) for seed in seeds}
    program = exported(cases)
    said = [one.verdict == "isolated" for one in analysed(program).outputs]
    moved = [False] * len(cases)
    run, x = program.module(), torch.randn(7, WIDTH)
    before = run(x, IDS)
    for request in range(3):
        own = IDS.eq(request)
        after = run(torch.where(own[:, None], torch.randn(7, WIDTH) * 2, x), IDS)
        for number, (one, two) in enumerate(zip(before, after, strict=True)):
            differ = ~one[~own].isclose(two[~own], rtol=0, atol=0, equal_nan=True)
            moved[number] |= bool(differ.any())
    wrong = [seed for seed, good, bad in zip(seeds, said, moved, strict=True) if good and bad]
    assert not wrong
    return sum(said), sum(moved)


def test_masks_drawn_at_random() -> None:
    """None that is called isolated leaks, and there are some of both kinds."""
    isolated, leaks = judged(range(40))
    assert isolated >= 3
    assert leaks >= 10


@pytest.mark.slow
def test_many_masks_drawn_at_random() -> None:
    for first in range(1000, 2000, 50):
        judged(range(first, first + 50))
