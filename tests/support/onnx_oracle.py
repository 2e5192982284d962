"""ONNX's own node tests as an oracle: what an operator may not read, it must not react to."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from planish.ir.flow.graph import Flow
from planish.ir.flow.onnx import read_model
from planish.ir.flow.polynomial import Polynomial
from planish.ir.flow.vocabulary import Unranked, Value
from planish.ir.isolation.dependence import Dependence
from planish.ir.isolation.digits import Map, rows
from planish.ir.isolation.interpret import Interpreter

GROUPED = {"MoE"}
"""How many tokens an expert gets decides how its product is tiled, which moves the last bits."""

SMALL = 64
"""Integer inputs of at most this many elements may be axes or sizes, and are tried as constants."""


@dataclass
class Case:
    """One node test: a model of one node, inputs, and what comes out."""

    name: str
    model: onnx.ModelProto
    inputs: dict[str, Any]
    outputs: list[Any]

    @property
    def operators(self) -> set[tuple[str, str]]:
        return {(node.domain, node.op_type) for node in self.model.graph.node}


@dataclass
class Report:
    """What comparing one case has shown."""

    compared: int = 0  # elements that must not have reacted, and did not
    wrong: list[str] = field(default_factory=list)


@functools.cache
def cases() -> list[Case]:
    """All node tests that onnx generates."""
    from onnx.backend.test.case.node import collect_testcases  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    result = []
    for one in found:
        assert one.model is not None
        assert one.data_sets is not None
        inputs, outputs = one.data_sets[0]
        names = [value.name for value in one.model.graph.input]
        given = {name: _plain(value) for name, value in zip(names, inputs, strict=True)}
        result.append(Case(one.name, one.model, given, [_plain(value) for value in outputs]))
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return value if isinstance(value, list) or value is None else np.asarray(value)


def fixed(case: Case, all_integers: bool) -> Case:
    """The case with small integer inputs, or only scalar and empty ones, stored in the model."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    stay = []
    for value in model.graph.input:
        array = case.inputs[value.name]
        whole = isinstance(array, np.ndarray) and array.dtype in (np.int64, np.int32, np.bool_)
        if (whole and array.size <= SMALL and all_integers) or value.name in ("scales", "roi"):
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        else:
            stay.append(value)
    inputs = {value.name: case.inputs[value.name] for value in stay}
    del model.graph.input[:]
    model.graph.input.extend(stay)
    return Case(case.name, model, inputs, case.outputs)


def misfits(case: Case, flow: Flow) -> list[str]:
    """Derived shapes that real results contradict."""
    found = []
    for output, real in zip(case.model.graph.output, case.outputs, strict=True):
        value = flow.outputs.get(output.name)
        if not isinstance(real, np.ndarray) or value is None or isinstance(value.shape, Unranked):
            continue
        pairs = zip(value.shape, real.shape, strict=False)
        if len(value.shape) != real.ndim or any(
            isinstance(derived, int) and derived != size for derived, size in pairs
        ):
            found.append(f"{case.name}: {output.name} is {real.shape}, derived {value.shape}")
    return found


def compare(case: Case, seed: int, most: int) -> Report:
    """Perturb one request at a time; what is said not to read it must stay bit-identical."""
    report = Report()
    flow = read_model(case.model)
    try:
        run = runner(case.model)
        base = run(case.inputs)
        again = run(case.inputs)
    except Exception:  # neither runtime has the operator
        return report
    if not all(_same(one, two) for one, two in zip(base, again, strict=True)):
        return report  # random
    random = np.random.default_rng(seed)
    for value, axis, request in _choices(flow, case, random, most):
        dependences = _dependences(flow, value, axis)
        allowed = [
            _untouched(flow, dependences, place, base, request) for place in range(len(base))
        ]
        if not any(mask is not None and mask.any() for mask in allowed):
            continue
        for change in CHANGES:
            changed = _changed(case.inputs[value.name], axis, request, change, random)
            if changed is None:
                continue
            try:
                after = run({**case.inputs, value.name: changed})
            except Exception:
                continue  # refused: an index out of bounds, say
            _judge(case, value, axis, base, after, allowed, report)
    if not all(_same(one, two) for one, two in zip(base, run(case.inputs), strict=True)):
        return Report()  # random, though not at once
    return report


def _judge(
    case: Case,
    value: Value,
    axis: int,
    base: list[Any],
    after: list[Any],
    allowed: list[np.ndarray | None],
    report: Report,
) -> None:
    for old, new, mask in zip(base, after, allowed, strict=True):
        if mask is None or not isinstance(new, np.ndarray):
            continue
        close = bool(GROUPED & {name for _, name in case.operators})
        if new.shape != old.shape or not _same(old[mask], new[mask], close):
            report.wrong.append(f"{case.name}: {value.name} along axis {axis}")
        report.compared += int(mask.sum())


def _choices(
    flow: Flow, case: Case, random: np.random.Generator, most: int
) -> Iterator[tuple[Value, int, int]]:
    """Inputs, axes and requests to try, at most so many."""
    several = [
        (value, axis)
        for value in flow.inputs
        if isinstance(case.inputs[value.name], np.ndarray)
        and len(value.shape) == case.inputs[value.name].ndim
        for axis, size in enumerate(case.inputs[value.name].shape)
        if size > 1
    ]
    order = random.permutation(len(several))[:most]
    for place in sorted(order):
        value, axis = several[place]
        size = case.inputs[value.name].shape[axis]
        for request in {0, size - 1}:
            yield value, axis, request


def _dependences(flow: Flow, labelled: Value, axis: int) -> list[Dependence]:
    given = {value: Dependence() for value in (*flow.inputs, *flow.stored)}
    given[labelled] = Dependence(frozenset({rows(axis, labelled.shape[axis])}))
    interpreter = Interpreter(given)
    interpreter.run(flow)
    return [interpreter.dependences.get(one, Dependence()) for one in flow.outputs.values()]


def _untouched(
    flow: Flow, found: list[Dependence], place: int, base: list[Any], request: int
) -> np.ndarray | None:
    """Which elements of an output are said not to read a request; None where nothing is said."""
    real = base[place]
    if len(flow.outputs) != len(base) or not isinstance(real, np.ndarray):
        return None
    dependence = found[place]
    if dependence.causes:
        return None
    value = list(flow.outputs.values())[place]
    if len(value.shape) != real.ndim or any(map(_is_open, dependence.maps)):
        return None  # sizes that were left open
    reads = [_evaluated(one, real.shape) == request for one in dependence.maps]
    return ~np.any(reads, axis=0) if reads else np.ones(real.shape, dtype=bool)


def _is_open(one: Map) -> bool:
    numbers = [one.offset, *(n for d in one.digits for n in (d.stride, d.extent, d.weight))]
    return not all(isinstance(number, int) for number in numbers)


def _evaluated(one: Map, shape: Sequence[int]) -> np.ndarray:
    index = np.indices(shape)
    result = np.full(shape, _number(one.offset), dtype=np.int64)
    for digit in one.digits:
        part = index[digit.dim] // _number(digit.stride) % _number(digit.extent)
        result += _number(digit.weight) * part
    return result


def _number(count: int | Polynomial) -> int:
    assert isinstance(count, int), f"{count} is no number"
    return count


def _noise(part: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.asarray(part + random.standard_normal(part.shape).astype(part.dtype))


def _huge(part: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return np.asarray(part * np.asarray(100, dtype=part.dtype))


def _nan(part: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return np.full_like(part, np.nan)


CHANGES: tuple[Callable[[np.ndarray, np.random.Generator], np.ndarray], ...] = (
    _noise,
    _huge,
    _nan,
)


def _changed(
    array: np.ndarray,
    axis: int,
    request: int,
    change: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    random: np.random.Generator,
) -> np.ndarray | None:
    """The array with another content of one request; other types than floats are dealt anew."""
    changed = array.copy()
    place: Any = (*(slice(None) for _ in range(axis)), request)
    part = changed[place]
    if np.issubdtype(array.dtype, np.floating):
        with np.errstate(all="ignore"):
            changed[place] = change(part, random)
        return changed
    if change is not CHANGES[0]:
        return None
    changed[place] = random.choice(
        array.reshape(-1), size=(*array.shape[:axis], *array.shape[axis + 1 :])
    )
    return changed


def _same(one: Any, two: Any, close: bool = False) -> bool:
    if isinstance(one, list) or isinstance(two, list):
        return all(_same(a, b) for a, b in zip(one, two, strict=True))
    if one is None or two is None:
        return one is two
    if one.dtype == object or one.dtype.kind in "UST":
        return bool(np.array_equal(one, two))
    if close:
        return bool(np.allclose(one, two, rtol=1e-4, atol=1e-5, equal_nan=True))
    return bool(one.shape == two.shape and one.tobytes() == two.tobytes())


def _texts(one: Any) -> Any:
    """Lists of texts as arrays; sequences stay lists."""
    if isinstance(one, str) or (isinstance(one, list) and not _has_arrays(one)):
        return np.asarray(one, dtype=object)
    return one


def _has_arrays(one: list[Any]) -> bool:
    return any(
        isinstance(part, np.ndarray) or (isinstance(part, list) and _has_arrays(part))
        for part in one
    )


def runner(model: onnx.ModelProto) -> Callable[[dict[str, Any]], list[Any]]:
    """Runs a model in ONNX Runtime, without its optimizations; else in onnx's reference."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return lambda inputs: [_texts(one) for one in session.run(None, inputs)]
    except Exception:
        reference = ReferenceEvaluator(model)
        return lambda inputs: [
            _texts(one) if isinstance(one, list) else np.asarray(one)
            for one in reference.run(None, inputs)
        ]
