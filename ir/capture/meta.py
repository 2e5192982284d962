"""Programs without data: a model as its config describes it, before any weight is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from planish.ir.capture.checkpoint import model_class, quiet, read_config, stored_dtype
from planish.ir.capture.huggingface import capture_model
from planish.ir.program import Program


def from_config(checkpoint: str | Path) -> Program:
    """Capture what a checkpoint's config describes, with tensors on the meta device.

    The graph, the names, shapes and dtypes of tensors, and which of them are tied, are those that
    `from_checkpoint` gives. There are no samples, since nothing can be computed.

    Args:
        checkpoint: a folder with `config.json`, with or without weights, a `.gguf` file, or the
            name of a model on the hub, of which only the config is fetched.

    Raises:
        planish.ir.capture.checkpoint.BadCheckpoint: if the config is missing, damaged, or of an
            unknown architecture.
        planish.ir.capture.export.CaptureFailed: if the model cannot be exported.
    """
    from transformers.initialization import no_init_weights  # noqa: PLC0415  (slow to import)

    location = Path(checkpoint)
    config = read_config(checkpoint)
    dtype = config.dtype or stored_dtype(location) or torch.get_default_dtype()
    config.dtype = dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    # Some constructors read values of constants that they make on the CPU. Those are real here;
    # under the fake mode, which the capture needs, they would have none.
    with quiet(), no_init_weights(), _default_dtype(dtype), torch.device("meta"):
        model = model_class(config)(config).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu").tie_weights()
        program = capture_model(model, location)
    tensors = {name: _without_data(tensor) for name, tensor in program.tensors.items()}
    return dataclasses.replace(program, tensors=tensors, samples=())


def _without_data(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The dtype that modules create their parameters in, as transformers sets it on loading."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
