"""Strict checks of the tensors that an ONNX file stores, or takes from files beside it."""

from __future__ import annotations

from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

from onnx import TensorProto, helper

from planish.ir.flow.malformed import AmbiguousTensor, ForeignData

LARGEST = 2**40
"""Tensors of more elements than this are claims, not weights."""

_DATA = [
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "raw_data",
]


def check_tensor(tensor: TensorProto, folder: Path | None, where: str) -> None:
    """Check that a stored tensor can be read in one way only.

    Raises:
        Malformed: if not; the message names it.
    """
    name = f"Tensor {tensor.name!r} of {where}"
    filled = [field for field in _DATA if len(getattr(tensor, field))]
    outside = tensor.data_location == TensorProto.EXTERNAL
    if len(filled) + outside + (bool(tensor.external_data) and not outside) > 1:
        both = [*filled, *(["external data"] if tensor.external_data else [])]
        raise AmbiguousTensor(
            f"{name} holds its elements in several places at once ({' and '.join(both)}), which "
            "programs read differently. Write it again with one of them."
        )
    if min(tensor.dims, default=0) < 0 or prod(tensor.dims) > LARGEST:
        raise AmbiguousTensor(
            f"{name} claims the shape {list(tensor.dims)}, which no stored tensor has. Export the "
            "model again."
        )
    if tensor.HasField("segment"):
        raise AmbiguousTensor(
            f"{name} is a segment of a larger one, which is not supported. Export the model again."
        )
    if outside:
        _check_location(tensor, folder, name)
    else:
        _check_length(tensor, filled, name)


def _check_length(tensor: TensorProto, filled: list[str], name: str) -> None:
    """The elements are as many as the shape says."""
    number = prod(tensor.dims)
    if tensor.data_type not in TensorProto.DataType.values() or not tensor.data_type:
        raise AmbiguousTensor(f"{name} has no known type ({tensor.data_type}). Export it again.")
    bits = _bits(tensor.data_type)
    if "raw_data" in filled:
        given: float = len(tensor.raw_data)
        wanted: float = -(-number * bits // 8) if bits else -1
    else:
        given = len(getattr(tensor, filled[0])) if filled else 0
        wanted = _elements(tensor.data_type, number, bits)
        _check_field(tensor, filled, name)
    if given != wanted:
        raise AmbiguousTensor(
            f"{name} has the shape {list(tensor.dims)} and holds {given} items where that takes "
            f"{wanted}. Export the model again, and check that it was copied whole."
        )


def _check_field(tensor: TensorProto, filled: list[str], name: str) -> None:
    field = helper.tensor_dtype_to_field(tensor.data_type)
    if filled and filled[0] != field:
        raise AmbiguousTensor(
            f"{name} holds its elements as {filled[0]}, where its type asks for {field}. Export "
            "the model again."
        )


def _elements(data_type: int, number: int, bits: int) -> int:
    """How many items of a typed field hold `number` elements."""
    if bits and bits < 8:
        return -(-number * bits // 8)
    complex_ = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
    return number * 2 if data_type in complex_ else number


def _bits(data_type: int) -> int:
    """The size of one element, 0 for texts."""
    name = str(TensorProto.DataType.Name(data_type))
    if name == "STRING":
        return 0
    if name.endswith(("INT4", "4E2M1")):
        return 4
    if name.endswith("INT2"):
        return 2
    return int(helper.tensor_dtype_to_np_dtype(data_type).itemsize) * 8


def _check_location(tensor: TensorProto, folder: Path | None, name: str) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data) or not entries.get("location"):
        raise AmbiguousTensor(
            f"{name} does not say clearly where its external data lie. Write the model again."
        )
    location = entries["location"]
    parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
    absolute = PurePosixPath(location).is_absolute() or bool(PureWindowsPath(location).anchor)
    if absolute or ".." in parts:
        raise ForeignData(
            f"{name} takes its elements from {location!r}, outside the model's folder. Put the "
            "file beside the model and name it without a folder."
        )
    if folder is None:
        return
    path = folder / location
    if not path.is_file():
        raise ForeignData(
            f"{name} takes its elements from {location!r}, which does not exist beside the model. "
            "Copy that file too."
        )
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ForeignData(
            f"{name} takes its elements from {location!r}, a link out of the model's folder. Copy "
            "the file itself beside the model."
        )
    _check_extent(tensor, entries, path, name)


def _check_extent(tensor: TensorProto, entries: dict[str, str], path: Path, name: str) -> None:
    """The part of the file that holds the elements exists and is as long as the shape says."""
    start, length = entries.get("offset", "0"), entries.get("length")
    numbers = [start, *([length] if length is not None else [])]
    if not all(one.isascii() and one.isdigit() for one in numbers):
        raise AmbiguousTensor(f"{name} has external data at no proper place. Write it again.")
    wanted = -(-prod(tensor.dims) * _bits(tensor.data_type) // 8)
    if length is not None and int(length) != wanted:
        raise AmbiguousTensor(
            f"{name} has the shape {list(tensor.dims)}, which takes {wanted} bytes, and external "
            f"data of {length}. Export the model again."
        )
    if int(start) + wanted > path.stat().st_size:
        raise ForeignData(
            f"{name} takes {wanted} bytes from {path.name!r}, which is too short for them. Copy "
            "that file whole."
        )
