"""What ONNX Runtime makes of a model is read as the model was."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from planish.ir.flow.onnx import read_model
from support.onnx_calls import floats
from support.onnx_written import dependences, model, node, verdict


def optimized(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model as the runtime's optimizer leaves it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    return onnx.load(path)


def operators(proto: onnx.ModelProto) -> set[str]:
    return {f"{one.domain}::{one.op_type}" for one in proto.graph.node}


def typed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """With the types that the runtime wants stated."""
    return onnx.shape_inference.infer_shapes(proto)


def test_blocks_of_channels(tmp_path: Path) -> None:
    stored = {"w": floats(32, 3, 3, 3), "v": floats(32, 32, 3, 3)}
    nodes = [
        node("Conv", "x w", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "b"),
        node("MaxPool", "b", "c", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "c v", "d"),
        node("GlobalAveragePool", "d", "y"),
    ]
    proto = typed(model(nodes, {"x": [2, 3, 12, 12]}, stored=stored))
    proto.graph.output.append(onnx.ValueInfoProto(name="d"))
    proto = typed(proto)

    after = optimized(proto, tmp_path / "o.onnx")

    flow = read_model(after)
    assert "com.microsoft.nchwc::Conv" in operators(after)
    assert flow.unknown_operators == {}
    assert flow.outputs["d"].shape == (2, 32, 4, 4)
    assert verdict(after) == "isolated"


def test_fused_dynamic_quantization_still_leaks(tmp_path: Path) -> None:
    """O35 of the corpus."""
    stored = {
        "w": np.ones((8, 4), np.int8),
        "s": np.float32(0.1),
        "z": np.int8(0),
        "b": np.ones(4, np.float32),
    }
    nodes = [
        node("DynamicQuantizeLinear", "x", "q qs qz"),
        node("MatMulInteger", "q w qz z", "i"),
        node("Cast", "i", "f", to=1),
        node("Mul", "qs s", "t"),
        node("Mul", "f t", "m"),
        node("Add", "m b", "y"),
    ]
    proto = typed(model(nodes, {"x": [3, 8]}, stored=stored))

    after = optimized(proto, tmp_path / "o.onnx")

    assert operators(after) == {"com.microsoft::DynamicQuantizeMatMul"}
    assert verdict(proto) == verdict(after) == "value"
    (cause,) = dependences(read_model(after))["y"].causes
    assert cause.operator == "com.microsoft::DynamicQuantizeMatMul@1"


@pytest.mark.parametrize("version", [14, 17])
def test_norms_that_the_optimizer_finds(version: int, tmp_path: Path) -> None:
    stored = {
        "two": np.float32(2),
        "e": np.float32(1e-5),
        "g": np.ones(8, np.float32),
        "b": np.ones(8, np.float32),
    }
    nodes = [
        node("ReduceMean", "x", "m", axes=[-1]),
        node("Sub", "x m", "d"),
        node("Pow", "d two", "p"),
        node("ReduceMean", "p", "v", axes=[-1]),
        node("Add", "v e", "ve"),
        node("Sqrt", "ve", "r"),
        node("Div", "d r", "n"),
        node("Mul", "n g", "ng"),
        node("Add", "ng b", "y"),
    ]
    proto = typed(model(nodes, {"x": ["B", 4, 8]}, version=version, stored=stored))

    after = optimized(proto, tmp_path / "o.onnx")

    assert operators(after) == {"::LayerNormalization"}
    assert read_model(after).unknown_operators == {}
    assert verdict(after) == "isolated"
