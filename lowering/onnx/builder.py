"""`Builder`: an ONNX graph under construction, and the vocabulary that emitters share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype
from torch import Tensor, fx

from planish.ir.carried import carried
from planish.ir.program import Program
from planish.ir.shapes import describe
from planish.lowering.onnx.sizes import Extent, Sizes, dimension_names, same, zero_test
from planish.lowering.onnx.target import Target

Number = bool | int | float
Operand = ir.Value | torch.SymInt | Number
"""What an operator's argument can be: a tensor, a size, or a number."""


Emitter = Callable[..., Any]
"""Emits what an operator does: `emit(builder, node, *arguments)` returns one value, or a list.

Arguments are those of the operator's schema, in its order and with its defaults, without those of
`LEFT_OUT`. Tensors come as values, sizes as torch has them.
"""

LEFT_OUT = frozenset(
    {
        *("dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking", "copy"),
        *("half_to_float", "implicit", "path", "sorted", "stable", "unsafe"),
        *("momentum", "cudnn_enable", "cudnn_enabled", "padding_idx", "scale_grad_by_freq"),
        *("sparse", "sparse_grad"),
    }
)
"""Arguments that say nothing about the result that its dtype and shape do not say."""


class Builder:
    """Emits nodes and constants. Equal calls give one node, so emitters need not share values.

    Attributes:
        program: what is lowered.
        target: what it is lowered for.
        inputs: the graph's inputs by name.
        initializers: weights and constants by name.
        nodes: in the order of evaluation; some may turn out to have no readers.
        values: what each node of the program became: one value, or a list of them.
    """

    def __init__(self, program: Program, target: Target) -> None:
        self.program = program
        self.target = target
        self.initializers: dict[str, ir.Value] = {}
        self.nodes: list[ir.Node] = []
        self.values: dict[fx.Node, Any] = {}
        self.name_of = dimension_names(program)
        self.may_be_zero = zero_test(program)
        self._types: dict[ir.Value, tuple[torch.dtype, tuple[Extent, ...]]] = {}
        self._made: dict[Any, tuple[ir.Value, ...]] = {}
        self._taken = {spec.name for spec in program.inputs} | {*program.outputs, *program.tensors}
        self._node: fx.Node | None = None
        self.inputs = {spec.name: ir.Value(name=spec.name) for spec in program.inputs}
        states = carried(self.inputs, program.outputs) if target.one_token else ()
        self._sizes = Sizes(program, self.inputs, self.op, states)

    @property
    def where(self) -> str:
        """The program's node being lowered, as errors name it."""
        return describe(self._node) if self._node is not None else "the graph's inputs"

    def enter(self, node: fx.Node) -> None:
        """Let nodes emitted from now on be named for `node`."""
        self._node = node

    def bind(self, node: fx.Node, value: Any) -> None:
        """Say what a node of the program became, and name that for it.

        A node bound earlier is bound anew: those who read it from now on read the new value.
        """
        self.values[node] = value
        parts = value if isinstance(value, (list, tuple)) else [value]
        vals = node.meta["val"] if isinstance(value, (list, tuple)) else [node.meta["val"]]
        for part, val in zip(parts, vals, strict=True):
            if part is not None:
                self.typed(part, val.dtype, val.shape)
        producer = parts[0].producer()
        if len(parts) == 1 and producer and str(producer.name).startswith(f"{node.name}/"):
            producer.name = node.name
            parts[0].name = self._fresh(node.name)

    # Types

    def typed(self, value: ir.Value, dtype: torch.dtype, shape: Iterable[Extent]) -> ir.Value:
        """Record the dtype and the shape of a value."""
        self._types[value] = (self.target.dtype(dtype), tuple(shape))
        return value

    def types(self) -> Iterable[tuple[ir.Value, tuple[torch.dtype, tuple[Extent, ...]]]]:
        """Every value whose dtype and shape are known, with them."""
        return self._types.items()

    def dtype(self, value: ir.Value) -> torch.dtype:
        """The dtype of a value that stands for a node or a tensor of the program."""
        return self._types[value][0]

    def shape(self, value: ir.Value) -> tuple[Extent, ...]:
        """The shape of a value that stands for a node or a tensor of the program."""
        return self._types[value][1]

    def rank(self, value: ir.Value) -> int:
        """The number of dimensions of a value that stands for a node or a tensor."""
        return len(self.shape(value))

    # The node being lowered

    @property
    def node(self) -> fx.Node:
        """The program's node being lowered."""
        assert self._node is not None
        return self._node

    @property
    def result_dtype(self) -> torch.dtype:
        """The dtype of what the node gives, as computed in the model."""
        return self.target.dtype(self.node.meta["val"].dtype)

    @property
    def result_shape(self) -> tuple[Extent, ...]:
        """The shape of what the node gives."""
        return tuple(self.node.meta["val"].shape)

    # Nodes

    def op(self, kind: str, *inputs: Any, **attributes: Any) -> ir.Value:
        """Emit a node with one output. See `ops`."""
        return self.ops(1, kind, *inputs, **attributes)[0]

    def ops(self, count: int, kind: str, *inputs: Any, **attributes: Any) -> tuple[ir.Value, ...]:
        """Emit a node with several outputs.

        Args:
            count: of the outputs.
            kind: the operator, with its domain unless that is the standard one.
            inputs: values; None for one left out; for a list of integers or sizes, an int64
                tensor that holds it.
            attributes: those that are None are left out.
        """
        values = tuple(map(self._input, inputs))
        while values and values[-1] is None:
            values = values[:-1]
        given = {key: value for key, value in sorted(attributes.items()) if value is not None}
        key = (kind, values, repr(given), count)
        if key not in self._made:
            self._made[key] = self._emit(count, kind, values, given)
        return self._made[key]

    def _input(self, given: Any) -> ir.Value | None:
        if given is None or isinstance(given, ir.Value):
            return given
        if isinstance(given, Tensor):
            return self.constant(given)
        return self.dims(given)

    def _emit(
        self, count: int, kind: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any]
    ) -> tuple[ir.Value, ...]:
        domain, _, name = kind.rpartition(".")
        scope = f"{self._node.name}/" if self._node is not None else ""
        label = self._fresh(scope + name)
        module = self._node.meta.get("module") if self._node is not None else None
        node = ir.Node(
            domain,
            name,
            inputs,
            ir.convenience.convert_attributes(attributes),
            num_outputs=count,
            name=label,
            metadata_props={"module": module} if module else None,
        )
        for place, output in enumerate(node.outputs):
            output.name = label if count == 1 else f"{label}:{place}"
        self.nodes.append(node)
        return tuple(node.outputs)

    def _fresh(self, name: str) -> str:
        """A name that nothing else has: `name`, or `name_1`, `name_2`, ..."""
        candidate, number = name, 0
        while candidate in self._taken:
            number += 1
            candidate = f"{name}_{number}"
        self._taken.add(candidate)
        return candidate

    # Weights, constants and sizes

    def tensor(self, name: str) -> ir.Value:
        """A tensor of the program, under its own name."""
        stored = self.program.tensors[name]
        return self.typed(
            self.initializer(name, self._contents(stored)), stored.dtype, stored.shape
        )

    def _contents(self, stored: Tensor) -> ir.TensorProtocol:
        dtype = self.target.dtype(stored.dtype)
        if dtype == stored.dtype:
            return TorchTensor(stored)
        return ir.LazyTensor(
            lambda: TorchTensor(stored.to(dtype)), from_torch_dtype(dtype), ir.Shape(stored.shape)
        )

    def initializer(self, name: str, contents: ir.TensorProtocol) -> ir.Value:
        """A tensor stored in the file; the first contents given for a name stay."""
        if name not in self.initializers:
            value = ir.Value(
                name=name,
                shape=ir.Shape(contents.shape.numpy()),
                type=ir.TensorType(contents.dtype),
                const_value=contents,
            )
            self.initializers[name] = value
            contents.name = name
        return self.initializers[name]

    def constant(self, numbers: Any, dtype: torch.dtype = torch.int64) -> ir.Value:
        """A small tensor, named for what it holds. Numbers given as a tensor set the dtype."""
        tensor = numbers if isinstance(numbers, Tensor) else torch.tensor(numbers, dtype=dtype)
        tensor = tensor.to(self.target.dtype(tensor.dtype))
        held = str(tensor.tolist()).replace(" ", "")
        name = f"{_dtype_name(tensor.dtype)}{held if tensor.dim() else f'({held})'}"
        return self.typed(
            self.initializer(name, TorchTensor(tensor)), tensor.dtype, tuple(tensor.shape)
        )

    def size(self, extent: Extent) -> ir.Value:
        """A size, int64 of shape [1]."""
        return self._sizes.value(extent)

    def scalar(self, extent: Extent) -> ir.Value:
        """A size, int64 of shape []."""
        if not isinstance(extent, torch.SymInt):
            return self.constant(extent)
        return self.op("Squeeze", self.size(extent), [0])

    def dims(self, extents: Sequence[Extent]) -> ir.Value:
        """A list of sizes, int64 of shape [length]."""
        if not any(isinstance(extent, torch.SymInt) for extent in extents):
            return self.constant(list(extents))
        parts = [
            self.size(extent) if isinstance(extent, torch.SymInt) else self.constant([extent])
            for extent in extents
        ]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    # What many emitters need

    def cast(self, value: ir.Value, dtype: torch.dtype) -> ir.Value:
        """The value in another dtype; itself where it has that dtype."""
        dtype = self.target.dtype(dtype)
        if self.dtype(value) == dtype:
            return value
        made = self.op("Cast", value, to=from_torch_dtype(dtype).value)
        return self.typed(made, dtype, self.shape(value))

    def operand(self, operand: Operand, dtype: torch.dtype) -> ir.Value:
        """A tensor, size or number as a tensor of a dtype; sizes and numbers have shape []."""
        if isinstance(operand, ir.Value):
            return self.cast(operand, dtype)
        if isinstance(operand, torch.SymInt):
            return self.cast(self.typed(self.scalar(operand), torch.int64, ()), dtype)
        return self.constant(operand, dtype)

    def expand(self, value: ir.Value, shape: Sequence[Extent]) -> ir.Value:
        """The value broadcast to a shape; itself where it has that shape."""
        if self.has_shape(value, shape):
            return value
        return self.typed(self.op("Expand", value, self.dims(shape)), self.dtype(value), shape)

    def transpose(self, value: ir.Value, order: Sequence[int]) -> ir.Value:
        """The value with its dimensions in another order. Undoes a transposition before it."""
        if list(order) == sorted(order):
            return value
        before, shape = self.transposed(value), self.shape(value)
        if before is not None:
            return self.transpose(_source(value), [before[place] for place in order])
        made = self.op("Transpose", value, perm=list(order))
        return self.typed(made, self.dtype(value), [shape[place] for place in order])

    def transposed(self, value: ir.Value) -> list[int] | None:
        """The order in which a transposition made a value; None if none did."""
        before = value.producer()
        if before is None or before.op_type != "Transpose":
            return None
        return list(before.attributes["perm"].as_ints())

    def reshape(self, value: ir.Value, shape: Sequence[Extent]) -> ir.Value:
        """The value with the same numbers in another shape. Undoes a reshape before it."""
        while (before := value.producer()) is not None and before.op_type == "Reshape":
            value = _source(value)
        if self.has_shape(value, shape):
            return value
        plan = self._copying(value, shape)
        made = (
            self.op("Reshape", value, self.dims(shape), allowzero=1)
            if plan is None
            else self.op("Reshape", value, self.constant(plan))
        )
        return self.typed(made, self.dtype(value), shape)

    def _copying(self, value: ir.Value, shape: Sequence[Extent]) -> list[int] | None:
        """A constant that says the shape, if there is one: 0 copies a dimension, -1 is the rest."""
        own = self.shape(value)
        plan: list[int] = []
        for place, extent in enumerate(shape):
            if not isinstance(extent, torch.SymInt):
                plan.append(extent)
            elif place < len(own) and same(own[place], extent):
                plan.append(0)
            else:
                plan.append(-1)
        # Where there is nothing at all, ONNX Runtime cannot tell what the rest would be.
        unsure = plan.count(-1) > 1 or (-1 in plan and any(map(self.may_be_zero, own)))
        return None if unsure or 0 in shape else plan

    def has_shape(self, value: ir.Value, shape: Sequence[Extent]) -> bool:
        """Whether a value has a shape, whatever the sizes are."""
        own = self.shape(value)
        return len(own) == len(shape) and all(map(same, own, shape))


def _source(value: ir.Value) -> ir.Value:
    """The first input of the node that made a value."""
    producer = value.producer()
    assert producer is not None
    source = producer.inputs[0]
    assert source is not None
    return source


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
