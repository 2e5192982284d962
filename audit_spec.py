"""The file that tells an audit what it cannot see: whose rows are whose, contracts, waivers."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from planish.ir.errors import PlanishError
from planish.waivers import KEYS as WAIVER_KEYS


class BadSpec(PlanishError):
    """A file that says which rows belong to whom cannot be understood."""


@dataclass(frozen=True)
class _Key:
    """One key of the file: what it may hold, in words and as a check."""

    wanted: str
    fits: Callable[[Any], bool]


def _is_axes(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, int) for one in value.values())


def _is_axes_or_none(value: Any) -> bool:
    return isinstance(value, dict) and _is_axes(
        {name: axis for name, axis in value.items() if axis is not None}
    )


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_waivers(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict)
        and set(one) <= set(WAIVER_KEYS)
        and all(isinstance(part, str | date) for part in one.values())
        for one in value
    )


_AXES = _Key("names with a number each, such as {input_ids: 0}", _is_axes)
_NAMES = _Key("a list of names", _is_names)

KEYS: Mapping[str, _Key] = {
    "batch_axes": _Key(
        "names with a number each, or null, such as {input_ids: 0}", _is_axes_or_none
    ),
    "output_axes": _AXES,
    "shared": _NAMES,
    "internal": _NAMES,
    "owner_map": _Key(
        "a number of rows or a list of owners", lambda value: isinstance(value, int | list | str)
    ),
    "cu_seqlens": _NAMES,
    "segment_ids": _NAMES,
    "disjoint": _NAMES,
    "pages": _NAMES,
    "contracts": _Key(
        "operators with what they read, such as {my.domain::Op: {rows: [0, public]}}",
        lambda value: isinstance(value, dict),
    ),
    "custom_ops": _NAMES,
    "waivers": _Key(f"a list of mappings with the keys {', '.join(WAIVER_KEYS)}", _is_waivers),
}
"""What the file may say; each is an argument of `planish.audit`, too."""


def read_spec(path: str | Path) -> dict[str, Any]:
    """What a YAML or JSON file says, by key.

    Raises:
        BadSpec: if it cannot be understood, with the key and what would be right.
    """
    try:
        told = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}:{where.column + 1}" if where is not None else ""
        raise BadSpec(f"{path}{line}: this is neither YAML nor JSON.") from error
    if told is None:
        return {}
    if not isinstance(told, dict):
        raise BadSpec(f"{path}: give keys and values: {', '.join(KEYS)}.")
    for key, value in told.items():
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(KEYS)}."
            raise BadSpec(f"{path}: {key}: no such key; {hint}")
        if not KEYS[key].fits(value):
            raise BadSpec(f"{path}: {key}: give {KEYS[key].wanted}, not {value!r}.")
    return told
