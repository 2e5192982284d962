"""From an `nn.Module` to a `Program`: `torch.export`, then our form of the graph."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.multiprocessing.reductions import StorageWeakRef

from planish.ir.capture.functional import functional
from planish.ir.errors import PlanishError
from planish.ir.normalize import normalize
from planish.ir.program import Input, Program, Sample, Source
from planish.ir.shapes import propagate, well_formed
from planish.ir.sizes import Size, SpecializedSize, SymbolicShapes


class CaptureFailed(PlanishError):
    """A model could not be turned into a graph."""


@dataclass(frozen=True)
class Signature:
    """What a model is called with and what it gives back.

    Attributes:
        inputs: in the order of the module's arguments.
        outputs: the names of the tensors that the module returns, in order.
        sizes: the symbolic sizes that the shapes of `inputs` are written in.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    sizes: tuple[Size, ...]


def export_program(
    module: nn.Module,
    example: Sequence[Tensor],
    signature: Signature,
    source: Source,
    *,
    prefix: str = "",
    samples: Iterable[Sample] = (),
) -> Program:
    """Export a module and bring the graph into a program's form, normalized.

    Args:
        module: called with the tensors of `example`; returns a tensor or a flat tuple of them.
        example: one tensor an input; symbolic extents have the sizes' example values.
        signature: names and symbolic shapes.
        source: recorded in the program.
        prefix: dropped from the front of tensor names (the attribute of a wrapper).
        samples: recorded in the program.

    Raises:
        CaptureFailed: if torch cannot export the module, saying where and why.
        planish.ir.sizes.SpecializedSize: if a symbolic size had to be fixed.
    """
    exported = _export(module, tuple(example), signature, source.name)
    sizes = _bounded(exported, signature)
    tensors, aliases, names = _tensors(exported, prefix)
    program = Program(
        graph=_graph(exported, names, signature, prefix),
        tensors=tensors,
        inputs=signature.inputs,
        outputs=signature.outputs,
        shapes=SymbolicShapes(sizes),
        source=source,
        samples=tuple(samples),
        aliases=aliases,
    )
    propagate(program)
    well_formed(program)
    return normalize(program)


def _export(
    module: nn.Module, example: tuple[Tensor, ...], signature: Signature, name: str
) -> ExportedProgram:
    dynamic = tuple(
        {dim: Dim.AUTO for dim, extent in enumerate(spec.shape) if isinstance(extent, str)}
        for spec in signature.inputs
    )
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch.export itself
            exported = torch.export.export(
                _Flat(module), example, dynamic_shapes=(dynamic,), strict=False
            )
            return functional(exported)
    except Exception as error:
        raise CaptureFailed(f"{name} cannot be exported: {explain(error)}") from error


def _bounded(exported: ExportedProgram, signature: Signature) -> tuple[Size, ...]:
    """The symbolic sizes with the bounds that the model's code puts on them.

    Raises:
        SpecializedSize: if the exporter fixed a size that is to be symbolic.
    """
    names = iter(signature.inputs)
    upper: dict[str, int] = {}
    for node in exported.graph.nodes:
        if node.op != "placeholder" or node.name not in exported.graph_signature.user_inputs:
            continue
        spec = next(names)
        for wanted, extent in zip(spec.shape, node.meta["val"].shape, strict=True):
            if not isinstance(wanted, str):
                continue
            if isinstance(extent, int) or extent.node.expr.is_number:
                raise SpecializedSize(
                    f"the graph holds only for {wanted} = {extent} (input {spec.name!r}): the "
                    "model's code branches on that size or bakes it in. Make the code independent "
                    "of it, or leave the dimension static."
                )
            bounds = exported.range_constraints.get(extent.node.expr)
            if bounds is not None and bool(bounds.upper < _LARGE):
                upper[wanted] = min(upper.get(wanted, _LARGE), int(bounds.upper))
    return tuple(
        dataclasses.replace(size, max=upper.get(size.name, size.max)) for size in signature.sizes
    )


_LARGE = 2**31
"""A bound above this is the exporter's stand-in for none."""


class _Flat(nn.Module):
    """Takes any number of tensors, so that `dynamic_shapes` is one tuple for all of them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: Tensor) -> Any:
        return self.module(*tensors)


def explain(error: Exception) -> str:
    """The first line of an exporter's error, and the last line of the model's code it names."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    summary = lines[0] if lines else type(error).__name__
    frames = [line for line in lines if line.startswith("File ") and "/torch/" not in line]
    return f"{summary} (at {frames[-1]})" if frames else summary


def _tensors(
    exported: ExportedProgram, prefix: str
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Tensors by name, other names of tied tensors, and placeholder names to tensor names."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    placeholders: dict[str, str] = {}
    by_storage: dict[tuple[Any, ...], str] = {}
    stored = {**exported.state_dict, **exported.constants}
    for spec in exported.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            continue
        target = str(spec.target)
        # Constants stay as they are: detached in a fake mode, they would lose their values.
        tensor = stored[target].detach() if stored[target].requires_grad else stored[target]
        name = target.removeprefix("module.").removeprefix(prefix)
        # The storage, not the address: tensors without data all have the address 0.
        storage = StorageWeakRef(tensor.untyped_storage())
        place = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        key = (storage, *place)
        first = by_storage.setdefault(key, name) if tensor.numel() else name
        if first == name:
            tensors[name] = tensor
        else:
            aliases[name] = first
        placeholders[str(spec.arg.name)] = first
    return tensors, aliases, placeholders


def _graph(
    exported: ExportedProgram, names: Mapping[str, str], signature: Signature, prefix: str
) -> fx.Graph:
    """The exported graph with inputs first, tensors read by name, and one flat output."""
    _refuse_mutation(exported)
    graph = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    inputs = iter(signature.inputs)
    old = list(exported.graph.nodes)
    for node in old:
        if node.op == "placeholder" and node.name not in names:
            nodes[node] = graph.placeholder(next(inputs).name)
    for node in old:
        if node.op == "placeholder" and node.name in names:
            name = names[node.name]
            nodes[node] = graph.create_node("get_attr", name, name=name.replace(".", "_"))
        elif node.op == "call_function":
            nodes[node] = graph.node_copy(node, nodes.__getitem__)
            module = module_of(node, prefix)
            nodes[node].meta = {"module": module} if module else {}
        elif node.op == "get_attr":
            raise CaptureFailed(
                f"the graph branches on data at {module_of(node, prefix) or node.name} (a "
                "higher-order operator), which programs do not hold yet."
            )
        elif node.op == "output":
            graph.output(tuple(nodes[value] for value in node.args[0]))
    return graph


def _refuse_mutation(exported: ExportedProgram) -> None:
    written = [
        str(spec.target)
        for spec in exported.graph_signature.output_specs
        if spec.kind != OutputKind.USER_OUTPUT
    ]
    if written:
        raise CaptureFailed(
            f"the model writes to its own state ({', '.join(written)}); call model.eval() first, "
            "or pass that state in and out as tensors."
        )


def module_of(node: fx.Node, prefix: str) -> str:
    """The path of the module whose code made a node, without the wrappers of capture."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    path = paths[-1] if paths else ""
    return f"{path}.".removeprefix("module.").removeprefix(prefix).removesuffix(".")


def from_module(
    module: nn.Module,
    inputs: Mapping[str, Tensor] | Sequence[Tensor] | Tensor,
    *,
    batch_axis: int | None = 0,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> Program:
    """Capture any module from example inputs.

    Args:
        module: in evaluation mode.
        inputs: example tensors, by argument name or in order.
        batch_axis: the dimension of every input that counts requests; it becomes the symbolic
            size `B`. None for a module without a batch.
        dynamic: further symbolic dimensions, e.g. `{"x": {2: "H", 3: "W"}}`. The same name in
            two places means the same size.

    Raises:
        CaptureFailed: for a module in training mode or one that cannot be exported.
        planish.ir.sizes.SpecializedSize: if a symbolic size had to be fixed.
    """
    if module.training:
        raise CaptureFailed(f"{type(module).__name__} is in training mode; call eval() first.")
    named = _named(module, inputs)
    example = {name: _several_rows(tensor, batch_axis) for name, tensor in named.items()}
    specs, sizes = _symbolic(example, batch_axis, dynamic or {})
    with torch.no_grad():
        result = module(**example)
    names, pick = output_names(result)
    return export_program(
        Picking(module, tuple(example), pick),
        list(example.values()),
        Signature(specs, names, sizes),
        Source(
            name=type(module).__name__, stored_names={name: name for name in module.state_dict()}
        ),
        prefix="inner.",
        samples=[example],
    )


def _named(
    module: nn.Module, inputs: Mapping[str, Tensor] | Sequence[Tensor] | Tensor
) -> dict[str, Tensor]:
    if isinstance(inputs, Mapping):
        return dict(inputs)
    sequence = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    names = list(inspect.signature(module.forward).parameters)
    if len(sequence) > len(names):
        raise CaptureFailed(
            f"{type(module).__name__}.forward takes {len(names)} named arguments, given were "
            f"{len(sequence)} example tensors."
        )
    return dict(zip(names, sequence, strict=False))


def _several_rows(tensor: Tensor, batch_axis: int | None) -> Tensor:
    """The tensor with at least two rows: torch takes a size of one for a constant."""
    if batch_axis is None or tensor.dim() <= batch_axis or tensor.shape[batch_axis] > 1:
        return tensor
    return torch.cat([tensor] * 3, dim=batch_axis)


def _symbolic(
    example: Mapping[str, Tensor],
    batch_axis: int | None,
    dynamic: Mapping[str, Mapping[int, str]],
) -> tuple[tuple[Input, ...], tuple[Size, ...]]:
    unknown = sorted(set(dynamic) - set(example))
    if unknown:
        raise CaptureFailed(
            f"dynamic names {', '.join(unknown)}, but the inputs are {', '.join(example)}."
        )
    sizes: dict[str, Size] = {}
    specs = []
    for name, tensor in example.items():
        shape: list[int | str] = list(tensor.shape)
        has_batch = batch_axis is not None and tensor.dim() > batch_axis
        axes = {batch_axis: "B"} if batch_axis is not None and has_batch else {}
        axes |= dynamic.get(name, {})
        for dim, symbol in axes.items():
            extent = tensor.shape[dim]
            long = "batch_size" if symbol == "B" else symbol
            known = sizes.setdefault(symbol, Size(symbol, extent, long=long))
            if known.example != extent:
                raise CaptureFailed(
                    f"input {name!r} has {extent} along dimension {dim}, but {symbol} is "
                    f"{known.example} elsewhere: give the examples one common size."
                )
            shape[dim] = symbol
        specs.append(Input(name, tensor.dtype, tuple(shape), batch_axis if has_batch else None))
    return tuple(specs), tuple(sizes.values())


def output_names(result: Any) -> tuple[tuple[str, ...], Callable[[Any], tuple[Tensor, ...]]]:
    """Names for the tensors of a module's result, and how to pick them."""
    if isinstance(result, Tensor):
        return ("output",), lambda value: (value,)
    if isinstance(result, Mapping):
        keys = tuple(key for key, value in result.items() if isinstance(value, Tensor))
        return keys, lambda value: tuple(value[key] for key in keys)
    if isinstance(result, (list, tuple)):
        places = [place for place, value in enumerate(result) if isinstance(value, Tensor)]
        names = tuple(f"output_{number}" for number in range(len(places)))
        return names, lambda value: tuple(value[place] for place in places)
    raise CaptureFailed(f"the module returns a {type(result).__name__}, which holds no tensors.")


class Picking(nn.Module):
    """Calls a module by keyword and returns the tensors of its result as a tuple."""

    def __init__(
        self,
        inner: nn.Module,
        names: tuple[str, ...],
        pick: Callable[[Any], tuple[Tensor, ...]],
        fixed: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.inner = inner
        self._names = names
        self._pick = pick
        self._fixed = dict(fixed or {})

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Give the tensors their names, call the module, pick from what it returns."""
        given = dict(zip(self._names, tensors, strict=True))
        return self._pick(self.inner(**given, **self._fixed))
