"""A saved program, evaluated by PyTorch, behind the `Backend` protocol."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from planish.ir.program import Program
from planish.ir.stack import CannotFit, fitted
from planish.runtime.backend import CannotOpen, Provider, RunFailed
from planish.runtime.compiled import Compiled
from planish.runtime.values import Value, as_array


class TorchBackend:
    """A program on the CPU: one ATen operator after another, to compare with, or compiled."""

    provider: Literal["cpu", "cuda"] = "cpu"

    def __init__(
        self,
        folder: Path,
        provider: Provider = "auto",
        threads: int | None = None,
        *,
        program: Program | None = None,
        memory: int | None = None,
        compile: bool = False,  # noqa: A002  (as torch calls it)
    ) -> None:
        """Load a program, unless it is given; of stacks, what fits into so many bytes."""
        if provider == "cuda":
            raise CannotOpen(
                f"{folder} holds a torch artifact, which runs on the CPU only; convert with "
                "target onnx to run on CUDA."
            )
        loaded = program if program is not None else Program.load(folder)
        self._program = loaded if memory is None else _fitted(loaded, memory)
        self._threads = threads
        self._compile = compile
        self._dtypes = {spec.name: spec.dtype for spec in self._program.inputs}
        self.inputs = tuple(
            Value(spec.name, _name(spec.dtype), spec.shape) for spec in self._program.inputs
        )
        values = (node.meta["val"] for node in self._program.output_nodes)
        self.outputs = tuple(
            Value(name, _name(value.dtype), tuple(map(self._extent, value.shape)))
            for name, value in zip(self._program.outputs, values, strict=True)
        )

    def run(self, feeds: Mapping[str, Any], kept: Collection[str] = ()) -> dict[str, Any]:
        """Evaluate; see `Backend.run`. What is kept is a `Tensor`."""
        tensors = {name: self._tensor(name, fed) for name, fed in feeds.items()}
        try:
            with torch_threads(self._threads):
                results = self._evaluated(**tensors)
        except (RuntimeError, IndexError) as error:
            reason = str(error).partition("Original traceback")[0].strip()
            raise RunFailed(f"PyTorch failed to run the program: {reason}") from error
        return {
            name: result if name in kept else as_array(result) for name, result in results.items()
        }

    @cached_property
    def _evaluated(self) -> Callable[..., Mapping[str, Tensor]]:
        """What evaluates the program, which is complete by the first run."""
        return Compiled(self._program).run if self._compile else self._program.run

    def _tensor(self, name: str, fed: Any) -> Tensor:
        if isinstance(fed, Tensor):
            return fed
        writable = fed if fed.flags.writeable else np.array(fed)  # or torch warns
        return torch.from_numpy(writable).to(self._dtypes[name])

    def _extent(self, extent: Any) -> int | str:
        return extent if isinstance(extent, int) else self._program.shapes.text(extent)


def _fitted(program: Program, memory: int) -> Program:
    try:
        return fitted(program, memory)
    except CannotFit as problem:
        raise CannotOpen(str(problem)) from problem


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Set the number of threads, which PyTorch has once for all models, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
