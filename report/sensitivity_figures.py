"""Pictures of sensitivity: layers by bytes and loss, and the trades between bits and loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from planish.report.svg import AFTER, BEFORE, INK, MUTED
from planish.report.words import size

LARGEST_DISC = 260
"""Points², of the layer that takes the largest share of a step of decoding."""

Layer = Mapping[str, Any]


def layers(found: Sequence[Layer], width: float) -> Figure:
    """A disc for each layer: bytes to the right, loss upwards, area by its share of decoding."""
    figure, axes = _square(width)
    widest = max(layer["decoding"] for layer in found)
    most = max(layer["bits"] for layer in found)
    for layer in found:
        axes.scatter(
            layer["nbytes"],
            max(layer["loss"], 1e-12),
            s=LARGEST_DISC * layer["decoding"] / widest,
            facecolor=AFTER,
            edgecolor=AFTER,
            alpha=0.08 + 0.72 * layer["bits"] / most,
            linewidth=0.8,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(LogLocator(subs=()))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
    axes.set_xlabel("bytes of the weight as it is")
    axes.set_ylabel("estimated loss")
    return figure


def front(
    trades: Sequence[Mapping[str, float]], choice: Mapping[str, float], width: float
) -> Figure:
    """Estimated loss by bits a weight over all best choices, and the one that was made."""
    figure, axes = _square(width)
    axes.plot(
        [trade["bits"] for trade in trades],
        [max(trade["loss"], 1e-12) for trade in trades],
        color=BEFORE,
        linewidth=1.6,
    )
    axes.scatter(choice["bits"], max(choice["loss"], 1e-12), s=60, color=AFTER, zorder=3)
    axes.annotate(
        f"{choice['bits']:.2f} bits, {choice['loss']:.2g}",
        (choice["bits"], max(choice["loss"], 1e-12)),
        xytext=(9, 7),
        textcoords="offset points",
        color=INK,
        fontsize=9.5,
    )
    axes.set_xlabel("bits a weight, scales included")
    axes.set_ylabel("estimated loss")
    return figure


def _square(width: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, max(3.0, 0.5 * width)), layout="constrained")
    axes = figure.subplots()
    axes.set_yscale("log")
    axes.grid(True)
    axes.tick_params(length=0, which="both", labelsize=9.5)
    axes.tick_params(axis="y", labelcolor=MUTED)
    return figure, axes
