"""Operators on pictures whose channels lie in blocks: ONNX Runtime's fastest layout on CPUs.

Within a sample the blocked layout is left open: each element counts as reading all of its sample.
"""

from __future__ import annotations

from planish.ir.flow.call import NotCovered
from planish.ir.flow.vocabulary import Expression, Shape
from planish.ir.rules.onnx.call import OnnxCall, named, of_rank, plain
from planish.ir.rules.onnx.contrib_attention import own_sample
from planish.ir.rules.onnx.sizes import scaled
from planish.ir.rules.onnx.window import windows

DOMAIN = "com.microsoft.nchwc"

_BLOCKS = (8, 16)
"""How many channels may lie in a block; which it is depends on the CPU."""


def reorder_input(call: OnnxCall) -> Expression:
    """`ReorderInput(x [N, C, H, W])`: into blocks, without padding."""
    value = of_rank(call.input(0), 4)
    batch, channels, *places = value.shape
    if call.attribute("channels_last", 0):
        places, channels = [channels, places[0]], places[1]
    if plain(channels) % _BLOCKS[-1]:
        raise NotCovered("channels that do not fill their blocks")
    return own_sample((batch, channels, *places), [value], [])


def reorder_output(call: OnnxCall) -> Expression:
    """`ReorderOutput(x)`: out of blocks, padding cut off."""
    value = of_rank(call.input(0), 4)
    channels = call["channels"]
    if not isinstance(channels, int):
        raise NotCovered("no number of channels")
    batch, _, *places = value.shape
    last = call.attribute("channels_last", 0)
    shape: Shape = (batch, *places, channels) if last else (batch, channels, *places)
    return own_sample(shape, [value], [])


def conv(call: OnnxCall) -> Expression:
    """`Conv(x, weight, bias, sum)`: with an activation, and with another tensor added."""
    call.ignore("activation", "activation_params", "group")
    value, weight = of_rank(call.input(0), 4), call.input(1)
    kernel = call.integers("kernel_shape") or [plain(size) for size in weight.shape[2:]]
    shape = (value.shape[0], weight.shape[0], *windows(call, value.shape[2:], kernel))
    rows = [value, *([call.input(3)] if call.given(3) else [])]
    return own_sample(shape, rows, [weight, *([call.input(2)] if call.given(2) else [])])


def pool(call: OnnxCall) -> Expression:
    """`MaxPool` and `AveragePool(x)`."""
    call.ignore("count_include_pad", "storage_order")
    value = of_rank(call.input(0), 4)
    kernel = call.integers("kernel_shape") or []
    ceil = bool(call.attribute("ceil_mode", 0))
    shape = (*value.shape[:2], *windows(call, value.shape[2:], kernel, ceil))
    return own_sample(shape, [value], [])


def global_pool(call: OnnxCall) -> Expression:
    """`GlobalMaxPool` and `GlobalAveragePool(x)`."""
    value = of_rank(call.input(0), 4)
    return own_sample((*value.shape[:2], 1, 1), [value], [])


def upsample(call: OnnxCall) -> Expression:
    """`Upsample(x)`: within each picture."""
    call.ignore("mode", "coordinate_transformation_mode")
    value = of_rank(call.input(0), 4)
    factors = call.integers("scales")
    if factors is None or len(factors) != 4 or factors[:2] != [1, 1]:
        raise NotCovered("factors that are not known")
    pairs = zip(value.shape, factors, strict=True)
    return own_sample(tuple(scaled(size, factor) for size, factor in pairs), [value], [])


RULES = (
    named(reorder_input, "ReorderInput", DOMAIN)
    | named(reorder_output, "ReorderOutput", DOMAIN)
    | named(conv, "Conv", DOMAIN)
    | named(pool, "MaxPool AveragePool", DOMAIN)
    | named(global_pool, "GlobalMaxPool GlobalAveragePool", DOMAIN)
    | named(upsample, "Upsample", DOMAIN)
)
