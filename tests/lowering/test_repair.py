"""Repaired ONNX files: isolated, and for one request alone what the original is."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from planish import cli
from planish.auditing import audit
from planish.lowering.onnx.repair import CannotRepair, repair
from planish.repairing import StillLeaks, fix

CHANCE = np.random.default_rng(0)
WEIGHTS = {name: CHANCE.standard_normal((16, 16)).astype(np.float32) / 4 for name in ("w1", "w2")}
X = CHANCE.standard_normal((3, 5, 16)).astype(np.float32)


def model_of(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], **sizes: Any
) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, sizes.get("x", ["batch", "length", 16]))],
        [value("y", TensorProto.FLOAT, [None] * len(sizes.get("x", "BTC")))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = [
        helper.make_opsetid("", sizes.get("opset", 17)),
        helper.make_opsetid("com.microsoft", 1),
    ]
    return helper.make_model(graph, opset_imports=opset, ir_version=9)


def mlp(opset: int = 17) -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w1"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("MatMul", ["b", "w2"], ["c"]),
        node("Transpose", ["c"], ["t"], perm=[0, 2, 1]),
        node("MatMul", ["c", "t"], ["s"]),
        node("Softmax", ["s"], ["p"], axis=-1),
        node("MatMul", ["p", "c"], ["y"]),
    ]
    return model_of(nodes, WEIGHTS, opset=opset)


def quantized(folder: Path, opset: int = 17, optimized: bool = False) -> Path:
    onnx.save(mlp(opset), folder / "float.onnx")
    path = folder / "quantized.onnx"
    options = {"MatMulConstBOnly": False}
    quantize_dynamic(
        folder / "float.onnx", path, weight_type=QuantType.QInt8, extra_options=options
    )
    if optimized:
        settings = onnxruntime.SessionOptions()
        settings.optimized_model_filepath = str(folder / "optimized.onnx")
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        onnxruntime.InferenceSession(path, settings)
        path = folder / "optimized.onnx"
    return path


def run(path: Path, x: Any) -> Any:
    return onnxruntime.InferenceSession(path).run(None, {"x": x})[0]


def far(got: Any, expected: Any) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("opset", "optimized"), [(13, False), (17, False), (18, False), (17, True)]
)
def test_a_dynamically_quantized_model(tmp_path: Path, opset: int, optimized: bool) -> None:
    path = quantized(tmp_path, opset, optimized)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert ("DynamicQuantizeMatMul" in operators) == optimized
    assert audit(path).verdict == "leaks"
    fixed = fix(path, tmp_path / "fixed.onnx")
    assert fixed.report.verdict == audit(tmp_path / "fixed.onnx").verdict == "isolated"
    assert fixed.changes
    exact = run(tmp_path / "float.onnx", X)
    before, after = run(path, X), run(tmp_path / "fixed.onnx", X)
    assert far(before, exact) < 0.1
    assert far(after, exact) < 0.1
    other = X.copy()
    other[1] *= 1000
    assert not np.array_equal(run(path, other)[0], before[0])
    assert np.array_equal(run(tmp_path / "fixed.onnx", other)[0], after[0])


def test_batch_norm_and_mean_variance_normalization() -> None:
    node = helper.make_node
    four = [np.abs(CHANCE.standard_normal(4)).astype(np.float32) for _ in range(4)]
    names = ["scale", "bias", "mean", "variance"]
    nodes = [
        node("BatchNormalization", ["x", *names], ["a", "m", "v"], training_mode=1),
        node("MeanVarianceNormalization", ["a"], ["y"]),
    ]
    model = model_of(nodes, dict(zip(names, four, strict=True)), x=["batch", 4, 6, 6])
    after, changes = repair(model)
    assert len(changes) == 2
    assert [(one.op_type, len(one.output)) for one in after.graph.node] == [
        ("BatchNormalization", 1),
        ("MeanVarianceNormalization", 1),
    ]
    assert list(after.graph.node[1].attribute[0].ints) == [2, 3]
    assert [len(one.output) for one in model.graph.node] == [3, 1]  # the input is untouched


def test_codes_that_something_else_reads_are_refused(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dql"),
        node("Cast", ["q"], ["y"], to=TensorProto.FLOAT),
    ]
    with pytest.raises(CannotRepair, match="dql: its codes are read by Cast"):
        repair(model_of(nodes, {}))
    onnx.save(model_of([node("Relu", ["x"], ["y"])], {}), tmp_path / "m.onnx")
    with pytest.raises(CannotRepair, match="no node that can be repaired"):
        fix(tmp_path / "m.onnx", tmp_path / "out.onnx")


def test_what_still_leaks_is_not_written(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("Softmax", ["d"], ["y"], axis=0),
    ]
    onnx.save(model_of(nodes, {}), tmp_path / "m.onnx")
    with pytest.raises(StillLeaks, match=r"1 nodes were repaired.*Softmax"):
        fix(tmp_path / "m.onnx", tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.filterwarnings("ignore")
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = quantized(tmp_path), tmp_path / "fixed.onnx"
    assert cli.main(["audit", str(path), "--fix", str(out)]) == 0
    text = capsys.readouterr().out
    assert "one scale over axis -1 instead of over all" in text
    assert "isolated" in text
    assert cli.main(["audit", str(out), "--fix", str(out)]) == 2
    assert "no node that can be repaired" in capsys.readouterr().err.replace("\n", " ")
