"""The sensitivity of a model's layers as one HTML page that loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planish.report import figures, sensitivity_figures
from planish.report.blocks import kinds_of
from planish.report.html import template
from planish.report.pictures import picture
from planish.report.words import percent, size, times

MOST_ROWS = 12
"""So many layers are listed at once, those first that lose most; the others open on demand."""

Json = Mapping[str, Any]


def render(found: Json, *, version: str = "", command: str = "") -> str:
    """The page. The same findings give the same page.

    Args:
        found: what `planish.sensitivity_command.findings` gives.
        version: Planish's.
        command: that made it.
    """
    layers = sorted(found["layers"], key=lambda layer: -layer["loss"])
    page: str = template("sensitivity.html.j2").render(
        title=found["model"],
        target=found["target"],
        met=found["met"],
        said=found["said"],
        tiles=_tiles(found),
        pictures=_pictures(found),
        reference=found["reference"],
        unit=found["unit"],
        rows=[_row(layer) for layer in layers],
        most_rows=MOST_ROWS,
        recipe=found["recipe"],
        command=command,
        version=version,
    )
    return page


def _tiles(found: Json) -> list[Json]:
    figure = found["figures"]
    met = "good" if found["met"] else "warn"
    return [
        _tile("target", found["target"], "met" if found["met"] else "not met: the nearest", met),
        _tile("bits a weight", f"{figure['bits']:.2f}", "scales and zero points included"),
        _tile("estimated loss", f"{figure['loss']:.3g}", found["unit"]),
        _tile("bytes of the model", percent(figure["size"]), "of what they were"),
        _tile("decoding", times(figure["speed"]), "modelled by bytes moved"),
    ]


def _tile(label: str, figure: str, detail: str, tone: str = "") -> Json:
    return {"label": label, "figure": figure, "detail": detail, "tone": tone}


def _pictures(found: Json) -> dict[str, Any]:
    layers, trades, chosen = found["layers"], found["front"], found["figures"]
    cells = {
        "losses": kinds_of([_cell(layer, layer["loss"]) for layer in layers]),
        "bits": kinds_of([_cell(layer, layer["bits"]) for layer in layers]),
    }
    worst = max(layers, key=lambda layer: layer["loss"])
    low, high = trades[0], trades[-1]
    return {
        "layers": picture(
            "layers",
            f"A disc for each of {len(layers)} layers, by bytes and estimated loss; the most "
            f"sensitive is {worst['layer']}.",
            lambda width: sensitivity_figures.layers(layers, width),
        ),
        "losses": picture(
            "losses",
            f"A map of estimated losses by kind of layer and block; the largest is that of "
            f"{worst['layer']}.",
            lambda width: figures.errors(cells["losses"], width),
        ),
        "front": picture(
            "front",
            f"Estimated loss falls from {low['loss']:.3g} at {low['bits']:.2f} bits to "
            f"{high['loss']:.3g} at {high['bits']:.2f}; chosen were {chosen['bits']:.2f} bits.",
            lambda width: sensitivity_figures.front(trades, chosen, width),
        ),
        "bits": picture(
            "bits",
            "A map of the bits chosen, by kind of layer and block.",
            lambda width: figures.errors(cells["bits"], width),
        ),
    }


def _cell(layer: Json, value: float) -> Json:
    """A layer as the map of `figures.errors` takes it: the darker, the larger the value."""
    return {"layer": layer["layer"], "nbytes": (layer["nbytes"],) * 2, "error": value}


def _row(layer: Json) -> Json:
    return {
        "layer": layer["layer"],
        "nbytes": size(layer["nbytes"]),
        "decoding": percent(layer["decoding"]),
        "error": percent(layer["error"]),
        "loss": f"{layer['loss']:.2e}",
        "chosen": layer["chosen"],
        "after": size(layer["chosen_bytes"]),
        "left": f"{layer['chosen_loss']:.2e}",
    }
