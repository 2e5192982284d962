"""Rounded activations in ONNX Runtime: which kernels multiply them, and that nothing else does."""

import dataclasses
from pathlib import Path

import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import planish
from planish.ir.capture.export import from_module
from planish.ir.program import Program
from planish.lowering.onnx.lower import MODEL_FILE, lower
from planish.lowering.onnx.target import CPU, STANDARD, Target
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.quantize_weights import QuantizeWeights
from planish.runtime.ort_backend import OnnxBackend
from support.captured import captured

EXACT = dataclasses.replace(CPU, accuracy_level=1)


class Two(nn.Module):
    """Two layers, one with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 48), nn.Linear(48, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).relu())
        return y


@pytest.fixture
def two() -> Program:
    torch.manual_seed(0)
    rows = torch.randn(3, 7, 64) * torch.logspace(-2, 2, 7)[:, None]
    rows[0, 0] = 0
    made = from_module(Two().eval(), {"x": rows})
    return dataclasses.replace(made, calibration=({"x": rows},))


def kinds(folder: Path) -> list[str]:
    return [node.op_type for node in ir.load(folder / MODEL_FILE).graph]


def error(program: Program, folder: Path, target: Target, *, saturating: bool = False) -> float:
    """Of each row, the largest: a row's error must not hide behind another's size.

    Args:
        program: what to lower.
        folder: where to.
        target: for what.
        saturating: whether kernels may be used whose sums of two products end at 16 bits.
    """
    lower(program, folder, target)
    x = program.samples[0]["x"]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "01"[not saturating])
    session = onnxruntime.InferenceSession(folder / MODEL_FILE, options)
    got = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    want = program.run(x=x)["output"]
    sizes = want.norm(dim=-1)
    assert bool((sizes > 0).sum() > 10)
    return float(((got - want).norm(dim=-1) / sizes.clamp_min(1e-6)).max())


@pytest.mark.parametrize("target", [EXACT, STANDARD], ids=["contrib", "standard"])
@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
@pytest.mark.parametrize("bits", [8, 7, 4])
def test_integers_are_multiplied_by_integers(
    bits: int, dynamic: bool, target: Target, two: Program, tmp_path: Path
) -> None:
    weights = QuantizeWeights(bits=bits, group_size=None)  # type: ignore[arg-type]
    program = QuantizeActivations(dynamic=dynamic)(weights(two))
    assert error(program, tmp_path, target) < 1e-5
    assert bits > 7 or error(program, tmp_path, target, saturating=True) < 1e-5
    kernel = "MatMulIntegerToFloat" if target is EXACT else "MatMulInteger"
    assert kinds(tmp_path).count(kernel) == 2
    assert not {"MatMul", "Gemm", "MatMulNBits"} & set(kinds(tmp_path))
    assert kinds(tmp_path).count("ReduceMax") == (2 if dynamic else 0)
    codes = [
        value
        for name, value in ir.load(tmp_path / MODEL_FILE).graph.initializers.items()
        if "packed" in name
    ]
    assert [value.dtype for value in codes] == [ir.DataType.INT8] * 2


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4, "group_size": 32},
        {"bits": 8, "group_size": None, "symmetric": False},
        {"bits": 8, "group_size": None, "type": "float"},
        {"bits": 8, "group_size": 32, "type": "float"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["int", "float"])
def test_what_no_integer_kernel_takes_is_rounded_and_multiplied_as_before(
    kind: str, options: dict[str, object], two: Program, tmp_path: Path
) -> None:
    weights = QuantizeWeights(**options, targets=("first",))  # type: ignore[arg-type]
    program = QuantizeActivations(type=kind)(weights(two))  # type: ignore[arg-type]
    assert error(program, tmp_path, EXACT) < 1e-4
    assert "Clip" in kinds(tmp_path)


def test_projections_with_biases_are_made_together(tmp_path: Path) -> None:
    _, qwen = captured("qwen2")
    program = QuantizeActivations()(QuantizeWeights(bits=8, group_size=None)(qwen))
    results = []
    for merge in (True, False):
        lower(program, tmp_path, dataclasses.replace(CPU, merge=merge))
        feeds = {name: tensor.numpy() for name, tensor in program.samples[0].items()}
        results.append(OnnxBackend(tmp_path / MODEL_FILE).run(feeds)["logits"])
    torch.testing.assert_close(*map(torch.from_numpy, results))


def test_projections_of_one_input_share_its_rounding(tmp_path: Path) -> None:
    _, llama = captured("llama")
    program = QuantizeActivations()(QuantizeWeights(bits=8, group_size=None)(llama))
    lower(program, tmp_path, CPU)
    feeds = program.samples[0]
    backend = OnnxBackend(tmp_path / MODEL_FILE)
    got = backend.run({name: tensor.numpy() for name, tensor in feeds.items()})["logits"]
    torch.testing.assert_close(
        torch.from_numpy(got), program.run(**feeds)["logits"], rtol=2e-2, atol=2e-3
    )
    layers = sum("input_layernorm" in name for name in program.tensors)
    assert kinds(tmp_path).count("QuantizeLinear") == 4 * layers
    assert kinds(tmp_path).count("MatMulIntegerToFloat") == 4 * layers
    lower(program, tmp_path, dataclasses.replace(CPU, merge=False))
    assert kinds(tmp_path).count("MatMulIntegerToFloat") == 7 * layers
    assert planish.audit(tmp_path / MODEL_FILE).verdict == "isolated"


def test_one_scale_for_the_whole_tensor_leaks_in_the_file_too(two: Program, tmp_path: Path) -> None:
    program = QuantizeActivations(granularity="tensor")(
        QuantizeWeights(bits=8, group_size=None)(two)
    )
    lower(program, tmp_path, CPU)
    report = planish.audit(tmp_path / MODEL_FILE)
    assert report.verdict == "leaks"
    assert any("ReduceMax" in finding.operator for finding in report.findings)
