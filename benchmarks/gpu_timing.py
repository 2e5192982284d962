"""Timing on a GPU as serving meets it: CUDA graphs whose weights come from memory, not from L2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import torch

ROTATED = 256 * 2**20
"""Bytes of weights that a graph walks before it meets the first again: five times an H200's L2."""

LAUNCHES = 32
"""The least number of launches in a graph, so that starting it does not count."""

REPLAYS = 25

Call = Callable[[], object]


@dataclass(frozen=True)
class Time:
    """Microseconds of one launch inside a graph: the median of replays, and their spread."""

    us: float
    p10: float
    p90: float


def copies(nbytes: int) -> int:
    """How many copies of a weight make up what is walked."""
    return max(1, -(-ROTATED // max(1, nbytes)))


def captured(calls: Sequence[Call]) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph of calls, repeated until there are enough launches, and their number."""
    rounds = -(-LAUNCHES // len(calls))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compile, and allocate what is kept, before the capture
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        for _ in range(rounds):
            for call in calls:
                call()
    return graph, rounds * len(calls)


def timed(*several: Sequence[Call]) -> list[Time]:
    """Time several ways in turns, so that a clock that drifts drifts for all.

    Args:
        several: for each way the calls of one round, one a copy of the weight.
    """
    graphs = [captured(calls) for calls in several]
    found: list[list[float]] = [[] for _ in graphs]
    for replay in range(REPLAYS + 2):
        for times, (graph, launches) in zip(found, graphs, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if replay >= 2:
                times.append(start.elapsed_time(end) * 1000 / launches)
    return [_summary(times) for times in found]


def _summary(times: Sequence[float]) -> Time:
    tenths = quantiles(times, n=10)
    return Time(median(times), tenths[0], tenths[-1])
