"""Mixtures of experts in a graph: what every expert makes of every token, weighed and added up.

Programs hold them in a form that fits any runtime (`planish.ir.capture.experts`): all experts work
on all tokens, and most of what they give is multiplied by 0. Where the weights come of a router's
choice, only what was chosen needs to be computed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

FLAT = 2
"""Dimensions of a table of tokens and experts."""

Choice = tuple[fx.Node, fx.Node]
"""The numbers of each token's experts, and their weights, both [M, C]."""


@dataclass(frozen=True)
class Mixture:
    """A sum over E experts of what each makes of M tokens.

    Attributes:
        total: the sum [M, N].
        mixed: what experts make of tokens, [E, M, N], which is weighed and added up.
        chosen: the numbers of each token's experts, [M, C].
        weights: theirs, [M, C].
        dtype: in which they weigh.
        experts: E.
    """

    total: fx.Node
    mixed: fx.Node
    chosen: fx.Node
    weights: fx.Node
    dtype: torch.dtype
    experts: int


def mixtures(graph: fx.Graph, tensors: Mapping[str, Tensor]) -> Iterator[Mixture]:
    """Those of a graph whose weights say which experts were chosen."""
    for total in graph.find_nodes(op="call_function", target=aten.sum.dim_IntList):
        factors = _args(_summed(total, 0), aten.mul.Tensor)
        for mixed, routing in (factors, factors[::-1]) if factors else ():
            found = _choice(routing, tensors)
            sizes = _sizes(mixed)[:FLAT]
            if found and sizes == _sizes(routing)[:FLAT] and sizes[0].isdecimal():
                dtype = routing.meta["val"].dtype
                yield Mixture(total, mixed, *found, dtype=dtype, experts=int(sizes[0]))
                break


def _args(node: Any, *targets: Any) -> tuple[Any, ...]:
    """The arguments of a call of one of these operators; none of anything else."""
    called = isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets
    return tuple(node.args) if called else ()


def _sizes(node: Any) -> tuple[str, ...]:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(map(str, value.shape)) if isinstance(value, Tensor) else ()


def _summed(node: Any, dim: int) -> Any:
    """What a sum along one dimension, which vanishes, adds up; None for anything else."""
    match _args(node, aten.sum.dim_IntList):
        case (value, [only]) | (value, [only], False) if only == dim:
            return value
    return None


def _choice(routing: Any, tensors: Mapping[str, Tensor]) -> Choice | None:
    """The choice that weights [E, M, 1] of experts stand for."""
    table = _transposed(_with_one(routing))
    found = _compared(table, tensors) or _scattered(table)
    return found if found and len({_sizes(one) for one in found}) == 1 else None


def _with_one(node: Any) -> Any:
    """The table that a value with a last dimension of 1 is; None for anything else."""
    match _args(node, aten.unsqueeze.default):
        case (value, -1 | 2) if len(_sizes(value)) == FLAT:
            return value
    return None


def _transposed(node: Any) -> Any:
    """What a table is the transposition of; None if it is none."""
    match _args(node, aten.transpose.int, aten.permute.default, aten.t.default):
        case (value,) | (value, 0 | -2, 1 | -1) | (value, 1 | -1, 0 | -2) | (value, [1, 0]):
            return value
    return None


def _compared(table: Any, tensors: Mapping[str, Tensor]) -> Choice | None:
    """Of a table [M, E]: the weights where their experts' numbers are those of the columns."""
    factors = _args(_summed(table, 1), aten.mul.Tensor)
    for hits, spread in (factors, factors[::-1]) if factors else ():
        weights = _with_one(spread)
        equal = _args(*_args(hits, aten._to_copy.default) or (hits,), aten.eq.Tensor)
        for one, numbers in (equal, equal[::-1]) if equal else ():
            chosen = _with_one(one)
            if chosen and weights and _counts(numbers, _sizes(table)[-1], tensors):
                return chosen, weights
    return None


def _scattered(table: Any) -> Choice | None:
    """Of a table [M, E]: weights written where numbers say, which differ, over zeros."""
    match _args(table, aten.scatter.src):
        case (zeros, 1 | -1, chosen, weights) if _differ(chosen) and _are_zeros(zeros):
            return chosen, weights
    return None


def _differ(chosen: Any) -> bool:
    """Whether a token's numbers are those of a ranking, no two of which are equal."""
    match _args(chosen, operator.getitem):
        case (ranked, 1):
            return bool(_args(ranked, aten.topk.default))
    return False


def _are_zeros(node: Any) -> bool:
    match _args(node, aten.full.default):
        case (_, 0 | 0.0):
            return True
    return bool(_args(node, aten.zeros.default, aten.zeros_like.default))


def _counts(node: Any, count: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a value is 0, 1, 2 and so on, up to `count`."""
    if _sizes(node) != (count,):
        return False
    if node.op == "get_attr":
        stored = tensors[str(node.target)]
        return stored.device.type != "meta" and torch.equal(stored, torch.arange(len(stored)))
    match _args(node, aten.arange.default, aten.arange.start, aten.arange.start_step):
        case (_,) | (0, _) | (0, _, 1):
            return True
    return False
