"""Models whose verdict is known, exported with a symbolic batch and length; and runs of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from planish.ir.capture.functional import functional
from planish.ir.flow.fx import read_exported
from planish.ir.isolation.cases import analyse
from planish.ir.isolation.labels import Labels
from planish.ir.isolation.verdict import Analysis
from support import corpus, corpus_experts
from support.corpus import Model

Case = tuple[tuple[int, ...], Callable[..., Any]]

ISOLATED = corpus.ISOLATED | corpus_experts.ISOLATED
LEAKS = corpus.LEAKS | corpus.HIDDEN | corpus_experts.LEAKS | corpus_experts.LONG

UNSEEN = {"memory as it was", "memory written but for a column", "index in 8 bits"}
"""What memory held before is not for a test to say; and 8 bits count to 127 rows."""

TRIGGERS = {"trigger reads a row": 1e6 + 0.5}
"""What the first row has to add up to."""


def audited(case: Case) -> Analysis:
    shape, function = case
    sizes = {0: torch.export.Dim.AUTO} | ({1: torch.export.Dim.AUTO} if len(shape) == 3 else {})
    model = Model(function)
    exported = torch.export.export(
        model, (torch.randn(shape),), dynamic_shapes={"inputs": (sizes,)}
    )
    program = functional(exported)
    return analyse(lambda ties: read_exported(program, ties), Labels())


@pytest.mark.parametrize("name", ISOLATED)
def test_isolated(name: str) -> None:
    found = audited(ISOLATED[name])
    assert found.verdict == "isolated", found.findings
    assert not found.unknown_operators
    assert not moves(*ISOLATED[name])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in corpus_experts.LONG else name
        for name in LEAKS
    ],
)
def test_leaks(name: str) -> None:
    found = audited(LEAKS[name])
    assert found.verdict == "leaks", found
    assert not found.unknown_operators
    total = TRIGGERS.get(name)
    assert name in UNSEEN or any(moves(*LEAKS[name], total, seed) for seed in range(9))


@pytest.mark.parametrize("name", corpus.UNPROVEN)
def test_unproven(name: str) -> None:
    assert audited(corpus.UNPROVEN[name]).verdict == "unproven"
    assert moves(*corpus.UNPROVEN[name])


def moves(
    shape: tuple[int, ...],
    function: Callable[..., Any],
    total: float | None = None,
    seed: int = 0,
) -> bool:
    """Whether another row's change moves a row, in value, or in whether it is given at all."""
    torch.manual_seed(seed)
    model, x = Model(function), torch.randn(shape)
    if total is not None:
        x[0] = total / x[0].numel()
    before = outputs(model, x)
    for row in range(len(x)):
        for other in changes(x, row):
            pairs = zip(before, outputs(model, other), strict=True)
            if any(differ(old, new, row, len(x)) for old, new in pairs):
                return True
    return False


def outputs(model: Model, x: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        result = model(x)
    return [one.clone() for one in (result if isinstance(result, tuple) else (result,))]


def changes(x: Tensor, row: int) -> list[Tensor]:
    """The same with another row."""
    noise = torch.randn(x.shape)
    values = [noise, noise + 3, noise - 3, x * 100, x * 1e4, -x, noise * 0, x * float("nan")]
    values += [noise.softmax(-1).roll(n, -1) for n in range(4)]
    found = []
    for value in values:
        other = x.clone()
        other[row] = value[row]
        found.append(other)
    return found


def differ(old: Tensor, new: Tensor, row: int, rows: int) -> bool:
    if old.shape != new.shape:
        return True
    if old.dim() and len(old) == rows:
        kept = [one for one in range(rows) if one != row]
        old, new = old[kept], new[kept]
    return not torch.equal(old.nan_to_num(7e7), new.nan_to_num(7e7))
