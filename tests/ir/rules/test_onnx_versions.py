"""Operators whose meaning depends on their version, their attributes, or on known numbers."""

from typing import Any

import numpy as np
import onnx
import pytest

from planish.ir.flow.onnx import read_model
from support.onnx_written import Dims, model, node, verdict

ROWS: Dims = ["B", "T", 8]
PICTURE: Dims = ["B", 3, 4, 4]


def one(operator: str, dims: Dims = ROWS, version: int = 21, **attributes: Any) -> onnx.ModelProto:
    return model([node(operator, "x", "y", **attributes)], {"x": dims}, version=version)


@pytest.mark.parametrize(
    ("proto", "expected"),
    [
        (one("Softmax", version=11, axis=0), "value"),
        (one("Softmax", version=11), "isolated"),
        (one("Softmax", version=13), "isolated"),
        (one("Softmax", version=13, axis=0), "value"),
        (one("Softmax", ["B"], version=11, axis=-1), "value"),
        (one("LogSoftmax", version=1, axis=0), "value"),
        (one("Hardmax", version=11, axis=1), "isolated"),
        (one("MeanVarianceNormalization", PICTURE), "value"),
        (one("MeanVarianceNormalization", PICTURE, axes=[2, 3]), "isolated"),
        (one("ReduceMean", version=13, axes=[-1]), "isolated"),
        (one("ReduceMean", version=13), "value"),
        (one("Flatten", axis=2), "moved"),
        (one("Flatten"), "isolated"),
        (one("LRN", PICTURE, size=3), "isolated"),
        (one("Transpose", perm=[1, 0, 2]), "moved"),
        (one("CumSum", version=3), "unknown"),
        (one("Softmax", version=13, axis=1, surprise=1), "unknown"),
        (one("Softmax", version=99), "unknown"),
        (one("Upsample", PICTURE, version=13), "unknown"),
        (one("NoSuchOperator"), "unknown"),
    ],
)
def test_versions_and_attributes(proto: onnx.ModelProto, expected: str) -> None:
    assert verdict(proto) == expected


PARAMETERS = {f"p{n}": np.ones(3, np.float32) for n in range(4)}


@pytest.mark.parametrize(
    ("version", "outputs", "attributes", "expected"),
    [
        (15, "y", {}, "isolated"),
        (15, "y m v", {"training_mode": 1}, "value"),
        (9, "y", {}, "isolated"),
        (9, "y m v sm sv", {}, "value"),
        (6, "y", {}, "value"),
        (6, "y", {"is_test": 1}, "isolated"),
        (7, "y", {"spatial": 0}, "isolated"),
    ],
)
def test_batch_normalization(
    version: int, outputs: str, attributes: dict[str, Any], expected: str
) -> None:
    call = node("BatchNormalization", "x p0 p1 p2 p3", outputs, **attributes)
    stored = PARAMETERS
    if attributes.get("spatial") == 0:
        stored = {name: np.ones((3, 4, 4), np.float32) for name in PARAMETERS}

    assert verdict(model([call], {"x": PICTURE}, outputs, version, stored=stored)) == expected


INDEX = np.array([[0], [0], [1]], np.int64)


@pytest.mark.parametrize("reduction", ["none", "add", "max"])
def test_writes_at_the_same_place_reach_other_rows(reduction: str) -> None:
    call = node("ScatterND", "base at x", "y", reduction=reduction)
    stored = {"base": np.zeros((3, 8), np.float32), "at": INDEX}

    assert verdict(model([call], {"x": [3, 8]}, stored=stored)) == "value"


def test_writes_in_order_stay_apart() -> None:
    nodes = [
        node("Shape", "x", "n", start=0, end=1),
        node("Squeeze", "n", "m"),
        node("Range", "zero m step", "r"),
        node("Unsqueeze", "r last", "at"),
        node("ScatterND", "x at x", "y"),
    ]
    stored = {"zero": np.int64(0), "step": np.int64(1), "last": np.array([1])}

    assert verdict(model(nodes, {"x": ["B", 8]}, stored=stored)) == "isolated"


@pytest.mark.parametrize(
    ("order", "expected"), [([0, 1, 2, 3], "isolated"), ([1, 0, 3, 2], "value")]
)
def test_constant_index(order: list[int], expected: str) -> None:
    call = node("Gather", "x at", "y", axis=0)

    assert verdict(model([call], {"x": [4, 8]}, stored={"at": np.array(order)})) == expected


@pytest.mark.parametrize(
    ("which", "expected"), [(np.arange(3), "isolated"), (np.array([0, 2, 1]), "value")]
)
def test_pictures_chosen_by_number(which: np.ndarray, expected: str) -> None:
    call = node("RoiAlign", "x r b", "y", output_height=2, output_width=2)
    proto = model([call], {"x": [3, 1, 4, 4], "r": [3, 4]}, stored={"b": which}, version=16)

    assert verdict(proto) == expected


@pytest.mark.parametrize(
    ("mode", "dims", "dim", "expected"),
    [
        ("nearest", ["B", 3, 4], 2, "isolated"),
        ("linear", ["B", 3, 4], 2, "value"),  # ONNX Runtime adds 0 times the next row
        ("linear", ["B", 4], 1, "value"),
        ("linear", PICTURE, 3, "isolated"),
        ("linear", PICTURE, 1, "isolated"),
        ("linear", ["B", 3, 2, 4, 4], 4, "isolated"),
    ],
)
def test_interpolation(mode: str, dims: list[int | str], dim: int, expected: str) -> None:
    scales = np.ones(len(dims), np.float32)
    scales[dim] = 2
    proto = model([node("Resize", "x - s", "y", mode=mode)], {"x": dims}, stored={"s": scales})

    assert verdict(proto) == expected


def test_pictures_chosen_by_data() -> None:
    call = node("RoiAlign", "x r b", "y", output_height=2, output_width=2)
    proto = model([call], {"x": ["B", 1, 4, 4], "r": ["B", 4], "b": ["B"]}, integers=["b"])

    assert verdict(proto) == "value"


@pytest.mark.parametrize(("how", "expected"), [("mean", "value"), ("none", "isolated")])
def test_losses(how: str, expected: str) -> None:
    call = node("SoftmaxCrossEntropyLoss", "x t", "y", reduction=how)

    assert verdict(model([call], {"x": ["B", 8], "t": ["B"]}, integers=["t"])) == expected


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (node("NonZero", "x", "y"), "shape"),
        (node("Compress", "x c", "y", axis=0), "shape"),
        (node("DynamicQuantizeLinear", "x", "y s z"), "value"),
        (node("DynamicQuantizeMatMul", "x w s z", "y", domain="com.microsoft"), "value"),
        (node("Dropout", "x", "y"), "isolated"),
        (node("MatMul", "x w", "y"), "isolated"),
        (node("Gemm", "x x", "y", transA=1), "value"),
        (node("FusedMatMul", "x x", "y", transA=1, domain="com.microsoft"), "value"),
        (node("Einsum", "x x", "y", equation="bi,bj->ij"), "value"),
        (node("Einsum", "x x", "y", equation="bi,bj->bij"), "isolated"),
        (node("Trilu", "x", "y"), "isolated"),
        (node("ReverseSequence", "x n", "y", batch_axis=0, time_axis=1), "isolated"),
        (node("ReverseSequence", "x n", "y", batch_axis=1, time_axis=0), "value"),
    ],
)
def test_operators(call: onnx.NodeProto, expected: str) -> None:
    dims: dict[str, Dims] = {"x": ["B", 8], "c": ["B"], "n": ["B"]}
    inputs = {name: sizes for name, sizes in dims.items() if name in call.input}
    stored = {
        "w": np.ones((8, 8), np.uint8 if "Dynamic" in call.op_type else np.float32),
        "s": np.float32(1),
        "z": np.uint8(0),
    }
    kept = {name: one for name, one in stored.items() if name in call.input}
    proto = model([call], inputs, stored=kept, integers=["n"], truths=["c"])

    assert verdict(proto).split()[0] == expected


def test_second_row_of_the_cache_is_its_own() -> None:
    call = node("TensorScatter", "past new at", "y")
    dims: Dims = ["B", 2, "S", 4]
    proto = model(
        [call], {"past": dims, "new": ["B", 2, 1, 4], "at": ["B"]}, version=24, integers=["at"]
    )

    assert verdict(proto) == "isolated"


def test_no_operator_is_unknown_by_mistake() -> None:
    assert read_model(one("Softmax")).unknown_operators == {}
