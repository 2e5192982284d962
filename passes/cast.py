"""Compute a program in another floating-point dtype."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from planish.ir.edit import Edit
from planish.ir.program import Program, Sample, Source
from planish.passes.contract import OPTIONS, Contract, NotApplicable, Pass
from planish.passes.precision import Role, float_dtype, roles_of

aten = torch.ops.aten

_CONVERSIONS = (aten._to_copy.default, aten.type_as.default)
_INFINITY_LIKE = 1e38
"""Constants this large stand for infinity, as the lowest float32 does in attention masks."""
_DTYPE_KEYS = ("dtype", "torch_dtype")


@dataclass(frozen=True, config=OPTIONS)
class Cast(Pass):
    """Store and compute in another floating-point dtype, from the inputs to the outputs.

    Weights, floating-point inputs (a KV cache, pixels), scales of quantized weights and every
    value computed from these take the new dtype. What a model computes in a wider dtype on
    purpose stays there and is rounded where it meets the rest: masks and the angles of rotary
    embeddings, which derive from integers (a bfloat16 holds no position above 256 exactly), and
    explicit upcasts, as in the softmax of a router. Norms and attention widen inside. Integers
    and packed weights stay as they are.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    dtype: Literal["float32", "bfloat16", "float16"]
    """What to compute in: float32; bfloat16, with the range of float32 and 8 bits of precision;
    or float16, with 11 bits of precision and a largest value of 65504."""

    def __call__(self, program: Program) -> Program:
        """Cast tensors, inputs, samples and config.

        Raises:
            NotApplicable: if nothing in the program is floating-point, if it computes in that
                dtype already, or if a tensor holds values beyond the dtype's range.
        """
        old, new = _base_dtype(program), getattr(torch, self.dtype)
        if old == new:
            raise NotApplicable(
                f"cast: the program computes in {self.dtype} already; leave this pass out."
            )
        with program.edit() as edit:
            _Rewrite(edit, roles_of(edit.graph, old), new).run()
        result = edit.program
        return dataclasses.replace(
            result,
            source=_with_dtype(result.source, self.dtype),
            samples=tuple(_cast_sample(result, sample) for sample in result.samples),
            calibration=tuple(_cast_sample(result, sample) for sample in result.calibration),
        )


def _base_dtype(program: Program) -> torch.dtype:
    """The dtype of most numbers that the program stores or, if none, of its first input."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in program.tensors.values():
        if tensor.is_floating_point():
            counts[tensor.dtype] += tensor.numel()
    counts.update(spec.dtype for spec in program.inputs if spec.dtype.is_floating_point)
    if not counts:
        raise NotApplicable("cast: nothing in the program is floating-point; leave this pass out.")
    return counts.most_common(1)[0][0]


class _Rewrite:
    """One run of the pass over a copy of a program."""

    def __init__(self, edit: Edit, roles: Mapping[fx.Node, Role], dtype: torch.dtype) -> None:
        self.edit = edit
        self.roles = roles
        self.dtype = dtype
        self._narrowed: dict[fx.Node, fx.Node] = {}

    def run(self) -> None:
        for node in self.edit.nodes():
            role = self.roles.get(node)
            if role is Role.NARROW and node.op == "get_attr":
                self._tensor(node)
            elif role is Role.NARROW and node.op == "placeholder":
                self._input(node)
            elif role is Role.NARROW:
                self._narrow(node)
            elif role is Role.WIDE and node.op == "call_function":
                self._clamp(node, _INFINITY_LIKE)
        for node in self.edit.nodes(*_CONVERSIONS):
            self._drop_if_done(node)

    def _drop_if_done(self, node: fx.Node) -> None:
        """Drop a conversion to what its operand is in already."""
        value = node.all_input_nodes[0]
        if self.roles.get(node) in {Role.NARROW, Role.WIDE} and (
            self._dtype(node) == self._dtype(value)
        ):
            node.replace_all_uses_with(value)

    def _dtype(self, node: fx.Node) -> torch.dtype | None:
        """What a node's value will be in; None if it holds no floating-point numbers."""
        return self.dtype if self.roles[node] is Role.NARROW else float_dtype(node)

    def _input(self, node: fx.Node) -> None:
        self.edit.inputs = tuple(
            dataclasses.replace(spec, dtype=self.dtype) if spec.name == node.target else spec
            for spec in self.edit.inputs
        )
        self.edit.record(node, f"takes {_name(self.dtype)}")

    def _tensor(self, node: fx.Node) -> None:
        name = str(node.target)
        tensor = self.edit.tensors[name]
        if tensor.dtype == self.dtype:
            return
        self.edit.tensors[name] = _converted(name, tensor, self.dtype)
        self.edit.record(node, f"{name}: {_name(tensor.dtype)} to {_name(self.dtype)}")

    def _narrow(self, node: fx.Node) -> None:
        """Let a call compute in the new dtype: its dtype argument, constants and operands."""
        node.args, node.kwargs = map_aggregate(
            (node.args, node.kwargs), lambda leaf: self.dtype if _is_float_dtype(leaf) else leaf
        )
        self._clamp(node, 0.0)
        del node.meta["val"]
        if node.target in _CONVERSIONS:
            return
        for operand in node.all_input_nodes:
            if self.roles[operand] is Role.WIDE and self._dtype(operand) != self.dtype:
                node.replace_input_with(operand, self._round(operand, node))

    def _round(self, value: fx.Node, reader: fx.Node) -> fx.Node:
        """`value` in the new dtype, converted once, before its first reader."""
        if value not in self._narrowed:
            self._narrowed[value] = self.edit.call(
                aten._to_copy.default, value, before=reader, dtype=self.dtype
            )
            self.edit.record(value, f"rounded to {_name(self.dtype)}")
        return self._narrowed[value]

    def _clamp(self, node: fx.Node, least: float) -> None:
        """Bring finite constants of at least this size into the range of the new dtype."""
        largest = torch.finfo(self.dtype).max

        def clamp(leaf: Any) -> Any:
            if isinstance(leaf, float) and math.isfinite(leaf) and abs(leaf) >= least:
                return max(-largest, min(largest, leaf))
            return leaf

        node.args, node.kwargs = map_aggregate((node.args, node.kwargs), clamp)


def _converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    converted = tensor.to(dtype)
    lost = torch.isinf(converted) & torch.isfinite(tensor)
    if tensor.is_meta or not lost.any():
        return converted
    largest = torch.finfo(dtype).max
    if tensor.numel() == 1:  # a constant of the model's code, such as the value of a mask
        return tensor.clamp(-largest, largest).to(dtype)
    reached = tensor[torch.isfinite(tensor)].abs().max()
    raise NotApplicable(
        f"cast: {name} reaches {reached:.3g}, beyond the largest {_name(dtype)}, {largest:.6g}; "
        "cast to bfloat16 instead."
    )


def _is_float_dtype(leaf: Any) -> bool:
    return isinstance(leaf, torch.dtype) and leaf.is_floating_point


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cast_sample(program: Program, sample: Sample) -> Sample:
    return {spec.name: sample[spec.name].to(spec.dtype) for spec in program.inputs}


def _with_dtype(source: Source, name: str) -> Source:
    """The source with the dtype that its config, and configs inside it, declare set anew."""
    if not source.config:
        return source
    config = _retyped(source.config, name)
    if not any(key in config for key in _DTYPE_KEYS):
        config["dtype"] = name
    return dataclasses.replace(source, config=config)


def _retyped(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {
        key: name
        if key in _DTYPE_KEYS
        else (_retyped(value, name) if isinstance(value, Mapping) else value)
        for key, value in config.items()
    }
