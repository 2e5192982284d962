"""What rounding each layer in each way would cost: bytes, error of its output, estimated loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx

from planish.ir.cost import costs, total
from planish.ir.program import Program, Sample
from planish.ir.progress import Progress, silent
from planish.ir.quant import QuantScheme
from planish.passes.contract import NotApplicable
from planish.passes.divergence import Rerun
from planish.passes.fisher import Slopes, requests_of, slopes
from planish.passes.inputs import samples_of, spread
from planish.passes.layers import Layer
from planish.passes.rounding import round_to_nearest
from planish.passes.sequential import second_moments, walk

TOKENS = 4096
"""Of tokens about so many are learned from."""

TRIED, FEW = 1024, 4
"""On about so many tokens losses are tried, or on so many requests that are not of tokens."""

NOISE, LITTLE = 1e-5, 0.1
"""Estimated losses between which one is tried: above what float32 adds, below what is no longer a
square."""

WIDEST = 8.0
"""By so much at most what was tried changes an estimate."""

TINY = 1e-30


@dataclass(frozen=True)
class Option:
    """One way to store a layer.

    Attributes:
        scheme: how it is rounded; None if it stays as it is.
        nbytes: of what a checkpoint stores, scales and zero points included.
        error: of the layer's output over the samples, ‖ΔW x‖ / ‖W x‖.
        output: mean of ‖ΔW x‖²: tr(ΔW H ΔWᵀ), H the second moments of what the layer reads.
        loss: what that is estimated to cost, by gradients and by running one option of the layer:
            nats a row of logits, or without logits half the squared change of a row of the outputs,
            as a share of its mean square.
    """

    scheme: QuantScheme | None
    nbytes: int
    error: float
    output: float
    loss: float


@dataclass(frozen=True)
class Sensitivity:
    """A layer, and what each way to store it costs.

    Attributes:
        name: of the weight.
        group: the name of the first layer that reads the same value: its own, if it is alone.
        numbers: how many weights it has.
        readers: how often the weight is read in a run of the graph.
        nbytes: as it is.
        options: the ways to store it, at least one.
    """

    name: str
    group: str
    numbers: int
    readers: int
    nbytes: int
    options: tuple[Option, ...]


def sensitivities(
    program: Program,
    layers: Sequence[Layer],
    schemes: Sequence[QuantScheme],
    called: str,
    *,
    search: Literal[True, False, "inputs"] = True,
    dense: bool = False,
    progress: Progress = silent,
) -> list[Sensitivity]:
    """Measure layers on calibration samples: one backward pass, and one walk over the graph.

    The loss that a layer adds is ½ Σ F_n (ΔW H ΔWᵀ)_nn, summed over output features n: F_n is the
    share of a feature in the squared gradients at the layer's outputs, H the second moments of its
    inputs, each row weighted with its squared gradients (`planish.passes.fisher`). Losses of
    different layers are taken to add up. HAWQ-V2 (Dong et al., 2020) weighs layers, SqueezeLLM
    (Kim et al., 2023) weights, by such second-order terms.

    That errors at different tokens meet in attention is not in it: of SmolLM2's queries, keys and
    values it tells half of what is lost. So one option of each layer, together with those that read
    the same value, is tried on a few samples, and what it loses sets the scale of the others.

    On tensors without data nothing is measured: losses are n · 4^-bits for n weights.

    Args:
        program: stays as it is.
        layers: of the program, read by linear layers alone.
        schemes: to round with; one whose group size does not divide a layer's width is no option
            for it.
        called: the name of the pass that asks, for errors.
        search: how the scale of each group is searched for, as `quantize_weights` does.
        dense: whether to leave a layer as it is is an option, too.
        progress: told what is being done.

    Raises:
        NotApplicable: if no scheme fits a layer, there are no samples, or no gradient reaches any.
    """
    for layer in layers:
        if not (dense or any(_fits(scheme, layer) for scheme in schemes)):
            raise NotApplicable(
                f"{called}: no candidate fits {layer.name}: no group size on offer divides its "
                f"{layer.width} input features. Add a candidate per channel (group_size: null)."
            )
    if not program.has_data:
        losses: _Losses = {(one.name, way): _unseen(one, way) for one in layers for way in schemes}
    else:
        losses = _measured(program, layers, schemes, called, search, progress)
    groups = _groups(layers)
    return [
        Sensitivity(
            name=layer.name,
            group=groups[layer.name],
            numbers=layer.node.meta["val"].numel(),
            readers=len(layer.node.users),
            nbytes=program.tensors[layer.name].nbytes,
            options=tuple(_options(layer, program, schemes, losses, dense=dense)),
        )
        for layer in layers
    ]


def decode_bytes(program: Program) -> int:
    """Bytes moved when a program runs for one request of the least sizes: a step of decoding."""
    least = {size.name: max(size.min, 1) for size in program.sizes}
    return total(costs(program, least).values()).nbytes


def _fits(scheme: QuantScheme, layer: Layer) -> bool:
    return scheme.group_size is None or layer.width % scheme.group_size == 0


_Losses = Mapping[tuple[str, QuantScheme], tuple[float, float, float]]
"""Error, output and loss of an option, by the layer's name and the scheme."""


def _options(
    layer: Layer,
    program: Program,
    schemes: Iterable[QuantScheme],
    losses: _Losses,
    *,
    dense: bool,
) -> Iterable[Option]:
    if dense:
        yield Option(None, program.tensors[layer.name].nbytes, 0.0, 0.0, 0.0)
    shape = layer.matrix(program.tensors).to("meta")
    for scheme in schemes:
        if _fits(scheme, layer):
            stored, _ = round_to_nearest(shape, scheme)
            nbytes = sum(tensor.nbytes for tensor in stored.tensors.values())
            yield Option(scheme, nbytes, *losses[layer.name, scheme])


def _unseen(layer: Layer, scheme: QuantScheme) -> tuple[float, float, float]:
    """What stands in for the losses of a layer without data: each bit halves the error."""
    noise = float(layer.node.meta["val"].numel()) / 4**scheme.bits
    return noise, noise, noise


def _measured(
    program: Program,
    layers: Sequence[Layer],
    schemes: Sequence[QuantScheme],
    called: str,
    search: Literal[True, False, "inputs"],
    progress: Progress,
) -> _Losses:
    requests = [
        request
        for sample in spread(samples_of(program, called), TOKENS)
        for request in requests_of(program, sample)
    ]
    owner = {reader: layer for layer in layers for reader in layer.node.users}
    found, count = _gradients(program, owner, requests, called, progress)
    sizes = dict.fromkeys((layer.name for layer in layers), 0.0)
    sums = {(layer.name, scheme): (0.0, 0.0) for layer in layers for scheme in schemes}
    scales = dict.fromkeys(sizes, 1.0)
    rerun = Rerun(program, _few(requests))
    for visit in walk(program, requests, list(owner), tell=lambda *far: progress("layers", *far)):
        moments, rows = second_moments(visit.inputs)
        moments /= rows
        squares = moments.diagonal() if search == "inputs" else None
        made: dict[QuantScheme, dict[str, Tensor]] = {scheme: {} for scheme in schemes}
        for node in visit.layers:
            layer, slope = owner[node], found[node.name]
            shares = slope.features / slope.features.sum().clamp_min(TINY)
            weighted, _ = second_moments(_weighted(visit.inputs, slope.rows))
            weighted /= max(count, 1)
            matrix = layer.matrix(program.tensors)
            sizes[layer.name] += float(_squares(matrix, moments).sum())
            for scheme in [one for one in schemes if _fits(one, layer)]:
                rounded, _ = round_to_nearest(matrix, scheme, search=bool(search), squares=squares)
                read = rounded.dequantize()
                made[scheme][layer.name] = read.to(matrix.dtype)
                wrong = read.float() - matrix
                output, loss = sums[layer.name, scheme]
                sums[layer.name, scheme] = (
                    output + float(_squares(wrong, moments).sum()),
                    loss + float(_squares(wrong, weighted) @ shares) / 2,
                )
        if all(len(owner[node].node.users) == 1 for node in visit.layers):
            here = [owner[node] for node in visit.layers]
            scales |= dict.fromkeys((one.name for one in here), _scale(rerun, here, made, sums))
    return {
        (name, scheme): ((output / max(sizes[name], TINY)) ** 0.5, output, scales[name] * loss)
        for (name, scheme), (output, loss) in sums.items()
    }


def _gradients(
    program: Program,
    owner: Mapping[fx.Node, Layer],
    requests: Sequence[Sample],
    called: str,
    progress: Progress,
) -> tuple[dict[str, Slopes], int]:
    """Squared gradients at all readers of layers, and of how many rows of outputs they are."""
    found, count = slopes(program, owner, requests, lambda *far: progress("gradients", *far))
    if not any(bool(one.features.any()) for one in found.values()):
        first = next(iter(owner.values())).name
        raise NotApplicable(
            f"{called}: no gradient of the outputs reaches {first} or any other layer that was "
            "asked for, so that nothing tells how sensitive they are; name others."
        )
    for reader, layer in owner.items():
        if not bool(found[reader.name].features.isfinite().all()):
            raise NotApplicable(
                f"{called}: the gradient of the outputs at {layer.name} is not finite on the "
                "samples, so nothing tells how sensitive it is; name it under ignore, or mend them."
            )
    return found, count


def _scale(
    rerun: Rerun,
    layers: Sequence[Layer],
    made: Mapping[QuantScheme, Mapping[str, Tensor]],
    sums: Mapping[tuple[str, QuantScheme], tuple[float, float]],
) -> float:
    """What layers that read one value lose when tried, as a share of what is estimated.

    Tried is the coarsest way to store them that is estimated to lose little, so that what is lost
    grows with the square of the errors as estimates do.
    """
    losses = {
        scheme: sum(sums[layer.name, scheme][1] for layer in layers)
        for scheme, matrices in made.items()
        if len(matrices) == len(layers)
    }
    little = [scheme for scheme, loss in losses.items() if NOISE < loss <= LITTLE]
    if not little:
        return 1.0
    scheme = max(little, key=losses.__getitem__)
    weights = {layer.node: layer.as_read(made[scheme][layer.name]) for layer in layers}
    scale = rerun.loss(weights, layers[0].first_reader) / losses[scheme]
    return min(max(scale, 1 / WIDEST), WIDEST)


def _few(requests: Sequence[Sample]) -> list[Sample]:
    """Those that layers are tried on: each layer takes half a run of each on average."""
    some = spread(requests, TRIED)
    return some if "input_ids" in some[0] else some[:FEW]


def _weighted(inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Rows of values [..., K] times the roots of their weights."""
    return [
        value.flatten(0, -2).float() * weight.sqrt().float()[:, None]
        for value, weight in zip(inputs, weights, strict=True)
    ]


def _squares(matrix: Tensor, moments: Tensor) -> Tensor:
    """The mean square of each output feature of a matrix [N, K], float64 [N]."""
    wide = matrix.float()
    return ((wide @ moments) * wide).sum(-1, dtype=torch.float64).clamp_min_(0)


def _groups(layers: Sequence[Layer]) -> dict[str, str]:
    """For each layer the first of those that read what it reads, also by way of others."""
    first = {layer.name: layer.name for layer in layers}
    by_source: dict[object, str] = {}
    for layer in layers:
        for reader in layer.node.users:
            known = by_source.setdefault(reader.args[0], layer.name)
            one, other = first[known], first[layer.name]
            first = {name: one if root == other else root for name, root in first.items()}
    return first
