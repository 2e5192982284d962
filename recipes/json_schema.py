"""The JSON Schema of recipes, for editors that complete and check YAML."""

from __future__ import annotations

import inspect
from typing import Any, get_args

from pydantic import TypeAdapter

from planish.passes import PASSES
from planish.passes.contract import Pass
from planish.recipes.check import Isolation, Target

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) that holds for what `load` accepts, a branch for each pass."""
    return {
        "$schema": DRAFT,
        "title": "Planish recipe",
        "description": "What to do with a model: the passes to run, in order.",
        "type": "object",
        "properties": {
            "description": {"type": "string", "description": "For people."},
            "isolation": {
                "enum": list(get_args(Isolation)),
                "default": "enforce",
                "description": "What is asked of requests that share a batch: bitwise the same "
                "result in any batch, no way from one to another, a warning, or nothing.",
            },
            "target": {
                "enum": list(get_args(Target)),
                "default": "onnx",
                "description": "What to lower to.",
            },
            "passes": _list("The passes to run, in order."),
            "decode": _list(
                "The passes, in order, that make a second form of a language model, which reads "
                "single new tokens; the first reads prompts. For target onnx."
            ),
        },
        "required": ["passes"],
        "additionalProperties": False,
        "$defs": {name: _options(name, kind) for name, kind in PASSES.items()},
    }


def _list(description: str) -> dict[str, Any]:
    items = {"oneOf": [_item(name, kind) for name, kind in PASSES.items()]}
    return {"type": "array", "description": description, "items": items}


def _item(name: str, kind: type[Pass]) -> dict[str, Any]:
    """An item of the list: the pass with options or, where none is required, its bare name."""
    reference = {"$ref": f"#/$defs/{name}"}
    required = bool(_options(name, kind).get("required"))
    with_options = {
        "type": "object",
        "properties": {name: reference if required else {"oneOf": [reference, {"type": "null"}]}},
        "required": [name],
        "additionalProperties": False,
    }
    summary = {"title": name, "description": _summary(kind)}
    return {**summary, **(with_options if required else {"oneOf": [{"const": name}, with_options]})}


def _options(name: str, kind: type[Pass]) -> dict[str, Any]:
    """The options of a pass, their descriptions from the docstrings of its fields."""
    inner = f"#/$defs/{name}/$defs/{{model}}"  # where options that hold options lie
    described = TypeAdapter(kind).json_schema(ref_template=inner)
    return {**described, "description": _summary(kind)}


def _summary(kind: type[Pass]) -> str:
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())
