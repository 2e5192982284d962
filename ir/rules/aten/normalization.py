"""Normalization: each element by statistics of what lies around it, or by given ones."""

from __future__ import annotations

from collections.abc import Mapping

from planish.ir.flow.call import Call, NotCovered, Result, Rule, Writes
from planish.ir.flow.polynomial import Count, quotient
from planish.ir.flow.vocabulary import (
    Expression,
    Fill,
    Reshape,
    affine,
    along,
    pointwise,
    reduction,
)
from planish.ir.rules.aten.table import named


def layer_norm(call: Call) -> Result:
    """`layer_norm` and `native_layer_norm(x, normalized_shape, weight, bias, eps)`."""
    value = call["input"]
    rank, inner = len(value.shape), len(call["normalized_shape"])
    dims = range(rank - inner, rank)
    call["eps"]
    call.get("cudnn_enable")
    out = affine(along("norm", value, dims), call["weight"], call["bias"])
    statistics = reduction("statistic", value, dims, keep=True)
    return (out, *(statistics for _ in call.outputs[1:]))


def batch_norm(call: Call) -> Result:
    """Every batch norm: by given statistics, or by those of the batch, which it may update.

    In training mode each element reads all of its channel: the batch and every position.
    """
    value = call["input"]
    rank = len(value.shape)
    given = {name: call[name] for name in _STATISTICS if call.get(name) is not None}
    training = _training(call)
    weight, bias, mean, variance = (_channels(given.get(name), rank) for name in _STATISTICS)
    dims = [dim for dim in range(rank) if dim != 1] if training else []
    own = along("norm", value, dims) if training else value
    out = _standardized(own, weight, bias, mean, variance)
    results: list[Expression] = [out]
    for output in call.outputs[1:]:
        if not training or len(output.shape) != 1 or output.shape[0] == 0:
            # What inference returns beside the result is empty, or a parameter's.
            same = [one for one in given.values() if one.shape == output.shape]
            results.append(pointwise("nonlinear", *same) if same else Fill(output.shape))
            continue
        statistic = reduction("statistic", value, dims)
        old = [given[name] for name in _RUNNING if name in given]
        results.append(pointwise("linear", statistic, *old))
    return tuple(results)


_RUNNING = ("running_mean", "running_var")
_STATISTICS = ("weight", "bias", *_RUNNING)


def _standardized(
    value: Expression,
    weight: Expression | None,
    bias: Expression | None,
    mean: Expression | None,
    variance: Expression | None,
) -> Expression:
    """`(value - mean) / sqrt(variance + eps) * weight + bias`, all of one number a channel."""
    if variance is not None:
        variance = pointwise("nonlinear", variance)
    return affine(affine(affine(value, None, mean), variance, None), weight, bias)


def _training(call: Call) -> bool:
    for name in ("momentum", "eps", "cudnn_enabled"):
        call.get(name)
    if "no_training" in call.operator:
        return False
    return bool(call.get("training", call.get("train", True)))


def _channels(parameter: Expression | None, rank: int) -> Expression | None:
    """A parameter of one number a channel, shaped so that it lies along dimension 1."""
    if parameter is None:
        return None
    return Reshape(parameter, (parameter.shape[0], *(1,) * (rank - 2)))


def instance_norm(call: Call) -> Expression:
    """`instance_norm(x [N, C, ...])`: statistics of each channel of each sample, or given ones."""
    value = call["input"]
    rank = len(value.shape)
    weight, bias, mean, variance = (_channels(call[name], rank) for name in _STATISTICS)
    call["momentum"], call["eps"], call["cudnn_enabled"]
    if call["use_input_stats"]:
        return affine(along("norm", value, range(2, rank)), weight, bias)
    return _standardized(value, weight, bias, mean, variance)


def group_norm(call: Call) -> Result:
    """`group_norm(x [N, C, ...], groups)` and `native_group_norm`: each group of channels."""
    native = "native" in call.operator
    value = call["input"]
    groups = call["group"] if native else call["num_groups"]
    for name in ("N", "C", "HxW") if native else ("cudnn_enabled",):
        call[name]
    if native and (call["N"], call["C"]) != (value.shape[0], value.shape[1]):
        raise NotCovered("sizes that are not the tensor's")
    call["eps"]
    rank = len(value.shape)
    batch, channels, *rest = value.shape
    width = _width(channels, groups)
    grouped = Reshape(value, (batch, groups, width, *rest))
    inner = range(2, rank + 1)
    normed = Reshape(along("norm", grouped, inner), value.shape)
    out = affine(normed, *(_channels(call[name], rank) for name in ("weight", "bias")))
    statistics = reduction("statistic", grouped, inner)
    return (out, *(statistics for _ in call.outputs[1:]))


def _width(channels: Count, groups: Count) -> Count:
    width = quotient(channels, groups)
    if width is None:
        raise NotCovered("a number of channels that groups do not divide")
    return width


def rms_norm(call: Call) -> Result:
    """`rms_norm(x, normalized_shape, weight, eps)`, and its fused form with the statistic."""
    value = call["input"]
    rank, inner = len(value.shape), len(call["normalized_shape"])
    dims = range(rank - inner, rank)
    call["eps"]
    out = affine(along("rms norm", value, dims), call["weight"], None)
    statistics = reduction("statistic", value, dims, keep=True)
    return (out, *(statistics for _ in call.outputs[1:]))


def running_statistics(call: Call) -> Mapping[str, Expression]:
    """What a norm in training mode leaves in the running statistics that it is given.

    The schemas of some of these operators do not say that they write them.
    """
    if not call.get("training", call.get("use_input_stats", True)):
        return {}
    value = call["input"]
    batch = reduction("statistic", value, [dim for dim in range(len(value.shape)) if dim != 1])
    given = {name: call[name] for name in _RUNNING}
    return {name: pointwise("linear", batch, old) for name, old in given.items() if old is not None}


RULES: dict[str, Rule] = (
    named(layer_norm, "layer_norm.default native_layer_norm.default")
    | named(
        batch_norm,
        """batch_norm.default native_batch_norm.default
        _native_batch_norm_legit.default _native_batch_norm_legit.no_stats
        _native_batch_norm_legit_functional.default
        _native_batch_norm_legit_no_training.default _batch_norm_with_update.default
        _batch_norm_with_update_functional.default _batch_norm_no_update.default""",
    )
    | named(instance_norm, "instance_norm.default")
    | named(group_norm, "group_norm.default native_group_norm.default")
    | named(rms_norm, "rms_norm.default _fused_rms_norm.default")
)

_UPDATING = """batch_norm.default native_batch_norm.default instance_norm.default
    _native_batch_norm_legit.default _batch_norm_with_update.default
    cudnn_batch_norm.default miopen_batch_norm.default _batch_norm_impl_index.default"""

WRITES = {f"aten.{name}": Writes(_RUNNING, running_statistics) for name in _UPDATING.split()}
"""Norms that update running statistics in place."""
