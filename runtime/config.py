"""What a model's JSON files say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file or it holds no object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def setting(config: Mapping[str, Any], *names: str) -> int | None:
    """A number from `config.json` under the first of the names that it has.

    Models of text and more keep what concerns text in `text_config`.
    """
    places = (config, config.get("text_config") or {})
    found = (place.get(name) for place in places for name in names)
    return next((value for value in found if isinstance(value, int)), None)
