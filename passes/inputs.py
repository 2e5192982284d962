"""What linear layers read over calibration samples: mean and mean square of each channel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx

from planish.ir.program import Program, Sample
from planish.passes.contract import NotApplicable
from planish.passes.layers import LINEAR, layers_of
from planish.passes.sequential import walk
from planish.passes.work import UNSEEN, Work


class Inputs(NamedTuple):
    """Of each channel of a value [..., K] the mean and the mean square, float64 [K]."""

    mean: Tensor
    square: Tensor


def samples_of(program: Program, called: str) -> tuple[Sample, ...]:
    """What a pass of this name learns from.

    Raises:
        NotApplicable: if there is nothing.
    """
    if samples := program.calibration or program.samples:
        return samples
    raise NotApplicable(
        f"{called}: there are no calibration samples; pass --samples FILE or samples=."
    )


def spread(samples: Sequence[Sample], tokens: int) -> list[Sample]:
    """Samples evenly spaced with about so many tokens; all, if they are not of tokens."""
    if not samples or "input_ids" not in samples[0]:
        return list(samples)
    whole = sum(sample["input_ids"].numel() for sample in samples)
    count = max(1, min(len(samples), round(len(samples) * tokens / max(whole, 1))))
    return [samples[place * len(samples) // count] for place in range(count)]


def observed(
    program: Program, names: Iterable[str], called: str, work: Work = UNSEEN
) -> dict[str, Inputs]:
    """What is read by each linear layer whose weight has one of these names, by the node's name.

    Layers that read what is not finite are left out: nothing can be learned from that.

    Raises:
        NotApplicable: if there are no samples.
    """
    samples = samples_of(program, called)
    wanted = set(names)
    layers = [layer for layer in layers_of(program.graph, program) if layer.name in wanted]
    readers = [node for layer in layers if LINEAR in layer.roles for node in layer.node.users]
    found: dict[str, Inputs] = {}

    nodes = [node for node in readers if _multiplies(node)]
    for visit in walk(program, samples, nodes, tell=work.tell):
        rows = [value.flatten(0, -2) for value in visit.inputs]
        count = sum(map(len, rows))
        total = torch.stack([one.sum(0, dtype=torch.float64) for one in rows]).sum(0)
        # float16 ends at 65,504, so at the square of 256
        squares = torch.stack([one.float().square().sum(0, dtype=torch.float64) for one in rows])
        seen = Inputs(total / count, squares.sum(0) / count)
        if bool(seen.square.isfinite().all()):
            found.update(dict.fromkeys((node.name for node in visit.layers), seen))
    return found


def _multiplies(node: fx.Node) -> bool:
    return node.target is torch.ops.aten.linear.default
