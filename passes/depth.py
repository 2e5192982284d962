"""Leaving blocks out of a program, with their states and the names of those that are left."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import fx

from planish.ir.edit import Edit, drop_dead_nodes
from planish.ir.program import Program, Sample
from planish.ir.sizes import SymbolicShapes
from planish.passes.blocks import Block
from planish.passes.contract import NotApplicable

aten = torch.ops.aten

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
"""The number of a layer in the name of a state, such as `past_key_values.3.key`."""


def without(program: Program, blocks: Iterable[Block]) -> Program:
    """A program without some of its blocks.

    The streams go on as if each block added nothing. Inputs and outputs that hold the blocks'
    states go, in the samples too, and those of later layers are counted anew, so that
    `past_key_values.0` to `past_key_values.n-1` are left. Tensors keep their names.

    Args:
        program: stays as it is.
        blocks: of this program (`planish.passes.blocks.find_blocks`), none inside another.

    Raises:
        NotApplicable: if something else reads what a block computes, or none of the states is
            left that tell the program how long its past is.
    """
    chosen = list(blocks)
    for block in chosen:
        if block.held is not None:
            raise NotApplicable(f"{block.name} cannot be left out: {block.held}.")
    lost = [state for block in chosen for state in block.states]
    names = _names(program, lost)
    with program.edit() as edit:
        mine = {node.name: node for node in edit.graph.nodes}
        for block in sorted(chosen, key=_order(program), reverse=True):
            _bypass(edit, block, mine)
        _drop_states(edit, lost, names, program.shapes)
    return dataclasses.replace(
        edit.program,
        samples=tuple(_kept(sample, names) for sample in program.samples),
        calibration=tuple(_kept(sample, names) for sample in program.calibration),
    )


def _order(program: Program) -> Callable[[Block], int]:
    place = {node: number for number, node in enumerate(program.graph.nodes)}
    return lambda block: place[block.term or block.after]


def _bypass(edit: Edit, block: Block, mine: Mapping[str, fx.Node]) -> None:
    """Let the stream go on without one block; later ones have been left out already."""
    before, after = mine[block.before.name], mine[block.after.name]
    if block.term is None:
        edit.replace(after, before, f"{block.name}: left out")
        return
    term = mine[block.term.name]
    (total,) = (user for user in term.users if user.users)
    (other,) = (one for one in total.all_input_nodes if one is not term)
    alone = other is before and total is not after
    edit.replace(after if alone else total, before if alone else other, f"{block.name}: left out")


def _names(program: Program, lost: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The new name of each input and output that is left."""
    gone = {name for state in lost for name in state}
    found = (_NUMBER.search(past) for past, _ in lost)
    numbers = {int(match.group()) for match in found if match}

    def renamed(name: str) -> str:
        if not name.startswith(("past_", "present")):
            return name
        return _NUMBER.sub(
            lambda match: str(
                int(match.group()) - sum(one < int(match.group()) for one in numbers)
            ),
            name,
            count=1,
        )

    every = [*(spec.name for spec in program.inputs), *program.outputs]
    new = {name: renamed(name) for name in every if name not in gone}
    if len(set(new.values())) < len(new):  # a layer has lost some of its states, not all
        return {name: name for name in new}
    return new


def _drop_states(
    edit: Edit,
    lost: Sequence[tuple[str, str]],
    names: Mapping[str, str],
    shapes: SymbolicShapes,
) -> None:
    """Take out inputs and outputs that are gone, and rename the others."""
    returned = edit.graph.output_node()
    kept = [
        (names[name], node)
        for name, node in zip(edit.outputs, returned.args[0], strict=True)  # type: ignore[arg-type]
        if name in names
    ]
    returned.args = (tuple(node for _, node in kept),)
    edit.outputs = tuple(name for name, _ in kept)
    placeholders = {str(node.target): node for node in edit.graph.find_nodes(op="placeholder")}
    left = [node for name, node in placeholders.items() if name in names]
    for past, _ in lost:
        _reread_sizes(placeholders[past], left, shapes)
    edit.inputs = tuple(
        dataclasses.replace(spec, name=names[spec.name])
        for spec in edit.inputs
        if spec.name in names
    )
    drop_dead_nodes(edit.graph)
    for name, node in placeholders.items():
        if name in names:
            node.target = names[name]
        elif node.users:
            raise NotApplicable(f"the input {name} of what is left out is still read.")
        else:
            edit.graph.erase_node(node)


def _reread_sizes(gone: fx.Node, others: Sequence[fx.Node], shapes: SymbolicShapes) -> None:
    """Read the sizes of an input that goes from another of the same extent.

    Raises:
        NotApplicable: if there is none.
    """
    for size in [user for user in gone.users if user.target is aten.sym_size.int]:
        wanted = shapes.text(size.meta["val"])
        found = (
            (one, dim)
            for one in others
            for dim, extent in enumerate(one.meta["val"].shape)
            if shapes.text(extent) == wanted
        )
        source = next(found, None)
        if source is None:
            raise NotApplicable(
                f"{gone.target} is the last state that tells the length {wanted}, so its block has "
                "to stay: leave fewer blocks out."
            )
        size.args = source


def _kept(sample: Sample, names: Mapping[str, str]) -> Sample:
    return {names[name]: value for name, value in sample.items() if name in names}
