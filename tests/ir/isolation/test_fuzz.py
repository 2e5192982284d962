"""Random programs: whatever is called isolated keeps each row as it was when others change.

`benchmarks/soundness.py` does the same with many thousand.
"""

import logging
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import pytest
import torch

from planish.ir import ops
from planish.ir.rules import aten, onnx
from support import random_onnx_programs, random_programs
from support.fuzz import Count, judged

assert ops  # it declares planish's operators

NOT_DRAWN = {
    "composite": "compared one by one alone (tests/ir/rules)",
    "kernels": "what a specification on the node says, of lowered programs (tests/ir/rules)",
    "selection": "sizes of results that data decide are not drawn",
}
"""Families of ATen that random programs have nothing of, and why."""

OF_THE_OPTIMIZER = "contrib_blocked"
"""The rules of what ONNX Runtime alone writes into a model, and no other program reads."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are tiny, and torch logs every call that a shape refuses."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)


def families(table: ModuleType) -> dict[str, Mapping[Any, Any]]:
    """The rules of each file."""
    modules = {name: one for name, one in vars(table).items() if isinstance(one, ModuleType)}
    return {name: one.RULES for name, one in modules.items() if hasattr(one, "RULES")}


def drawn(count: Count, operators: Mapping[Any, Any]) -> bool:
    """Whether some operator of a family was in a program."""
    names = {one if isinstance(one, str) else "::".join(filter(None, one)) for one in operators}
    return bool(names & count.operators.keys())


def test_random_programs_of_aten() -> None:
    count = judged(random_programs.programs(0), 100)

    count.check()
    missed = [name for name, one in families(aten).items() if not drawn(count, one)]
    assert missed == [*NOT_DRAWN]
    assert {"cond", "while_loop", "scan", "map_impl"} <= count.operators.keys()


def test_random_programs_of_onnx() -> None:
    count = judged(random_onnx_programs.programs(0), 200)

    count.check()
    missed = [name for name, one in families(onnx).items() if not drawn(count, one)]
    assert missed == [OF_THE_OPTIMIZER]
    assert {"If", "Loop", "Scan", "own::F0"} <= count.operators.keys()


@pytest.mark.slow
def test_many_random_programs_of_aten() -> None:
    judged(random_programs.programs(1000), 3000).check()


@pytest.mark.slow
def test_many_random_programs_of_onnx() -> None:
    judged(random_onnx_programs.programs(1000), 7000).check()
