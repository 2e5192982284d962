"""Programs and exported programs that are run, and differentiated, by PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from planish.ir.program import Program
from planish.runtime.runnable import Runnable
from planish.runtime.values import as_array
from planish.runtime.witness import Feeds

aten = torch.ops.aten


def of_program(program: Program, model: str = "") -> Runnable:
    """A program, on the CPU."""
    graph = _Graph(
        torch.nn.Module(),
        program.graph,
        {spec.name: spec.dtype for spec in program.inputs},
        {},
        dict(zip(program.outputs, range(len(program.outputs)), strict=True)),
        program.tensors,
    )
    return graph.runnable(program.samples[0] if program.samples else {}, model)


def of_exported(exported: ExportedProgram) -> Runnable:
    """An exported program, which has to be functional; each run begins with what is stored."""
    signature = exported.graph_signature
    stored = {**exported.state_dict, **exported.constants}
    dtypes: dict[str, torch.dtype] = {}
    fixed: dict[str, Any] = {}
    names: list[str] = []
    metas = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    for spec in signature.input_specs:
        name = spec.arg.name
        if spec.kind is not InputKind.USER_INPUT:
            fixed[name] = stored[str(spec.target)]
            continue
        names.append(name)
        if isinstance(metas[name], Tensor):
            dtypes[name] = metas[name].dtype
        else:
            fixed[name] = getattr(spec.arg, "value", None)
    returned = next(iter(reversed(exported.graph.nodes))).args[0]
    outputs = {node.name: place for place, node in enumerate(returned) if node is not None}
    graph = _Graph(exported.graph_module, exported.graph, dtypes, fixed, outputs, {})
    leaves = pytree.tree_leaves(exported.example_inputs or ())
    given = dict(zip(names, leaves, strict=False)) if len(names) == len(leaves) else {}
    return graph.runnable({name: one for name, one in given.items() if name in dtypes})


class _Graph:
    """A graph with all it reads.

    Args:
        module: holds nested graphs.
        graph: to evaluate.
        dtypes: of the inputs, by placeholder.
        fixed: what other placeholders stand for.
        outputs: the places of what is returned, by name.
        tensors: what `get_attr` reads, by target; else the module's attributes.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        graph: fx.Graph,
        dtypes: Mapping[str, torch.dtype],
        fixed: Mapping[str, Any],
        outputs: Mapping[str, int],
        tensors: Mapping[str, Tensor],
    ) -> None:
        self.module = module
        self.graph = graph
        self.dtypes = dtypes
        self.fixed = fixed
        self.outputs = outputs
        self.tensors = tensors

    def runnable(self, example: Mapping[str, Any], model: str = "") -> Runnable:
        """In the form in which anything is run."""
        dtypes = {name: _numpy_name(dtype) for name, dtype in self.dtypes.items()}
        known = {name: as_array(one) for name, one in example.items() if isinstance(one, Tensor)}
        return Runnable(self.run, dtypes, known, self.slope, model)

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """Evaluate without gradients."""
        with torch.no_grad():
            values = self._values(_Evaluation(self, watched=False), feeds)
        return {
            name: as_array(values[place])
            for name, place in self.outputs.items()
            if isinstance(values[place], Tensor)
        }

    def slope(self, feeds: Feeds, output: str, axis: int, rows: Sequence[int], sign: int) -> Feeds:
        """What would raise a random combination of rows of an output, or lower it, by input.

        Of a float input its gradient. Of codes that an embedding looks up, for each the code whose
        vector lies farthest along the gradient (Ebrahimi et al., 2018, arXiv:1712.06751). Nothing
        where an operator has no derivative.
        """
        evaluation = _Evaluation(self, watched=True)
        try:
            with torch.enable_grad():
                value = self._values(evaluation, feeds)[self.outputs[output]]
                chosen = value.index_select(axis, torch.tensor(list(rows))).float()
                chance = torch.Generator().manual_seed(0)
                total = sign * (chosen * torch.randn(chosen.shape, generator=chance)).sum()
                leaves = [one.value for one in evaluation.leaves]
                found = torch.autograd.grad(total, leaves, allow_unused=True)
        except (RuntimeError, NotImplementedError, IndexError):
            return {}
        slopes: dict[str, Tensor] = {}
        scores: dict[str, Tensor] = {}
        for leaf, gradient in zip(evaluation.leaves, found, strict=True):
            if gradient is None or not bool(gradient.abs().sum() > 0):
                continue
            if leaf.table is None:
                slopes[leaf.name] = gradient
            else:  # codes may be looked up in several places
                score = gradient.float() @ leaf.table.detach().float().T
                scores[leaf.name] = scores.get(leaf.name, torch.zeros(())) + score
        codes = {name: score.argmax(-1) for name, score in scores.items()}
        return {name: as_array(one) for name, one in {**slopes, **codes}.items()}

    def _values(self, evaluation: _Evaluation, feeds: Feeds) -> tuple[Any, ...]:
        given = [
            _tensor(feeds[str(node.target)], self.dtypes[str(node.target)])
            if str(node.target) in self.dtypes
            else self.fixed[str(node.target)]
            for node in self.graph.nodes
            if node.op == "placeholder"
        ]
        returned: Any = evaluation.run(*given, enable_io_processing=False)
        return tuple(returned)


@dataclass(frozen=True)
class _Leaf:
    """What a gradient is taken by: a float input, or what an embedding looks up for an input."""

    name: str
    value: Tensor
    table: Tensor | None = None


class _Evaluation(fx.Interpreter):
    """Runs a graph; if watched, float inputs and what embeddings look up take gradients."""

    def __init__(self, graph: _Graph, watched: bool) -> None:
        super().__init__(graph.module, graph=graph.graph)
        self.leaves: list[_Leaf] = []
        self._graph = graph
        self._watched = watched

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in self._graph.tensors:
            return self._graph.tensors[target]
        return super().get_attr(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if not self._watched or not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        name, table = str(n.target), None
        if n.target is aten.embedding.default:
            table, codes = self.fetch_args_kwargs_from_env(n)[0][0], n.args[1]
            is_input = isinstance(codes, fx.Node) and codes.op == "placeholder"
            name = str(codes.target) if isinstance(codes, fx.Node) else name
        else:
            is_input = n.op == "placeholder"
        if is_input and name in self._graph.dtypes:
            result = result.detach().requires_grad_()
            self.leaves.append(_Leaf(name, result, table))
        return result


def _tensor(array: Any, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.array(array)).to(dtype)


def _numpy_name(dtype: torch.dtype) -> str:
    """bfloat16, which numpy does not have, goes in and out as float32."""
    name = str(dtype).removeprefix("torch.")
    return "float32" if name == "bfloat16" else name
