"""BitStack: each weight as a stack of blocks of signs, of which as many are kept as fit.

Source: Wang et al., "BitStack: Fine-Grained Size Control for Compressed Large Language Models in
Variable Memory Environments" (2024), section 3: the absolute value of a matrix, scaled by the size
of its inputs, is nearly of low rank where the matrix is not. What a stack is, and the order in
which blocks are kept, is in `planish.ir.stack`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from planish.ir.program import Program
from planish.ir.stack import CannotFit, SignStack, fitted, pack_signs, sign_stack
from planish.passes.contract import OPTIONS, Contract, LongPass, NotApplicable
from planish.passes.inputs import observed
from planish.passes.layers import Layer, Patterns, noted
from planish.passes.levels import low_rank
from planish.passes.one_of import OneOf
from planish.passes.selection import selected
from planish.passes.work import UNSEEN, Work

LEFT = "whose weights stay whole"
"""What is said of the weights of experts."""

QUIETEST = 1e-3
"""An input counts at least so much as the mean input does, however quiet it is on the samples."""

TINY = torch.finfo(torch.float32).tiny

_CALLED = "bitstack"


@dataclass(frozen=True, config=OPTIONS)
class Budget(OneOf):
    """What all tensors of a model may take: one of these."""

    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """This share of the bytes that they took before the pass."""

    bytes: Annotated[int, Field(ge=1)] | None = None
    """So many bytes."""

    def of(self, program: Program) -> int:
        """The bytes that are allowed, for the program before the pass."""
        return int(self.value if self.share is None else self.share * program.nbytes)


@dataclass(frozen=True, config=OPTIONS)
class BitStack(LongPass):
    """Store each linear layer's weight as a stack of blocks, and keep as many as fit a budget.

    A block is a matrix of signs, a bit each, times a matrix of low rank that stands for the sizes;
    each is made for what those before it leave. A stored model that kept all of its blocks can be
    given a budget later: when it is opened (`planish.load(folder, memory=...)`), or by this pass,
    which of a model of stacks only chooses blocks. No runtime multiplies by blocks as they are, so
    that weights are put together again, on loading or at each call.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    blocks: int = Field(default=16, ge=1, le=64)
    """How many are made of each weight."""

    rank: int = Field(default=16, ge=1, le=1024)
    """Of the matrix of sizes in each block."""

    budget: Budget | None = None
    """What the model may take with the blocks that are kept; null keeps all."""

    factors: Literal["float16", "bfloat16", "float32"] = "float16"
    """In what the two factors of each matrix of sizes are stored."""

    calibration: Literal["none", "inputs"] = "inputs"
    """Whether all weights count alike, or by the size of what they are multiplied by, which takes
    samples of text like the text to be served."""

    targets: Patterns = ("Linear",)
    """Which layers, as for `quantize_weights`."""

    ignore: Patterns = ()
    """Which of these to leave alone."""

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Replace every chosen weight, and leave out blocks that do not fit.

        Raises:
            NotApplicable: if there is no linear layer, a pattern matches nothing, nothing is left
                to replace, samples are missing, factors overflow, the budget is less than one block
                for each layer takes, or the model is one of stacks and no budget is given.
        """
        if next(program.nodes(sign_stack), None) is not None:
            if self.budget is None:
                raise NotApplicable(
                    f"{_CALLED}: the layers of {program.source.name} are stacks already; give a "
                    "budget to choose among their blocks."
                )
            return _fitted(program, self.budget.of(program))
        with program.edit() as edit:
            layers = selected(_CALLED, edit.graph, program, self.targets, self.ignore, {})
            found = self._found(program, work)
            for layer in layers:
                stack = found[layer.name]
                whole = stack.insert(edit, layer.name, before=layer.first_reader)
                edit.replace(layer.node, whole, f"{layer.name}: {stack.told}")
        after = noted(edit.program, program, self.targets, self.ignore, LEFT)
        return after if self.budget is None else _fitted(after, self.budget.of(program))

    def _found(self, program: Program, work: Work) -> Mapping[str, SignStack]:
        """The stack of each layer's weight, by its name."""
        layers = selected(_CALLED, program.graph, program, self.targets, self.ignore, {})
        matrices = [layer.matrix(program.tensors) for layer in layers]
        if not program.has_data:
            return {
                layer.name: self._planned(matrix)
                for layer, matrix in zip(layers, matrices, strict=True)
            }
        scales = self._scales(program, layers, work)
        found = {}
        for place, (layer, matrix) in enumerate(zip(layers, matrices, strict=True)):
            kept = work.journal.load(str(place)) if work.journal else None
            stack = SignStack(**kept) if kept else self._stack(layer.name, matrix, scales[place])
            if work.journal is not None and not kept:
                work.journal.keep(str(place), vars(stack))
            found[layer.name] = stack
            work.tell(place + 1, len(layers))
        return found

    def _scales(self, program: Program, layers: Sequence[Layer], work: Work) -> list[Tensor]:
        """How much each input of each layer counts, [K]: its root mean square, 1 on average."""
        if self.calibration == "none":
            return [torch.ones(layer.width) for layer in layers]
        inputs = observed(program, [layer.name for layer in layers], _CALLED, work)
        found = []
        for layer in layers:
            seen = [inputs[node.name].square for node in layer.node.users if node.name in inputs]
            size = torch.stack(seen).mean(0).sqrt() if seen else torch.ones(layer.width)
            found.append((size / size.mean().clamp_min(TINY)).clamp_min(QUIETEST).float())
        return found

    def _planned(self, matrix: Tensor) -> SignStack:
        """The shapes of a stack, for a matrix without data."""
        rows, columns = matrix.shape
        rank, factors = min(self.rank, rows, columns), getattr(torch, self.factors)
        return SignStack(
            matrix.new_empty(self.blocks, rows, -(-columns // 8), dtype=torch.uint8),
            matrix.new_empty(self.blocks, rows, rank, dtype=factors),
            matrix.new_empty(self.blocks, rank, columns, dtype=factors),
            matrix.new_empty(self.blocks),
        )

    def _stack(self, name: str, matrix: Tensor, scale: Tensor) -> SignStack:
        stack = stacked(matrix, self.blocks, self.rank, getattr(torch, self.factors), scale)
        if not all(bool(torch.isfinite(part).all()) for part in (stack.left, stack.right)):
            raise NotApplicable(
                f"{_CALLED}: {name} has numbers too large for factors in {self.factors}; ask for "
                "factors: bfloat16, or name it under ignore."
            )
        return stack


def _fitted(program: Program, nbytes: int) -> Program:
    try:
        return fitted(program, nbytes)
    except CannotFit as problem:
        raise NotApplicable(f"{_CALLED}: {problem}") from problem


def stacked(
    matrix: Tensor, blocks: int, rank: int, factors: torch.dtype, scale: Tensor
) -> SignStack:
    """A matrix as a stack, by iterative decomposition of absolute values.

    Signs do not change when columns are scaled by positive numbers, so that what the scales do to
    the sizes is undone in their right factors, and nothing is left to do at run time.

    Args:
        matrix: [N, K].
        blocks: how many.
        rank: of each; at most the least of N and K is taken.
        factors: in what the two factors of the sizes are stored.
        scale: how much each column counts, float32 [K], positive.
    """
    rest = matrix.float() * scale
    whole = float(rest.norm().clamp_min(TINY))
    made = []
    for _ in range(blocks):
        signs = pack_signs(rest)
        left, right = low_rank(rest.abs(), min(rank, *rest.shape), None)
        # Both factors of a size alike, so that neither overflows.
        even = right.norm(dim=1).sqrt().clamp_min(TINY)
        left, right = (left * even).to(factors), (right / even[:, None] / scale).to(factors)
        one = SignStack(signs[None], left[None], right[None], rest.new_zeros(1))
        rest = rest - one.value * scale
        error = torch.tensor(float(rest.norm()) / whole, dtype=matrix.dtype)
        made.append((signs, left, right, error))
    return SignStack(*(torch.stack(parts) for parts in zip(*made, strict=True)))
