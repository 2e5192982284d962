"""What a verdict rests on besides the graph, in words for people.

What is said of several inputs is said once, and inputs whose names differ in numbers only, such as
the caches of a language model's layers, are named once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from planish.ir.flow.graph import Flow
from planish.ir.flow.polynomial import Count, Polynomial
from planish.ir.flow.vocabulary import Value
from planish.ir.isolation.labels import Labels

_VERBS = re.compile(r"(^|, and )(is|has|holds)\b")
"""The verbs of a predicate that agree with its subject."""


def assumptions(flow: Flow, labels: Labels, ties: Mapping[str, Count]) -> tuple[str, ...]:
    """What is taken for granted of a flow.

    Args:
        flow: whose inputs are meant.
        labels: which rows belong to whom.
        ties: by symbol of a batch size, the size that it was replaced by.
    """
    return (
        *_of_inputs(flow.inputs, labels),
        *_of_batch(labels.batch(flow.inputs), labels, ties),
        *(f"no request is given the output {one} (as declared)" for one in labels.internal),
        *_of_runs(flow),
    )


def _of_inputs(inputs: Sequence[Value], labels: Labels) -> Iterator[str]:
    """Whose each input is."""
    alike: dict[str, list[str]] = {}
    for value in inputs:
        said = _said(value, labels)
        if said is not None:
            alike.setdefault(said, []).append(value.name)
    for said, names in alike.items():
        others = [value.name for value in inputs if value.name not in names]
        predicate = said if len(names) == 1 else _VERBS.sub(_plural, said)
        yield f"{', '.join(_contracted(names, others))} {predicate}"


def _said(value: Value, labels: Labels) -> str | None:
    """Whose an input is, as a predicate."""
    declared = {
        **dict.fromkeys(
            labels.disjoint,
            "has a row for each request along the batch axis, which names pages that hold nothing "
            "of other requests, what rows are padded with among them",
        ),
        **dict.fromkeys(labels.pages, "holds pages of all requests"),
        **dict.fromkeys(labels.shared, "is the same for all requests"),
        **dict.fromkeys(labels.segment_ids, "is the same for all, and holds whose each row is"),
        **dict.fromkeys(
            labels.cu_seqlens,
            "is the same for all requests, and holds where the rows of each begin, from 0 to the "
            "number of rows",
        ),
    }
    if value.name in declared:
        return f"{declared[value.name]} (as declared)"
    if labels.whole(value.name):
        return "is all of the one request in a batch (as declared)"
    axis = labels.axis(value.name, value.shape)
    return None if axis is None else f"holds the batch along axis {axis}"


def _plural(found: re.Match[str]) -> str:
    return found[1] + {"is": "are", "has": "have", "holds": "hold"}[found[2]]


def _contracted(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Names with `*` for their numbers where that means several of them, and none of the others."""
    patterns = [re.sub(r"\d+", "*", name) for name in names]
    elsewhere = {re.sub(r"\d+", "*", name) for name in others}
    found = {
        pattern if pattern not in elsewhere and patterns.count(pattern) > 1 else name: None
        for name, pattern in zip(names, patterns, strict=True)
    }
    return list(found)


def _of_batch(batch: Count | None, labels: Labels, ties: Mapping[str, Count]) -> Iterator[str]:
    """How rows make requests, and how many rows there are."""
    owners = labels.owners
    if owners.rows > 1:
        how = "neighbouring rows" if owners.adjacent else "rows, one of each round,"
        yield f"{owners.rows} {how} belong to one request (as declared)"
    if len(ties) > 1:
        yield f"the batch sizes {', '.join(sorted(ties))} of the inputs are equal"
    if batch == 1:
        yield (
            "the batch has one row, as the model fixes it, and that row is one request: "
            "nothing is proven of requests that are packed into it one after another"
        )
    elif isinstance(batch, int):
        yield f"the batch has {batch} rows, as the model fixes it"


def _of_runs(flow: Flow) -> Iterator[str]:
    """Of sizes, stored values and checks."""
    if any(isinstance(size, Polynomial) for value in flow.inputs for size in value.shape):
        yield "sizes that are left open are at least 1"
    if flow.defaults:
        few = ", ".join(flow.defaults[:3]) + (", ..." if len(flow.defaults) > 3 else "")
        yield f"{len(flow.defaults)} inputs keep the values that the file stores for them ({few})"
    if flow.assertions:
        yield (
            f"{flow.assertions} checks of values in the graph hold: one that fails "
            "stops the run for all requests"
        )
    yield from (f"every run fails {one}" for one in flow.stops)
