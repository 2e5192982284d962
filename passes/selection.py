"""Which layers a pass that stores weights anew is to take, and refusals of what it cannot."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from torch import fx

from planish.ir.program import Program
from planish.passes.contract import NotApplicable
from planish.passes.layers import LINEAR, ROUTER, Layer, layers_of, unmatched

GROUP_SIZES = (32, 64, 128)

SHOWN = 3
"""How many names an error lists."""


class Special(NamedTuple):
    """The option of a pass that asks for layers of a role that are otherwise left alone."""

    option: str
    asked: bool


def selected(
    called: str,
    graph: fx.Graph,
    program: Program,
    targets: Sequence[str],
    ignore: Sequence[str],
    special: Mapping[str, Special],
    *,
    also: Collection[str] = (),
    named: Sequence[str] = (),
) -> list[Layer]:
    """The layers that patterns name, without those of roles that nobody asked for.

    Args:
        called: the name of the pass.
        graph: of the program, or a copy.
        program: whose layers they are.
        targets: which layers.
        ignore: which of them not.
        special: by role what asks for layers of it; roles that are neither there nor
            in `also` are never taken.
        also: roles that are taken as linear layers are.
        named: more patterns that must match a layer.

    Raises:
        NotApplicable: if there is no layer, a pattern matches none, or none is left.
    """
    model = program.source.name
    layers = layers_of(graph, program)
    if not layers:
        raise NotApplicable(
            f"{called}: {model} has no linear layer whose weight is a tensor of its own, not "
            "quantized yet; there is nothing to do."
        )
    if problem := unmatched((*targets, *ignore, *named), layers):
        raise NotApplicable(f"{called}: {problem}")
    asked = {role for role, one in special.items() if one.asked}
    wanted = [
        layer
        for layer in layers
        if (layer.roles & asked or layer.matches(targets)) and not layer.matches(ignore)
    ]
    chosen = [layer for layer in wanted if layer.roles <= {LINEAR, *also, *asked}]
    for layer in wanted:
        if layer not in chosen and (layer.roles & asked or not chosen):
            raise NotApplicable(f"{called}: {_left_alone(layer, special)}")
    if not chosen:
        raise NotApplicable(
            f"{called}: ignore leaves none of the layers that targets name in {model}."
        )
    return chosen


def check_widths(
    called: str, size: int | None, layers: Sequence[Layer], *, fixed: bool = False
) -> None:
    """Refuse a group size that does not divide every width.

    Args:
        called: the pass.
        size: of the groups; None for whole rows, which always fit.
        layers: that are to be rounded.
        fixed: whether the format has no other size.

    Raises:
        NotApplicable: naming the pass, layers that it does not fit, and a size that does.
    """
    if size is None:
        return
    wrong = [layer for layer in layers if layer.width % size]
    if not wrong:
        return
    widths = sorted({layer.width for layer in wrong})
    fitting = [other for other in GROUP_SIZES if not any(width % other for width in widths)]
    remedy = (
        "MXFP4 has no other size, a format with type: int has"
        if fixed
        else f"group_size: {min(fitting, key=lambda other: abs(other - size))} does"
        if fitting
        else "no size on offer does; group_size: null (per channel) fits any width"
    )
    raise NotApplicable(
        f"{called}: a group size of {size} does not divide the input "
        f"features of {_listed([layer.names[0] for layer in wrong])} "
        f"({_listed(widths)}); {remedy}. Or name these layers under ignore."
    )


def _left_alone(layer: Layer, special: Mapping[str, Special]) -> str:
    """Why a layer that was asked for is not taken, and what would change that."""
    missing = [role for role in sorted(layer.roles - {LINEAR}) if not _asked(role, special)]
    what = f"{layer.names[0]} is the {' and the '.join(sorted(layer.roles))}"
    if ROUTER in missing:
        return f"{what} of experts, which stays in floating point; take it out of targets."
    if not special.keys() >= {*missing}:
        return f"{what} of this model, which stays in floating point; take it out of targets."
    options = " and ".join(f"{special[role].option}: true" for role in missing)
    return f"{what} of this model, which stays as it is unless you set {options}."


def _asked(role: str, special: Mapping[str, Special]) -> bool:
    return role in special and special[role].asked


def _listed(things: Sequence[object]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(things) - SHOWN} more" if len(things) > SHOWN else ""
    return ", ".join(map(str, things[:SHOWN])) + more
