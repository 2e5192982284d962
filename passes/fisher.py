"""What a change of a layer's output costs: second moments of gradients, by output feature.

For a small change e of a layer's output y, the model's outputs move by ½ eᵀ F e, where F is the
Fisher information: the second moments of gradients with respect to y of the log-likelihood of
answers drawn from the model itself (Martens and Grosse, "Optimizing Neural Networks with
Kronecker-factored Approximate Curvature", 2015, section 2). Kept is the diagonal of F: errors of
rounding in different output features hardly depend on each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from planish.ir.activations import fake_quantize
from planish.ir.ops import EAGER
from planish.ir.program import Program, Sample

LOGITS = "logits"
"""The output whose softmax is what a model answers, where there is one."""


def output_moments(
    program: Program,
    readers: Iterable[fx.Node],
    samples: Sequence[Sample],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Tensor]:
    """Of each linear layer, Σ g² for each of its output features, by the name of its node.

    With logits, g is the gradient of -log p(answer), for an answer drawn from the softmax of each
    row of logits: half of Σ g² e² is the divergence KL(before ‖ after) in nats. Without, answers
    are drawn from a normal distribution about the outputs, in whose place the squared change of an
    output's row takes, as a share of the mean square of its rows. Both are sums over rows, divided
    by the number of rows of the outputs. The same samples give the same answers.

    Args:
        program: stays as it is.
        readers: nodes that call `aten.linear`.
        samples: at least one; one request runs at a time.
        progress: told how many requests are done, and of how many.

    Returns:
        float64 [N] each; zeros for what does not reach the outputs.
    """
    names = {reader.name: int(reader.meta["val"].shape[-1]) for reader in readers}
    totals = {name: torch.zeros(width, dtype=torch.float64) for name, width in names.items()}
    requests = [one for sample in samples for one in _requests(program, sample)]
    chance = torch.Generator().manual_seed(0)
    rows = 0
    for done, request in enumerate(requests):
        progress(done, len(requests))
        with torch.enable_grad():
            outputs = _Watched(program, totals).run(
                *(request[spec.name] for spec in program.inputs), enable_io_processing=False
            )
            surprise, count = _surprise(dict(zip(program.outputs, outputs, strict=True)), chance)
            if surprise.requires_grad:
                surprise.backward()
        rows += count
    return {name: total / max(rows, 1) for name, total in totals.items()}


def _requests(program: Program, sample: Sample) -> Iterator[Sample]:
    """The rows of a batch, one by one; what all of them share goes with each."""
    axes = {spec.name: spec.batch_axis for spec in program.inputs}
    counts = [sample[name].shape[axis] for name, axis in axes.items() if axis is not None]
    for row in range(min(counts, default=1)):
        yield {
            name: value if axes[name] is None else value.narrow(axes[name], row, 1)  # type: ignore[arg-type]
            for name, value in sample.items()
        }


def _surprise(outputs: Mapping[str, Any], chance: torch.Generator) -> tuple[Tensor, int]:
    """-log p of drawn answers, summed, up to a constant, and the number of rows."""
    if LOGITS in outputs:
        logits = outputs[LOGITS].flatten(0, -2).float()
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=chance).squeeze(-1)
        return functional.cross_entropy(logits, drawn, reduction="sum"), len(logits)
    values = [
        one.flatten(0, -2).float() if one.dim() > 1 else one.float()[None]
        for one in outputs.values()
        if isinstance(one, Tensor) and one.is_floating_point()
    ]
    total = torch.zeros(())
    for value in values:
        size = value.detach().square().sum(-1).mean().sqrt().clamp_min(1e-30)
        total = total + (value * torch.randn(value.shape, generator=chance)).sum() / size
    return total, max(map(len, values), default=0)


class _Watched(fx.Interpreter):
    """Runs a program with gradients of linear layers' outputs, which are added up squared."""

    def __init__(self, program: Program, totals: Mapping[str, Tensor]) -> None:
        super().__init__(torch.nn.Module(), graph=program.graph)
        self._tensors = program.tensors
        self._totals = totals

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Tensor:  # noqa: ARG002
        return self._tensors[target].detach()

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is fake_quantize:  # rounding counts as no change, or no gradient would pass
            x, *others = args
            rounded = target(x.detach(), *others, **kwargs)
            return x + (rounded - x).detach()
        return super().call_function(EAGER.get(target) or target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self._totals:
            total = self._totals[n.name]

            def add(gradient: Tensor) -> None:
                total.add_(gradient.flatten(0, -2).double().square_().sum(0))

            if not result.requires_grad:
                result.requires_grad_()
            result.register_hook(add)
        return result
