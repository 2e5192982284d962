"""Random programs: whatever is called isolated keeps each row as it was when others change."""

import logging
from collections.abc import Iterator

import pytest
import torch

from planish.ir import ops
from support import random_programs
from support.fuzz import judged

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


def test_random_programs_of_aten() -> None:
    judged(random_programs.programs(0), 100).check()
