"""Which outputs of a program go back in as inputs, by the names that Planish gives them."""

from __future__ import annotations

from collections.abc import Iterable

TOKENS = "input_ids"
"""The input that language models read tokens from, [B, T]."""

IN_PLACE = "planish.caches_in_place"
"""In the metadata of an ONNX model: the inputs, separated by commas, into which a single token's
state is written where they lie."""


def carried(inputs: Iterable[str], outputs: Iterable[str]) -> dict[str, str | None]:
    """For each input that holds a state (`past_…`), the output that gives it back (`present…`).

    `past_key_values.3.key` comes out as `present.3.key`, `past_conv.0` as `present_conv.0`. None
    where there is no such output.
    """
    given = set(outputs)
    names: dict[str, str | None] = {}
    for past in (name for name in inputs if name.startswith("past_")):
        tail = past.removeprefix("past_")
        choices = (f"present{tail.removeprefix('key_values')}", f"present_{tail}")
        names[past] = next((name for name in choices if name in given), None)
    return names


def pairs(inputs: Iterable[str], outputs: Iterable[str]) -> dict[str, str]:
    """`carried`, without the inputs that no output gives back."""
    found = carried(inputs, outputs)
    return {past: present for past, present in found.items() if present is not None}
