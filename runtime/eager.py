"""Models of transformers, run eagerly, to compare sessions with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from planish.ir.capture.checkpoint import load_model
from planish.runtime.backend import Provider
from planish.runtime.causal import Cache, Tokens, extended_mask, positions
from planish.runtime.session import Session, runnable
from planish.runtime.torch_backend import torch_threads
from planish.runtime.values import Array, as_array


class EagerModel:
    """A model of transformers, as it is."""

    takes_padding = True

    def __init__(
        self, model: nn.Module, device: str | None = None, threads: int | None = None
    ) -> None:
        """Put a model into evaluation mode, and move it where a device is given."""
        self._model = (model.to(device) if device else model).eval()
        self._threads = threads
        self._takes = inspect.signature(model.forward).parameters
        weight = next(model.parameters(), torch.empty(0))
        self._device = weight.device
        dtype = str(weight.dtype).removeprefix("torch.")
        self.label = f"{type(model).__name__} ({dtype}, PyTorch eager)"

    def run(self, **inputs: Any) -> dict[str, Array]:
        """Evaluate once; see `Session.run`. Outputs that are no tensors are left out."""
        tensors = {
            name: torch.from_numpy(as_array(given)).to(self._device)
            for name, given in inputs.items()
        }
        with torch.inference_mode(), torch_threads(self._threads):
            results = self._model(**tensors)
        if not isinstance(results, Mapping):
            several = results if isinstance(results, tuple | list) else (results,)
            results = {f"output_{place}": result for place, result in enumerate(several)}
        tensors = {name: r for name, r in results.items() if isinstance(r, torch.Tensor)}
        return {name: as_array(tensor) for name, tensor in tensors.items()}

    def extend(
        self, input_ids: Tokens, mask: Tokens | None = None, cache: Cache | None = None
    ) -> tuple[Array, Cache]:
        """Read more tokens; see `planish.runtime.causal.LanguageModel.extend`."""
        whole = extended_mask(input_ids, mask, cache)
        recurrent = "cache_params" in self._takes
        state = "cache_params" if recurrent else "past_key_values"
        read = whole[:, -input_ids.shape[1] :].copy() if recurrent else whole
        arrays = {"input_ids": input_ids, "attention_mask": read}
        if "position_ids" in self._takes:
            arrays["position_ids"] = positions(whole, input_ids.shape[1])
        tensors = {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}
        with torch.inference_mode(), torch_threads(self._threads):
            results = self._model(
                **tensors, **{state: cache.states if cache else None}, use_cache=True
            )
        return as_array(results.logits), Cache(whole, results[state])


Against = Session | EagerModel | nn.Module | Path | str
"""What a session can be compared with; see `opponent`."""


def opponent(
    against: Against, provider: Provider = "auto", threads: int | None = None
) -> Session | EagerModel:
    """What to compare with: a session or model as it is, an artifact, or a checkpoint.

    A folder with something to run in it is opened as an artifact; any other path or name is
    given to transformers.

    Raises:
        planish.ir.capture.checkpoint.BadCheckpoint: if transformers cannot load it.
        planish.runtime.backend.CannotOpen: if it is an artifact that cannot be opened.
    """
    if isinstance(against, Session | EagerModel):
        return against
    if isinstance(against, nn.Module):
        return EagerModel(against, threads=threads)
    if runnable(Path(against)):
        return Session.open(against, provider=provider, threads=threads)
    device = "cuda" if provider == "cuda" else "cpu"
    return EagerModel(load_model(against), device, threads)
