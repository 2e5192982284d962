"""A matrix as a stack of blocks, each a matrix of signs times, entry by entry, one of low rank.

W ≈ Σ S ∘ (A B) over the blocks, where S holds -1 and 1, A is [N, r] and B [r, K]. Each block was
made for what those before it leave, so that the first blocks alone are a coarser W. All layers'
blocks together have one order, by what each gains a byte; a budget of bytes takes the first of
them, and a larger one never takes fewer of any layer.

Source: Wang et al., "BitStack: Fine-Grained Size Control for Compressed Large Language Models in
Variable Memory Environments" (2024). There the order is by measured perplexity.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, fx
from torch.library import Library

from planish.ir.edit import Edit
from planish.ir.errors import PlanishError
from planish.ir.program import Program

BYTE = 8
"""Signs in a byte."""


class CannotFit(PlanishError):
    """A program has no blocks to leave out, or not so many that it would fit a budget."""


def pack_signs(matrix: Tensor) -> Tensor:
    """The signs of a matrix [N, K], uint8 [N, ⌈K / 8⌉]: low bits first, 0 for what is below 0."""
    bits = (matrix >= 0).to(torch.uint8)
    padded = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % BYTE)).unflatten(-1, (-1, BYTE))
    packed: Tensor = (padded << torch.arange(BYTE, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    return packed


def _signed(signs: Tensor, sizes: Tensor) -> Tensor:
    """Numbers [N, K] with the signs that `pack_signs` gave; those that are below 0 turn theirs."""
    shifts = torch.arange(BYTE, dtype=torch.uint8, device=signs.device)
    bits = ((signs.unsqueeze(-1) >> shifts) & 1).flatten(-2)[..., : sizes.shape[-1]]
    return torch.where(bits.bool(), sizes, -sizes)


def _sign_stack(signs: Tensor, left: Tensor, right: Tensor, errors: Tensor) -> Tensor:
    total = torch.zeros(left.shape[1], right.shape[2], device=left.device)
    for one, a, b in zip(signs, left, right, strict=True):
        total += _signed(one, a.float() @ b.float())
    return total.to(errors.dtype)


def _sign_stack_fake(signs: Tensor, left: Tensor, right: Tensor, errors: Tensor) -> Tensor:  # noqa: ARG001
    return errors.new_empty(left.shape[1], right.shape[2])


_LIBRARY = Library("planish", "FRAGMENT")
_LIBRARY.define("sign_stack(Tensor signs, Tensor left, Tensor right, Tensor errors) -> Tensor")
_LIBRARY.impl("sign_stack", _sign_stack, "CompositeExplicitAutograd")
torch.library.register_fake("planish::sign_stack", _sign_stack_fake, lib=_LIBRARY)

sign_stack = torch.ops.planish.sign_stack.default
"""`sign_stack(signs u8 [b, N, ⌈K / 8⌉], left [b, N, r], right [b, r, K], errors [b])`: the matrix
[N, K] that is the sum of its blocks, added up in float32, in the dtype of `errors`, whose numbers
it does not read."""


@dataclass(frozen=True)
class SignStack:
    """The blocks of a matrix [N, K], the first of which count most.

    Attributes:
        signs: uint8 [b, N, ⌈K / 8⌉], as `pack_signs` gives them.
        left: [b, N, r].
        right: [b, r, K].
        errors: the relative error that is left after each block, as the matrix's inputs see it;
            [b], in the dtype in which the matrix is read.
    """

    signs: Tensor
    left: Tensor
    right: Tensor
    errors: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix: [N, K]."""
        return self.left.shape[1], self.right.shape[2]

    @property
    def blocks(self) -> int:
        """How many there are."""
        return len(self.errors)

    @property
    def block_bytes(self) -> int:
        """The bytes of one block."""
        return sum(tensor.nbytes for tensor in self.tensors.values()) // self.blocks

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by the suffix that is added to the name of the matrix."""
        return {f"_{one.name}": getattr(self, one.name) for one in fields(self)}

    @property
    def value(self) -> Tensor:
        """The matrix that the blocks add up to."""
        value: Tensor = sign_stack(self.signs, self.left, self.right, self.errors)
        return value

    def __str__(self) -> str:
        """In words: `4 blocks of signs, rank 16`."""
        many = "block" if self.blocks == 1 else "blocks"
        return f"{self.blocks} {many} of signs, rank {self.left.shape[2]}"

    def gain(self, number: int) -> float:
        """By how much a block, counted from 0, lowers the squared relative error."""
        before = float(self.errors[number - 1]) if number else 1.0
        return before**2 - float(self.errors[number]) ** 2

    @property
    def told(self) -> str:
        """What it is, and how much is lost by it, where that is known."""
        if self.errors.is_meta:
            return str(self)
        return f"{self}; relative error {float(self.errors[-1]):.4f} as its inputs see it"

    def first(self, count: int) -> SignStack:
        """A copy of the first blocks alone, which keeps nothing of the others in memory."""
        return SignStack(*(tensor[:count].clone() for tensor in self.tensors.values()))

    def insert(self, edit: Edit, name: str, *, before: fx.Node) -> fx.Node:
        """Add the stored tensors as `name_signs` and so on, and a node that reads them."""
        reads = (edit.read(name + end, one, before=before) for end, one in self.tensors.items())
        return edit.call(sign_stack, *reads, before=before)

    @staticmethod
    def read_by(node: fx.Node, tensors: Mapping[str, Tensor]) -> tuple[str, SignStack]:
        """The name and the blocks of what a `sign_stack` node reads."""
        reads: Any = node.args
        name = str(reads[0].target).removesuffix("_signs")
        return name, SignStack(*(tensors[str(read.target)] for read in reads))


def fitted(program: Program, nbytes: int) -> Program:
    """A program with as many blocks as fit, the first of the order.

    Args:
        program: with layers that are stacks; stays as it is, and neither the model that it was made
            from nor samples are needed.
        nbytes: that all of its tensors may take together.

    Raises:
        CannotFit: if no layer is a stack, or a single block for each is too much.
    """
    stacks = dict(SignStack.read_by(node, program.tensors) for node in program.nodes(sign_stack))
    if not stacks:
        raise CannotFit(f"{program.source.name} has no layers that are stacks of blocks.")
    whole = sum(one.block_bytes * one.blocks for one in stacks.values())
    room = nbytes - (program.nbytes - whole)
    counts = _counts(list(stacks.values()), room)
    if counts is None:
        least = program.nbytes - whole + sum(one.block_bytes for one in stacks.values())
        raise CannotFit(
            f"{nbytes:,} bytes are less than the {least:,} that {program.source.name} takes with "
            "one block for each layer; allow more, or leave out more of the model."
        )
    kept = dict(zip(stacks, counts, strict=True))
    with program.edit() as edit:
        for node in edit.nodes(sign_stack):
            name, stack = SignStack.read_by(node, program.tensors)
            if kept[name] < stack.blocks:
                few = stack.first(kept[name])
                edit.tensors |= {name + end: tensor for end, tensor in few.tensors.items()}
                edit.record(node, f"{name}: of {stack.blocks} blocks the first: {few.told}")
    return edit.program


def _counts(stacks: Sequence[SignStack], room: int) -> list[int] | None:
    """How many blocks of each stack fit; None if one of each does not.

    The first that does not fit ends it, so that smaller ones behind it do not jump the queue.
    """
    room -= sum(stack.block_bytes for stack in stacks)
    if room < 0:
        return None
    counts = [1] * len(stacks)
    waiting = [(_rank(stack, 1), place) for place, stack in enumerate(stacks) if stack.blocks > 1]
    heapq.heapify(waiting)
    while waiting:
        _, place = heapq.heappop(waiting)
        stack = stacks[place]
        room -= stack.block_bytes
        if room < 0:
            break
        counts[place] += 1
        if counts[place] < stack.blocks:
            heapq.heappush(waiting, (_rank(stack, counts[place]), place))
    return counts


def _rank(stack: SignStack, number: int) -> tuple[float, int]:
    """Where a block stands in the order; without data, those of one number stand together."""
    gain = 0.0 if stack.errors.is_meta else stack.gain(number)
    return -gain / stack.block_bytes, number
