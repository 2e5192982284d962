"""Experts as checkpoints hold them: a weight each, where transformers' classes have stacks.

Loaders of quantized checkpoints know no stacks: vLLM reads `experts.3.gate_proj.weight_packed` and
its like, and transformers stacks what it has multiplied out of these. Which rows of a stack are
which expert's is asked of transformers' own table of conversions.
"""

from __future__ import annotations

import math
import re
from bisect import bisect
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from planish.ir.capture.checkpoint import revert_names
from planish.ir.program import Program, Source
from planish.ir.quant import QuantizedTensor, dequantize
from planish.lowering.compressed_tensors import NotExpressible

aten = torch.ops.aten

STACKED = (
    "{name} stays in floating point and in one tensor, which is how transformers reads experts "
    "beside quantized layers; vLLM expects a tensor for each expert there, and one scheme for all "
    "weights of a layer's experts."
)

REMEDY = 'Name them under ignore ("*.experts.*").'


@dataclass(frozen=True)
class Layout:
    """Where tensors of a program lie in a checkpoint.

    Attributes:
        names: the name of each tensor in the files.
        apart: for each stack of experts [E, N, K], the names of its parts, and which of its E · N
            rows each holds.
    """

    names: Mapping[str, str]
    apart: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def parts(self, name: str, tensor: QuantizedTensor) -> Iterator[tuple[str, QuantizedTensor]]:
        """A quantized tensor as the files hold it: whole, or a matrix [n, K] for each expert."""
        if len(tensor.shape) == 2:
            yield self.names[name], tensor
        else:
            yield from ((part, _taken(tensor, rows)) for part, rows in self.apart[name].items())

    def target(self, name: str) -> str:
        """What names the module of a quantized weight in a config, or those of all experts.

        With the numbers of layers left open, one pattern is enough for most models; that it says
        `experts` tells transformers that the scheme is theirs.
        """
        if name not in self.apart:
            return name.removesuffix(".weight")
        return "re:" + re.sub(r"\d+", r"\\d+", self._pattern(name))

    def ignored(self, dense: Iterable[str], quantized: Container[str]) -> list[str]:
        """What names the modules of weights that stay as they are, by transformers and by files."""
        named = {
            one.removesuffix(".weight")
            for name in dense
            for one in (name, self.names.get(name, name))
        }
        stacks = {"re:" + self._pattern(name) for name in self.apart if name not in quantized}
        return sorted(named | stacks)

    def notes(self, quantized: Container[str]) -> tuple[str, ...]:
        """What the user should know about loading these."""
        dense = [name for name in self.apart if name not in quantized]
        return (STACKED.format(name=dense[0]),) if dense else ()

    def _pattern(self, name: str) -> str:
        """Matches the modules of each expert: all before their numbers, as the files call it."""
        first = next(iter(self.apart[name]))
        return re.escape(first.rsplit(".", 3)[0]) + r"\.\d+\."


def _taken(stack: QuantizedTensor, rows: Tensor) -> QuantizedTensor:
    """Some rows of a stack [E, N, K], as a matrix."""
    packed, scale = (part.flatten(0, 1)[rows] for part in (stack.packed, stack.scale))
    shape = (len(rows), stack.shape[-1])
    return QuantizedTensor(stack.scheme, shape, stack.dtype, packed, scale)


def layout_of(program: Program, original: Program) -> Layout:
    """Where a program's tensors lie, if layers of it are quantized.

    Raises:
        NotExpressible: if a stack of experts is quantized, and no loader reads it.
    """
    source, stacks = original.source, _stacks(original)
    quantized = dict(QuantizedTensor.read_by(n, program.tensors) for n in program.nodes(dequantize))
    packed = {name: one for name, one in quantized.items() if len(one.shape) > 2}
    found: dict[str, dict[str, Tensor]] = {}
    if stacks and quantized:
        held: dict[str, Tensor | QuantizedTensor]
        held = {**original.tensors, **program.tensors, **quantized}
        stored = source.stored_names.keys() & original.tensors.keys()
        found = _lie(source, {name: tuple(held[name].shape) for name in sorted(stored)})
    apart = {
        name: {stored: rows.flatten() for stored, rows in found[name].items()}
        for name in sorted(stacks & found.keys())
        if _each_is_a_matrix(found[name])
    }
    _check(packed, apart, source)
    whole = {name: [*found[name]] for name in found.keys() - apart.keys()}
    renamed = {name: stored[0] for name, stored in whole.items() if len(stored) == 1}
    return Layout({**source.stored_names, **renamed}, apart)


def _stacks(program: Program) -> set[str]:
    """The weights of experts that are stored as [E, N, K]: products read them transposed."""
    return {
        str(node.target)
        for node in program.graph.find_nodes(op="get_attr")
        if node.meta["val"].dim() == 3
        and {(user.target, user.args[1:]) for user in node.users} == {(aten.transpose.int, (1, 2))}
    }


def _lie(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, Tensor]]:
    """For each tensor of these shapes, what files call its parts, and which rows each holds.

    Rows of up to three dimensions are numbered, and the numbers go through what transformers does
    on saving. The last dimension has one number only, for it is none of those that are told apart.
    """
    rows = {
        name: (*shape[:-1], 1) if len(shape) > 1 else shape
        for name, shape in shapes.items()
        if 0 < len(shape) <= 3
    }
    starts = [0, *accumulate(map(math.prod, rows.values()))]
    numbered = {
        name: torch.arange(start, start + math.prod(shape)).reshape(shape)
        for start, (name, shape) in zip(starts, rows.items(), strict=False)
    }
    names, found = list(rows), dict[str, dict[str, Tensor]]({name: {} for name in rows})
    for stored, numbers in revert_names(source.config, numbered).items():
        place = bisect(starts, int(numbers.flatten()[0])) - 1
        found[names[place]][stored] = numbers - starts[place]
    return found


def _each_is_a_matrix(parts: Mapping[str, Tensor]) -> bool:
    """Whether what files hold of a stack are weights of modules, each with a number for a name."""
    return bool(parts) and all(
        rows.dim() == 2 and rows.shape[1] == 1 and re.search(r"\.\d+\.[^.]+\.weight$", stored)
        for stored, rows in parts.items()
    )


def _check(
    stacks: Mapping[str, QuantizedTensor], apart: Mapping[str, object], source: Source
) -> None:
    """Refuse stacks that no loader reads."""
    for name, stack in stacks.items():
        if name not in apart:
            raise NotExpressible(
                f"{name} is quantized, and holds the weights of several experts; files of "
                f"{source.name} have no weight for each of them, and quantized stacks are read by "
                f"no loader. {REMEDY}"
            )
        if not stack.scheme.symmetric:
            raise NotExpressible(
                f"{name} holds experts in {stack.scheme}; transformers and vLLM read experts "
                f"without zero points only. Make the scheme symmetric. Or: {REMEDY}"
            )
        plain = not stack.scheme.floating or stack.scheme.microscaled
        if not plain and stack.scheme.group_size is not None:
            raise NotExpressible(
                f"{name} holds experts in {stack.scheme}; transformers reads experts in fp8 with "
                f"one scale a row only. Set group_size to null. Or: {REMEDY}"
            )
    if len(kinds := {stack.scheme for stack in stacks.values()}) > 1:
        some = " and ".join(sorted(map(str, kinds)))
        raise NotExpressible(
            f"experts are quantized in {some}; transformers reads all experts of a model by one "
            "scheme. Give them one, or name some under ignore."
        )
