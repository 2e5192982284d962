"""Quantized experts in ONNX Runtime: a kernel for each or for all, or the standard operator."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import pytest
import torch

from planish.ir.isolation.labels import Labels
from planish.ir.isolation.programs import analyse_onnx
from planish.ir.program import Program
from planish.lowering.onnx.lower import MODEL_FILE, lower
from planish.lowering.onnx.target import CPU, STANDARD, Target
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.quantize_weights import QuantizeWeights
from support.captured import captured

EXACT = dataclasses.replace(CPU, accuracy_level=1)
"""Without rounding of activations, which would change which experts are chosen."""

WEIGHTS = [f"model.layers.0.mlp.experts.{part}_proj" for part in ("gate_up", "down")]

ROUNDINGS: list[dict[str, Any]] = [
    {"bits": 4, "group_size": 32},
    {"bits": 4, "group_size": 32, "symmetric": False},
    {"bits": 3, "group_size": 64},
    {"bits": 8, "group_size": None},
    {"bits": 8, "group_size": None, "type": "float"},
]


def quantized(**options: Any) -> Program:
    """A model whose experts alone are quantized."""
    return QuantizeWeights(targets=("*.experts",), **options)(captured("mixtral", 1)[1])


def check(program: Program, folder: Path, target: Target) -> Counter[str]:
    """Compare what ONNX Runtime and the program give; how many nodes there are of each kind."""
    lower(program, folder, target)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(folder / MODEL_FILE, options)
    for feeds in program.samples:
        given = {name: tensor.numpy() for name, tensor in feeds.items()}
        got = torch.from_numpy(session.run(["logits"], given)[0])
        torch.testing.assert_close(got, program.run(**feeds)["logits"], rtol=1e-4, atol=1e-4)
    return Counter(node.op_type for node in ir.load(folder / MODEL_FILE).graph)


@pytest.mark.parametrize("target", [EXACT, STANDARD], ids=["contrib", "standard"])
@pytest.mark.parametrize("options", ROUNDINGS, ids=str)
def test_quantized_experts(options: dict[str, Any], target: Target, tmp_path: Path) -> None:
    program = quantized(**options)
    kinds = check(program, tmp_path, target)
    floats = options.get("type") == "float"
    packed = target is EXACT and not floats
    assert kinds["MatMulNBits"] == (6 if packed else 0)  # all at once, then five by themselves
    assert kinds["DequantizeLinear"] == (0 if packed or floats else 2)
    stored = ir.load(tmp_path / MODEL_FILE).graph.initializers.values()
    nbytes = sum(one.const_value.nbytes for one in stored if one.const_value is not None)
    assert nbytes < (1.2 if options["bits"] != 3 else 1.5) * program.nbytes
    assert analyse_onnx(tmp_path / MODEL_FILE, Labels()).verdict == "isolated"


@pytest.mark.parametrize("target", [EXACT, STANDARD], ids=["contrib", "standard"])
@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
def test_experts_that_read_codes(dynamic: bool, target: Target, tmp_path: Path) -> None:
    weights = quantized(bits=8, group_size=None)
    given = dataclasses.replace(weights, calibration=weights.samples)
    rounding = QuantizeActivations(targets=("*.experts",), experts=True, dynamic=dynamic)
    kinds = check(rounding(given), tmp_path, target)
    kernel = "MatMulIntegerToFloat" if target is EXACT else "MatMulInteger"
    assert kinds[kernel] == 6  # all at once, then five by themselves
    assert not kinds["MatMulNBits"] + kinds["DequantizeLinear"]
    assert analyse_onnx(tmp_path / MODEL_FILE, Labels()).verdict == "isolated"


@pytest.mark.parametrize("target", [EXACT, STANDARD], ids=["contrib", "standard"])
def test_experts_that_are_dense_against_the_programs_word(target: Target, tmp_path: Path) -> None:
    dense = dataclasses.replace(target, dense=frozenset(WEIGHTS))
    kinds = check(quantized(bits=4, group_size=32), tmp_path, dense)
    assert not kinds["MatMulNBits"] + kinds["DequantizeLinear"]
