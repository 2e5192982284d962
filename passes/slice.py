"""Slicing: residual streams turned to the directions that carry most, the others deleted.

Source: Ashkboos, Croci, Gennari do Nascimento, Hoefler and Hensman, "SliceGPT: Compress Large
Language Models by Deleting Rows and Columns" (2024). Where streams are and what may be done to them
follows from the graph (`planish.ir.axes`); the least squares afterwards are in
`planish.passes.stream_refit`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from planish.ir.axes.axes import Axes, Axis, find
from planish.ir.axes.cut import cut
from planish.ir.axes.fold import NORMS
from planish.ir.axes.rotate import rotate
from planish.ir.program import Change, Program, Sample
from planish.passes.bases import by_energy, components, evenly, moments, readings
from planish.passes.contract import OPTIONS, Contract, LongPass, NotApplicable
from planish.passes.inputs import samples_of, spread
from planish.passes.rotatable import prepared, rotatable, why_not
from planish.passes.stream_refit import places, refitted
from planish.passes.streams import BASIS, SKIP, lies_along, parted, plain, sums, untied
from planish.passes.work import UNSEEN, Work

TOKENS = 16_384
"""On about so many tokens bases and least squares are found."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sliced:
    """A program whose streams are about to lose directions.

    Attributes:
        program: with norms folded and centred, and identity matrices where bases will meet.
        axes: of it.
        along: the axes that lose directions.
        skips: names of the sums onto streams, and which summand is the stream.
    """

    program: Program
    axes: Axes
    along: tuple[Axis, ...]
    skips: Mapping[str, int]


@dataclass(frozen=True, config=OPTIONS)
class Slice(LongPass):
    """Make residual streams narrower: keep the directions that carry most of them (SliceGPT).

    Norms are folded and centred as by `rotate`; samples tell which directions of a stream carry
    most of what norms give of it. What writes and reads the stream is turned to these and cut, so
    that every layer on it becomes smaller and stays dense. What was lost is made up for by least
    squares on the samples. Needs samples of text like the text to be served, more tokens than the
    stream is wide: `samples`, some 30,000 tokens.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    ratio: float = Field(default=0.1, gt=0, lt=1)
    """The share of each stream's directions to remove."""

    round_to: int = Field(default=8, ge=1)
    """The widths that are kept are multiples of this."""

    bases: Literal["shared", "per_block"] = "shared"
    """One basis for a whole stream, or one for each stretch between two sums onto it, with a
    matrix from basis to basis on each skip connection, which counts as parameters and work."""

    schedule: Literal["uniform", "energy"] = "uniform"
    """Whether all bases keep equally many directions, or as many in all, where they carry most."""

    tied: Literal["keep", "split"] = "keep"
    """What becomes of a table that embeds and gives logits: it stays one, as wide as it was, with
    a matrix before and behind it; or it becomes two, each sliced."""

    repair: bool = True
    """Whether weights that write and read the stream are moved, by least squares, towards what the
    unchanged model gives for the samples."""

    read_correction: float = Field(default=0.5, ge=0, le=1)
    """How far what reads the stream is moved in a repair, so that it sees of the kept directions
    what it saw of all: 1 is the least squares on the samples, 0 leaves it."""

    dampening: float = Field(default=1e-3, gt=0, le=1)
    """What holds repaired weights to what they were, as a share of the mean second moment."""

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Slice every stream, and say how wide each is now.

        Raises:
            NotApplicable: if no stream rotates, naming what keeps the axis that occurs most often;
                if there are fewer calibration tokens than directions, or a ratio removes none.
        """
        sliced = self._sliced(program)
        sizes = [int(str(axis.size)) for axis in sliced.along]
        widths = self._evenly(sizes)
        if any(tensor.is_meta for tensor in program.tensors.values()):
            turned = sliced.program  # only sizes are asked for
            shares = [0.0] * len(widths)
        else:
            samples = spread(samples_of(program, "slice"), TOKENS)
            rows, carried = self._bases(sliced, samples, work)
            if self.schedule == "energy":
                widths = by_energy(carried, self.ratio, self.round_to)
            shares = [
                float(one[:width].sum() / one.sum())
                for one, width in zip(carried, widths, strict=True)
            ]
            matrices = dict(zip(sliced.along, rows, strict=True))
            turned = rotate(sliced.axes, sliced.program, matrices)
        small = _narrowed(turned, sliced.along, widths)
        if self.repair and turned is not sliced.program:
            samples = spread(samples_of(turned, "slice"), TOKENS)
            where = places(sliced.program, sliced.axes, sliced.along, sliced.skips)
            options = (self.dampening, self.read_correction)
            small = refitted(turned, small, where, samples, *options, work)
        changes = [
            _change(small, axis, width, share)
            for axis, width, share in zip(sliced.along, widths, shares, strict=True)
        ]
        return dataclasses.replace(small, changes=(*small.changes, *changes))

    def _sliced(self, program: Program) -> Sliced:
        """Find the streams, and put matrices where they meet what stays as wide as it is."""
        between = untied(program) if self.tied == "keep" else None
        opened, axes = prepared(program if between is None else between, untie=between is None)
        streams = {axis: found for axis in rotatable(axes) if (found := sums(opened, axes, axis))}
        if not streams:
            raise NotApplicable(f"slice: {why_not(program, find(program), 'no residual stream')}")
        skips = {node.name: place for found in streams.values() for node, place in found}
        members = [member for axis in streams for member in axis.members]
        ours = {member.tensor for member in members}
        unused = [name for name in opened.tensors if _is(name, BASIS) and name not in ours]
        if unused:
            opened = plain(opened, unused)
        if self.bases == "per_block":
            opened = parted(opened, [pair for found in streams.values() for pair in found])
        axes = find(opened)
        wanted = {(member.tensor, member.dim) for member in members}
        along = tuple(
            axis
            for axis in rotatable(axes)
            if any(_is(one.tensor, SKIP) or (one.tensor, one.dim) in wanted for one in axis.members)
        )
        return Sliced(opened, axes, along, skips)

    def _evenly(self, sizes: Sequence[int]) -> list[int]:
        widths = evenly(sizes, self.ratio, self.round_to)
        for size, width in zip(sizes, widths, strict=True):
            if width >= size:
                raise NotApplicable(
                    f"slice: ratio {self.ratio} of a stream of {size} leaves all of it, in "
                    f"multiples of {self.round_to}; choose a larger ratio or a smaller round_to."
                )
        return widths

    def _bases(
        self, sliced: Sliced, samples: Sequence[Sample], work: Work
    ) -> tuple[list[Tensor], list[Tensor]]:
        """For each axis its components as rows, and what each of them carries."""
        kept = work.journal.load("bases") if work.journal else None
        if kept is None:
            values = {axis: readings(sliced.program, sliced.axes, axis) for axis in sliced.along}
            found, tokens = moments(sliced.program, samples, values, work.tell)
            widest = max(int(str(axis.size)) for axis in sliced.along)
            if tokens < widest:
                raise NotApplicable(
                    f"slice: {tokens} calibration tokens do not tell which of {widest} directions "
                    "carry most; give more text with --samples FILE or samples=."
                )
            pairs = [components(found[axis]) for axis in sliced.along]
            kept = {f"rows_{n}": rows for n, (rows, _) in enumerate(pairs)}
            kept |= {f"carried_{n}": carried for n, (_, carried) in enumerate(pairs)}
            if work.journal is not None:
                work.journal.keep("bases", kept)
        numbers = range(len(sliced.along))
        return [kept[f"rows_{n}"] for n in numbers], [kept[f"carried_{n}"] for n in numbers]


def _is(tensor: str, kind: str) -> bool:
    return tensor.endswith(f".{kind}.weight")


def _narrowed(program: Program, along: Sequence[Axis], widths: Sequence[int]) -> Program:
    """The program with the first directions of each axis alone.

    Norms without weights get one that makes up for the directions that they no longer see.
    """
    axes = find(program)
    same = {(one.tensor, one.dim): axis for axis in axes.all for one in axis.members}
    chosen = [same[axis.members[0].tensor, axis.members[0].dim] for axis in along]
    with program.edit() as edit:
        for node in edit.nodes(*NORMS):
            if node.args[1] is None and any(lies_along(axes, axis, node) for axis in chosen):
                value = node.meta["val"]
                device = next(iter(edit.tensors.values())).device
                ones = torch.ones(int(value.shape[-1]), dtype=value.dtype, device=device)
                node.update_arg(1, edit.read(f"{node.name}.weight", ones, before=node))
    weighted = edit.program
    axes = find(weighted)
    same = {(one.tensor, one.dim): axis for axis in axes.all for one in axis.members}
    kept = {
        same[axis.members[0].tensor, axis.members[0].dim]: torch.arange(width)
        for axis, width in zip(along, widths, strict=True)
    }
    return cut(axes, weighted, kept)


def _change(program: Program, axis: Axis, width: int, share: float) -> Change:
    first = axis.members[0]
    reader = next(node for node in program.graph.nodes if node.target == first.tensor)
    more = f" and {len(axis.members) - 1} more" if len(axis.members) > 1 else ""
    told = f", {share:.4f} of what is read" if share else ""
    return Change(reader.name, f"{width} of {axis.size}: {first.tensor}[{first.dim}]{more}{told}")
