"""Neighbouring layers with one set of weights.

Sources: Liu et al., "FoldGPT: Simple and Effective Large Language Model Compression Scheme" (2024),
for layers that go on with the weights of another and keep their norms; Zhang et al., "MiniViT:
Compressing Vision Transformers with Weight Multiplexing" (2022), for small transformations that
tell them apart. Both train afterwards; here one factor a channel is fitted in closed form, and
`distill` may follow. What a layer is, is found in the graph (`planish.passes.blocks`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, fx

from planish.ir.constants import weights
from planish.ir.edit import Edit
from planish.ir.program import Program
from planish.passes.blocks import Block, find_blocks
from planish.passes.contract import OPTIONS, Contract, LongPass, NotApplicable
from planish.passes.inputs import samples_of, spread
from planish.passes.sequential import Run
from planish.passes.skipping import Losses
from planish.passes.work import UNSEEN, Work

aten = torch.ops.aten

CALLED = "share_blocks"

TOKENS = 2048
"""With about how many tokens of the samples layers are compared, and factors fitted."""

PRODUCTS = frozenset(
    (
        aten.linear.default,
        aten.matmul.default,
        aten.bmm.default,
        aten.convolution.default,
        aten.conv2d.default,
    )
)
"""What multiplies by weights that are shared; norms, biases and tables stay each layer's own."""


class Scaled(NamedTuple):
    """A factor for each channel of what a branch adds to the stream.

    Attributes:
        term: what is added, in the program before.
        scale: the name of the tensor of factors, and of the node that reads it.
        read: by which node.
        product: the node that multiplies by it.
    """

    term: str
    scale: str
    read: str
    product: str


@dataclass(frozen=True, config=OPTIONS)
class ShareBlocks(LongPass):
    """Let layers compute with the weights of the layer before them, which are then stored once.

    Norms and biases stay each layer's own, and what a branch adds to the stream is multiplied by a
    factor a channel, fitted to what it added before. The model has fewer parameters and as much
    work. Without training afterwards it loses more than leaving the same layers out may: measure.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    layers: int = Field(ge=1)
    """How many layers give up their own weights."""

    choose: Literal["influence", "even"] = "influence"
    """Which: those that change the stream least, or evenly spaced ones."""

    scale: Literal["fitted", "none"] = "fitted"
    """Whether what a branch adds is scaled, channel by channel, towards what it added with its own
    weights, by least squares on the samples."""

    protected: int = Field(default=1, ge=0)
    """How many layers at the beginning, and as many at the end, keep their own weights."""

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Choose layers, share, and fit.

        Raises:
            NotApplicable: if fewer layers may share, or there are no samples to choose or fit by.
        """
        matched = _matched(program)
        blocks = [block for block in find_blocks(program) if _weights(program, block)]
        ends = {*blocks[: self.protected], *blocks[len(blocks) - self.protected :]}
        free = [block for block in matched if block not in ends]
        if self.layers > len(free):
            raise NotApplicable(
                f"{CALLED}: {self.layers} of {len(blocks)} layers of {program.source.name} are to "
                f"share, and only {len(free)} may: {self.protected} at either end are protected, "
                "and the others need a layer before them with weights of the same shapes. Ask for "
                "fewer, or protect fewer."
            )
        followers = self._chosen(program, free, work)
        with program.edit() as edit:
            mine = {node.name: node for node in edit.graph.nodes}
            scaled = []
            for block in followers:
                keeper = _keeper(block, matched, followers)
                own, others = _weights(program, block), _weights(program, keeper)
                for read, other in zip(own, others, strict=True):
                    said = f"{read.target}: that of {other.target}"
                    edit.replace(mine[read.name], mine[other.name], said)
                if self.scale == "fitted":
                    scaled += [one for part in block.branches if (one := _scaled(edit, mine, part))]
        if not scaled or not program.has_data:
            return edit.program
        return _fitted(program, edit.program, scaled, work)

    def _chosen(self, program: Program, free: Sequence[Block], work: Work) -> list[Block]:
        if self.choose == "even" or not program.has_data:
            count = self.layers
            return [free[(2 * one + 1) * len(free) // (2 * count)] for one in range(count)]
        samples = spread(samples_of(program, CALLED), TOKENS)
        scores = Losses(program, samples, work.tell).influences(free)
        ranked = sorted(zip(scores, range(len(free)), strict=True))
        return [free[place] for place in sorted(place for _, place in ranked[: self.layers])]


def _weights(program: Program, block: Block) -> list[fx.Node]:
    """The nodes that read what a block alone multiplies by, in the order of the graph."""
    stored = {node: names for node, names in weights(program.graph) if _multiplies(node)}
    shared = {name for names in stored.values() for name in names}
    return [
        node
        for node in program.graph.nodes
        if node.op == "get_attr" and node in block.nodes and node.target in shared
    ]


def _multiplies(weight: fx.Node) -> bool:
    """Whether nothing is done with a weight but to multiply by it."""
    return weight.meta["val"].dim() > 1 and {user.target for user in weight.users} <= PRODUCTS


def _form(program: Program, block: Block) -> list[tuple[tuple[int, ...], torch.dtype]]:
    tensors = [program.tensors[str(node.target)] for node in _weights(program, block)]
    return [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]


def _matched(program: Program) -> dict[Block, Block]:
    """For each layer that could share, the one before it."""
    blocks = find_blocks(program)
    forms = [_form(program, block) for block in blocks]
    return {
        block: blocks[place]
        for place, block in enumerate(blocks[1:])
        if block.stream == blocks[place].stream and forms[place + 1] == forms[place] != []
    }


def _keeper(block: Block, before: Mapping[Block, Block], followers: Sequence[Block]) -> Block:
    """The layer whose weights a layer takes: the last before it that keeps its own."""
    while block in followers:
        block = before[block]
    return block


def _scaled(edit: Edit, mine: Mapping[str, fx.Node], branch: Block) -> Scaled | None:
    """A factor of 1 for each channel of what a branch adds; None, and said, where none fits."""
    term = branch.term or _added(branch)
    if term is None or term.meta["val"].dim() != 3:
        why = "it does not end in a sum" if term is None else "what it adds is no text"
        edit.record(mine[branch.after.name], f"{branch.name}: no factors, since {why}")
        return None
    node, width = mine[term.name], term.meta["val"].shape[-1]
    device = next(iter(edit.tensors.values())).device  # a plan's tensors have no data
    ones = torch.ones(int(width), dtype=term.meta["val"].dtype, device=device)
    name = f"{term.name}.share_scale"
    following = node.next
    read = edit.read(name, ones, before=following)
    product = edit.call(aten.mul.Tensor, node, read, before=following)
    edit.replace(node, product, f"{branch.name}: a factor for each channel that it adds")
    return Scaled(term.name, name, read.name, product.name)


def _added(branch: Block) -> fx.Node | None:
    """What the sum that ends a branch adds to the stream."""
    total = branch.after
    if total.target is not aten.add.Tensor or branch.before not in total.args[:2]:
        return None
    (term,) = (one for one in total.all_input_nodes if one is not branch.before)
    return term


def _fitted(before: Program, shared: Program, scaled: Sequence[Scaled], work: Work) -> Program:
    """The factors with which what is added is nearest to what was, each after those before it."""
    samples = spread(samples_of(before, CALLED), TOKENS)
    was, now = Run(before, samples), Run(shared, samples)
    old = {node.name: node for node in before.graph.nodes}
    new = {node.name: node for node in shared.graph.nodes}
    tensors = dict(shared.tensors)
    order = {node.name: place for place, node in enumerate(before.graph.nodes)}
    for done, one in enumerate(sorted(scaled, key=lambda one: order[one.term]), start=1):
        was.until(old[one.term].next)
        now.until(new[one.product])
        wanted, given = was.read(old[one.term]), now.read(new[one.term])
        tensors[one.scale] = factors(wanted, given).to(tensors[one.scale].dtype)
        now.weights[new[one.read]] = tensors[one.scale]
        work.tell(done, len(scaled))
    return dataclasses.replace(shared, tensors=tensors)


def factors(wanted: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor:
    """The factors c [K] with the least Σ (y - c x)² for each channel; 1 where x is 0.

    Args:
        wanted: y, [..., K] for each sample.
        given: x, of the same shapes.
    """
    products = _sum([y.double() * x.double() for y, x in zip(wanted, given, strict=True)])
    squares = _sum([x.double().square() for x in given])
    return torch.where(squares > 0, products / squares.clamp_min(1e-300), 1.0)


def _sum(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.flatten(0, -2).sum(0) for value in values]).sum(0)
