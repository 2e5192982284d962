"""ONNX models damaged at random: some byte, number, name or node of a file is another one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx

NUMBERS = (0, 1, -1, 2, 3, 7, 2**31 - 1, 2**31, 2**40, -(2**63), 2**63 - 1)


@dataclass(frozen=True)
class Place:
    """A field of some message in a model, and of a repeated one which element."""

    message: Any
    field: Any
    number: int | None

    @property
    def content(self) -> Any:
        whole = getattr(self.message, self.field.name)
        return whole if self.number is None else whole[self.number]

    def put(self, content: Any) -> None:
        if self.number is None:
            setattr(self.message, self.field.name, content)
        else:
            getattr(self.message, self.field.name)[self.number] = content


def places(message: Any) -> Iterator[Place]:
    """Every field that is set, in the message and in all that it holds."""
    for field, content in message.ListFields():
        several = enumerate(content) if field.is_repeated else [(None, content)]
        for number, one in several:
            yield Place(message, field, number)
            if field.type == field.TYPE_MESSAGE:
                yield from places(one)


def damaged(model: onnx.ModelProto, chance: random.Random) -> bytes:
    """A model of one to three changes, as a file."""
    if chance.random() < 0.3:
        return _bytes(model.SerializeToString(), chance)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for _ in range(chance.randint(1, 3)):
        _change(changed, chance)
    content: bytes = changed.SerializeToString()
    return content


def _bytes(content: bytes, chance: random.Random) -> bytes:
    way = chance.randrange(4)
    start = chance.randrange(len(content))
    if way == 0:
        return content[:start]
    end = min(len(content), start + chance.randint(1, 8))
    if way == 1:
        return content[:start] + content[end:]
    if way == 2:
        return content[:end] + content[start:]
    return content[:start] + chance.randbytes(end - start) + content[end:]


def _change(model: onnx.ModelProto, chance: random.Random) -> None:
    found = list(places(model))
    place = chance.choice(found)
    kind = place.field.type
    if kind == place.field.TYPE_MESSAGE:
        _rearranged(place, chance)
    elif kind in (place.field.TYPE_STRING, place.field.TYPE_BYTES):
        texts = [one.content for one in found if one.field.type == kind]
        place.put(chance.choice([*texts, type(place.content)()]))
    elif kind in (place.field.TYPE_FLOAT, place.field.TYPE_DOUBLE):
        place.put(chance.choice([0.0, 1.0, -1.0, float("nan"), float("inf")]))
    else:
        _renumbered(place, chance)


def _renumbered(place: Place, chance: random.Random) -> None:
    """Another number, of those that the field's type has."""
    try:
        place.put(chance.choice([place.content + 1, place.content - 1, *NUMBERS]))
    except ValueError:
        place.put(0)


def _rearranged(place: Place, chance: random.Random) -> None:
    """A message left out, twice there, or in place of a neighbour."""
    name = place.field.name
    if place.number is None:
        place.message.ClearField(name)
        return
    several = getattr(place.message, name)
    ways: list[Callable[[], Any]] = [
        lambda: several.pop(place.number),
        lambda: several.append(place.content),
        lambda: several[chance.randrange(len(several))].CopyFrom(place.content),
    ]
    chance.choice(ways)()
