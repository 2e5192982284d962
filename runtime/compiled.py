"""A program compiled by `torch.compile`, for torch and Triton artifacts.

Evaluated node by node, a decoder's step is a thousand small kernels, each started from Python.
Compiled, what is not a kernel of ours already is fused (Ansel et al., "PyTorch 2", 2024, section
4). Operators that choose a kernel by the number of rows stay closed: a choice that is traced would
be frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from planish.ir import ops
from planish.ir.program import Program
from planish.runtime.backend import RunFailed

_CLOSED = {ops.selective_scan}
"""Composite operators that stay closed too: a scan loops over time, and lengths vary."""


class Compiled:
    """A program's graph as a module that `torch.compile` has been given.

    Compilation happens at the first run, and again where a size is 1 that was more before, as when
    decoding follows a prompt: a minute each for a model of thirty layers, once a process.
    """

    def __init__(self, program: Program, compiler: str | Callable[..., Any] = "inductor") -> None:
        """Prepare, and compile nothing yet.

        Args:
            program: its tensors are on the device where it runs.
            compiler: a backend of `torch.compile`.
        """
        self._inputs = [spec.name for spec in program.inputs]
        self._outputs = program.outputs
        module = fx.GraphModule(dict(program.tensors), _opened(program.graph))
        self._call: Callable[..., Any] = torch.compile(
            module, backend=compiler, dynamic=True, fullgraph=True
        )

    def run(self, **inputs: Tensor) -> Mapping[str, Tensor]:
        """Evaluate, without gradients.

        Raises:
            RunFailed: if the graph cannot be compiled here, for instance without a C++ compiler.
        """
        from torch._dynamo.exc import TorchDynamoException  # noqa: PLC0415  (slow to import)

        try:
            with torch.no_grad():
                values = self._call(*(inputs[name] for name in self._inputs))
        except TorchDynamoException as error:
            reason = " ".join(str(error).partition("\n\n")[0].split()).rstrip(".")
            raise RunFailed(
                f"torch.compile failed on the model: {reason}. Open it without compile=True."
            ) from error
        return dict(zip(self._outputs, values, strict=True))


def _opened(graph: fx.Graph) -> fx.Graph:
    """A copy that Python can say: plain names for inputs, and what composite operators compute."""
    opened = fx.Graph()
    opened.output(opened.graph_copy(graph, {}))
    for node in opened.nodes:
        if node.op == "placeholder":
            node.target = node.name
        elif node.target in ops.EAGER and node.target not in _CLOSED:
            node.target = ops.EAGER[node.target]
    return opened
