"""Quantized weights in ONNX Runtime: in the kernels' layout, and by the standard operator."""

import dataclasses
from pathlib import Path

import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import fx

from planish.ir.program import Input, Program
from planish.ir.quant import QuantizedTensor, QuantScheme
from planish.ir.shapes import propagate
from planish.ir.sizes import Size, SymbolicShapes
from planish.lowering.onnx.lower import MODEL_FILE, lower
from planish.lowering.onnx.target import CPU, STANDARD, Target
from planish.passes.quantize_weights import QuantizeWeights
from support.captured import captured

aten = torch.ops.aten

EXACT = dataclasses.replace(CPU, accuracy_level=1)
"""Without rounding of activations, which is not what is tested here."""

SCHEMES = [
    QuantScheme(4, 32),
    QuantScheme(4, 64, symmetric=False),
    QuantScheme(8, 128),
    QuantScheme(8, None),
    QuantScheme(8, None, symmetric=False),
    QuantScheme(4, None),
    QuantScheme(2, 16, symmetric=False),
    QuantScheme(3, 64),
    QuantScheme(1, 64),
    QuantScheme(6, 96, symmetric=False),
]
UNFIT = QuantScheme(4, 8)
"""Groups that no kernel knows."""

ROWS, COLUMNS = 10, 384


def weight_of(
    scheme: QuantScheme, columns: int = COLUMNS, dtype: torch.dtype = torch.float32
) -> QuantizedTensor:
    """A random quantized weight [ROWS, columns]."""
    torch.manual_seed(0)
    limits, groups = (int(scheme.low), int(scheme.high) + 1), scheme.groups(columns)
    codes = torch.randint(*limits, (ROWS, columns), dtype=torch.int8)
    zeros = torch.randint(*limits, (ROWS, groups), dtype=torch.int8)
    scale = ((torch.rand(ROWS, groups) + 0.5) / scheme.high).to(dtype)
    return QuantizedTensor.from_codes(
        scheme, dtype, codes, scale, None if scheme.symmetric else zeros
    )


def program_of(weight: QuantizedTensor, *, tied: bool = False, bias: bool = False) -> Program:
    """`linear(x, W, bias)`; tied, the x is an embedding from the same W."""
    shape = ("B", "T") if tied else ("B", "T", weight.shape[1])
    spec = Input("x", torch.int64 if tied else weight.dtype, shape)
    graph = fx.Graph()
    graph.output((graph.placeholder("x"),))
    empty = Program(graph, {}, (spec,), ("y",), SymbolicShapes((Size("B", 5), Size("T", 7))))
    propagate(empty)
    with empty.edit() as edit:
        x, output = edit.graph.nodes
        whole = weight.insert(edit, "embed.weight", before=output)
        if tied:
            x = edit.call(aten.embedding.default, whole, x, before=output)
        shift = torch.randn(ROWS).to(weight.dtype)
        added = edit.read("bias", shift, before=output) if bias else None
        output.args = ((edit.call(aten.linear.default, x, whole, added, before=output),),)
    return edit.program


def error_of(program: Program, folder: Path, target: Target) -> float:
    """The relative error of ONNX Runtime's result, the largest over two batches."""
    lower(program, folder, target)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # Else ONNX Runtime turns standard dequantization into MatMulNBits at its own accuracy.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(folder / MODEL_FILE, options)
    spec, errors = program.inputs[0], []
    for leading in ((2, 3), (1, 1)):
        shape = (*leading, *spec.shape[2:])
        integers = spec.dtype == torch.int64
        x = torch.randint(ROWS, shape) if integers else torch.randn(shape).to(spec.dtype)  # type: ignore[arg-type]
        want = program.run(x=x)["y"].float()
        got = torch.from_numpy(session.run(None, {"x": x.numpy()})[0]).float()
        assert got.shape == want.shape
        errors.append(float((got - want).norm() / want.norm()))
    return max(errors)


def operators(folder: Path) -> set[str]:
    return {node.op_type for node in ir.load(folder / MODEL_FILE).graph}


@pytest.mark.parametrize("target", [EXACT, STANDARD], ids=["contrib", "standard"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["linear", "tied"])
def test_a_quantized_weight(
    tied: bool, scheme: QuantScheme, target: Target, tmp_path: Path
) -> None:
    program = program_of(weight_of(scheme), tied=tied, bias=True)
    assert error_of(program, tmp_path, target) < 1e-5
    kernels = {"MatMulNBits"} | ({"GatherBlockQuantized"} if tied else set())
    assert (kernels <= operators(tmp_path)) == (target is EXACT)
    assert ("DequantizeLinear" in operators(tmp_path)) == (target is STANDARD)
    stored = ir.load(tmp_path / MODEL_FILE).graph.initializers
    assert sum("packed" in name for name in stored) == 1


def test_rows_that_no_block_divides(tmp_path: Path) -> None:
    program = program_of(weight_of(QuantScheme(8, None), columns=52), tied=True)
    assert error_of(program, tmp_path, EXACT) < 1e-5
    assert {"MatMulNBits", "DequantizeLinear", "Gather"} <= operators(tmp_path)


def test_groups_that_no_kernel_knows(tmp_path: Path) -> None:
    assert error_of(program_of(weight_of(UNFIT)), tmp_path, EXACT) < 1e-5
    assert "MatMulNBits" not in operators(tmp_path)


@pytest.mark.parametrize(
    ("family", "products"),
    [("llama", 8), ("qwen2", 8), ("gpt2", 8), ("phi", 6), ("qwen2_moe", 20), ("bert", 9)],
)
def test_a_quantized_model(family: str, products: int, tmp_path: Path) -> None:
    """Products of one input are merged: query, key and value; gate and up."""
    program = QuantizeWeights(bits=4, group_size=32)(captured(family)[1])
    feeds = program.samples[0]
    logits = []
    for merge in (True, False):
        lower(program, tmp_path, dataclasses.replace(EXACT, merge=merge))
        session = onnxruntime.InferenceSession(tmp_path / MODEL_FILE)
        given = {name: tensor.numpy() for name, tensor in feeds.items()}
        logits.append(torch.from_numpy(session.run(["logits"], given)[0]))
        if merge:
            kinds = [node.op_type for node in ir.load(tmp_path / MODEL_FILE).graph]
            assert kinds.count("MatMulNBits") == products
    assert torch.equal(*logits)
    torch.testing.assert_close(logits[0], program.run(**feeds)["logits"], rtol=1e-4, atol=1e-4)


def test_float16(tmp_path: Path) -> None:
    weight = weight_of(QuantScheme(4, 32), dtype=torch.float16)
    assert error_of(program_of(weight), tmp_path, EXACT) < 2e-3


def test_activations_are_rounded_for_speed(tmp_path: Path) -> None:
    """At the default accuracy level, by a little: 8 bits a value."""
    error = error_of(program_of(weight_of(QuantScheme(4, 32))), tmp_path, CPU)
    assert 1e-4 < error < 1.5e-2
