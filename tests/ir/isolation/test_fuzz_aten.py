"""Random graphs: whatever is called isolated keeps each row as it was when others change."""

import logging
from collections.abc import Iterator

import pytest
import torch

from planish.ir import ops
from support.fuzz import Count, fuzz

assert ops  # it declares planish's operators


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are tiny, and torch logs every call that a shape refuses."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)


def judge(count: Count) -> None:
    assert not count.wrong, count.wrong[0]
    assert count.isolated >= 0.15 * count.programs, str(count)
    unseen = count.isolated + count.unconfirmed
    assert count.unconfirmed <= 0.2 * unseen, str(count)
    assert count.confirmed >= 0.1 * count.programs, str(count)


def test_random_programs() -> None:
    count = fuzz(0, 60)
    assert count.programs >= 300
    judge(count)


@pytest.mark.slow
def test_many_random_programs() -> None:
    count = fuzz(1000, 1700)
    print(count)
    assert count.programs >= 10_000
    judge(count)
