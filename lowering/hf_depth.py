"""Which config and names a Hugging Face folder has once whole layers are left out.

Layers are what a number in tensors' names counts. The fields of the config that say how many there
are, are found by trying: a model of the changed config, without data, has to have just the tensors
that are left, and each of its layers the settings of the layer that it stands for.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from planish.ir.program import Program, Source
from planish.lowering.compressed_tensors import NotExpressible
from planish.lowering.hf_settings import Settings, built, numbers, replaced

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Stack:
    """Layers that are counted in the names of tensors, some of which are gone.

    Attributes:
        prefix: what stands before the number, e.g. `model.layers`.
        before: the numbers there were.
        kept: those that are left, in order.
    """

    prefix: str
    before: tuple[int, ...]
    kept: tuple[int, ...]

    def renamed(self, name: str) -> str | None:
        """A name with the layer counted anew; None for one of a layer that is gone."""
        number = _number(name, self.prefix)
        if number is None:
            return name
        if number not in self.kept:
            return None
        rest = name.removeprefix(f"{self.prefix}.{number}")
        return f"{self.prefix}.{self.before[self.kept.index(number)]}{rest}"


def shortened(program: Program, original: Program) -> tuple[Program, Program]:
    """A program and what it was made from, as if the original never had the layers that are gone.

    Args:
        program: what passes made, under the names of the original.
        original: what they were given, from a Hugging Face checkpoint.

    Returns:
        Both with layers counted anew and the config of so many layers; as given, if no layer is
        gone.

    Raises:
        NotExpressible: if no change of the config leaves out just these layers.
    """
    stacks = stacks_of(program, original)
    if not stacks:
        return program, original
    source = _source(program, original, stacks)
    tensors = {
        name: new
        for name, new in _names(original.tensors, stacks).items()
        if name in original.source.stored_names or name in program.tensors
    }  # and not what no checkpoint holds, such as a rotary table of the layers that are gone
    aliases = _names(original.aliases, stacks)
    return _renamed(program, source, stacks), dataclasses.replace(
        original,  # whose graph nobody asks for when files are written
        tensors={new: original.tensors[name] for name, new in tensors.items()},
        aliases={new: tensors[original.aliases[name]] for name, new in aliases.items()},
        source=source,
    )


def stacks_of(program: Program, original: Program) -> list[Stack]:
    """The stacks of layers of which some are gone, tensors and all."""
    left = {name.removesuffix("_packed") for name in program.tensors}
    found: list[Stack] = []
    for prefix, before in _numbered(original).items():
        if any(prefix.startswith(f"{one.prefix}.") for one in found):
            continue
        kept = {_number(name, prefix) for name in left}
        if not set(before) <= kept:
            found.append(Stack(prefix, before, tuple(one for one in before if one in kept)))
    return found


def _numbered(program: Program) -> dict[str, tuple[int, ...]]:
    """The numbers that follow each prefix in the names of tensors, outer prefixes first."""
    found: dict[str, set[int]] = {}
    for name in program.tensors:
        parts = name.split(".")
        for place, part in enumerate(parts):
            if part.isdecimal():
                found.setdefault(".".join(parts[:place]), set()).add(int(part))
    prefixes = sorted(found, key=lambda prefix: prefix.count("."))
    return {prefix: tuple(sorted(found[prefix])) for prefix in prefixes}


def _number(name: str, prefix: str) -> int | None:
    if not name.startswith(f"{prefix}."):
        return None
    part = name[len(prefix) + 1 :].partition(".")[0]
    return int(part) if part.isdecimal() else None


def _new_name(name: str, stacks: list[Stack]) -> str | None:
    for stack in stacks:
        if _number(name, stack.prefix) is not None:
            return stack.renamed(name)
    return name


def _renamed(program: Program, source: Source, stacks: list[Stack]) -> Program:
    """A program whose tensors are counted anew."""
    names = _names([*program.tensors, *program.aliases], stacks)
    with program.edit() as edit:
        edit.tensors = {names[name]: tensor for name, tensor in edit.tensors.items()}
        edit.aliases = {names[other]: names[name] for other, name in edit.aliases.items()}
        for node in edit.graph.find_nodes(op="get_attr"):
            node.target = names[str(node.target)]
    return dataclasses.replace(edit.program, source=source)


def _names(old: Iterable[str], stacks: list[Stack]) -> dict[str, str]:
    """New names, of those that are left."""
    new = {name: _new_name(name, stacks) for name in old}
    return {name: found for name, found in new.items() if found is not None}


def _source(program: Program, original: Program, stacks: list[Stack]) -> Source:
    """Where the program would have come from."""
    before = original.source
    config = dict(program.source.config)
    names = _names(original.tensors, stacks)
    wanted = {new: tuple(original.tensors[name].shape) for name, new in names.items()}
    whole = _model(config)
    for changed in _configs(config, stacks):
        model = _model(changed)
        if model is not None and _fits(model, wanted) and _alike(whole, model, stacks):
            break
    else:
        gone = sum(len(stack.before) - len(stack.kept) for stack in stacks)
        where = ", ".join(stack.prefix for stack in stacks)
        raise NotExpressible(
            f"{gone} of the layers in {where} are left out, and no config of {before.name} says so "
            "of just these."
        )
    # What the graph does not use, such as counts of batches, is that of the layer of its number.
    new_names = _names(before.stored_names, stacks).values()
    stored = {new: before.stored_names.get(new, new) for new in new_names}
    return dataclasses.replace(program.source, config=changed, stored_names=stored)


def _configs(config: Settings, stacks: list[Stack]) -> Iterator[dict[str, Any]]:
    """Configs with fewer layers: each number that may count a stack changed, lists cut with it."""
    ways = [
        [at for at, value in numbers(config) if value == len(stack.before) and type(value) is int]
        for stack in stacks
    ]
    for chosen in itertools.product(*ways):
        if len(set(chosen)) < len(chosen):
            continue
        for every in (True, False):
            changed = copy.deepcopy(dict(config))
            for stack in stacks:
                _cut_lists(changed, stack, every=every)
            try:
                for stack, at in zip(stacks, chosen, strict=True):
                    changed = replaced(changed, at, len(stack.kept))
            except IndexError:
                continue  # it stands in a list that was cut
            yield changed


def _cut_lists(config: dict[str, Any], stack: Stack, *, every: bool) -> None:
    """Cut lists with an entry for each layer: all of that length, or those of words alone."""
    for key, value in config.items():
        if isinstance(value, dict):
            _cut_lists(value, stack, every=every)
            continue
        counts = isinstance(value, (list, tuple)) and len(value) == len(stack.before)
        if counts and (every or all(isinstance(one, str) for one in value)):
            config[key] = [value[stack.before.index(one)] for one in stack.kept]


def _model(settings: Settings) -> nn.Module | None:
    """The model of a config, without data; None if there is none."""
    try:
        with torch.device("meta"):
            return built(settings)
    except ValueError:  # whatever it is that does not hold together
        return None


def _fits(model: nn.Module, wanted: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a model has the tensors that are left, and no layers besides."""
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return all(state.get(name, shape) == shape for name, shape in wanted.items())


def _alike(before: nn.Module | None, after: nn.Module, stacks: list[Stack]) -> bool:
    """Whether each layer has the settings of the one that it stands for, its number aside."""
    if before is None:
        return False
    for stack in stacks:
        old, new = _children(before, stack.prefix), _children(after, stack.prefix)
        if len(new) != len(stack.kept):
            return False
        for place, number in enumerate(stack.kept):
            here = stack.before[place]
            settings = _settings(old[str(number)]), _settings(new[str(here)])
            if settings[0].keys() != settings[1].keys():
                return False
            pairs = [(value, settings[1][key]) for key, value in settings[0].items()]
            if any(pair not in {(pair[0], pair[0]), (number, here)} for pair in pairs):
                return False
    return True


def _children(model: nn.Module, prefix: str) -> dict[str, nn.Module]:
    return dict(model.get_submodule(prefix).named_children())


def _settings(layer: nn.Module) -> dict[tuple[str, str], Any]:
    """Classes and plain attributes of the modules of a layer, by the module and the name."""
    found: dict[tuple[str, str], Any] = {}
    for name, module in layer.named_modules():
        found[name, "class"] = type(module).__name__
        for key, value in vars(module).items():
            if isinstance(value, _PLAIN) and not key.startswith("_"):
                found[name, key] = value
    return found
