"""Tensors of transformers' classes that passes folded away or split, put back under their names.

A rotated model has norms without weights, and two tables where embeddings and logits shared one.
Its function is that of the same class whose norms multiply by ones and whose config ties nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from planish.ir.axes.fold import NORMS, own_table
from planish.ir.constants import ancestry, evaluate_constant
from planish.ir.edit import Edit
from planish.ir.program import Program

TIED = "tie_word_embeddings"
"""What every config of transformers says of a table that embeds and gives logits."""


def unfolded(program: Program, original: Program) -> tuple[Program, Program]:
    """A program with the tensors that its class has, and the original as if it tied nothing.

    Args:
        program: what passes made of the original, whose nodes they left their names.
        original: what they were given.

    Returns:
        Both; as given where nothing was folded or split. What they compute is the same.
    """
    with program.edit() as edit:
        back = _norms(edit, program, original)
        split = _tables(edit, program, original)
    if not back and not split:
        return program, original
    if not split:
        return edit.program, original
    return _telling(edit.program), _telling(_apart(original, split))


def _norms(edit: Edit, program: Program, original: Program) -> int:
    """Let norms read their weights under the original's names; how many did not."""
    found = 0
    nodes = {node.name: node for node in edit.nodes(*NORMS)}
    for before in original.nodes(*NORMS):
        node = nodes.get(before.name)
        if node is None or node.target is not before.target:
            continue
        place = NORMS[before.target]
        weight: Any = before.args[place]
        now: Any = node.args[place]
        name = _stored(weight)
        if name is None or name in program.tensors or (now is not None and _stored(now) is None):
            continue
        value = _ones(edit, node) if now is None else evaluate_constant(program, now)
        tensor = _giving(value, original, weight, name)
        if tensor is not None:
            node.update_arg(place, _copied(edit, weight, tensor, node))
            found += 1
    return found


def _stored(weight: Any) -> str | None:
    """The one tensor that a norm's weight is made of."""
    parts = [] if weight is None else ancestry(weight)
    names = {str(part.target) for part in parts if part.op == "get_attr"}
    return names.pop() if len(names) == 1 else None


def _ones(edit: Edit, node: fx.Node) -> Tensor:
    """What a norm without a weight multiplies by."""
    value: Tensor = node.meta["val"]
    device = next(iter(edit.tensors.values())).device
    return torch.ones(int(value.shape[-1]), dtype=value.dtype, device=device)


def _giving(value: Tensor, original: Program, weight: fx.Node, name: str) -> Tensor | None:
    """What to store as the tensor that a norm's weight is made of, so that it has a value.

    Some models store what is added to one: what is read is a + b * tensor, elementwise. None where
    it would be read in another dtype.
    """
    like = original.tensors[name].to(value.dtype)
    zeros, ones = (
        evaluate_constant(replace(original, tensors={name: torch.full_like(like, n)}), weight)
        for n in (0, 1)
    )
    if ones.dtype != value.dtype:
        return None
    return (value - zeros[0]) / (ones - zeros)[0]


def _copied(edit: Edit, weight: fx.Node, tensor: Tensor, before: fx.Node) -> fx.Node:
    """The original's reading of a norm's weight, of another tensor of the same name."""
    copies: dict[fx.Node, fx.Node] = {}
    for part in ancestry(weight):
        if part.op == "get_attr":
            copies[part] = edit.read(str(part.target), tensor, before=before)
        else:
            args, kwargs = fx.map_arg((part.args, part.kwargs), copies.__getitem__)
            operator: Any = part.target
            copies[part] = edit.call(operator, *args, before=before, **kwargs)
    return copies[weight]


def _tables(edit: Edit, program: Program, original: Program) -> dict[str, fx.Node]:
    """Give a table's second copy the name that the original had as an alias; who reads each."""
    found: dict[str, fx.Node] = {}
    for reader in original.graph.nodes:
        for table in reader.all_input_nodes:
            own = own_table(table, reader)
            names = [one for one, of in original.aliases.items() if of == table.target]
            split = [name for name in program.tensors if name == own or name.startswith(f"{own}_")]
            if len(names) != 1 or not split:
                continue
            found[names[0]] = reader
            new = {name: names[0] + name.removeprefix(own) for name in split}
            for node in edit.graph.find_nodes(op="get_attr"):
                node.target = new.get(str(node.target), node.target)
            edit.tensors |= {new[name]: edit.tensors[name] for name in split}
            edit.aliases.pop(names[0], None)
    return found


def _apart(original: Program, split: Mapping[str, fx.Node]) -> Program:
    """The original, with a tensor of its own for each alias, which one node reads."""
    with original.edit() as edit:
        nodes = {node.name: node for node in edit.nodes()}
        for name, before in split.items():
            reader, table = nodes[before.name], edit.aliases.pop(name)
            own = edit.read(name, edit.tensors[table], before=reader)
            for read in reader.all_input_nodes:
                if read.target == table:
                    reader.replace_input_with(read, own)
    return edit.program


def _telling(program: Program) -> Program:
    """A program whose config says that nothing is tied."""
    config = _tying_nothing(program.source.config)
    return replace(program, source=replace(program.source, config=config))


def _tying_nothing(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose model has a table for each use, and so have the models within it."""
    within = {
        key: _tying_nothing(value) if TIED in value else value
        for key, value in config.items()
        if isinstance(value, Mapping)
    }
    return {**config, **within, TIED: False}
