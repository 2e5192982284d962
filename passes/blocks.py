"""Residual blocks: which parts of a model only add to a stream that would go on without them.

They are found in the graph, never by names: `planish.passes.links` has the sums that end them. The
sequence of a stream's sums is cut into layers where its kinds of branches repeat.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from planish.ir.carried import pairs
from planish.ir.program import Program
from planish.ir.reach import Reach
from planish.passes.links import Link, by_layer, chains, end_of, shape_of, sources

_SIZE = torch.ops.aten.sym_size.int


@dataclass(frozen=True)
class Block:
    """A part of a model that can be left out: the stream then goes on as it came.

    Attributes:
        stream: the number of the stream that it adds to; a model may have several.
        before: the stream in.
        after: the stream out, of the same shape and dtype.
        term: what is added to the stream, where others are added beside it, as by attention and MLP
            in parallel; None where nothing is, and `after` without the block is `before`.
        nodes: what is computed, read and taken as input for this block alone.
        region: of these, what is computed from `before`.
        states: the inputs and outputs that hold its state, such as keys and values.
        branches: its parts, each a block by itself.
        held: why it cannot be left out; None if it can.
    """

    stream: int
    before: fx.Node
    after: fx.Node
    term: fx.Node | None
    nodes: frozenset[fx.Node]
    region: tuple[fx.Node, ...]
    states: tuple[tuple[str, str], ...]
    branches: tuple[Block, ...]
    held: str | None

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the tensors that nothing else reads, in the order of the graph."""
        return tuple(sorted({str(node.target) for node in self.nodes if node.op == "get_attr"}))

    @property
    def name(self) -> str:
        """What messages call it: what the names of its tensors or modules have in common."""
        stored = [one for one in sources(self.region) if one in self.nodes]
        read = [str(one.target).rpartition(".")[0] for one in stored if one.meta["val"].dim() > 1]
        modules = [str(node.meta["module"]) for node in self.region if node.meta.get("module")]
        common = []
        for level in zip(*(name.split(".") for name in read or modules), strict=False):
            if len(set(level)) > 1:
                break
            common.append(level[0])
        return ".".join(common) or self.after.name

    def parameters(self, program: Program) -> int:
        """The numbers stored in floating point for this block alone."""
        mine = [program.tensors[name] for name in self.tensors]
        return sum(tensor.numel() for tensor in mine if tensor.is_floating_point())


def find_blocks(program: Program) -> tuple[Block, ...]:
    """The residual blocks of a program, one a layer, stream after stream.

    Args:
        program: stays as it is; the nodes of the blocks are its own.
    """
    reach = Reach(program.graph)
    maker = _Maker(program, reach)
    blocks: list[Block] = []
    for number, chain in enumerate(chains(program, reach)):
        ends = [*(link.skip for link in chain[1:]), end_of(chain)]
        for places in by_layer(chain, reach):
            branches = [
                branch
                for place in places
                for branch in maker.branches(number, chain[place], ends[place])
            ]
            first, last = chain[places[0]], ends[places[-1]]
            blocks.append(maker.block(number, first.skip, last, None, branches))
    return tuple(blocks)


class _Maker:
    """Makes blocks of a program: finds what is there for each alone."""

    def __init__(self, program: Program, reach: Reach) -> None:
        self._program = program
        self._reach = reach
        inputs = {str(node.target): node for node in reach.nodes if node.op == "placeholder"}
        outputs = dict(zip(program.outputs, program.output_nodes, strict=True))
        self._states = [
            (inputs[past], outputs[present], (past, present))
            for past, present in pairs(inputs, outputs).items()
        ]

    def branches(self, stream: int, link: Link, after: fx.Node) -> Iterator[Block]:
        """The branches of a link, each by itself."""
        for term in link.terms:
            others = [one for one in link.terms if one is not term]
            only = term if others else None
            same = shape_of(after, self._program) == shape_of(link.skip, self._program)
            yield self.block(stream, link.skip, after if same else link.root, only, (), others)

    def block(
        self,
        stream: int,
        before: fx.Node,
        after: fx.Node,
        term: fx.Node | None,
        branches: Sequence[Block] = (),
        others: Collection[fx.Node] = (),
    ) -> Block:
        """A block, with what is there for it alone."""
        end = after if term is None else term
        bits = self._reach.between(before, end)
        for other in others:
            bits &= ~self._reach.between(before, other)
        region = self._reach.of(bits)
        mine = [
            (past, present, names)
            for past, present, names in self._states
            if any(user in region for user in _readers(past))
        ]
        lost = {present for _, present, _ in mine}
        taken = {past for past, _, _ in mine}
        dead = self._dead(end, lost, taken, self._reach.before[before])
        return Block(
            stream=stream,
            before=before,
            after=after,
            term=term,
            nodes=frozenset(dead),
            region=region,
            states=tuple(names for _, _, names in mine),
            branches=tuple(branches),
            held=_held([*region, *taken, *lost], dead)
            or _reshaped(shape_of(before, self._program), shape_of(after, self._program)),
        )

    def _dead(
        self, end: fx.Node, lost: set[fx.Node], taken: set[fx.Node], kept: int
    ) -> dict[fx.Node, None]:
        """What nothing reads once `end` is not read and what is `lost` is not returned."""
        dead = {end: None}
        for node in reversed(self._reach.nodes):
            if node is end or (kept >> self._reach.place[node] & 1 and node not in taken):
                continue
            if node.op == "output" or (node.op == "placeholder" and node not in taken):
                continue
            users = [user for user in node.users if node not in taken or user.target is not _SIZE]
            if all(user in dead or (user.op == "output" and node in lost) for user in users):
                dead[node] = None
        return dead


def _held(wanted: Sequence[fx.Node], dead: Collection[fx.Node]) -> str | None:
    """What is still read of nodes that should go, by what."""
    for node in wanted:
        if node not in dead:
            reader = next((user for user in node.users if user not in dead), node)
            what = "returned" if reader.op == "output" else f"read by %{reader.name} outside of it"
            return f"%{node.name}, which is computed in it, is {what}"
    return None


def _reshaped(before: Any, after: Any) -> str | None:
    """Whether a stream comes out in another shape than it went in."""
    return None if before == after else f"its stream is {before} before it and {after} behind it"


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """What computes with the numbers of an input, views of it followed; not with its sizes."""
    for user in node.users:
        tensors = [one for one in user.all_input_nodes if isinstance(one.meta.get("val"), Tensor)]
        if user.target is not _SIZE:
            yield user
            if tensors == [node]:
                yield from _readers(user)
