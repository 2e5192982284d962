"""Source text that reads the scales of groups: which slices of a block share one, and when.

Scales are narrow loads, which the compiler does not pipeline; so those of the next block are asked
for while this one is multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass

from planish.lowering.triton.specs import GroupScaled, WeightOnly

Grouped = WeightOnly | GroupScaled


@dataclass(frozen=True)
class Run:
    """Neighbouring slices of a block that share a scale.

    Attributes:
        slices: their numbers.
        group: the row of `scales` that holds it, as an expression of `{b}`, the block.
    """

    slices: range
    group: str


def runs(spec: Grouped) -> list[Run]:
    """Those of a block; none if a row has a single scale."""
    count = spec.folds
    if spec.group == spec.k:
        return []
    if spec.group % spec.block == 0:
        per = spec.group // spec.block
        return [Run(range(count), f"{{b}} // {per}" if per > 1 else "{b}")]
    each = spec.group // spec.lanes
    if count % each == 0:
        starts = range(0, count, each)
        many = len(starts)
        return [
            Run(range(start, start + each), f"{{b}} * {many} + {place}")
            for place, start in enumerate(starts)
        ]
    return [
        Run(range(index, index + 1), f"({{b}} * BLOCK + {index * spec.lanes}) // {spec.group}")
        for index in range(count)
    ]


def shared(spec: Grouped) -> tuple[str, ...]:
    """What each group has."""
    return ("scales", "zeros") if spec.zeros else ("scales",)


def loads(spec: Grouped, b: str, prefix: str) -> list[str]:
    """Read the scales, and zero points, of a block's groups."""
    return [
        f"{prefix}{name[:-1]}_{place} = tl.load({name}_ptr + ({run.group.format(b=b)}) * N + n, "
        "mask=n < N, other=0.0)"
        for place, run in enumerate(runs(spec))
        for name in shared(spec)
    ]


def moves(spec: Grouped) -> list[str]:
    """What was read ahead becomes the block's."""
    return [
        f"{name[:-1]}_{place} = next_{name[:-1]}_{place}"
        for place, _ in enumerate(runs(spec))
        for name in shared(spec)
    ]


def ahead(spec: Grouped) -> list[str]:
    """Read what the groups of the next block have, while there is one."""
    return [
        "# The next block's scales are asked for now, since such narrow loads are not",
        "# pipelined by the compiler.",
        "after = tl.minimum(b + 1, BLOCKS - 1)",
        *loads(spec, "after", "next_"),
    ]
