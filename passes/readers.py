"""Layers as least squares sees them: rows that a layer reads, and a matrix that they meet.

A linear layer's rows are its inputs. A convolution's are the patches that its filter is laid on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn import functional

from planish.ir.program import Program
from planish.passes.layers import TURNS

aten = torch.ops.aten

CONVOLUTIONS: dict[Any, int] = {aten.conv1d.default: 1, aten.conv2d.default: 2}
"""Convolutions that can be taken apart into patches, and along how many dimensions they slide."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A linear layer or convolution whose weight nothing else reads.

    Attributes:
        node: the call.
        weight: the name of the weight.
        bias: the name of the bias, where there is one that nothing else reads.
        read: the node of the weight as the call reads it.
    """

    node: fx.Node
    weight: str
    bias: str | None
    read: fx.Node

    @property
    def source(self) -> fx.Node:
        """What it reads."""
        return cast(fx.Node, self.node.args[0])

    def matrix(self, tensors: Any) -> Tensor:
        """The weight as a matrix [N, K]: a row for each output, a column for each input."""
        stored: Tensor = tensors[self.weight]
        if self.read.op != "get_attr":
            stored = self.read.target(stored, *self.read.args[1:])  # type: ignore[operator]
        return stored.flatten(1)

    def stored(self, matrix: Tensor, like: Tensor) -> Tensor:
        """A matrix [N, K] in the shape and dtype that the weight is stored in."""
        if self.read.op != "get_attr":  # a transposition of two dimensions is its own inverse
            matrix = matrix.T
        return matrix.reshape(like.shape).to(like.dtype).contiguous()

    def rows(self, value: Tensor) -> Tensor:
        """What it reads as rows [R, K]."""
        slides = CONVOLUTIONS.get(self.node.target)
        if slides is None:
            return value.flatten(0, -2)
        stride, padding, dilation = (_wide(one, slides) for one in _numbers(self.node))
        kernel = tuple(_shape(self.read)[2:])
        if slides == 1:
            value, kernel = value.unsqueeze(2), (1, *kernel)
            stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
        patches: Tensor = functional.unfold(value, kernel, dilation, padding, stride)
        return patches.mT.flatten(0, 1)

    def outputs(self, result: Tensor) -> Tensor:
        """What it gives as rows [R, N], in the order of `rows`."""
        if self.node.target in CONVOLUTIONS:
            result = result.movedim(1, -1)
        return result.flatten(0, -2)

    def kernel(self) -> int:
        """How many columns of the matrix belong to one channel."""
        return _shape(self.read)[2:].numel() if self.node.target in CONVOLUTIONS else 1


def reader_of(node: fx.Node) -> Reader | None:
    """A layer of a graph; None where it is none, or its weight is shared or computed."""
    if node.target in CONVOLUTIONS:
        if node.args[6:] and node.args[6] != 1:
            return None
    elif node.target is not aten.linear.default:
        return None
    read: Any = node.args[1]
    stored = read.args[0] if read.target in TURNS else read
    if stored.op != "get_attr" or len(read.users) != 1 or len(stored.users) != 1:
        return None
    bias: Any = [*node.args, None][2]
    name = None
    if bias is not None and bias.op == "get_attr" and len(bias.users) == 1:
        name = str(bias.target)
    return Reader(node, str(stored.target), name, read)


def readers_of(program: Program) -> list[Reader]:
    """The layers of a program whose weights nothing else reads, in the order of the graph."""
    found = [reader for node in program.graph.nodes if (reader := reader_of(node)) is not None]
    counts: dict[str, int] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr":
            counts[str(node.target)] = counts.get(str(node.target), 0) + len(node.users)
    return [reader for reader in found if counts[reader.weight] == 1]


def _numbers(node: fx.Node) -> tuple[Any, Any, Any]:
    """Stride, padding and dilation of a convolution."""
    given = node.args[3:6]
    stride, padding, dilation = (
        given[place] if len(given) > place else default for place, default in enumerate((1, 0, 1))
    )
    return stride, padding, dilation


def _wide(numbers: Any, count: int) -> tuple[int, ...]:
    """One number for each dimension that a filter slides along."""
    several = tuple(numbers) if isinstance(numbers, list | tuple) else (numbers,)
    return several * count if len(several) == 1 else several


def _shape(node: fx.Node) -> torch.Size:
    shape: torch.Size = node.meta["val"].shape
    return shape
