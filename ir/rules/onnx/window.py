"""Operators that read windows of a picture or a signal: pooling, resampling, transforms.

A window counts as the whole of its dimension: it is exact enough, for requests do not lie there.
"""

from __future__ import annotations

from collections.abc import Sequence

from planish.ir.flow.call import NotCovered, Result
from planish.ir.flow.lookup import lookup
from planish.ir.flow.polynomial import Count, Polynomial
from planish.ir.flow.vocabulary import (
    Expression,
    Operand,
    Reads,
    Shape,
    everything,
    reduction,
    replace_at,
)
from planish.ir.rules.onnx.call import OnnxCall, OnnxRule, named, of_rank
from planish.ir.rules.onnx.sizes import ceiled, floored, least, scaled


def windows(call: OnnxCall, spatial: Shape, sizes: Sequence[int], ceil: bool = False) -> Shape:
    """The sizes after a window of `sizes` has moved over `spatial` dimensions.

    Asks for `strides`, `pads`, `dilations` and `auto_pad`.

    Raises:
        NotCovered: if the window has another rank.
    """
    if len(sizes) != len(spatial):
        raise NotCovered("a window of another rank")
    strides = call.integers("strides") or [1] * len(sizes)
    dilations = call.integers("dilations") or [1] * len(sizes)
    pads = call.integers("pads") or [0] * (2 * len(sizes))
    mode = call.attribute("auto_pad", "NOTSET")
    result: list[Count] = []
    for place, size in enumerate(spatial):
        step, reach = strides[place], dilations[place] * (sizes[place] - 1) + 1
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            result.append(ceiled(size, step))
            continue
        around = pads[place], pads[place + len(sizes)]
        padded = size if mode == "VALID" else size + around[0] + around[1]
        result.append(_moved(padded - reach, step, ceil, size + around[0]))
    return tuple(result)


def _moved(room: Count, step: int, ceil: bool, last: Count) -> Count:
    """How often a window fits; rounded up, it has to begin before the padding at the end."""
    if not ceil:
        return floored(room, step) + 1
    number = ceiled(room, step) + 1
    if isinstance(number, int) and isinstance(last, int) and (number - 1) * step >= last:
        return number - 1
    if isinstance(number, Polynomial) and step != 1:
        return Polynomial.symbol(f"windows({room}, {step}, {last})")
    return number


def spatially(value: Expression, shape: Shape, kind: str = "window") -> Expression:
    """Each element reads whole the dimensions of `value` from the third on."""
    tags = tuple(dim if dim < 2 else f"window{dim}" for dim in range(len(value.shape)))
    return Reads(shape, (Operand(value, tags),), kind)


def pool(call: OnnxCall) -> Result:
    """`MaxPool`, `AveragePool`, `LpPool`, and `MaxPool`'s places."""
    value = call.input(0)
    call.ignore("count_include_pad", "p", "storage_order")
    kernel = call.integers("kernel_shape") or []
    ceil = bool(call.attribute("ceil_mode", 0))
    shape = (*value.shape[:2], *windows(call, value.shape[2:], kernel, ceil))
    return tuple(spatially(value, shape) for _ in call.outputs)


def global_pool(call: OnnxCall) -> Expression:
    """`GlobalAveragePool` and others: one number a channel."""
    value = call.input(0)
    call.ignore("p")
    return reduction("mean", value, range(2, len(value.shape)), keep=True)


def max_unpool(call: OnnxCall) -> Expression:
    """`MaxUnpool(x, places)`: the places count through the whole tensor."""
    value, places = call.input(0), call.input(1)
    kernel = call.integers("kernel_shape") or []
    strides = call.integers("strides") or [1] * len(kernel)
    pads = call.integers("pads") or [0] * (2 * len(kernel))
    shape: Shape
    if call.given(2):
        shape = tuple(call.numbers(2))
    else:
        spatial = (
            (size - 1) * strides[n] + kernel[n] - pads[n] - pads[n + len(kernel)]
            for n, size in enumerate(value.shape[2:])
        )
        shape = (*value.shape[:2], *spatial)
    return everything("scatter", shape, value, places)


def resize(call: OnnxCall) -> Expression:
    """`Resize` and `Upsample`: dimensions whose size does not change are read in place.

    Next to one that is interpolated they are not: ONNX Runtime interpolates several at once, and
    a neighbour of weight 0 passes NaN and infinity on.
    """
    for name in _RESIZE:
        call.ignore(name)
    value = call.input(0)
    rank = len(value.shape)
    shape, moved = _resized(call, value.shape)
    crops = call["coordinate_transformation_mode"] == "tf_crop_and_resize"
    axes = call.integers("axes")
    if crops:
        moved = set(range(rank) if axes is None else (call.place(axis, rank) for axis in axes))
    tags = tuple(f"resized{dim}" if dim in moved else dim for dim in range(rank))
    operands = [Operand(value, tags)]
    if crops and call.given(1):
        operands.append(Operand(call.input(1), ("region",)))
    copies = not moved or call["mode"] in (None, "nearest")
    beside = set() if copies else _beside(moved, rank)
    return Reads(shape, tuple(operands), "window", frozenset(beside - moved))


def _beside(moved: set[int], rank: int) -> set[int]:
    """The dimensions that are interpolated together with these."""
    together = {4: ({2, 3}, {1, 2}), 5: ({2, 3, 4},)}.get(rank, ())
    return next((dims for dims in together if moved <= dims), set(range(rank)))


_RESIZE = [
    "cubic_coeff_a",
    "exclude_outside",
    "extrapolation_value",
    "nearest_mode",
    "antialias",
    "keep_aspect_ratio_policy",
]


def _resized(call: OnnxCall, old: Shape) -> tuple[Shape, set[int]]:
    """The new sizes, and the dimensions in which elements are interpolated."""
    factors, sizes = _targets(call)
    axes = call.integers("axes")
    dims = range(len(old)) if axes is None else [call.place(axis, len(old)) for axis in axes]
    shape = list(old)
    moved = set()
    policy = call["keep_aspect_ratio_policy"]
    for place, dim in enumerate(dims):
        if factors is not None:
            if factors[place] != 1.0:
                shape[dim] = scaled(old[dim], factors[place])
                moved.add(dim)
        elif policy not in (None, "stretch"):
            shape[dim] = Polynomial.symbol(f"fitted({old}, {sizes}, {policy}, {dim})")
            moved.add(dim)
        elif sizes[place] != old[dim]:
            shape[dim] = sizes[place]
            moved.add(dim)
    if any(least(size) is None for size in shape):
        raise NotCovered("a size may be negative")
    return tuple(shape), moved


def _targets(call: OnnxCall) -> tuple[tuple[float, ...] | None, list[Count]]:
    """Factors, or else sizes."""
    upsample = call.name == "Upsample"
    call.optional(1), call.optional(2)
    if upsample and call.version < 9:
        scales = call["scales"]
        if scales is None:
            raise NotCovered("an upsampling of opset 1")
        return tuple(scales), []
    place = 1 if upsample or call.version < 11 else 2
    if not upsample and call.version >= 11 and call.given(3) and not _empty(call.input(3)):
        return None, call.numbers(3)
    factors = call.floats(place)
    if not factors:
        raise NotCovered("factors that are not stored in the model")
    return factors, []


def _empty(value: Expression) -> bool:
    return value.shape == (0,)


def grid_sample(call: OnnxCall) -> Expression:
    """`GridSample(x [N, C, ...], grid [N, ..., n])`: each place reads its sample's picture."""
    call.ignore("align_corners", "padding_mode", "mode")
    value, grid = call.input(0), call.input(1)
    rank = len(value.shape)
    picture = Operand(value, (0, 1, *(f"window{dim}" for dim in range(2, rank))))
    places = Operand(grid, (0, *range(2, rank), "coordinate"))
    return Reads((*value.shape[:2], *grid.shape[1:-1]), (picture, places), "window")


def fold_columns(call: OnnxCall) -> Expression:
    """`Col2Im(x [N, C k, L], picture's sizes, window's sizes)`."""
    call.ignore("strides", "pads", "dilations")
    value = of_rank(call.input(0), 3)
    picture, block = call.numbers(1), call.axes(2)
    area = 1
    for size in block:
        area *= size
    channels = floored(value.shape[1], area)
    tags = (0, "column", "place")
    return Reads((value.shape[0], channels, *picture), (Operand(value, tags),), "window")


def roi_align(call: OnnxCall) -> Expression:
    """`RoiAlign(x [N, C, H, W], rois [R, 4], pictures [R])`: a picture by its number."""
    call.ignore("mode", "sampling_ratio", "spatial_scale", "coordinate_transformation_mode")
    value, rois, which = of_rank(call.input(0), 4), call.input(1), call.input(2)
    size = call.attribute("output_height", 1), call.attribute("output_width", 1)
    shape = (rois.shape[0], value.shape[1], *size)
    picture, tag = lookup(value, 0, call.known(which), (0,), which.shape)
    operands = (
        Operand(picture, (tag, 1, "height", "width")),
        Operand(rois, (0, "corner")),
        Operand(which, (0,)),
    )
    return Reads(shape, operands, "gather")


def max_roi_pool(call: OnnxCall) -> Expression:
    """`MaxRoiPool(x [N, C, H, W], rois [R, 5])`: a region names its picture."""
    call.ignore("spatial_scale")
    value, rois = of_rank(call.input(0), 4), call.input(1)
    size = call.integers("pooled_shape") or []
    operands = (Operand(value, ("picture", 1, "height", "width")), Operand(rois, (0, "corner")))
    return Reads((rois.shape[0], value.shape[1], *size), operands, "gather")


def fourier(call: OnnxCall) -> Expression:
    """`DFT(x [..., 1 or 2], length, axis)`."""
    value = call.input(0)
    rank = len(value.shape)
    if call.version < 20:
        axis = call.attribute("axis", 1)
    else:
        axis = call.integer(2) if call.given(2) else -2
    dim = call.place(axis, rank)
    length: Count = call.numbers(1)[0] if call.given(1) else value.shape[dim]
    half, back = call.attribute("onesided", 0), call.attribute("inverse", 0)
    if half and back:
        # From one half of a spectrum back to real numbers, twice as many.
        whole = length if call.given(1) else (value.shape[dim] - 1) * 2
        shape = replace_at(replace_at(value.shape, dim, whole), rank - 1, 1)
    else:
        shape = replace_at(value.shape, dim, floored(length, 2) + 1 if half else length)
        shape = replace_at(shape, rank - 1, 2)
    tags = tuple(f"whole{place}" if place in (dim, rank - 1) else place for place in range(rank))
    return Reads(shape, (Operand(value, tags),), "transform")


def short_fourier(call: OnnxCall) -> Expression:
    """`STFT(signal [N, L, 1 or 2], step, window, length)` to [N, frames, bins, 2]."""
    signal = call.input(0)
    step = call.integer(1)
    frame = call.optional(2)
    if call.given(3):
        length: Count = call.numbers(3)[0]
    elif frame is not None:
        length = frame.shape[0]
    else:
        raise NotCovered("no length of frames")
    bins = floored(length, 2) + 1 if call.attribute("onesided", 1) else length
    frames = floored(signal.shape[1] - length, step) + 1
    tags = (0, "time", "part")[: len(signal.shape)]
    operands = [Operand(signal, tags)]
    if frame is not None:
        operands.append(Operand(frame, ("frame",)))
    return Reads((signal.shape[0], frames, bins, 2), tuple(operands), "transform")


RULES: dict[tuple[str, str], OnnxRule] = (
    named(pool, "MaxPool AveragePool LpPool")
    | named(global_pool, "GlobalAveragePool GlobalMaxPool GlobalLpPool")
    | named(max_unpool, "MaxUnpool")
    | named(resize, "Resize Upsample")
    | named(grid_sample, "GridSample")
    | named(fold_columns, "Col2Im")
    | named(roi_align, "RoiAlign")
    | named(max_roi_pool, "MaxRoiPool")
    | named(fourier, "DFT")
    | named(short_fourier, "STFT")
)
