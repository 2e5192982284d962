"""Models whose verdict is known, exported with a symbolic batch and length."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from planish.ir.flow.fx import read_exported
from planish.ir.isolation.labels import Labels
from planish.ir.isolation.verdict import Analysis, analyse
from support.corpus import HIDDEN, ISOLATED, LEAKS, Model

Case = tuple[tuple[int, ...], Callable[..., Any]]


def audited(case: Case) -> Analysis:
    shape, function = case
    sizes = {0: torch.export.Dim.AUTO} | ({1: torch.export.Dim.AUTO} if len(shape) == 3 else {})
    model = Model(function)
    exported = torch.export.export(
        model, (torch.randn(shape),), dynamic_shapes={"inputs": (sizes,)}
    ).run_decompositions({})
    return analyse(lambda ties: read_exported(exported, ties), Labels())


@pytest.mark.parametrize("name", ISOLATED)
def test_isolated(name: str) -> None:
    found = audited(ISOLATED[name])
    assert found.verdict == "isolated", found.findings
    assert not found.unknown_operators


@pytest.mark.parametrize("name", LEAKS)
def test_leaks(name: str) -> None:
    found = audited(LEAKS[name])
    assert found.verdict == "leaks", found
    assert not found.unknown_operators


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_leaks(name: str) -> None:
    assert audited(HIDDEN[name]).verdict == "leaks"
