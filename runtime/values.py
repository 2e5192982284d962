"""What a model takes and gives, and the check of what it is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.ir.errors import PlanishError

Array = NDArray[Any]


class BadInput(PlanishError):
    """The arrays given to a session do not fit what its model takes."""


@dataclass(frozen=True)
class Value:
    """An input or output of a model.

    Attributes:
        name: as in the model.
        dtype: the field's name of it, e.g. `"int64"`, `"float32"`, `"bfloat16"`.
        shape: one extent a dimension: a number, or the name of a size that differs from call to
            call, e.g. `"batch_size"`.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def array_dtype(self) -> np.dtype[Any]:
        """The dtype of the array that stands for it.

        numpy has no bfloat16; such values are float32 outside of the model.
        """
        return np.dtype("float32" if self.dtype == "bfloat16" else self.dtype)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


def checked(values: Iterable[Value], given: Mapping[str, Any]) -> dict[str, Array]:
    """The given arrays, PyTorch tensors, numbers or nested lists, as arrays that fit.

    Raises:
        BadInput: if a name is missing or unknown, or a dtype, a rank or an extent does not fit.
    """
    specs = {value.name: value for value in values}
    missing, unknown = specs.keys() - given.keys(), given.keys() - specs.keys()
    if missing or unknown:
        problems = [f"missing: {_few(sorted(missing), ', ')}"] if missing else []
        problems += [f"unknown: {_few(sorted(unknown), ', ')}"] if unknown else []
        raise BadInput(
            f"The model takes {_few(map(str, specs.values()), '; ')}. Of what was given, "
            f"{'; '.join(problems)}."
        )
    arrays = {name: _array(spec, given[name]) for name, spec in specs.items()}
    _check_sizes(specs.values(), arrays)
    return arrays


def _few(names: Iterable[str], between: str, most: int = 6) -> str:
    """The first names, and how many more there are: a cache has dozens of inputs."""
    listed = list(names)
    more = [f"and {len(listed) - most} more"] if len(listed) > most else []
    return between.join([*listed[:most], *more])


def _array(spec: Value, given: Any) -> Array:
    """One input as an array of the right dtype and rank."""
    array = as_array(given)
    literal = not hasattr(given, "dtype")  # plain Python numbers have no dtype of their own
    if array.dtype != spec.array_dtype:
        if not (literal and np.can_cast(array.dtype, spec.array_dtype, "same_kind")):
            raise BadInput(
                f"Input {spec} was given as {array.dtype}; convert it to {spec.array_dtype} first."
            )
        array = array.astype(spec.array_dtype)
    if array.ndim != len(spec.shape):
        raise BadInput(
            f"Input {spec} has {len(spec.shape)} dimensions; given was an array of shape "
            f"{list(array.shape)}, which has {array.ndim}."
        )
    return array


def as_array(given: Any) -> Array:
    """An array, PyTorch tensor, number or nested list as an array; bfloat16 becomes float32.

    Raises:
        BadInput: if the rows of a list differ in length.
    """
    if hasattr(given, "detach"):
        tensor = given.detach().cpu()
        given = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    try:
        return np.asarray(given, order="C")
    except ValueError as error:
        raise BadInput(f"A list whose rows differ in length is no array: {error}") from error


def _check_sizes(specs: Iterable[Value], arrays: Mapping[str, Array]) -> None:
    """Every fixed extent is kept, and a named size is the same wherever it occurs."""
    seen: dict[str, tuple[int, str]] = {}
    for spec in specs:
        for extent, size in zip(spec.shape, arrays[spec.name].shape, strict=True):
            expected, whose = (
                (extent, "the model")
                if isinstance(extent, int)
                else seen.setdefault(extent, (size, spec.name))
            )
            if size != expected:
                raise BadInput(
                    f"Input {spec} was given with the shape {list(arrays[spec.name].shape)}: "
                    f"{extent} is {size} there, but {expected} in {whose}."
                )
