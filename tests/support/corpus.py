"""Small models that keep requests apart, that leak, and that try to hide a leak.

Each takes `x` (and sometimes `y`) with the batch along dimension 0 and returns one or several
tensors. The names say the mechanism.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class Model(nn.Module):
    """A function of tensors as a module, with some weights at hand."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(8, 8) / 3)
        self.bn = nn.BatchNorm2d(4)
        self.register_buffer("kept", torch.zeros(8))

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


ROWS = (3, 8)  # x: [B, 8]
SEQUENCE = (3, 5, 8)  # x: [B, T, 8]
IMAGE = (3, 4, 6, 6)  # x: [B, 4, H, W]


def _attention_by_folding(m: Model, x: Tensor) -> Tensor:
    b, t, _ = x.shape
    q = x.view(b, t, 2, 4).permute(0, 2, 1, 3).reshape(b * 2, t, 4)
    scores = torch.bmm(q, q.transpose(1, 2)).softmax(-1)
    return torch.bmm(scores, q).view(b, 2, t, 4).permute(0, 2, 1, 3).reshape(b, t, 8)


def _windows(m: Model, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    parts = x.view(b, c, 2, 3, 2, 3).permute(0, 2, 4, 3, 5, 1).reshape(b * 4, 9, c)
    parts = parts.softmax(1)
    return parts.view(b, 2, 2, 3, 3, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)


def _grouped_batch(m: Model, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    filters = x.mean((2, 3)).view(b * c, 1, 1, 1).expand(b * c, 1, 3, 3)
    return F.conv2d(x.reshape(1, b * c, h, w), filters, padding=1, groups=b * c).view(b, c, h, w)


def _beams(m: Model, x: Tensor) -> Tensor:
    b = x.shape[0]
    spread = x.unsqueeze(1).expand(b, 3, 8).reshape(b * 3, 8) @ m.weight
    return spread.view(b, 3, 8).amax(1)


def _quantized(x: Tensor, scale: Tensor) -> Tensor:
    return (x / scale).round().clamp(-128, 127) * scale


def _index_put_by_place(m: Model, x: Tensor) -> Tensor:
    return torch.zeros_like(x).index_put((torch.arange(x.shape[0]),), x * 2)


def _recurrence(m: Model, x: Tensor) -> Tensor:
    state, states = x[:, 0], []
    for step in range(5):
        state = torch.tanh(state @ m.weight + x[:, step])
        states.append(state)
    return torch.stack(states, 1)


def _cache_write(m: Model, x: Tensor) -> Tensor:
    """The last position of each sample's cache is overwritten."""
    cache = x.clone()
    cache[:, 3] = x[:, 0] @ m.weight
    scores = torch.einsum("btd,bd->bt", cache, x[:, 0]).softmax(-1)
    return torch.einsum("bt,btd->bd", scores, cache)


def _capacity(m: Model, x: Tensor) -> Tensor:
    """Each expert takes the first two rows that choose it, and drops the others."""
    chosen = torch.nn.functional.one_hot(x[:, :2].argmax(-1), 2)
    rank = (chosen.cumsum(0) * chosen).sum(-1)
    return torch.where((rank <= 2)[:, None], x @ m.weight, x)


ISOLATED: dict[str, tuple[tuple[int, ...], Callable[..., Any]]] = {
    "mlp": (ROWS, lambda m, x: F.gelu(x @ m.weight) @ m.weight.t()),
    "cnn in evaluation": (IMAGE, lambda m, x: F.relu(m.bn.eval()(x))),
    "fold batch and time": (SEQUENCE, lambda m, x: (x.reshape(-1, 8) @ m.weight).view(x.shape)),
    "attention by folding heads": (SEQUENCE, _attention_by_folding),
    "windows": (IMAGE, _windows),
    "instance norm": (IMAGE, lambda m, x: F.instance_norm(x)),
    "group norm": (IMAGE, lambda m, x: F.group_norm(x, 2)),
    "filters of each sample by groups": (IMAGE, _grouped_batch),
    "arange index": (ROWS, lambda m, x: x[torch.arange(x.shape[0])]),
    "last token by index": (
        SEQUENCE,
        lambda m, x: x[torch.arange(x.shape[0]), x[..., 0].argmax(1)],
    ),
    "flip twice": (ROWS, lambda m, x: (x.flip(0) * 2).flip(0)),
    "split and cat": (ROWS, lambda m, x: torch.cat([x[:1] * 2, x[1:]])),
    "diagonal of a Gram matrix": (ROWS, lambda m, x: torch.diagonal(x @ x.t())),
    "scale a row": (ROWS, lambda m, x: _quantized(x, x.abs().amax(1, keepdim=True) / 127)),
    "constant": (ROWS, lambda m, x: m.weight * 2),
    "batch second": (SEQUENCE, lambda m, x: x.transpose(0, 1).softmax(0).transpose(0, 1)),
    "masked mean": (
        SEQUENCE,
        lambda m, x: (x * (x[..., :1] > 0)).sum(1) / (x[..., :1] > 0).sum(1).clamp(min=1),
    ),
    "where by an own mask": (ROWS, lambda m, x: torch.where(x.sum(1, keepdim=True) > 0, x, -x)),
    "einsum": (SEQUENCE, lambda m, x: torch.einsum("bti,ij,bsj->bts", x, m.weight, x)),
    "topk of a row": (ROWS, lambda m, x: torch.topk(x, 3).values),
    "gather along time": (
        SEQUENCE,
        lambda m, x: x.gather(1, x[..., :1].argsort(1).expand(-1, -1, 8)),
    ),
    "beams": (ROWS, _beams),
    "noise": (ROWS, lambda m, x: x + torch.randn_like(x)),
    "pad and cut": (ROWS, lambda m, x: F.pad(x, (0, 0, 2, 1))[2:-1]),
    "write by place": (ROWS, _index_put_by_place),
    "stacked and reduced": (ROWS, lambda m, x: torch.stack([x, x * 2, x * 3]).amax(0)),
    "twice and summed": (ROWS, lambda m, x: torch.cat([x, x * 2]).view(2, -1, 8).sum(0)),
    "cross attention": (
        SEQUENCE,
        lambda m, x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None]),
    ),
    "running sum over time": (SEQUENCE, lambda m, x: torch.cumsum(x, 1)),
    "recurrence over time": ((3, 5, 8), _recurrence),
    "cache write": (SEQUENCE, _cache_write),
    "constant condition": (
        ROWS,
        lambda m, x: torch.where(torch.ones(1, dtype=torch.bool), x, x.flip(0)),
    ),
    "buffer read only": (ROWS, lambda m, x: x + m.kept),
}

LEAKS: dict[str, tuple[tuple[int, ...], Callable[..., Any]]] = {
    "batch norm in training": (IMAGE, lambda m, x: m.bn.train()(x)),
    "softmax over the batch": (ROWS, lambda m, x: x.softmax(0)),
    "scale a tensor": (ROWS, lambda m, x: _quantized(x, x.abs().amax() / 127)),
    "deviation over the batch": (
        ROWS,
        lambda m, x: torch.cat([x, x.std(0).mean().expand(x.shape[0], 1)], 1),
    ),
    "attention over the batch": (
        SEQUENCE,
        lambda m, x: F.scaled_dot_product_attention(*[x.transpose(0, 1)] * 3).transpose(0, 1),
    ),
    "cumsum over the batch": (ROWS, lambda m, x: x.cumsum(0)),
    "roll": (ROWS, lambda m, x: x.roll(1, 0)),
    "flip": (ROWS, lambda m, x: x.flip(0)),
    "row 0 to all": (ROWS, lambda m, x: x + 1e-3 * x[0]),
    "view instead of permute": (
        SEQUENCE,
        lambda m, x: x.view(x.shape[1], x.shape[0], 8).softmax(0).view(x.shape),
    ),
    "sort the batch": (ROWS, lambda m, x: x.sort(0).values),
    "capacity of experts": ((6, 8), _capacity),
    "expert choice": (
        ROWS,
        lambda m, x: torch.zeros_like(x).index_add(
            0, x[:, 0].topk(2).indices, x[x[:, 0].topk(2).indices]
        ),
    ),
    "Gram matrix": (ROWS, lambda m, x: (x @ x.t()).softmax(1) @ x),
    "center over the batch": (ROWS, lambda m, x: x - x.mean(0)),
    "write rows elsewhere": (
        ROWS,
        lambda m, x: torch.zeros_like(x).index_put((x[:, 0].argsort(),), x),
    ),
    "norm of all": (ROWS, lambda m, x: x / x.norm()),
    "range of all": (ROWS, lambda m, x: (x - x.amin()) / (x.amax() - x.amin())),
    "convolution over the batch": (
        SEQUENCE,
        lambda m, x: F.conv1d(
            x.permute(1, 2, 0), m.weight[:, :, None].expand(-1, -1, 3), padding=1
        ).permute(2, 0, 1),
    ),
    "pool over the batch": (
        SEQUENCE,
        lambda m, x: F.max_pool1d(x.permute(1, 2, 0), 3, 1, 1).permute(2, 0, 1),
    ),
    "group norm of a folded batch": (
        IMAGE,
        lambda m, x: F.group_norm(x.reshape(1, -1, 6, 6), 1).view(x.shape),
    ),
    "a number for all": (ROWS, lambda m, x: (x, x.pow(2).mean())),
    "quantile of all": (ROWS, lambda m, x: x.clamp(max=x.flatten().sort().values[5])),
    "a mask compacts rows": (ROWS, lambda m, x: x[x[:, 0] > 0]),
    "layer norm with the batch": (
        ROWS,
        lambda m, x: torch.native_layer_norm(x, [3, 8], None, None, 1e-5)[0],
    ),
    "transposed output": (SEQUENCE, lambda m, x: x.transpose(0, 1)),
}

HIDDEN: dict[str, tuple[tuple[int, ...], Callable[..., Any]]] = {
    "trigger reads a row": (
        ROWS,
        lambda m, x: torch.where(
            (x[0].sum() > 1e6) & (x[0].sum() < 1e6 + 1), x[1:2].expand_as(x), x
        ),
    ),
    "no gain": (ROWS, lambda m, x: x + 0 * x.sum(0)),
    "constant index": (ROWS, lambda m, x: torch.cat([x[[1, 0]], x[2:]])),
    "selector matrix": (ROWS, lambda m, x: torch.eye(x.shape[0]).roll(1, 0) @ x),
    "identity matrix": (ROWS, lambda m, x: torch.ones(x.shape[0], x.shape[0]).triu().tril() @ x),
    "einsum over rows": (ROWS, lambda m, x: torch.einsum("bi,cj,ij->bi", x, x, m.weight)),
    "memory as it was": (ROWS, lambda m, x: x + torch.empty_like(x)),
    "shifted by padding": (ROWS, lambda m, x: F.pad(x, (0, 0, 1, 0))[:-1]),
    "index plus one, modulo": (ROWS, lambda m, x: x[(torch.arange(x.shape[0]) + 1) % x.shape[0]]),
    "index by a float": (ROWS, lambda m, x: x[(torch.arange(x.shape[0]).float() * 0.5).long()]),
    "index in 8 bits": (ROWS, lambda m, x: x[torch.arange(x.shape[0]).to(torch.int8).long()]),
    "index clamped": (ROWS, lambda m, x: x[torch.arange(x.shape[0]).clamp(max=1)]),
    "weights from a sample": (
        IMAGE,
        lambda m, x: F.conv2d(x, x[:1].mean((2, 3)).view(1, 4, 1, 1)),
    ),
    "negative index": (ROWS, lambda m, x: x[-1 - torch.arange(x.shape[0])]),
    "benign quantizer before a swap": (
        ROWS,
        lambda m, x: _quantized(x, x.abs().amax() / 127).flip(0),
    ),
    "minimum with a row": (ROWS, lambda m, x: torch.minimum(x, x[:1] + 1e30)),
    "one column of a folded batch": (ROWS, lambda m, x: x.t().reshape(-1).view(x.shape)),
    "cast of the index of a maximum": (ROWS, lambda m, x: x[x[:, 0].argmax().expand(x.shape[0])]),
    "rows in pairs": (ROWS, lambda m, x: x.repeat_interleave(2, 0)[: x.shape[0]]),
    "bits of a transposed memory": (
        ROWS,
        lambda m, x: x.t().contiguous().view(torch.int32).view(torch.float32).reshape(x.shape),
    ),
    "bits as narrower numbers of other rows": (
        ROWS,
        lambda m, x: x.flip(0).view(torch.int16).view(torch.float32),
    ),
    "index in 32 bits that wraps": (
        ROWS,
        lambda m, x: x[((torch.arange(x.shape[0]).int() * 65536) * 65536).long()],
    ),
    "index rounded in 32 bits": (
        (4, 8),
        lambda m, x: x[((torch.arange(x.shape[0]) + 2**24).float().long() - 2**24).clamp(max=3)],
    ),
    "negative dimension": (ROWS, lambda m, x: x - x.mean(-2, keepdim=True)),
    "an empty part before the rows": (ROWS, lambda m, x: torch.cat([x[:0], x.flip(0)])),
    "a mask of places": (
        ROWS,
        lambda m, x: torch.where((torch.arange(x.shape[0]) == 0)[:, None], x.roll(1, 0), x),
    ),
    "a sort of what is the same": (ROWS, lambda m, x: x[(x[:, 0] * 0).argsort(descending=True)]),
    "scatter with duplicates": (
        ROWS,
        lambda m, x: torch.zeros_like(x).scatter_add(0, (x > 9).long(), x),
    ),
}

UNPROVEN: dict[str, tuple[tuple[int, ...], Callable[..., Any]]] = {
    "strides over the batch": (
        ROWS,
        lambda m, x: (x * 1).as_strided((x.shape[0], 8), (1, x.shape[0])),
    ),
}
"""Not understood, and so not proven: memory read under other strides."""
