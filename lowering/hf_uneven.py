"""The config.json of a model whose layers differ in size: `per_layer_config`.

That is transformers' schema for such models: what a config says of all layers, and by a layer's
number what it says of that one alone. A layer's own settings are those of a model of which all
layers are like it, which the search for even sizes finds. Classes of transformers that refuse such
configs, as of 5.23 most do, can still be put together by these settings, a layer at a time; so what
is written is compared with the program here, and its readers are told what to expect.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from planish.lowering.compressed_tensors import NotExpressible
from planish.lowering.hf_config import Shapes, Sought, configs_for
from planish.lowering.hf_settings import Settings, built

KEY = "per_layer_config"


@dataclass(frozen=True)
class Layers:
    """A stack of layers with tensors of the same names, not all of the same shapes.

    Attributes:
        prefix: what stands before their numbers, e.g. `model.layers`.
        shapes: of each layer by its number, by what follows the number in a tensor's name.
    """

    prefix: str
    shapes: Mapping[int, Shapes]

    def all_like(self, one: int, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """The shapes of a model of which each layer is like one."""
        own = self.shapes[one]
        alike = {
            f"{self.prefix}.{number}.{rest}": own[rest] for number in self.shapes for rest in own
        }
        return {**shapes, **alike}


def uneven_layers(shapes: Shapes) -> Layers | None:
    """The one stack whose layers differ in nothing but sizes; None if there is none, or several."""
    stacks: dict[str, dict[int, dict[str, tuple[int, ...]]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for name, shape in shapes.items():
        parts = name.split(".")
        place = next((at for at, part in enumerate(parts) if part.isdecimal()), None)
        if place is not None:
            layer = stacks[".".join(parts[:place])][int(parts[place])]
            layer[".".join(parts[place + 1 :])] = shape
    uneven = []
    for prefix, layers in stacks.items():
        first, *others = layers.values()
        if any(one != first for one in others):
            uneven.append(Layers(prefix, layers))
    if len(uneven) != 1:
        return None
    (found,) = uneven
    names = {frozenset(layer) for layer in found.shapes.values()}
    return found if len(names) == 1 else None


def uneven_config(sought: Sought, layers: Layers) -> dict[str, Any]:
    """A config with what is the same for all layers, and `per_layer_config` with the rest.

    Raises:
        NotExpressible: if a model of layers like one of them has no config.
    """
    known: dict[frozenset[Any], dict[str, Any]] = {}
    found: dict[int, dict[str, Any]] = {}
    for number, own in layers.shapes.items():
        key = frozenset(own.items())
        if key not in known:
            alike = layers.all_like(number, sought.shapes)
            known[key] = next(configs_for(dataclasses.replace(sought, shapes=alike)))
        found[number] = known[key]
    first = found[min(found)]
    shared = {
        key: value
        for key, value in first.items()
        if all(key in one and one[key] == value for one in found.values())
    }
    base = {**sought.source.config, **shared}
    own_settings = {
        number: {key: value for key, value in one.items() if base.get(key) != value}
        for number, one in sorted(found.items())
    }
    return {**base, KEY: {str(number): own for number, own in own_settings.items() if own}}


def uneven_notes(settings: Settings) -> tuple[str, ...]:
    """What readers of a config should know, where its layers differ and transformers refuses it."""
    if KEY not in settings:
        return ()
    try:
        with torch.device("meta"):
            built(settings)
    except ValueError as error:
        return (
            f"{len(settings[KEY])} layers have sizes of their own, which config.json tells by "
            f"{KEY}. The installed transformers does not build such a model "
            f"({str(error).partition('. ')[0]}); the artifact itself runs in Planish and ONNX "
            "Runtime.",
        )
    return ()


def put_together(settings: Settings, layers: Layers) -> nn.Module:
    """The model that a config with `per_layer_config` describes, its layers' tensors unset.

    Raises:
        NotExpressible: if a layer computes from what no checkpoint holds.
        ValueError: if transformers refuses a layer's settings.
    """
    base = {key: value for key, value in settings.items() if key != KEY}
    model = built(base)
    stack = model.get_submodule(layers.prefix)
    for number, own in settings[KEY].items():
        with torch.device("meta"):
            layer = built({**base, **own}).get_submodule(f"{layers.prefix}.{number}")
        stored = layer.state_dict()
        if any(name not in stored for name, _ in layer.named_buffers()):
            raise NotExpressible(
                f"layers of {layers.prefix} differ in size and compute from what no file holds, so "
                "that their config cannot be tried."
            )
        setattr(stack, number, layer.to_empty(device="cpu").eval())
    return model
