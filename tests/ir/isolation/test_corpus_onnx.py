"""ONNX models whose verdict is known, and runs that show it."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from planish.ir.flow.graph import Flow
from planish.ir.flow.onnx import read_model
from planish.ir.flow.polynomial import Count, substitute
from planish.ir.isolation.cases import analyse
from planish.ir.isolation.labels import Labels
from planish.ir.isolation.verdict import Analysis
from support.onnx_corpus import CORPUS, Arrays, Case

RUNNABLE = [name for name, case in CORPUS.items() if case.runs]


def audited(case: Case) -> Analysis:
    def read(ties: Mapping[str, Count]) -> Flow:
        flow = read_model(case.proto)
        given = ((value.name, value.shape) for value in flow.inputs)
        tied = {name: tuple(substitute(one, ties) for one in shape) for name, shape in given}
        return read_model(case.proto, tied)

    return analyse(read, Labels(shared=case.shared))


@pytest.mark.parametrize("name", CORPUS)
def test_verdict(name: str) -> None:
    found = audited(CORPUS[name])
    assert found.verdict == CORPUS[name].verdict, found.findings
    assert {one.kind for one in found.findings}.issuperset(CORPUS[name].kinds)


@pytest.mark.parametrize("name", RUNNABLE)
def test_runs_agree(name: str) -> None:
    """What leaks is seen to; what is isolated is not."""
    case = CORPUS[name]
    assert moves(case) == (case.verdict == "leaks")


def moves(case: Case) -> bool:
    """Whether another row's change moves a row, in value, or in whether it is given at all."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(case.proto.SerializeToString(), options)
    first = feeds(case)
    before = session.run(None, first)
    rows = next(iter(first.values())).shape[0]
    for row in range(rows):
        for other in changes(first, row):
            try:
                after = session.run(None, other)
            except (
                Fail,
                InvalidArgument,
            ):  # it refuses these values: an error is not a flow of data
                continue
            pairs = zip(map(np.asarray, before), map(np.asarray, after), strict=True)
            if any(differ(old, new, row, rows) for old, new in pairs):
                return True
    return False


def feeds(case: Case) -> Arrays:
    """Numbers for every input: what the case begins with, else random ones."""
    chance = np.random.default_rng(0)
    made: Arrays = {}
    for one in case.proto.graph.input:
        tensor = one.type.tensor_type
        shape = [case.sizes.get(d.dim_param) or d.dim_value for d in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        array = chance.normal(size=shape) if dtype.kind == "f" else np.arange(shape[0]) % shape[0]
        made[one.name] = np.asarray(array, dtype)
    return made | case.feeds


def changes(first: Arrays, row: int) -> list[Arrays]:
    """The same with another row."""
    ways: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda x: x + 3 if x.dtype.kind == "f" else (x + 1) % 4,
        lambda x: x * 100 if x.dtype.kind == "f" else x * 0,
        lambda x: np.full_like(x, np.nan) if x.dtype.kind == "f" else x * 0,
        lambda x: -x if x.dtype.kind == "f" else x * 0,
    ]
    found = []
    for way in ways:
        other = {name: array.copy() for name, array in first.items()}
        for array in other.values():
            array[row] = way(array[row])
        found.append(other)
    return found


def differ(old: np.ndarray, new: np.ndarray, row: int, rows: int) -> bool:
    if old.shape != new.shape:
        return True
    if not old.shape or old.shape[0] != rows:
        return not np.array_equal(old, new, equal_nan=True)
    kept = [one for one in range(rows) if one != row]
    return not np.array_equal(old[kept], new[kept], equal_nan=True)
