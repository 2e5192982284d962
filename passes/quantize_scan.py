"""Rounding what selective scans read: the input, and what writes and reads their state.

Source: Chiang et al., "Quamba2: A Robust and Scalable Post-training Quantization Framework for
Selective State Space Models" (2025), sections 4.2 (sort-and-cluster) and 4.3 (a scale for each
group of states).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, fx

from planish.ir.activations import INT8, fake_quantize, reach
from planish.ir.ops import selective_scan
from planish.ir.program import Program
from planish.passes.contract import OPTIONS, Contract, LongPass, NotApplicable
from planish.passes.inputs import samples_of
from planish.passes.sequential import Run
from planish.passes.work import UNSEEN, Work

X, B, C = 0, 3, 4
"""The places of what is rounded among the arguments of a scan."""

SWEEPS = 20
"""Rounds of k-means; in one dimension, from quantiles, it settles within a few."""


@dataclass(frozen=True, config=OPTIONS)
class QuantizeScan(LongPass):
    """Round what the selective scans of state-space models (Mamba, Mamba-2) read to 8 bits.

    Scales are static, found on calibration samples, so requests in one batch stay apart. The
    channels of a scan's input keep their loudness from token to token: heads of like loudness
    share scales, and within them channels of like loudness do. What writes the state (B) and reads
    it (C) has a scale for each group of states. The state itself and the step sizes stay as they
    are. Meant to go with `quantize_weights` and `quantize_activations` for the projections.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    head_clusters: int = Field(default=4, ge=1, le=64)
    """Into how many clusters heads are sorted. Mamba has heads of one channel."""

    channel_clusters: int = Field(default=4, ge=1, le=64)
    """Into how many clusters the channels of each cluster of heads are sorted."""

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Round what each scan reads.

        Raises:
            NotApplicable: if there is no scan, one reads rounded values already, what one reads is
                not finite on the samples, or samples are missing.
        """
        scans = list(program.nodes(selective_scan))
        if not scans:
            raise NotApplicable(
                f"quantize_scan: {program.source.name} has no selective scan; this pass is for "
                "state-space models such as Mamba."
            )
        if any(_source(scan, X).target is fake_quantize for scan in scans):
            raise NotApplicable("quantize_scan: what scans read is rounded already.")
        scales = self._scales(program, scans, work)
        with program.edit() as edit:
            for scan in edit.graph.find_nodes(op="call_function", target=selective_scan):
                for place, called in ((X, "x"), (B, "b"), (C, "c")):
                    name = f"{scan.name}.{called}_scale"
                    scale = edit.read(name, scales[scan.name, place], before=scan)
                    given = _source(scan, place), scale, INT8, False
                    scan.update_arg(place, edit.call(fake_quantize, *given, before=scan))
                edit.record(scan, f"{scan.name}: int8 static{_kinds(scales[scan.name, X])}")
        return edit.program

    def _scales(
        self, program: Program, scans: list[fx.Node], work: Work
    ) -> dict[tuple[str, int], Tensor]:
        """The scales of what each scan reads: [H, P] of its input, [G, 1] of B and C."""
        places = (X, B, C)
        if not program.has_data:
            shapes = {X: slice(2, 4), B: slice(2, 3), C: slice(2, 3)}
            return {
                (scan.name, place): torch.ones(
                    (*_source(scan, place).meta["val"].shape[shapes[place]], 1)[:2], device="meta"
                )
                for scan in scans
                for place in places
            }
        run = Run(program, samples_of(program, "quantize_scan"))
        found: dict[tuple[str, int], Tensor] = {}
        for done, scan in enumerate(scans, start=1):
            run.until(scan)
            for place in places:
                largest = _largest(run.read(_source(scan, place)))
                if not bool(torch.isfinite(largest).all()):
                    raise NotApplicable(
                        f"quantize_scan: {_source(scan, place).name} is not finite on the "
                        "calibration samples; mend the samples."
                    )
                if place == X:
                    largest = clustered(largest, self.head_clusters, self.channel_clusters)
                else:
                    largest = largest.amax(-1, keepdim=True)
                scale = largest / reach(INT8)
                found[scan.name, place] = torch.where(scale > 0, scale, 1.0)
            work.tell(done, len(scans))
        return found


def _kinds(scale: Tensor) -> str:
    """How many scales the input of a scan has, where that is known already."""
    return "" if scale.is_meta else f"; {len(scale.unique())} scales for the input"


def _source(scan: fx.Node, place: int) -> fx.Node:
    source = scan.args[place]
    assert isinstance(source, fx.Node)
    return source


def _largest(values: list[Tensor]) -> Tensor:
    """Of values [B, T, H, P] the largest magnitudes over batch and tokens, float32 [H, P]."""
    return torch.stack([value.float().abs().amax((0, 1)) for value in values]).amax(0)


def clustered(largest: Tensor, heads: int, channels: int) -> Tensor:
    """For each channel the largest magnitude in its cluster, [H, P].

    Args:
        largest: magnitudes of the channels of each head, [H, P].
        heads: into how many clusters heads are sorted, by their loudest channel.
        channels: into how many clusters the channels of such a cluster are sorted: those at the
            same place, by the loudest of any of its heads.
    """
    result = torch.empty_like(largest)
    of_head = clusters(largest.amax(1), heads)
    for head in of_head.unique():
        rows = of_head == head
        together = largest[rows].amax(0)
        of_channel = clusters(together, channels)
        for channel in of_channel.unique():
            columns = of_channel == channel
            result[rows[:, None] & columns] = together[columns].amax()
    return result


def clusters(sizes: Tensor, count: int) -> Tensor:
    """To which of `count` clusters each magnitude [N] belongs: k-means of their logarithms."""
    logs = sizes.clamp_min(torch.finfo(torch.float32).tiny).log()
    centres = logs.quantile(torch.linspace(0, 1, 2 * count + 1)[1::2])
    for _ in range(SWEEPS):
        nearest = (logs[:, None] - centres).abs().argmin(1)
        for cluster in nearest.unique():
            centres[cluster] = logs[nearest == cluster].mean()
    return (logs[:, None] - centres).abs().argmin(1)
