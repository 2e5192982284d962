"""From an artifact's folder to what evaluates it. No code in the folder is run."""

from __future__ import annotations

from pathlib import Path

from planish.lowering.artifact import ONNX_MODEL, TORCH_PROGRAM, TRITON_PROGRAM, model_file
from planish.runtime.backend import Backend, CannotOpen, Provider


def backend_of(
    folder: Path,
    provider: Provider,
    threads: int | None,
    memory: int | None,
    compile: bool,  # noqa: A002  (as torch calls it)
) -> Backend:
    """The backend of what the folder holds; see `Session.open` for the arguments.

    Raises:
        CannotOpen: if it holds nothing that can be run, the device is not there, or `memory` asks
            for blocks that it does not have, or for fewer than it needs, or a model of ONNX Runtime
            is to be compiled.
    """
    file = model_file(folder)
    if memory is not None and file != folder / TORCH_PROGRAM:
        raise CannotOpen(
            f"{folder} holds no {TORCH_PROGRAM}, and memory= chooses among the blocks of one; "
            "convert with bitstack and target torch."
        )
    if compile and file is not None and file.suffix == ".onnx":
        raise CannotOpen(
            f"{folder} runs in ONNX Runtime, which does its own compiling; leave compile=True out, "
            "or convert with target torch or triton."
        )
    # Each backend imports a large library, of which only one is needed.
    if file is not None and file.suffix == ".onnx":
        from planish.runtime.ort_backend import OnnxBackend  # noqa: PLC0415

        return OnnxBackend(file, provider, threads)
    if file is not None and file == folder / TRITON_PROGRAM:
        from planish.runtime.triton_backend import TritonBackend  # noqa: PLC0415

        return TritonBackend(file.parent, provider, threads, compile=compile)
    if file is not None:
        from planish.runtime.torch_backend import TorchBackend  # noqa: PLC0415

        return TorchBackend(file.parent, provider, threads, memory=memory, compile=compile)
    missing = f"holds neither {ONNX_MODEL} nor {TORCH_PROGRAM} nor {TRITON_PROGRAM}"
    raise CannotOpen(
        f"{folder} {missing if folder.is_dir() else 'is no folder'}, so there is nothing to "
        "run; give a folder that planish convert wrote."
    )
