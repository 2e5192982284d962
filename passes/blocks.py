"""Residual blocks: which parts of a model only add to a stream that would go on without them.

They are found in the graph, never by names. A sum is the end of a branch if all but one of what it
adds is computed from the one that is left: the stream. Sums follow one another where the stream
goes from one to the next by norms, activations and views alone, so that pre-norm and post-norm
blocks, attention and MLP side by side, and the stages of convolutional networks are all found. The
sequence is then cut into layers where its kinds of branches repeat.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx

from planish.ir.carried import pairs
from planish.ir.ops import rms_norm
from planish.ir.program import Program

aten = torch.ops.aten

_CARRIES = (
    rms_norm,
    aten.layer_norm.default,
    aten.group_norm.default,
    aten._native_batch_norm_legit_no_training.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
)
"""What a stream may go through between sums, besides what acts on each element by itself."""

_SIZE = aten.sym_size.int


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
        stored = [one for one in _sources(self.region) if one in self.nodes]
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
    reach = _Reach(program)
    links = [link for node in program.nodes(aten.add.Tensor) if (link := _link(node, reach))]
    blocks: list[Block] = []
    for number, chain in enumerate(_chains(_outermost(links, reach))):
        ends = [*(link.skip for link in chain[1:]), _end(chain)]
        kinds = [_kind(link, reach) for link in chain]
        for places in _layers(kinds):
            branches = [
                branch
                for place in places
                for branch in _branches(chain[place], ends[place], number, reach)
            ]
            first, last = chain[places[0]], ends[places[-1]]
            blocks.append(reach.block(number, first.skip, last, None, branches))
    return tuple(blocks)


@dataclass(frozen=True)
class _Link:
    """A sum: the stream that it adds to, and what it adds."""

    skip: fx.Node
    root: fx.Node
    terms: tuple[fx.Node, ...]


class _Reach:
    """Which nodes follow from which, as bits of integers by their place in the graph."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes = list(program.graph.nodes)
        self.place = {node: place for place, node in enumerate(self.nodes)}
        self.before: dict[fx.Node, int] = {}
        self.after: dict[fx.Node, int] = {}
        for place, node in enumerate(self.nodes):
            bits = 1 << place
            for argument in node.all_input_nodes:
                bits |= self.before[argument]
            self.before[node] = bits
        for place, node in reversed(list(enumerate(self.nodes))):
            bits = 1 << place
            for user in node.users:
                bits |= self.after[user]
            self.after[node] = bits
        inputs = {str(node.target): node for node in self.nodes if node.op == "placeholder"}
        outputs = dict(zip(program.outputs, program.output_nodes, strict=True))
        self.states = [
            (inputs[past], outputs[present], (past, present))
            for past, present in pairs(inputs, outputs).items()
        ]

    def follows(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether a node is computed from another."""
        return bool(self.before[node] >> self.place[source] & 1) and node is not source

    def between(self, source: fx.Node, end: fx.Node) -> int:
        """The nodes on ways from one to another: the latter among them, not the former."""
        return self.after[source] & self.before[end] & ~(1 << self.place[source])

    def of(self, bits: int) -> tuple[fx.Node, ...]:
        """The nodes of bits, in the order of the graph."""
        found = []
        while bits:
            lowest = bits & -bits
            found.append(self.nodes[lowest.bit_length() - 1])
            bits ^= lowest
        return tuple(found)

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
        bits = self.between(before, end)
        for other in others:
            bits &= ~self.between(before, other)
        region = self.of(bits)
        mine = [
            (past, present, names)
            for past, present, names in self.states
            if any(user in region for user in _readers(past))
        ]
        lost = {present for _, present, _ in mine}
        taken = {past for past, _, _ in mine}
        dead = self._dead(end, lost, taken, self.before[before])
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
            or _reshaped(_shape(before, self.program), _shape(after, self.program)),
        )

    def _dead(
        self, end: fx.Node, lost: set[fx.Node], taken: set[fx.Node], kept: int
    ) -> dict[fx.Node, None]:
        """What nothing reads once `end` is not read and what is `lost` is not returned."""
        dead = {end: None}
        for node in reversed(self.nodes):
            if node is end or (kept >> self.place[node] & 1 and node not in taken):
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


def _shape(node: fx.Node, program: Program) -> tuple[str, ...] | None:
    """Dtype and extents of a floating-point tensor; None for other values."""
    value: Any = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    return (str(value.dtype), *(program.shapes.text(extent) for extent in value.shape))


def _is_sum(node: Any, program: Program) -> bool:
    """Whether a node adds two tensors of one shape, elementwise and without a factor."""
    if not isinstance(node, fx.Node) or node.target is not aten.add.Tensor or node.kwargs:
        return False
    shapes = [_shape(one, program) for one in node.args[:2] if isinstance(one, fx.Node)]
    return len(node.args) == len(shapes) == 2 and shapes == [_shape(node, program)] * 2


def _link(node: fx.Node, reach: _Reach) -> _Link | None:
    """What a sum is, if it ends branches of a stream: terms are those of the sums in it, too."""
    program = reach.program
    shape = _shape(node, program)
    if shape is None or len(shape) < 3 or not _is_sum(node, program) or _inner(node, program):
        return None
    terms: list[fx.Node] = []
    open_sums = [node]
    while open_sums:
        for term in open_sums.pop().all_input_nodes:
            (open_sums if _is_sum(term, program) and len(term.users) == 1 else terms).append(term)
    for skip in terms:
        others = [term for term in terms if term is not skip]
        if not others or not all(reach.follows(term, skip) for term in others):
            continue
        read = [one for term in others for one in reach.of(reach.between(skip, term))]
        if any(source.meta["val"].dim() > 1 for source in _sources(read)):
            return _Link(skip, node, tuple(sorted(others, key=reach.place.__getitem__)))
    return None


def _inner(node: fx.Node, program: Program) -> bool:
    """Whether a sum is but a term of another."""
    return len(node.users) == 1 and _is_sum(next(iter(node.users)), program)


def _sources(region: Sequence[fx.Node]) -> Iterator[fx.Node]:
    """The nodes by which a region reads stored tensors, as they are or turned."""
    for node in region:
        for source in node.all_input_nodes:
            stored = source
            while stored.op == "call_function" and len(stored.all_input_nodes) == 1:
                (stored,) = stored.all_input_nodes
            if stored.op == "get_attr":
                yield stored


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """What computes with the numbers of an input, views of it followed; not with its sizes."""
    for user in node.users:
        tensors = [one for one in user.all_input_nodes if isinstance(one.meta.get("val"), Tensor)]
        if user.target is not _SIZE:
            yield user
            if tensors == [node]:
                yield from _readers(user)


def _outermost(links: Sequence[_Link], reach: _Reach) -> list[_Link]:
    """Links without those in branches of others, and without sums that span a chain of others."""
    kept = list(links)
    inside = {link.root: reach.of(reach.between(link.skip, link.root)) for link in links}
    for link in sorted(links, key=lambda one: len(inside[one.root])):
        within = [one for one in kept if one is not link and one.root in inside[link.root]]
        if any(_way(two.skip, [one]) for one in within for two in within):
            kept.remove(link)
        else:
            kept = [one for one in kept if one not in within]
    return kept


def _way(skip: fx.Node, links: Sequence[_Link]) -> tuple[_Link, list[fx.Node]] | None:
    """The link whose sum a stream came from, and the nodes that it went through since."""
    roots = {link.root: link for link in links}
    steps: list[fx.Node] = []
    node: fx.Node | None = skip
    while node is not None and node not in roots:
        steps.append(node)
        node = _carried(node)
    return None if node is None else (roots[node], steps[::-1])


def _carried(node: fx.Node) -> fx.Node | None:
    """The value that a norm, activation or view is of; None for other nodes."""
    target: Any = node.target
    tags = getattr(target, "tags", ())
    if target not in _CARRIES and torch.Tag.pointwise not in tags:
        first: Any = node.args[0] if node.args else None
        chosen = getattr(target, "__name__", "") == "getitem" and node.args[1] == 0
        return first if chosen and first.target in _CARRIES else None
    computed = [
        one
        for one in node.all_input_nodes
        if one.op != "get_attr" and isinstance(one.meta.get("val"), Tensor)
    ]
    return computed[0] if len(computed) == 1 else None


def _chains(links: Sequence[_Link]) -> list[list[_Link]]:
    """Links in sequence, each reading the stream that the one before it wrote."""
    chains: list[list[_Link]] = []
    for link in links:
        way = _way(link.skip, links)
        mine = next((chain for chain in chains if way and chain[-1] is way[0]), None)
        if mine is None:
            chains.append([link])
        else:
            mine.append(link)
    return chains


def _end(chain: Sequence[_Link]) -> fx.Node:
    """Where the stream leaves the last block: behind what is behind the sums before it.

    A chain of one link has none before; an activation behind its sum belongs to it if the stream
    came from one like it, as in residual networks.
    """
    if len(chain) > 1:
        way = _way(chain[1].skip, chain[:1])
        steps = way[1] if way else []
    else:
        steps, node = [], chain[0].skip
        while (before := _carried(node)) is not None and len(node.all_input_nodes) == 1:
            steps.insert(0, node)
            node = before
    end = chain[-1].root
    for step in steps:
        (user, *others) = end.users
        if others or user.target is not step.target or _carried(user) is not end:
            return chain[-1].root
        end = user
    return end


def _kind(link: _Link, reach: _Reach) -> tuple[str, ...]:
    """What a link computes: the operators, whatever the sizes."""
    return tuple(str(node.target) for node in reach.of(reach.between(link.skip, link.root)))


def _layers(kinds: Sequence[tuple[str, ...]]) -> list[list[int]]:
    """Places of links, a list for each layer.

    A layer begins with each link that is as the first one, or ends with each that is as the last
    one, whichever makes more layers of them.
    """
    starts = [place for place, kind in enumerate(kinds) if kind == kinds[0]]
    ends = [place + 1 for place, kind in enumerate(kinds) if kind == kinds[-1]]
    cuts = [*starts, len(kinds)] if len(starts) >= len(ends) else [0, *ends]
    return [list(range(*pair)) for pair in pairwise(cuts)]


def _branches(link: _Link, after: fx.Node, stream: int, reach: _Reach) -> Iterator[Block]:
    """The branches of a link, each by itself."""
    for term in link.terms:
        others = [one for one in link.terms if one is not term]
        only = term if others else None
        same = _shape(after, reach.program) == _shape(link.skip, reach.program)
        yield reach.block(stream, link.skip, after if same else link.root, only, (), others)
