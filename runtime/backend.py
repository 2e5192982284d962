"""What evaluates a model: the protocol that ONNX Runtime and PyTorch are put behind."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, Protocol

from planish.ir.errors import PlanishError
from planish.runtime.values import Value

Provider = Literal["auto", "cpu", "cuda"]
"""Where to run; `"auto"` is CUDA where the model, the machine and the installation have it."""


class CannotOpen(PlanishError):
    """A folder cannot be run, or not on the device that was asked for."""


class RunFailed(PlanishError):
    """A model raised an error on inputs whose dtypes and shapes fit."""


class Backend(Protocol):
    """A model that is loaded and can be evaluated."""

    @property
    def inputs(self) -> tuple[Value, ...]:
        """What the model takes, in its order."""
        ...

    @property
    def outputs(self) -> tuple[Value, ...]:
        """What the model gives, in its order."""
        ...

    @property
    def provider(self) -> Literal["cpu", "cuda"]:
        """Where it runs."""
        ...

    def run(self, feeds: Mapping[str, Any], kept: Collection[str] = ()) -> dict[str, Any]:
        """Evaluate.

        Args:
            feeds: for each input a checked array, or what an earlier call kept.
            kept: outputs that stay on the device, to be fed again; others come back as arrays.

        Raises:
            RunFailed: if the model does.
        """
        ...
