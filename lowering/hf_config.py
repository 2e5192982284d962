"""The config.json with which transformers builds a model of other sizes.

Which field of a config counts what is in no table here: fields are changed, one after the other,
to the sizes that the tensors have now, and what brings transformers' own model closer to these
tensors stays, until it has exactly them. That finds widths of MLPs, numbers of heads, of experts
and of layers alike. Shapes do not tell 16 heads of 4 from 4 heads of 16, so the model is also run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from planish.ir import ops
from planish.ir.program import Program, Sample, Source
from planish.lowering.compressed_tensors import NotExpressible
from planish.lowering.hf_settings import Settings, built, numbers, parsed, replaced

Shapes = Mapping[str, tuple[int, ...]]

TOLERANCE = 1e-3
"""How far the model of transformers may be from the program: relative, of the first output."""

ROUNDINGS = 8
"""And how many roundings of the model's dtype, where that is more: both round along the way."""

TRIALS = 120
"""How many configs are tried at most; each builds a model without memory."""

_DERIVED = {"head_dim": ("hidden_size", "num_attention_heads")}
"""Fields that many models read where a config has them, and else derive by dividing two others."""


@dataclass(frozen=True)
class Sought:
    """What a model is to have.

    Attributes:
        source: of the model as it was: class and config.
        shapes: of every tensor whose size is known, by name.
        free: names whose tensors the program does not use; any shape will do.
    """

    source: Source
    shapes: Shapes
    free: frozenset[str] = frozenset()

    def wrong(self, settings: Settings) -> dict[str, tuple[Any, Any]]:
        """Where a config's model differs, by tensor: the shape it has and the one it should have.

        Raises:
            ValueError: if no model can be built.
        """
        has = shapes_of(settings)
        names = (set(has) | set(self.shapes)) - self.free
        return {
            name: (has.get(name), self.shapes.get(name))
            for name in names
            if has.get(name) != self.shapes.get(name)
            # A buffer that the graph does not read may come and go.
            and not (name not in self.shapes and name not in self.source.stored_names)
        }


def shapes_of(settings: Settings) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter and buffer of a config's model, which gets no memory.

    Raises:
        ValueError: if transformers refuses the config.
    """
    with torch.device("meta"):
        model = built(settings)
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    return {name: tuple(tensor.shape) for name, tensor in named}


def configs_for(sought: Sought) -> Iterator[dict[str, Any]]:
    """Configs whose models have exactly some tensors: the source's, with other numbers.

    Raises:
        NotExpressible: if none is found, naming a tensor that no config has in its shape.
    """
    settings = {"architectures": [sought.source.name], **sought.source.config}
    try:
        full = _explicit(settings)
        wrong = sought.wrong(full)
    except ValueError as error:
        raise NotExpressible(
            f"transformers does not build a {sought.source.name} of its own config: {error}"
        ) from error
    if not wrong:
        yield settings
        return
    search = _Search(sought)
    found = False
    for fitting in search.below(full, wrong):
        found = True
        yield _shortest(sought, settings, fitting)
    if not found:
        raise NotExpressible(_why(sought, search.closest or wrong, search.refused))


class _Search:
    """Depth first: what brings a config closer is followed until nothing is wrong, or undone.

    Attributes:
        closest: the fewest tensors that were left wrong.
        refused: why transformers did not build the first config that it did not.
    """

    def __init__(self, sought: Sought) -> None:
        self.closest: dict[str, tuple[Any, Any]] | None = None
        self.refused = ""
        self._sought = sought
        self._seen: set[str] = set()
        self._first: list[tuple[int, int]] = []

    def below(
        self, settings: Settings, wrong: Mapping[str, tuple[Any, Any]]
    ) -> Iterator[dict[str, Any]]:
        """Configs that differ in one number, or in further ones, and fit."""
        pairs = _sizes(wrong, self._sought.shapes)
        self._first = self._first or pairs
        # What is left of a size that is made of several, as of query, key and value in one, may be
        # in no proportion any more.
        for changed in _candidates(settings, [*dict.fromkeys((*pairs, *self._first))]):
            text = json.dumps(changed, sort_keys=True)
            if text in self._seen or len(self._seen) >= TRIALS:
                continue
            self._seen.add(text)
            try:
                left = self._sought.wrong(changed)
            except ValueError as error:
                self.refused = self.refused or str(error)
                continue
            if not left:
                yield changed
            elif len(left) < len(wrong):
                if self.closest is None or len(left) < len(self.closest):
                    self.closest = left
                yield from self.below(changed, left)


def _why(sought: Sought, wrong: Mapping[str, tuple[Any, Any]], refused: str) -> str:
    name, (has, should) = min(wrong.items())
    because = (
        f'transformers says "{" ".join(refused.split()).rstrip(".")}"'
        if refused
        else "sizes differ from layer to layer, or transformers has no field for them"
    )
    return (
        f"no config of {sought.source.name} gives {name} the shape {should} (it has {has}), with "
        f"{len(wrong) - 1} more tensors: {because}. The artifact itself runs in Planish and ONNX "
        "Runtime."
    )


def _sizes(wrong: Mapping[str, tuple[Any, Any]], names: Collection[str]) -> list[tuple[int, int]]:
    """The sizes that dimensions and stacks of layers have and should have, most frequent first."""
    counts: Counter[tuple[int, int]] = Counter()
    for has, should in wrong.values():
        if has is not None and should is not None and len(has) == len(should):
            counts.update(pair for pair in zip(has, should, strict=True) if pair[0] != pair[1])
    missing = {name for name, (has, _) in wrong.items() if has is None}
    extra = {name for name, (_, should) in wrong.items() if should is None}
    before = _stacks((set(names) - missing) | extra)
    for stack, size in _stacks(names).items():
        if before.get(stack, size) != size:
            counts[before[stack], size] += 1
    return [pair for pair, _ in counts.most_common()]


def _stacks(names: Collection[str]) -> dict[str, int]:
    """How many modules there are in each list of modules, by what comes before their numbers."""
    found: dict[str, set[str]] = {}
    for name in names:
        parts = name.split(".")
        for place, part in enumerate(parts):
            if part.isdigit():
                found.setdefault(".".join(parts[:place]), set()).add(part)
    return {stack: len(numbers) for stack, numbers in found.items()}


def _candidates(settings: Settings, pairs: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Configs with one number replaced: those that are a size first, then those that divide one."""
    stated = list(numbers(settings))
    same = [(at, new) for old, new in pairs for at, value in stated if value == old]
    parts = [
        (at, scaled)
        for old, new in pairs
        for at, value in stated
        if value not in (0, old) and (scaled := _scaled(value, old, new)) is not None
    ]
    unset = [((key,), new) for _, new in pairs for key, value in settings.items() if value is None]
    for at, new in dict.fromkeys((*same, *parts, *unset)):
        changed: dict[str, Any] = replaced(settings, at, new)
        yield changed
        shorter = _shortened(changed, dict(stated).get(at), new)
        if shorter != changed:
            yield shorter


def _shortened(settings: Settings, old: Any, new: Any) -> dict[str, Any]:
    """A config whose lists with an entry for each layer end with the last layer there is."""
    if not isinstance(old, int) or not isinstance(new, int):
        return {**settings}
    return {
        key: value[:new] if isinstance(value, list) and len(value) == old else value
        for key, value in settings.items()
    }


def _scaled(value: float, old: int, new: int) -> int | float | None:
    """A number that counts parts of a size, such as heads or a ratio, for another size."""
    if isinstance(value, float):
        return value * new / old
    return value * new // old if value * new % old == 0 else None


def _explicit(settings: Settings) -> dict[str, Any]:
    """The config with all that transformers fills in, so that it no longer follows others."""
    full = {**json.loads(parsed(settings).to_json_string(use_diff=False)), **settings}
    full.pop("_name_or_path", None)
    for name, (dividend, divisor) in _DERIVED.items():
        if full.get(name) is None and full.get(dividend) and full.get(divisor):
            more = {**full, name: full[dividend] // full[divisor]}
            full = more if _takes(more) else full
    return full


def _takes(settings: Settings) -> bool:
    """Whether a config may have these fields: some derive one in a way that nobody may set."""
    try:
        parsed(settings)
    except Exception:
        return False
    return True


def _shortest(sought: Sought, settings: Settings, full: Settings) -> dict[str, Any]:
    """The source's config with as little added as gives the same model."""
    before = _explicit(settings)
    changed = {key: value for key, value in full.items() if value != before.get(key)}
    derived = {key: full[key] for key in _DERIVED if key in full}
    for short in ({**settings, **changed}, {**settings, **derived, **changed}):
        try:
            if not sought.wrong(short):
                return short
        except ValueError:
            continue
    return {**full}


def with_epsilon(settings: Settings, program: Program, original: Program) -> dict[str, Any]:
    """A config whose norms add what a program's do: over fewer coordinates it is more."""
    old, new = _epsilons(original), _epsilons(program)
    if len(old) != 1 or len(new) != 1 or old == new:
        return {**settings}
    found: dict[str, Any] = {**settings}
    for at, value in numbers(_explicit(settings)):
        if {value} == old:
            found = replaced(found, at, *new)
    return found


def _epsilons(program: Program) -> set[Any]:
    found: list[Any] = [node.args[2] for node in program.nodes(ops.rms_norm)]
    return set(found)


def check_outputs(
    build: Callable[[], nn.Module], program: Program, tensors: Mapping[str, Tensor]
) -> None:
    """Run transformers' model beside the program, on a sample without a past where there is one.

    Args:
        build: gives the model, in memory.
        program: with samples.
        tensors: of the program in floating point, aliases too.

    Raises:
        NotExpressible: if it gives something else.
    """
    sample = next((one for one in program.samples if _begins(one)), None)
    if sample is None or any(tensor.is_meta for tensor in tensors.values()):
        return
    model = build()
    dtype = next(one.dtype for one in tensors.values() if one.is_floating_point())
    model.to(dtype)
    model.load_state_dict({**tensors}, strict=False)
    given = {name: value for name, value in sample.items() if value.numel()}
    try:
        with torch.no_grad():
            got = model(**given)[0].double()
    except (RuntimeError, ValueError, TypeError) as error:
        raise NotExpressible(
            f"{program.source.name} of transformers does not run with the new sizes: {error}"
        ) from error
    expected = program.run(**sample)[program.outputs[0]].double()
    off = (got - expected).norm() / expected.norm().clamp_min(1e-30)
    if got.shape != expected.shape or not float(off) <= max(
        TOLERANCE, ROUNDINGS * torch.finfo(dtype).eps
    ):
        raise NotExpressible(
            f"{program.source.name} of transformers has tensors of these shapes and computes "
            f"something else with them ({float(off):.1e} off): its config cannot say what changed. "
            "The artifact itself runs in Planish and ONNX Runtime."
        )


def _begins(sample: Sample) -> bool:
    """Whether a sample continues nothing: states are empty."""
    return all(tensor.numel() or tensor.dim() > 2 for tensor in sample.values()) and not any(
        tensor.numel() and name.startswith(("past", "cache")) for name, tensor in sample.items()
    )
