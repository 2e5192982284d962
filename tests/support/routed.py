"""Mixtures of experts in the forms in which models come, and ways to err.

Each takes a mixture and x [N, 8], and chooses two of five experts for each row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers.integrations import moe  # noqa: F401  (registers the product)

EXPERTS, CHOSEN, WIDTH, INNER = 5, 2, 8, 6

Form = Callable[["Mixture", Tensor], Tensor]


class Mixture(nn.Module):
    """A router, the experts' matrices, and one of the forms below."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.enter, self.leave = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3)
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.inner = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER))
        self.outer = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH))
        self.bias = nn.Parameter(torch.randn(EXPERTS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """`x` [N, 4] to [N, 3]."""
        result: Tensor = self.leave(self.form(self, self.enter(x)))
        return result

    def routed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of each row the weights and the numbers of its experts, both [N, k]."""
        weights, chosen = self.router(x).softmax(-1).topk(CHOSEN)
        return weights / weights.sum(-1, keepdim=True), chosen

    def every(self, x: Tensor) -> Tensor:
        """What every expert makes of every row: [E, N, W]."""
        return F.silu(x @ self.inner) @ self.outer + self.bias[:, None]

    def mixed(self, x: Tensor, routing: Tensor) -> Tensor:
        """The experts' results by their weights, `routing` [N, E]."""
        return (self.every(x) * routing.T[..., None]).sum(0)


def compared(m: Mixture, x: Tensor) -> Tensor:
    weights, chosen = m.routed(x)
    hits = chosen[..., None] == torch.arange(EXPERTS)
    return m.mixed(x, (hits.float() * weights[..., None]).sum(1))


def one_hot(m: Mixture, x: Tensor) -> Tensor:
    weights, chosen = m.routed(x)
    hits = F.one_hot(chosen, EXPERTS).float()
    return torch.einsum("enw,nke,nk->nw", m.every(x), hits, weights)


def scattered(m: Mixture, x: Tensor) -> Tensor:
    weights, chosen = m.routed(x)
    return m.mixed(x, torch.zeros(x.shape[0], EXPERTS).scatter(1, chosen, weights))


def gathered(m: Mixture, x: Tensor) -> Tensor:
    """Chosen by biased scores, weighed by others, as routers without an auxiliary loss do."""
    scores = m.router(x).sigmoid()
    chosen = (scores + m.bias[:, 0]).topk(CHOSEN).indices
    weights = scores.gather(1, chosen)
    rows = m.every(x).transpose(0, 1)
    picked = rows.gather(1, chosen[..., None].expand(-1, -1, WIDTH))
    result: Tensor = (picked * weights[..., None]).sum(1)
    return result


def copied(m: Mixture, x: Tensor) -> Tensor:
    """A copy of the chosen experts' matrices for every row."""
    weights, chosen = m.routed(x)
    numbers = chosen.reshape(-1)
    rows = x.repeat_interleave(CHOSEN, 0)[:, None]
    y = (F.silu(rows @ m.inner[numbers]) @ m.outer[numbers])[:, 0] + m.bias[numbers]
    return (y * weights.reshape(-1, 1)).view(-1, CHOSEN, WIDTH).sum(1)


def first(m: Mixture, x: Tensor) -> Tensor:
    """Only the best one."""
    weights, best = m.router(x).softmax(-1).max(-1)
    result: Tensor = (x[:, None] @ m.inner[best] @ m.outer[best])[:, 0] * weights[:, None]
    return result


def grouped(
    m: Mixture,
    x: Tensor,
    back: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    between: Callable[[Tensor], Tensor] = lambda y: y,
    ends_of: Callable[[Tensor], Tensor] = lambda keys: keys,
    descending: bool = False,
    adjust: Callable[[Tensor], Tensor] = lambda ends: ends,
) -> Tensor:
    """Rows sorted by expert, and one product of groups; options are other ways, and mistakes."""
    product: Callable[[Tensor, Tensor, Tensor], Tensor]
    product = torch.ops.transformers.grouped_mm_fallback
    weights, chosen = m.routed(x)
    numbers = chosen.reshape(-1)
    keys, p = torch.sort(numbers, descending=descending)
    counted = ends_of(keys)
    counts = torch.histc(counted.float(), EXPERTS, 0, EXPERTS - 1)
    ends = adjust(torch.cumsum(counts, 0, dtype=torch.int32))
    y = product(F.silu(product(x[p // CHOSEN], m.inner, ends)), m.outer, ends)
    y = between(y + m.bias[keys]) * weights.reshape(-1)[p][:, None]
    if back is not None:
        return back(y, p, x)
    inverse = torch.empty_like(p)
    inverse[p] = torch.arange(p.size(0))
    return y[inverse].view(-1, CHOSEN, WIDTH).sum(1)


def added(y: Tensor, p: Tensor, x: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(0, p // CHOSEN, y)


def sorted_back(y: Tensor, p: Tensor, x: Tensor) -> Tensor:  # noqa: ARG001
    return y[p.argsort()].view(-1, CHOSEN, WIDTH).sum(1)


def never_back(y: Tensor, p: Tensor, x: Tensor) -> Tensor:  # noqa: ARG001
    return y.view(-1, CHOSEN, WIDTH).sum(1)


FORMS: dict[str, Form] = {
    "compared": compared,
    "one hot": one_hot,
    "scattered": scattered,
    "gathered": gathered,
    "copied": copied,
    "first": first,
    "grouped": grouped,
    "grouped, added back": partial(grouped, back=added),
    "grouped, sorted back": partial(grouped, back=sorted_back),
    "grouped, normed": partial(grouped, between=lambda y: F.layer_norm(y, [WIDTH])),
}


def by_order(m: Mixture, x: Tensor) -> Tensor:
    """Experts up to the chosen one all work."""
    weights, chosen = m.routed(x)
    hits = torch.arange(EXPERTS) <= chosen[..., None]
    return m.mixed(x, (hits.float() * weights[..., None]).sum(1))


def next_one(m: Mixture, x: Tensor) -> Tensor:
    """The one after the chosen one works."""
    weights, chosen = m.routed(x)
    hits = (chosen[..., None] + 1) % EXPERTS == torch.arange(EXPERTS)
    return m.mixed(x, (hits.float() * weights[..., None]).sum(1))


def after_all(m: Mixture, x: Tensor) -> Tensor:
    weights, chosen = m.routed(x)
    hits = chosen[..., None] == torch.arange(EXPERTS) * 2 % EXPERTS
    return m.mixed(x, (hits.float() * weights[..., None]).sum(1))


def the_third(m: Mixture, x: Tensor) -> Tensor:
    weights, chosen = m.routed(x)
    return compared(m, x) + (weights * (chosen == 2)).sum(-1, keepdim=True)


def number_itself(m: Mixture, x: Tensor) -> Tensor:
    return compared(m, x) + m.routed(x)[1].float().mean(-1, keepdim=True)


ORDERED: dict[str, Form] = {
    "compared by order": by_order,
    "the one after": next_one,
    "an arange that was multiplied": after_all,
    "one of them is special": the_third,
    "the number is added": number_itself,
    "sorted downwards": partial(grouped, descending=True),
    "ends of other keys": partial(grouped, ends_of=lambda keys: keys.clamp(min=1)),
    "ends that were shifted": partial(grouped, adjust=lambda ends: (ends + 1).clamp(max=5)),
    "a running sum of sorted rows": partial(grouped, between=lambda y: y.cumsum(0)),
    "the place after the sort": partial(
        grouped, between=lambda y: y + torch.arange(y.shape[0])[:, None]
    ),
    "never put back": partial(grouped, back=never_back),
}
"""What depends on the order of the experts."""
