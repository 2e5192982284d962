"""ONNX Runtime behind the `Backend` protocol."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from planish.runtime.backend import CannotOpen, Provider, RunFailed
from planish.runtime.ort_caches import Rooms, in_place, reads_one, with_room
from planish.runtime.saturation import saturates
from planish.runtime.values import Array, Value

BFLOAT16 = 16
"""`TensorProto.BFLOAT16`, by which ONNX Runtime knows a dtype that numpy does not have."""

_DTYPES = {"float": "float32", "double": "float64"}


class OnnxBackend:
    """An ONNX model on the CPU or, with onnxruntime-gpu, on CUDA.

    Inputs and outputs are bound to memory, so that a cache that is only fed back is not copied
    (onnxruntime.ai, "I/O Binding").
    """

    def __init__(
        self,
        model: Path,
        provider: Provider = "auto",
        threads: int | None = None,
        libraries: Sequence[str] = (),
    ) -> None:
        self._session = _start(model, provider, threads, libraries)
        on_cuda = "CUDAExecutionProvider" in self._session.get_providers()
        self.provider: Literal["cpu", "cuda"] = "cuda" if on_cuda else "cpu"
        if provider == "cuda" and not on_cuda:
            raise CannotOpen(
                "ONNX Runtime could not start CUDA: its CUDA or cuDNN libraries are missing, or "
                "there is no device. Use provider='cpu', or install onnxruntime-gpu[cuda,cudnn]."
            )
        self.inputs = tuple(map(_value, self._session.get_inputs()))
        self.outputs = tuple(map(_value, self._session.get_outputs()))
        self._dtypes = {value.name: value.dtype for value in self.inputs}
        metadata = self._session.get_modelmeta().custom_metadata_map
        self._names = [value.name for value in self.outputs]
        self._in_place = {} if on_cuda else in_place(metadata, self._names)

    def run(self, feeds: Mapping[str, Any], kept: Collection[str] = ()) -> dict[str, Any]:
        """Evaluate; see `Backend.run`. What is kept is an `OrtValue`, or `Rooms` that hold it."""
        rooms = self._rooms(feeds, kept)
        binding = self._session.io_binding() if rooms is None else rooms.binding
        placed = {} if rooms is None else self._in_place
        for name, fed in feeds.items():
            if name not in placed:
                self._bind_input(binding, name, fed)
        written = dict.fromkeys(placed.values())
        others = [name for name in self._names if name not in written]
        for name in others:
            binding.bind_output(name, self.provider if name in kept else "cpu")
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # as above
            raise RunFailed(f"ONNX Runtime failed to run the model: {error}") from error
        results: dict[str, Any] = {}
        given = binding.get_outputs_as_ortvaluevector()  # in the order in which they were bound
        for place, name in enumerate(others, start=len(written)):
            value = onnxruntime.OrtValue(given[place])
            results[name] = value if name in kept else _fetch(value)
        return results if rooms is None else results | dict.fromkeys(written, rooms.longer())

    def _rooms(self, feeds: Mapping[str, Any], kept: Collection[str]) -> Rooms | None:
        """The caches that a new position is written into where they lie; None if none are."""
        names = self._in_place
        if not names or not reads_one(feeds) or not set(kept) >= set(names.values()):
            return None
        return with_room(self._session, names, feeds)

    def _bind_input(self, binding: Any, name: str, fed: Any) -> None:
        fed = fed.exact(name) if isinstance(fed, Rooms) else fed
        if not isinstance(fed, np.ndarray):
            binding.bind_ortvalue_input(name, fed)
        elif self._dtypes[name] == "bfloat16":
            value = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
                _to_bfloat16(fed), BFLOAT16
            )
            binding.bind_ortvalue_input(name, value)
        else:
            binding.bind_cpu_input(name, fed)


def _start(model: Path, provider: Provider, threads: int | None, libraries: Sequence[str]) -> Any:
    available = onnxruntime.get_available_providers()
    if provider == "cuda" and "CUDAExecutionProvider" not in available:
        raise CannotOpen(
            "The installed onnxruntime has no CUDA provider. Use provider='cpu', or install "
            "planish[gpu] in an environment without the plain onnxruntime package."
        )
    wanted = {"cpu": ["CPU"]}.get(provider, ["CUDA", "CPU"])
    names = [f"{name}ExecutionProvider" for name in wanted]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised; warnings about the graph are not the user's
    # On loading, products with dequantized weights become MatMulNBits, by default at level 4, which
    # rounds activations to 8 bits: not what the file says. At 1 they stay float32. Files that name
    # MatMulNBits themselves keep their own level.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    # Where the fast kernels for uint8 times int8 saturate, this takes ones that do not; where they
    # are exact, it would take slower ones all the same (prompts 1.6 times as long, with VNNI).
    options.add_session_config_entry("session.x64quantprecision", str(int(saturates())))
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        for library in libraries:
            options.register_custom_ops_library(library)
        return onnxruntime.InferenceSession(
            model, options, providers=[name for name in names if name in available]
        )
    except Exception as error:  # onnxruntime's exceptions have no narrower base in common
        raise CannotOpen(f"ONNX Runtime cannot load {model}: {error}") from error


def _value(described: Any) -> Value:
    """An input or output as ONNX Runtime describes it, e.g. `tensor(float)` `['B', None, 64]`."""
    found = re.fullmatch(r"tensor\((\w+)\)", described.type)
    if not found:
        raise CannotOpen(
            f"The model's {described.name!r} is a {described.type}; only tensors can be run."
        )
    dtype = _DTYPES.get(found[1], found[1])
    shape = tuple(
        f"{described.name}_{axis}" if extent is None else extent
        for axis, extent in enumerate(described.shape)
    )
    return Value(described.name, dtype, shape)


def _fetch(result: Any) -> Array:
    """A result on the CPU as an array; bfloat16 widened to float32."""
    if result.element_type() != BFLOAT16:
        return np.asarray(result.numpy())
    shape = result.shape()
    bits = (ctypes.c_uint16 * int(np.prod(shape))).from_address(result.data_ptr())
    wide = np.left_shift(np.ctypeslib.as_array(bits).astype(np.uint32), np.uint32(16))
    return wide.view(np.float32).reshape(shape)


def _to_bfloat16(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of float32 numbers, rounded to nearest even: bfloat16's bits."""
    bits = array.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)
