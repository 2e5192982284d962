"""Binary and ternary weights: text, numbers, the product beside them, lowering, and refusals."""

import dataclasses
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from planish.ir.capture.export import from_module
from planish.ir.compare import compare
from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor, dequantize
from planish.lowering.onnx.lower import MODEL_FILE, lower
from planish.lowering.onnx.target import CPU
from planish.passes import name_of
from planish.passes.binarize import Binarize
from planish.passes.compensation import Curvature
from planish.passes.contract import NotApplicable
from planish.passes.levels import Levels, Seen, low_rank, scales, scheme_of, split
from planish.passes.pipeline import apply, relative_error
from support.captured import captured
from support.pair import BEFORE, Pair, packed_text
from support.tensors import correlated

TERNARY_AND_PRODUCT = """\
program Pair for 1 <= B
  %x: f32[B, 64] = input
  %dequantize: f32[32, 64] = planish.dequantize(@first.weight_packed, @first.weight_scale, None, \
2, 32, [32, 64], f32)
  %linear_2: f32[B, 32] = aten.linear(%x, %dequantize, @first.bias)
  %linear_3: f32[B, 4] = aten.linear(%x, @first.weight_right)
  %linear_4: f32[B, 32] = aten.linear(%linear_3, @first.weight_left)
  %add: f32[B, 32] = aten.add.Tensor(%linear_2, %linear_4)
  %relu: f32[B, 32] = aten.relu(%add)
  %linear_1: f32[B, 8] = aten.linear(%relu, @second.weight)
  return output=%linear_1
"""


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).relu())
        return y


def program_of(module: type[nn.Module] = Pair) -> Program:
    torch.manual_seed(0)
    made = from_module(module().eval(), {"x": correlated(3, 0)})
    return dataclasses.replace(made, calibration=({"x": correlated(400, 1)},))


def binarized(**options: Any) -> Binarize:
    return Binarize(**{"levels": 3, "group_size": 32, **options})


def seen_of(inputs: Tensor, *, compensate: bool = False) -> Seen:
    curvature = Curvature.of(inputs.T @ inputs, dampening=1e-6, by_size=True)
    assert curvature is not None
    return Seen(curvature, compensate)


def test_each_linear_reads_its_codes_and_adds_its_product() -> None:
    before = program_of()
    assert str(binarized(levels=2)(before)) == packed_text(1)
    after = binarized(rank=4, ignore=("second",))(before)
    assert str(after) == TERNARY_AND_PRODUCT
    assert str(before) == BEFORE
    (change,) = after.changes
    assert change.what.startswith("first.weight: ternary, groups of 32; rank 4; relative error 0.")
    assert "; of its output 0." in change.what


@pytest.mark.parametrize("levels", [2, 3])
def test_weights_take_a_bit_or_two_and_have_so_many_levels(levels: Levels) -> None:
    after = binarized(levels=levels)(program_of())
    for node in after.nodes(dequantize):
        _, weight = QuantizedTensor.read_by(node, after.tensors)
        assert weight.codes.unique().tolist() == ([-1, 1] if levels == 2 else [-1, 0, 1])
        assert weight.packed.nbytes * 8 == weight.codes.numel() * (levels - 1)


@pytest.mark.parametrize("levels", [2, 3])
def test_scales_are_the_best_there_are(levels: Levels) -> None:
    scheme = scheme_of(levels, 32)
    torch.manual_seed(1)
    groups = scheme.grouped(torch.randn(50, 64))
    found = scales(groups, torch.ones(()), scheme, torch.float32)
    if levels == 2:
        torch.testing.assert_close(found, groups.abs().mean(-1))

    def error(scale: Tensor) -> Tensor:
        codes = scheme.nearest(groups, scale)
        return (codes * scale.unsqueeze(-1) - groups).square().sum(-1)

    tried = torch.stack([error(found * factor) for factor in torch.linspace(0.5, 2, 301)])
    assert float(error(found).sum() / tried.min(0).values.sum()) < 1.01


@pytest.mark.parametrize("levels", [2, 3])
def test_a_group_of_zeros_is_next_to_zero(levels: Levels) -> None:
    matrix = torch.randn(8, 64)
    matrix[:, :32] = 0
    for seen in (None, seen_of(correlated(200, 2), compensate=False)):
        value = split(matrix, scheme_of(levels, 32), 0, 1, seen).value
        assert float(value[:, :32].abs().max()) < 1e-30


@pytest.mark.parametrize("shape", [(40, 64), (96, 64)], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_product_is_that_of_the_singular_values(shape: tuple[int, int], weighted: bool) -> None:
    torch.manual_seed(2)
    residual = torch.randn(shape)
    seen = seen_of(correlated(300, 3)) if weighted else None
    left, right = low_rank(residual, 5, seen)
    wrong = residual - left @ right
    error = seen.error(wrong) if seen else float(wrong.norm())
    whole = residual[:, seen.curvature.order] @ seen.root if seen else residual
    assert error == pytest.approx(float(torch.linalg.svdvals(whole)[5:].norm()), rel=1e-3)


@pytest.mark.parametrize("calibration", ["none", "inputs", "compensated"])
@pytest.mark.parametrize("levels", [2, 3])
def test_a_product_of_full_rank_gives_the_layer_back(levels: Levels, calibration: str) -> None:
    options = binarized(levels=levels, rank=64, calibration=calibration)
    _, (step,) = apply(program_of(), [options], names=name_of)
    assert step.error is not None
    assert step.error < 1e-4


def test_each_further_rank_and_level_lowers_the_error() -> None:
    torch.manual_seed(4)
    matrix, seen = torch.randn(64, 64), seen_of(correlated(400, 5), compensate=True)
    errors = {
        (levels, rank): seen.error(
            split(matrix, scheme_of(levels, 32), rank, 4, seen).value - matrix
        )
        for levels in (2, 3)
        for rank in (0, 4, 16)
    }
    for levels in (2, 3):
        assert errors[levels, 0] > 1.3 * errors[levels, 4] > 1.3 * errors[levels, 16]
    assert all(errors[2, rank] > errors[3, rank] for rank in (0, 4, 16))


def test_calibration_lowers_the_error_on_other_inputs() -> None:
    before, fresh = program_of(), {"x": correlated(500, 7)}
    want = before.run(**fresh)["output"]
    errors = [
        relative_error(binarized(rank=2, calibration=how)(before).run(**fresh)["output"], want)
        for how in ("none", "inputs", "compensated")
    ]
    assert errors[0] > errors[1] > errors[2]


def test_turns_are_never_worse_than_one() -> None:
    torch.manual_seed(6)
    matrix = torch.randn(64, 64)
    one, four = (
        float((split(matrix, scheme_of(2, 32), 8, rounds).value - matrix).norm())
        for rounds in (1, 4)
    )
    assert four < 0.98 * one


def test_layers_with_one_weight_share_codes_and_product() -> None:
    before = program_of(Tied)
    after = binarized(rank=8)(before)
    assert len(after.changes) == 1
    assert sorted(after.tensors) == [
        "first.bias",
        "first.weight_left",
        "first.weight_packed",
        "first.weight_right",
        "first.weight_scale",
    ]
    exact = binarized(rank=64)(before)
    x = before.samples[0]
    assert relative_error(exact.run(**x)["output"], before.run(**x)["output"]) < 1e-5


def test_no_error_is_told_of_codes_that_a_product_makes_up_for() -> None:
    before = program_of()
    (first, second) = compare(before, binarized(rank=64, ignore=("second",))(before))
    assert (first.error, second.error) == (None, 0.0)
    (first, second) = compare(before, binarized(ignore=("second",))(before))
    assert first.error is not None
    assert 0.2 < first.error < 0.5


@pytest.mark.parametrize("levels", [2, 3])
def test_onnx_runtime_gives_what_the_program_gives(levels: Levels, tmp_path: Path) -> None:
    after = binarized(levels=levels, rank=4)(program_of())
    lower(after, tmp_path, dataclasses.replace(CPU, accuracy_level=1))
    session = onnxruntime.InferenceSession(tmp_path / MODEL_FILE)
    x = correlated(5, 8)
    (got,) = session.run(None, {"x": x.numpy()})
    assert relative_error(torch.from_numpy(got), after.run(x=x)["output"]) < 1e-5


def test_little_text_and_singular_moments_are_told() -> None:
    program = program_of()
    few = dataclasses.replace(program, calibration=({"x": correlated(9, 1)},))
    assert "only 9 calibration tokens for 64 inputs" in binarized()(few).changes[0].what
    broken = dataclasses.replace(program, calibration=({"x": correlated(9, 1) * float("inf")},))
    assert "singular: not calibrated" in binarized()(broken).changes[0].what


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"group_size": 128}, "a group size of 128 does not divide the input features of first"),
        ({"ignore": ("Linear",)}, "ignore leaves none of the layers"),
        ({"targets": ("third",)}, "'third' matches none of the 2 layers"),
    ],
)
def test_refusals(options: dict[str, Any], why: str) -> None:
    with pytest.raises(NotApplicable, match=f"^binarize: {why}"):
        binarized(**options)(program_of())


def test_a_head_and_missing_samples_are_refused() -> None:
    program = captured("llama")[1]
    with pytest.raises(NotApplicable, match=r"lm_head is the .*stays in floating point; take it"):
        binarized(targets=("lm_head",))(program)
    without = dataclasses.replace(program_of(), samples=(), calibration=())
    with pytest.raises(NotApplicable, match=r"^binarize: there are no calibration samples"):
        binarized()(without)
    assert binarized(calibration="none")(without).changes
