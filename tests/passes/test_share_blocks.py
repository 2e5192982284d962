"""Layers with the weights of a neighbour: graph, numbers, factors, choice, refusals."""

import dataclasses
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from planish import api
from planish.ir.capture.export import from_module
from planish.ir.isolation.programs import analyse_program
from planish.ir.program import Program
from planish.lowering.onnx.lower import MODEL_FILE, lower
from planish.lowering.onnx.target import CPU
from planish.passes import name_of
from planish.passes.contract import NotApplicable
from planish.passes.distill import Distill
from planish.passes.pipeline import apply, relative_error
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.share_blocks import ShareBlocks, factors
from support.captured import captured
from support.models import tiny_folder

BEFORE = """\
program Layers for 1 <= B
  %x: f32[B, 4, 8] = input
  %linear: f32[B, 4, 8] = aten.linear(%x, @layers.0.weight, @layers.0.bias)
  %add: f32[B, 4, 8] = aten.add.Tensor(%x, %linear)
  %linear_1: f32[B, 4, 8] = aten.linear(%add, @layers.1.weight, @layers.1.bias)
  %add_1: f32[B, 4, 8] = aten.add.Tensor(%add, %linear_1)
  %linear_2: f32[B, 4, 8] = aten.linear(%add_1, @layers.2.weight, @layers.2.bias)
  %add_2: f32[B, 4, 8] = aten.add.Tensor(%add_1, %linear_2)
  return output=%add_2
"""
AFTER = """\
program Layers for 1 <= B
  %x: f32[B, 4, 8] = input
  %linear: f32[B, 4, 8] = aten.linear(%x, @layers.0.weight, @layers.0.bias)
  %add: f32[B, 4, 8] = aten.add.Tensor(%x, %linear)
  %linear_1: f32[B, 4, 8] = aten.linear(%add, @layers.0.weight, @layers.1.bias)
  %mul: f32[B, 4, 8] = aten.mul.Tensor(%linear_1, @linear_1.share_scale)
  %add_1: f32[B, 4, 8] = aten.add.Tensor(%add, %mul)
  %linear_2: f32[B, 4, 8] = aten.linear(%add_1, @layers.2.weight, @layers.2.bias)
  %add_2: f32[B, 4, 8] = aten.add.Tensor(%add_1, %linear_2)
  return output=%add_2
"""


class Layers(nn.Module):
    """Three layers, each added to the stream; the second is the first but for a factor a row."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = (nn.Linear(8, 8) for _ in range(3))
        with torch.no_grad():
            second.weight.copy_(torch.linspace(0.5, 2, 8)[:, None] * first.weight)
            second.bias.zero_()
        self.layers = nn.ModuleList([first, second, third])

    def forward(self, x: Tensor) -> Tensor:
        """Give [B, 4, 8] for x [B, 4, 8]."""
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    return from_module(Layers().eval(), torch.randn(5, 4, 8))


def error(after: Program, before: Program) -> float:
    sample = before.samples[0]
    return relative_error(after.run(**sample)["output"], before.run(**sample)["output"])


def test_a_layer_reads_the_weights_before_it(program: Program) -> None:
    after, (step,) = apply(program, [ShareBlocks(layers=1)], names=name_of)
    assert str(program) == BEFORE
    assert str(after) == AFTER
    assert [change.what for change in step.changes] == [
        "layers.1.weight: that of layers.0.weight",
        "layers.1: a factor for each channel that it adds",
    ]
    assert program.parameters - after.parameters == 8 * 8 - 8  # stored once, and 8 factors
    assert analyse_program(after).verdict == "isolated"


def test_factors_make_up_for_what_differs_by_factors(program: Program) -> None:
    after = ShareBlocks(layers=1)(program)
    torch.testing.assert_close(after.tensors["linear_1.share_scale"], torch.linspace(0.5, 2, 8))
    assert error(after, program) < 1e-6
    assert error(ShareBlocks(layers=1, scale="none")(program), program) > 0.05


def test_equal_layers_share_without_loss(program: Program) -> None:
    tensors = {**program.tensors, "layers.1.weight": program.tensors["layers.0.weight"].clone()}
    same = dataclasses.replace(program, tensors=tensors)
    after = ShareBlocks(layers=1, scale="none")(same)
    assert error(after, same) == 0.0
    assert "share_scale" not in str(after)


def test_factors_are_least_squares() -> None:
    torch.manual_seed(1)
    given, wanted = torch.randn(6, 5, 3).double(), torch.randn(6, 5, 3).double()
    given[..., 2] = 0
    found = factors([wanted[:2], wanted[2:]], [given[:2], given[2:]])
    for channel in (0, 1):
        column = given[..., channel].reshape(-1, 1)
        best = torch.linalg.lstsq(column, wanted[..., channel].reshape(-1, 1)).solution
        torch.testing.assert_close(found[channel], best[0, 0])
    assert found[2] == 1


def test_several_in_a_row_take_the_weights_of_one_layer() -> None:
    _, llama = captured("llama", 5)
    after = ShareBlocks(layers=3)(llama)
    own = {name.split(".")[2] for name in after.tensors if "_proj" in name}
    assert own == {"0", "4"}
    norms = [name for name in after.tensors if "layernorm" in name]
    assert len(norms) == 2 * 5
    scales = [name for name in after.tensors if name.endswith("share_scale")]
    assert len(scales) == 2 * 3
    each = sum(llama.tensors[name].numel() for name in llama.tensors if "layers.1." in name) - 128
    assert llama.parameters - after.parameters == 3 * each - 6 * 64


def test_the_fit_is_nearer_than_plain_sharing() -> None:
    _, llama = captured("llama", 4)
    sample = llama.samples[0]
    wanted = llama.run(**sample)["logits"]
    plain, fitted = (
        ShareBlocks(layers=2, choose="even", scale=how)(llama).run(**sample)["logits"]
        for how in ("none", "fitted")
    )
    assert relative_error(fitted, wanted) < 0.95 * relative_error(plain, wanted)


def test_shared_weights_are_rounded_once(program: Program) -> None:
    shared = ShareBlocks(layers=1)(program)
    after = QuantizeWeights(bits=8, group_size=None)(shared)
    packed = [name for name in after.tensors if name.endswith("_packed")]
    assert packed == ["layers.0.weight_packed", "layers.2.weight_packed"]
    assert error(after, program) < 0.02


def test_where_no_factors_fit_that_is_said() -> None:
    _, bert = captured("bert")  # which norms every sum
    after = ShareBlocks(layers=1, protected=0)(bert)
    said = [change.what for change in after.changes]
    assert sum("no factors, since it does not end in a sum" in one for one in said) == 2
    assert not any(name.endswith("share_scale") for name in after.tensors)


def test_shared_layers_can_be_healed() -> None:
    _, llama = captured("llama", 4)
    heal = Distill(steps=2, learning_rate=1e-3)
    alike = dataclasses.replace(llama, calibration=llama.samples[:1] * 4)
    after, (_, step) = apply(alike, [ShareBlocks(layers=2, choose="even"), heal], names=name_of)
    assert "weights trained" in step.changes[0].what
    assert "model.layers.1.mlp.up_proj.weight" not in after.tensors


def test_onnx_stores_shared_weights_once(program: Program, tmp_path: Path) -> None:
    after = ShareBlocks(layers=1)(program)
    lower(after, tmp_path, CPU)
    session = onnxruntime.InferenceSession(
        tmp_path / MODEL_FILE, providers=["CPUExecutionProvider"]
    )
    x = torch.randn(3, 4, 8)
    (found,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), after.run(x=x)["output"])


def test_no_checkpoint_holds_shared_weights(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "model", layers=4)
    shared = (ShareBlocks(layers=2, choose="even"),)
    result = api.optimize(folder, shared, output=tmp_path / "out", target="onnx")
    assert "checkpoint" not in result.files
    assert any("no Hugging Face checkpoint was written" in note for note in result.notes)
    assert result.files["onnx"] < result.program.nbytes + 100_000 < result.original.nbytes


def test_refusals(program: Program) -> None:
    with pytest.raises(NotApplicable, match=r"^share_blocks: 2 of 3 layers of Layers are to share"):
        ShareBlocks(layers=2)(program)
    assert ShareBlocks(layers=2, protected=0)(program).changes
    bare = dataclasses.replace(program, samples=(), calibration=())
    with pytest.raises(NotApplicable, match=r"^share_blocks: there are no calibration samples"):
        ShareBlocks(layers=1)(bare)
    assert ShareBlocks(layers=1, choose="even", scale="none")(bare).changes
