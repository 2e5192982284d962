"""Graphs of servers: caches in pages, packed requests, attention with a function of its own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from planish.ir.flow.fx import read_exported
from planish.ir.isolation.cases import analyse
from planish.ir.isolation.labels import Labels
from planish.ir.isolation.verdict import Analysis

BATCH = {0: torch.export.Dim.AUTO}
PAGES, PAGE, WIDTH = 7, 4, 8


def audited(
    model: nn.Module, *inputs: Tensor, labels: Labels | None = None, sizes: Any = None
) -> Analysis:
    shapes = sizes or tuple(BATCH for _ in inputs)
    exported = torch.export.export(model.eval(), inputs, dynamic_shapes=shapes)
    program = exported.run_decompositions({})
    return analyse(lambda ties: read_exported(program, ties), labels or Labels())


class OwnPages(nn.Module):
    """A cache of pages that stays in the model: rows are written and read where a table says."""

    pool: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pool", torch.zeros(PAGES, PAGE, WIDTH))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        self.pool[table[:, -1], 0] = x
        return paged(x, table, self.pool)


class GivenPages(nn.Module):
    """A cache of pages that the server gives."""

    def forward(self, x: Tensor, table: Tensor, pool: Tensor) -> Tensor:
        return paged(x, table, pool)


def paged(x: Tensor, table: Tensor, pool: Tensor) -> Tensor:
    """Attention of x [B, D] over the pages [P, S, D] that a table [B, N] names."""
    keys = pool[table].flatten(1, 2)
    weights = torch.einsum("bd,bkd->bk", x, keys).softmax(-1)
    return torch.einsum("bk,bkd->bd", weights, keys)


X, TABLE = torch.randn(3, WIDTH), torch.tensor([[0, 1], [2, 3], [4, 5]])


def test_pages_in_the_model_leak() -> None:
    """T08: that tables do not overlap is the server's word; the pages are one state for all."""
    found = audited(OwnPages(), X, TABLE)
    assert found.verdict == "leaks"
    assert {one.name: one.verdict for one in found.outputs}["state pool"] == "leaks"
    assert {"value", "state"} >= {one.kind for one in found.findings}


def test_pages_that_are_given_leak_unless_declared() -> None:
    """T07: each page counts as a request's, and a table may name any; unless pages are nobody's."""
    pool = torch.randn(PAGES, PAGE, WIDTH)
    found = audited(GivenPages(), X, TABLE, pool)
    assert found.verdict == "leaks"
    assert [(one.kind, one.operator) for one in found.findings] == [("value", "aten.index.Tensor")]
    said = audited(GivenPages(), X, TABLE, pool, labels=Labels(shared=("pool",)))
    assert said.verdict == "isolated"
    assert "pool is the same for all requests (as declared)" in said.assumptions


class Scored(nn.Module):
    """Attention whose scores read a number of the request, or of the one after it (T03, T04)."""

    def __init__(self, after: int, flex: bool) -> None:
        super().__init__()
        self.after, self.flex = after, flex

    def forward(self, x: Tensor) -> Any:
        own = x.mean((1, 2, 3))

        def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:  # noqa: ARG001
            return s + own[(b + self.after) % own.shape[0] if self.after else b]

        if self.flex:
            return flex_attention(x, x, x, score_mod=score)
        rows = torch.arange(x.shape[0])[:, None, None, None]
        scores = score(x @ x.transpose(-1, -2), rows, *[torch.zeros(())] * 3)
        return scores.softmax(-1) @ x


@pytest.mark.parametrize(("after", "verdict"), [(0, "isolated"), (1, "leaks")])
def test_scores_that_read_a_buffer_of_requests(after: int, verdict: str) -> None:
    assert audited(Scored(after, flex=False), torch.randn(3, 2, 16, 8)).verdict == verdict


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.filterwarnings("ignore")
def test_flex_attention_is_not_understood(after: int) -> None:
    found = audited(Scored(after, flex=True), torch.randn(3, 2, 16, 8))
    assert found.verdict == "unproven"
    assert found.unknown_operators == {"flex_attention": 1}


class Packed(nn.Module):
    """Attention of tokens [1, N, D] within the segments that [1, N] numbers name."""

    def forward(self, x: Tensor, segments: Tensor) -> Tensor:
        own = segments[:, :, None] == segments[:, None, :]
        scores = (x @ x.transpose(1, 2)).masked_fill(~own, float("-inf"))
        return scores.softmax(-1) @ x


def test_nothing_is_said_of_requests_packed_into_one_row() -> None:
    x, segments = torch.randn(1, 6, 8), torch.tensor([[0, 0, 0, 1, 1, 1]])
    length = torch.export.Dim("length", min=2)
    found = audited(Packed(), x, segments, sizes=({1: length}, {1: length}))
    assert found.verdict == "isolated"
    (line,) = (one for one in found.assumptions if "one row" in one)
    assert line.endswith("nothing is proven of requests that are packed into it one after another")


def test_packed_requests_that_are_told_by_their_tokens_are_not_proven() -> None:
    x, segments = torch.randn(1, 6, 8), torch.tensor([[0, 0, 0, 1, 1, 1]])
    length = torch.export.Dim("length", min=2)
    program = torch.export.export(
        Packed(), (x, segments), dynamic_shapes=({1: length}, {1: length})
    ).run_decompositions({})
    (name,) = read_exported(program).outputs
    tokens = Labels(batch_axes={"x": 1, "segments": 1}, output_axes={name: 1})
    assert analyse(lambda ties: read_exported(program, ties), tokens).verdict == "leaks"
