"""What a change of a layer's output costs: second moments of gradients, by feature and by row.

For a small change e of a layer's output y, the model's outputs move by ½ eᵀ F e, where F is the
Fisher information: the second moments of gradients with respect to y of the log-likelihood of
answers drawn from the model itself (Martens and Grosse, "Optimizing Neural Networks with
Kronecker-factored Approximate Curvature", 2015, section 2). Kept is its diagonal, as a product of
how much each output feature counts and how much each row (token) does: the tokens with by far the
largest activations are those of the least gradients. GuidedQuant (Kim et al., 2025) weighs rows so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch.nn import functional

from planish.ir.activations import fake_quantize
from planish.ir.ops import EAGER
from planish.ir.program import Program, Sample
from planish.passes.contract import NotApplicable

aten = torch.ops.aten

LOGITS = "logits"
"""The output whose softmax is what a model answers, where there is one."""


class Watcher(Protocol):
    """Something that is shown a value on the way forward, to hook on to its gradient."""

    def watch(self, output: Tensor) -> None:
        """Begin with a request, whose gradient comes later, or never."""


class Slopes:
    """Squared gradients g² at the output [..., N] of one linear layer, over several requests.

    Attributes:
        features: Σ g² of each output feature, over all rows: float64 [N].
        rows: for each request Σ g² of each row of the flattened output, over features: float64.
    """

    def __init__(self, width: int) -> None:
        self.features = torch.zeros(width, dtype=torch.float64)
        self.rows: list[Tensor] = []

    def watch(self, output: Tensor) -> None:
        """Begin with a request, whose gradient comes later, or never."""
        if not output.requires_grad:
            output.requires_grad_()
        rows = torch.zeros(output[..., 0].numel(), dtype=torch.float64)
        self.rows.append(rows)

        def add(gradient: Tensor) -> None:
            squares = gradient.flatten(0, -2).double().square_()
            self.features.add_(squares.sum(0))
            rows.add_(squares.sum(1))

        output.register_hook(add)


def slopes(
    program: Program,
    readers: Iterable[fx.Node],
    requests: Sequence[Sample],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[dict[str, Slopes], int]:
    """Squared gradients at linear layers, by the name of the node, and the rows of the outputs.

    With logits, g is the gradient of -log p(answer), for an answer drawn from the softmax of each
    row of logits: half of Σ g² e² is the divergence KL(before ‖ after) in nats. Without, answers
    are drawn from a normal distribution about the outputs, and the squared change of an output's
    row takes its place, as a share of the mean square of its rows. Both are summed over rows. The
    same requests give the same answers.

    Args:
        program: stays as it is.
        readers: nodes that call `aten.linear`.
        requests: at least one; one runs at a time.
        progress: told how many requests are done, and of how many.

    Raises:
        NotApplicable: if an output is not finite.
    """
    found = {reader.name: Slopes(int(reader.meta["val"].shape[-1])) for reader in readers}
    return found, observe(program, found, requests, progress)


def observe(
    program: Program,
    watched: Mapping[str, Watcher],
    requests: Sequence[Sample],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> int:
    """Run requests forward and back, one at a time, and let values be watched; rows of outputs.

    Args:
        program: stays as it is.
        watched: by the name of the node whose value it is.
        requests: at least one.
        progress: told how many requests are done, and of how many.
    """
    chance = torch.Generator().manual_seed(0)
    rows = 0
    stored = {name: tensor.detach() for name, tensor in program.tensors.items()}
    watch = {name: one.watch for name, one in watched.items()}
    for done, request in enumerate(requests):
        progress(done, len(requests))
        with torch.enable_grad():
            outputs = Differentiable(program.graph, stored, watch).run(
                *(request[spec.name] for spec in program.inputs), enable_io_processing=False
            )
            surprise, count = _surprise(dict(zip(program.outputs, outputs, strict=True)), chance)
            if surprise.requires_grad:
                surprise.backward()
        rows += count
    return rows


def requests_of(program: Program, sample: Sample) -> Iterator[Sample]:
    """The rows of a batch, one by one; what all of them share goes with each."""
    axes = {spec.name: spec.batch_axis for spec in program.inputs}
    counts = [sample[name].shape[axis] for name, axis in axes.items() if axis is not None]
    for row in range(min(counts, default=1)):
        yield {
            name: value if axes[name] is None else value.narrow(axes[name], row, 1)  # type: ignore[arg-type]
            for name, value in sample.items()
        }


def answers(outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """What counts of a model's outputs, float32 rows [R, V]: logits, or all that is floating."""
    counted = {LOGITS: outputs[LOGITS]} if LOGITS in outputs else outputs
    return {
        name: one.flatten(0, -2).float() if one.dim() > 1 else one.float()[None]
        for name, one in counted.items()
        if isinstance(one, Tensor) and one.is_floating_point()
    }


def _surprise(outputs: Mapping[str, Any], chance: torch.Generator) -> tuple[Tensor, int]:
    """-log p of drawn answers, summed, up to a constant, and the number of rows."""
    values = answers(outputs)
    for name, value in values.items():
        _check_finite(value, name)
    if LOGITS in values:
        logits = values[LOGITS]
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=chance).squeeze(-1)
        return functional.cross_entropy(logits, drawn, reduction="sum"), len(logits)
    total = torch.zeros(())
    for value in values.values():
        size = value.detach().square().sum(-1).mean().sqrt().clamp_min(1e-30)
        total = total + (value * torch.randn(value.shape, generator=chance)).sum() / size
    return total, max(map(len, values.values()), default=0)


def _check_finite(output: Tensor, name: str) -> None:
    if not bool(torch.isfinite(output).all()):
        raise NotApplicable(
            f"{name} is not finite on the calibration samples, so no layer's share in it can be "
            "told: mend the samples, or look for NaN in the checkpoint."
        )


class Differentiable(fx.Interpreter):
    """Runs a graph by operators that have derivatives.

    Args:
        graph: of a program.
        tensors: what it reads, by name.
        watched: by the names of nodes, what is shown their values on the way.
        linear: computes linear layers, whose arguments are those of `aten.linear`.
    """

    def __init__(
        self,
        graph: fx.Graph,
        tensors: Mapping[str, Tensor],
        watched: Mapping[str, Callable[[Tensor], None]] = {},
        linear: Callable[..., Tensor] = aten.linear.default,
    ) -> None:
        super().__init__(torch.nn.Module(), graph=graph)
        self._tensors = tensors
        self._watched = watched
        self._linear = linear

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Tensor:  # noqa: ARG002
        """Read a tensor."""
        return self._tensors[target]

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Compute a node."""
        if target is fake_quantize:  # rounding counts as no change, or no gradient would pass
            x, *others = args
            return x + (target(x.detach(), *others, **kwargs) - x).detach()
        if target is aten.linear.default:
            return self._linear(*args, **kwargs)
        return super().call_function(EAGER.get(target) or target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node, and show it to what watches it."""
        result = super().run_node(n)
        if n.name in self._watched:
            self._watched[n.name](result)
        return result
