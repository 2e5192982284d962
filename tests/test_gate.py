"""Never slower: layers are timed as they would run, and stay dense where they lose."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import planish
from planish import gate, release
from planish.gate import BadGate, Timing
from planish.ir.program import Program
from planish.lowering.onnx.lower import MODEL_FILE, lower
from planish.lowering.onnx.target import CPU, STANDARD, Target
from planish.passes.contract import Pass
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.quantize_weights import QuantizeWeights
from planish.runtime.ort_backend import OnnxBackend
from support.captured import captured

INT4 = (QuantizeWeights(bits=4, group_size=32),)
INT8 = (QuantizeWeights(bits=8, group_size=None), QuantizeActivations())
FP8 = (QuantizeWeights(bits=8, group_size=None, type="float"),)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides do not wait for each other's threads: which is faster is no matter here."""
    monkeypatch.setattr("planish.runtime.timing.SETTLING", 0.0)


def quantized(passes: tuple[Pass, ...]) -> Program:
    program = captured("llama")[1]
    for one in passes:
        program = one(program)
    return program


def test_each_kind_is_timed_once_and_names_all_its_layers() -> None:
    found = gate.time_layers(quantized(INT4), CPU, (1, 4))

    assert [one.rows for one in found[:3]] == [1, 4, gate.PREFILL]
    kinds = {one.what: one.layers for one in found}
    assert len(kinds) == 4  # query with key and value, what follows attention, gate with up, down
    names = [name for layers in kinds.values() for name in layers]
    assert sorted(names) == sorted(set(names))
    assert len(names) == 14
    assert all(one.seconds > 0 and one.dense > 0 for one in found)


@pytest.mark.parametrize("passes", [INT4, INT8, FP8], ids=["int4", "int8", "fp8"])
@pytest.mark.parametrize("target", [CPU, STANDARD], ids=["contrib", "standard"])
def test_dense_layers_compute_in_floating_point(
    passes: tuple[Pass, ...], target: Target, tmp_path: Path
) -> None:
    program = quantized(passes)
    every = frozenset(
        name for one in gate.time_layers(program, target, (1,)) for name in one.layers
    )
    lower(program, tmp_path, dataclasses.replace(target, dense=every))
    model = onnx.load(tmp_path / MODEL_FILE)
    kernels = {node.op_type for node in model.graph.node}
    assert not kernels & {"MatMulNBits", "MatMulIntegerToFloat", "MatMulInteger"}
    assert not kernels & {"DequantizeLinear", "QuantizeLinear"}

    plain = quantized(passes[:1])  # the weights as rounded; inputs are not
    sample = plain.samples[0]
    want = plain.run(**sample)["logits"]
    feeds = {name: tensor.numpy() for name, tensor in sample.items()}
    got = OnnxBackend(tmp_path / MODEL_FILE, "cpu").run(feeds)["logits"]
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-3, atol=1e-4)


def timing(rows: int, seconds: float, layers: str = "a b") -> Timing:
    return Timing(tuple(layers.split()), "64 to 64", rows, seconds, 1.0)


def test_what_loses_at_a_batch_size_is_dense_everywhere() -> None:
    found = [timing(1, 0.5), timing(4, 1.2), timing(1, 0.9, "c"), timing(4, 1.05, "c")]

    assert gate.slower_weights(found, (1, 4)) == {"a", "b"}
    assert gate.slower_weights(found, (1,)) == frozenset()
    (said,) = gate.told(found, (1, 4))
    assert said == (
        "64 to 64, 2 weights: dense in the ONNX model; 1200000 µs for 4 rows, dense 1000000 µs."
    )


def test_what_is_slower_on_prompts_alone_stays_and_is_told() -> None:
    found = [timing(1, 0.5), timing(gate.PREFILL, 2.0)]

    assert gate.slower_weights(found, (1,)) == frozenset()
    (said,) = gate.told(found, (1,))
    assert "2 weights: slower on prompts; 2000000 µs for 256 rows" in said


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 96), nn.Linear(96, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(x).relu())
        return result


def test_an_artifact_tells_what_stayed_dense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: object) -> list[Timing]:
        return [timing(1, 2.0, "first.weight"), timing(1, 0.5, "second.weight")]

    monkeypatch.setattr(release, "time_layers", measure)
    result = planish.optimize(
        Mlp().eval(), INT4, inputs=torch.randn(2, 64), output=tmp_path / "out", gate=(1,)
    )
    assert any("1 weights: dense in the ONNX model" in note for note in result.notes)
    model = onnx.load(tmp_path / "out" / "onnx" / MODEL_FILE)
    products = [node.op_type for node in model.graph.node if "MatMul" in node.op_type]
    assert products == ["MatMul", "MatMulNBits"]
    measured = (tmp_path / "out" / "measurements.json").read_text()
    assert '"gate"' in measured


@pytest.mark.parametrize("sizes", [(0,), (4, -1)])
def test_batch_sizes_that_are_none(sizes: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(BadGate, match="are no batch sizes"):
        planish.optimize(
            Mlp().eval(), INT4, inputs=torch.randn(2, 64), output=tmp_path / "out", gate=sizes
        )
    assert not (tmp_path / "out").exists()


def test_a_gate_without_an_onnx_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadGate, match="the target is torch; leave one out"):
        planish.optimize(
            Mlp().eval(),
            INT4,
            inputs=torch.randn(2, 64),
            output=tmp_path / "out",
            target="torch",
            gate=(1,),
        )
