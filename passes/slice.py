"""Slicing: residual streams turned to the directions that carry most, the others deleted.

Source: Ashkboos, Croci, Gennari do Nascimento, Hoefler and Hensman, "SliceGPT: Compress Large
Language Models by Deleting Rows and Columns" (2024). Where streams are and what may be done to them
follows from the graph (`planish.ir.axes`); the least squares afterwards are in
`planish.passes.stream_refit`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from planish.ir.axes.axes import Axes, Axis, Member, find
from planish.ir.axes.cut import cut
from planish.ir.axes.fold import NORMS, fold_norms
from planish.ir.axes.rotate import rotate
from planish.ir.axes.terms import resolved
from planish.ir.program import Change, Program
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
    that every layer on it becomes smaller and stays dense. Least squares on the samples may
    follow (`repair`). Needs samples of text like the text to be served, more tokens than the
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
    a matrix before and behind it; or it becomes two, each sliced, which transformers can load."""

    repair: bool = False
    """Whether weights that write to the stream are moved, by least squares, towards what the
    unchanged model has there for the samples; `read_correction` is for those that read it."""

    read_correction: float = Field(default=0.0, ge=0, le=1)
    """How far what reads the stream is moved in a repair, so that it sees of the kept directions
    what it saw of all: 1 is the least squares on the samples, which a small model was found to
    overfit; 0 leaves it."""

    dampening: float = Field(default=1e-3, gt=0, le=1)
    """What holds repaired weights to what they were, as a share of the mean second moment."""

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Slice every stream, and say how wide each is now.

        Raises:
            NotApplicable: if no stream rotates, naming what keeps the axis that occurs most often;
                if there are fewer calibration tokens than directions, or a ratio removes none.
        """
        sliced = self.opened(program)
        widths = self._evenly([int(str(axis.size)) for axis in sliced.along])
        if not program.has_data:  # only sizes are asked for
            return _told(_narrowed(sliced.program, sliced.along, widths), sliced.along, widths)
        rows, carried = self.found(sliced, work)
        if self.schedule == "energy":
            widths = by_energy(carried, self.ratio, self.round_to)
        turned = rotate(sliced.axes, sliced.program, dict(zip(sliced.along, rows, strict=True)))
        small = _narrowed(turned, sliced.along, widths)
        if self.repair:
            samples = spread(samples_of(turned, "slice"), TOKENS)
            where = places(sliced.program, sliced.axes, sliced.along, sliced.skips)
            how = (self.dampening, self.read_correction)
            small = refitted(turned, small, where, samples, *how, work)
        return _told(small, sliced.along, widths, carried)

    def opened(self, program: Program) -> Sliced:
        """Find the streams, and put matrices where they meet what stays as wide as it is."""
        between = untied(program) if self.tied == "keep" else None
        opened, axes = prepared(program if between is None else between, untie=between is None)
        streams = {axis: found for axis in rotatable(axes) if (found := sums(opened, axes, axis))}
        if not streams:
            folded = find(fold_norms(program))  # what remains in the way then
            said = why_not(program, folded, "no residual stream", mendable="layer norm")
            raise NotApplicable(f"slice: {said}")
        skips = {node.name: place for found in streams.values() for node, place in found}
        whole = _whole(axes, streams)
        ours = {member.tensor for member in whole}
        unused = [name for name in opened.tensors if _is(name, BASIS) and name not in ours]
        if unused:
            opened = plain(opened, unused)
        if self.bases == "per_block":
            opened = parted(opened, [pair for found in streams.values() for pair in found])
        axes = find(opened)
        now = _whole(axes, rotatable(axes))
        wanted = (one for one in now if one in whole or _is(one.tensor, SKIP))
        along = tuple(dict.fromkeys(now[one] for one in wanted))
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

    def found(self, sliced: Sliced, work: Work) -> tuple[list[Tensor], list[Tensor]]:
        """For each axis its components as rows, and what each of them carries."""
        kept = work.journal.load("bases") if work.journal else None
        if kept is None:
            samples = spread(samples_of(sliced.program, "slice"), TOKENS)
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
    chosen = _same(axes, along)
    with program.edit() as edit:
        device = next(iter(edit.tensors.values())).device
        for node in edit.nodes(*NORMS):
            if node.args[1] is None and any(lies_along(axes, axis, node) for axis in chosen):
                value: Tensor = node.meta["val"]
                ones = torch.ones(int(value.shape[-1]), dtype=value.dtype, device=device)
                node.update_arg(1, edit.read(f"{node.name}.weight", ones, before=node))
    axes = find(edit.program)
    kept = zip(_same(axes, along), map(torch.arange, widths), strict=True)
    return cut(axes, edit.program, dict(kept))


def _same(axes: Axes, along: Sequence[Axis]) -> list[Axis]:
    """The axes of a program that are whole dimensions where axes of another version of it were."""
    found = _whole(axes, axes.all)
    return [next(found[one] for one in axis.members if one in found) for axis in along]


def _whole(axes: Axes, several: Iterable[Axis]) -> dict[Member, Axis]:
    """Of some axes the members that are whole dimensions, not part of one."""
    return {
        member: axis
        for axis in several
        for member in axis.members
        if resolved(axes.terms[member.tensor][member.dim]) is axis.leaf
    }


def _told(
    program: Program,
    along: Sequence[Axis],
    widths: Sequence[int],
    carried: Sequence[Tensor] = (),
) -> Program:
    """The program with a record of each axis: how wide it is, and what is still read of it."""
    changes = []
    for number, (axis, width) in enumerate(zip(along, widths, strict=True)):
        first = axis.members[0]
        reader = next(node for node in program.graph.nodes if node.target == first.tensor)
        more = f" and {len(axis.members) - 1} more" if len(axis.members) > 1 else ""
        said = f"{width} of {axis.size}: {first.tensor}[{first.dim}]{more}"
        if carried:
            share = float(carried[number][:width].sum() / carried[number].sum())
            said += f", {share:.4f} of what is read"
        changes.append(Change(reader.name, said))
    return dataclasses.replace(program, changes=(*program.changes, *changes))
