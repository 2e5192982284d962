"""A program lowered to Triton, behind the `Backend` protocol."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from planish.lowering.triton import load, tuning
from planish.lowering.triton.build import installed, interpreted
from planish.lowering.triton.check import Record, wrong_ones
from planish.lowering.triton.generators import Spec
from planish.runtime.backend import CannotOpen, Provider
from planish.runtime.torch_backend import TorchBackend
from planish.runtime.values import as_array

OLDEST = (8, 0)
"""The compute capability that generated kernels are for: bfloat16 tensor cores (Ampere)."""


class TritonBackend(TorchBackend):
    """Generated kernels on CUDA; on the CPU their plain torch references, or the interpreter.

    Attributes:
        plans: for each product, which kernel it is and what chose its tilings.
    """

    def __init__(
        self,
        folder: Path,
        provider: Provider = "auto",
        threads: int | None = None,
        *,
        tuned: Path | None = None,
        dense: bool = False,
        compile: bool = False,  # noqa: A002  (as torch calls it)
    ) -> None:
        """Load an artifact's program, its plans, and on a device check its kernels.

        Args:
            folder: with `program.json` and `kernels.json`.
            provider: the device; `"auto"` prefers CUDA.
            threads: of the CPU.
            tuned: the tuning table; by default that in the cache's folder.
            dense: whether weights may be kept in floating point too, where that is faster.
            compile: whether the rest of the program is compiled by `torch.compile`.

        Raises:
            CannotOpen: if the device is not there, or too old, or Triton is missing for it.
            planish.lowering.artifact.BadArtifact: if its kernels are not those that its
                specifications generate.
        """
        program, bitwise = load.load(folder)
        super().__init__(folder, "cpu", threads, program=program, compile=compile)
        self._device = torch.device(_provider(provider))
        self.provider: Literal["cpu", "cuda"] = "cuda" if self._device.type == "cuda" else "cpu"
        device, version = _named(self._device)
        kept = tuning.default_path()
        table = tuning.read(tuned or kept, device, version)
        record = Record(kept.with_name("checked.json"), device, version)

        def judge(specs: Iterable[Spec]) -> frozenset[Spec]:
            return wrong_ones(specs, self._device, record=record)

        self._program, self.plans = load.prepared(
            self._program,
            self._device,
            table=table,
            bitwise=bitwise,
            dense=dense,
            judge=judge if self.provider == "cuda" else load.trusting,
        )

    def run(self, feeds: Mapping[str, Any], kept: Collection[str] = ()) -> dict[str, Any]:
        """Evaluate; see `Backend.run`. What is kept is a `Tensor` on the device."""
        given = {name: self._tensor(name, fed).to(self._device) for name, fed in feeds.items()}
        found = super().run(given, self._program.outputs)
        return {
            name: result if name in kept else as_array(result.cpu())
            for name, result in found.items()
        }


def _provider(asked: Provider) -> Literal["cpu", "cuda"]:
    """The device to run on.

    Raises:
        CannotOpen: if CUDA is asked for and cannot be used.
    """
    why = "" if asked == "cpu" else _why_not_cuda()
    if asked == "cuda" and why:
        raise CannotOpen(f"This artifact cannot run on CUDA here: {why} Use provider='cpu'.")
    return "cpu" if asked == "cpu" or why else "cuda"


def _why_not_cuda() -> str:
    if interpreted():
        return "TRITON_INTERPRET is set, so kernels are interpreted on the CPU."
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device."
    if not installed():
        return "Triton is not installed; planish[gpu] brings it."
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST:
        return (
            f"the device has compute capability {capability[0]}.{capability[1]}, and kernels are "
            f"for {OLDEST[0]}.{OLDEST[1]} and newer."
        )
    return ""


def _named(device: torch.device) -> tuple[str, str]:
    """The device's name and Triton's version, under which times are kept."""
    if device.type != "cuda":
        return "cpu", ""
    import triton  # noqa: PLC0415

    return torch.cuda.get_device_name(device), str(triton.__version__)
