"""Choosing what to remove by what its removal costs once the rest makes up for it.

With H the second moments of what a layer W reads, removing the inputs S and refitting the others
costs tr(W_S P W_Sᵀ), where P is the inverse of (H⁻¹)_SS, and gives W - W_S P (H⁻¹)_S. What costs
least goes first, and the rest is weighed anew. Sources: Hassibi and Stork, "Second Order
Derivatives for Network Pruning: Optimal Brain Surgeon" (1993); for whole channels and heads, Kurtic
et al., "ZipLM: Inference-Aware Structured Pruning of Language Models" (2023), section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 128
"""In how many steps at most a layer's inputs are removed: several at once, where there are more."""

DAMPENING = 1e-3
"""What is added to the diagonal of second moments, as a share of its mean."""


@dataclass
class Problem:
    """Layers that read one value, while inputs are removed.

    Attributes:
        matrix: of all of them, float32 [N, n * b], the places of an index next to each other.
        inverse: of the second moments, float32 [n * b, n * b].
        block: b, how many places an index has.
    """

    matrix: Tensor
    inverse: Tensor
    block: int

    @classmethod
    def of(cls, matrix: Tensor, moments: Tensor, index: Tensor) -> Problem | None:
        """Arrange a layer; None where its moments are singular or its places do not fit.

        Args:
            matrix: [N, K].
            moments: [K, K].
            index: which of the indices each place has, int64 [K]; each as often as the others.
        """
        count = int(index.max()) + 1
        if bool((index < 0).any()) or len(index) % count:
            return None
        order = index.argsort(stable=True)
        if not torch.equal(
            index[order], torch.arange(count).repeat_interleave(len(index) // count)
        ):
            return None
        wide = moments[order][:, order].double()
        added = max(DAMPENING * float(wide.diagonal().mean()), torch.finfo(torch.float64).tiny)
        lower, failed = torch.linalg.cholesky_ex(wide + added * torch.eye(len(wide)))
        if failed or not bool(torch.isfinite(lower).all()):
            return None
        inverse = torch.cholesky_inverse(lower).float()
        return cls(matrix[:, order].float().clone(), inverse, len(index) // count)

    def costs(self) -> Tensor:
        """What it costs to remove each index, [n]; of those that are gone it says nothing."""
        if self.block == 1:
            alone: Tensor = self.matrix.square().sum(0) / self.inverse.diagonal().clamp_min(1e-30)
            return alone
        wide = self.matrix.unflatten(1, (-1, self.block)).movedim(1, 0)  # [n, N, b]
        blocks = _diagonal(self.inverse, self.block)
        filled = blocks + torch.eye(self.block) * 1e-9 * blocks.diagonal(0, 1, 2).mean().abs()
        weighed = torch.linalg.solve_ex(filled, wide.mT)[0]  # [n, b, N]
        together: Tensor = (weighed * wide.mT).sum((1, 2))
        return together

    def remove(self, indices: Tensor) -> None:
        """Take some indices out, and let the others make up for them."""
        at = (indices[:, None] * self.block + torch.arange(self.block)).flatten()
        rows = self.inverse[at]
        inner = rows[:, at].double()
        weighed = torch.linalg.solve_ex(inner, rows.double())[0].float()
        self.matrix -= self.matrix[:, at] @ weighed
        self.inverse -= rows.T @ weighed
        self.matrix[:, at] = 0
        self.inverse[at] = 0
        self.inverse[:, at] = 0


def eliminated(problems: Sequence[Problem], size: int, remove: int) -> Tensor:
    """How dear each index is, float64 [n]: what its removal cost, when it was its turn.

    Those that stay are dearer than any that went, in the order of what they would cost.

    Args:
        problems: what reads them.
        size: n.
        remove: how many go.
    """
    found = torch.full((size,), torch.inf, dtype=torch.float64)
    gone = torch.zeros(size, dtype=torch.bool)
    at_once = -(-remove // STEPS)
    highest = 0.0
    while remove > 0:
        costs = sum(problem.costs() for problem in problems)
        assert isinstance(costs, torch.Tensor)
        chosen = costs.masked_fill(gone, torch.inf).topk(min(at_once, remove), largest=False)
        found[chosen.indices] = chosen.values.double().clamp_min(highest)
        highest = max(highest, float(found[chosen.indices].max()))
        gone[chosen.indices] = True
        for problem in problems:
            problem.remove(chosen.indices.sort().values)
        remove -= len(chosen.indices)
    rest = sum((problem.costs() for problem in problems), torch.zeros(size))
    found[~gone] = rest[~gone].double().clamp_min(highest)
    return found


def _diagonal(matrix: Tensor, block: int) -> Tensor:
    """The blocks on the diagonal, [n, b, b]."""
    count = len(matrix) // block
    at = torch.arange(count)
    blocks: Tensor = matrix.unflatten(0, (count, block)).unflatten(2, (count, block))[at, :, at]
    return blocks
