"""Configs as data: their numbers, copies with one changed, and the models that transformers builds.

Nothing here knows a field by its name.
"""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from planish.ir.capture.checkpoint import model_class, quiet, read_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Settings = Mapping[str, Any]
Path = tuple[str | int, ...]
"""Where a number is in a config: keys, and places in lists."""


def parsed(settings: Settings) -> PretrainedConfig:
    """A config as it is read from a file, which is the form that infinity and the like have."""
    with tempfile.TemporaryDirectory(prefix="planish-") as folder:
        text = json.dumps(settings)
        (pathlib.Path(folder) / "config.json").write_text(text, encoding="utf-8")
        return read_config(folder)


def built(settings: Settings) -> nn.Module:
    """The model of a config, in evaluation mode, on the device that is torch's default.

    Raises:
        ValueError: if transformers refuses the config.
    """
    try:
        config = parsed(settings)
        with quiet():
            model: nn.Module = model_class(config)(config)
            return model.eval()
    # Configs are checked in as many ways as there are models.
    except Exception as error:
        raise ValueError(str(error)) from error


def numbers(settings: Any, at: Path = ()) -> Iterator[tuple[Path, int | float]]:
    """The numbers in a config, however deep."""
    if isinstance(settings, bool):
        return
    if isinstance(settings, int | float):
        yield at, settings
    elif isinstance(settings, Mapping):
        for key, value in settings.items():
            yield from numbers(value, (*at, key))
    elif isinstance(settings, list | tuple):
        for place, value in enumerate(settings):
            yield from numbers(value, (*at, place))


def replaced(settings: Any, at: Path, new: Any) -> Any:
    """A copy with one entry replaced."""
    if not at:
        return new
    key, *rest = at
    if isinstance(settings, Mapping):
        return {**settings, key: replaced(settings.get(key), tuple(rest), new)}
    copy = [*settings]
    copy[int(key)] = replaced(copy[int(key)], tuple(rest), new)
    return copy
