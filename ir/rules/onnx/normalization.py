"""Norms: what each of them computes its statistics from."""

from __future__ import annotations

from planish.ir.flow.call import NotCovered, Result
from planish.ir.flow.polynomial import quotient
from planish.ir.flow.vocabulary import Expression, Reshape, along, pointwise, reduction
from planish.ir.rules.onnx.call import OnnxCall, named


def layer_norm(call: OnnxCall) -> Result:
    """`LayerNormalization(x, scale, bias, axis)`, the mean and the inverse deviation."""
    value, *parameters = call.inputs()
    call.ignore("epsilon", "stash_type")
    rank = len(value.shape)
    dims = range(call.place(call.attribute("axis", -1), rank), rank)
    out = along("norm", value, dims, *parameters)
    statistics = reduction("statistic", value, dims, keep=True)
    return (out, *(statistics for _ in call.outputs[1:]))


def along_channels(parameter: Expression, rank: int) -> Expression:
    """A parameter of one number a channel, shaped so that it lies along dimension 1."""
    return Reshape(parameter, (parameter.shape[0], *(1,) * (rank - 2)))


def batch_norm(call: OnnxCall) -> Result:
    """By given statistics; in training by those of the batch, which come out too.

    Training is asked for by an attribute from opset 14 on, before by asking for statistics, and
    up to opset 6 it is the default.
    """
    value = call.input(0)
    call.ignore("epsilon", "momentum", "consumed_inputs")
    rank = len(value.shape)
    if call.version >= 14:
        training = bool(call.attribute("training_mode", 0))
    elif call.version >= 7:
        training = len(call.outputs) > 1
    else:
        training = not call.attribute("is_test", 0)
    each_channel = bool(call.attribute("spatial", 1)) if call.version < 9 else True
    parameters = [call.input(place) for place in range(1, 5)]
    if each_channel:
        parameters = [along_channels(one, rank) for one in parameters]
    dims = [dim for dim in range(rank) if dim != 1] if each_channel else [0]
    out = along("norm" if training else "linear", value, dims if training else [], *parameters)
    results: list[Expression] = [out]
    for place in range(1, len(call.outputs)):
        statistic = reduction("statistic", value, dims if training else range(rank))
        results.append(pointwise("linear", statistic, call.input(3 if place % 2 else 4)))
    return tuple(results)


def instance_norm(call: OnnxCall) -> Expression:
    """`InstanceNormalization(x [N, C, ...])`: each channel of each sample."""
    value = call.input(0)
    call.ignore("epsilon", "consumed_inputs")
    rank = len(value.shape)
    parameters = [along_channels(call.input(place), rank) for place in (1, 2)]
    return along("norm", value, range(2, rank), *parameters)


def group_norm(call: OnnxCall) -> Expression:
    """`GroupNormalization(x [N, C, ...])`; parameters of each group, later of each channel."""
    value = call.input(0)
    call.ignore("epsilon", "stash_type")
    groups = call["num_groups"]
    if not isinstance(groups, int) or groups < 1:
        raise NotCovered("no number of groups")
    batch, channels, *rest = value.shape
    width = quotient(channels, groups)
    if width is None:
        raise NotCovered("channels that groups do not divide")
    rank = len(value.shape)
    split = Reshape(value, (batch, groups, width, *rest))
    normed: Expression = along("norm", split, range(2, rank + 1))
    parameters = [call.input(place) for place in (1, 2)]
    if call.version < 21:
        # One number a group: it lies along dimension 1 of the groups.
        normed = pointwise("linear", normed, *(along_channels(p, rank + 1) for p in parameters))
        return Reshape(normed, value.shape)
    out = Reshape(normed, value.shape)
    return pointwise("linear", out, *(along_channels(p, rank) for p in parameters))


def mean_variance_norm(call: OnnxCall) -> Expression:
    """`MeanVarianceNormalization(x, axes)`, whose default axes hold the batch."""
    value = call.input(0)
    axes = call.integers("axes")
    rank = len(value.shape)
    dims = [call.place(axis, rank) for axis in ([0, 2, 3] if axes is None else axes)]
    return along("norm", value, dims)


def local_response(call: OnnxCall) -> Expression:
    """`LRN(x [N, C, ...])`: channels near by."""
    call.ignore("alpha", "beta", "bias", "size")
    return along("window", call.input(0), (1,))


RULES = (
    named(layer_norm, "LayerNormalization RMSNormalization SimplifiedLayerNormalization")
    | named(batch_norm, "BatchNormalization")
    | named(instance_norm, "InstanceNormalization")
    | named(group_norm, "GroupNormalization")
    | named(mean_variance_norm, "MeanVarianceNormalization")
    | named(local_response, "LRN")
)
