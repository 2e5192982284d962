"""Casting programs: text, what stays wide, numbers against eager models, and refusals."""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from planish.ir.capture.export import from_module
from planish.ir.capture.huggingface import capture_model
from planish.ir.program import Program
from planish.ir.sizes import evaluate
from planish.passes.cast import Cast
from planish.passes.contract import NotApplicable
from planish.passes.pipeline import relative_error
from planish.passes.quantize_weights import QuantizeWeights
from support.models import tiny

aten = torch.ops.aten
Half = Literal["bfloat16", "float16"]


class Turning(nn.Module):
    """Embeds tokens, turns them by position, and attends through a mask made of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.linear = nn.Linear(4, 4)
        self.register_buffer("frequencies", torch.tensor([1.0, 0.5, 0.25, 0.125]))

    def forward(self, ids: Tensor, positions: Tensor, keep: Tensor, past: Tensor) -> Tensor:
        frequencies = self.frequencies
        assert isinstance(frequencies, Tensor)
        angles = positions.unsqueeze(-1).float() * frequencies
        x = self.embed(ids) * angles.cos() + past
        scores = x @ x.transpose(1, 2)
        mask = (1.0 - keep.float()) * torch.finfo(torch.float32).min
        y: Tensor = self.linear((scores + mask.unsqueeze(1)).softmax(-1) @ x)
        return y


@pytest.fixture(scope="module")
def turning() -> Program:
    torch.manual_seed(0)
    inputs = {
        "ids": torch.tensor([[1, 2, 3], [4, 5, 6]]),
        "positions": torch.tensor([[1000, 1001, 1002], [0, 1, 2]]),
        "keep": torch.tensor([[1, 1, 1], [0, 0, 0]]),
        "past": torch.randn(2, 3, 4),
    }
    return from_module(Turning().eval(), inputs)


BEFORE = """\
program Turning for 1 <= B
  %ids: i64[B, 3] = input
  %positions: i64[B, 3] = input
  %keep: i64[B, 3] = input
  %past: f32[B, 3, 4] = input
  %unsqueeze: i64[B, 3, 1] = aten.unsqueeze(%positions, -1)
  %_to_copy_default: f32[B, 3, 1] = aten._to_copy(%unsqueeze, dtype=f32)
  %mul: f32[B, 3, 4] = aten.mul.Tensor(%_to_copy_default, @frequencies)
  %embedding: f32[B, 3, 4] = aten.embedding(@embed.weight, %ids)
  %cos: f32[B, 3, 4] = aten.cos(%mul)
  %mul_1: f32[B, 3, 4] = aten.mul.Tensor(%embedding, %cos)
  %add: f32[B, 3, 4] = aten.add.Tensor(%mul_1, %past)
  %transpose: f32[B, 4, 3] = aten.transpose.int(%add, 1, 2)
  %matmul: f32[B, 3, 3] = aten.matmul(%add, %transpose)
  %_to_copy_default_1: f32[B, 3] = aten._to_copy(%keep, dtype=f32)
  %rsub: f32[B, 3] = aten.rsub.Scalar(%_to_copy_default_1, 1.0)
  %mul_2: f32[B, 3] = aten.mul.Tensor(%rsub, -3.4028234663852886e+38)
  %unsqueeze_1: f32[B, 1, 3] = aten.unsqueeze(%mul_2, 1)
  %add_1: f32[B, 3, 3] = aten.add.Tensor(%matmul, %unsqueeze_1)
  %softmax: f32[B, 3, 3] = aten.softmax.int(%add_1, -1)
  %matmul_1: f32[B, 3, 4] = aten.matmul(%softmax, %add)
  %linear: f32[B, 3, 4] = aten.linear(%matmul_1, @linear.weight, @linear.bias)
  return output=%linear
"""
AFTER = """\
program Turning for 1 <= B
  %ids: i64[B, 3] = input
  %positions: i64[B, 3] = input
  %keep: i64[B, 3] = input
  %past: bf16[B, 3, 4] = input
  %unsqueeze: i64[B, 3, 1] = aten.unsqueeze(%positions, -1)
  %_to_copy_default: f32[B, 3, 1] = aten._to_copy(%unsqueeze, dtype=f32)
  %mul: f32[B, 3, 4] = aten.mul.Tensor(%_to_copy_default, @frequencies)
  %embedding: bf16[B, 3, 4] = aten.embedding(@embed.weight, %ids)
  %cos: f32[B, 3, 4] = aten.cos(%mul)
  %_to_copy: bf16[B, 3, 4] = aten._to_copy(%cos, dtype=bf16)
  %mul_1: bf16[B, 3, 4] = aten.mul.Tensor(%embedding, %_to_copy)
  %add: bf16[B, 3, 4] = aten.add.Tensor(%mul_1, %past)
  %transpose: bf16[B, 4, 3] = aten.transpose.int(%add, 1, 2)
  %matmul: bf16[B, 3, 3] = aten.matmul(%add, %transpose)
  %_to_copy_default_1: f32[B, 3] = aten._to_copy(%keep, dtype=f32)
  %rsub: f32[B, 3] = aten.rsub.Scalar(%_to_copy_default_1, 1.0)
  %mul_2: f32[B, 3] = aten.mul.Tensor(%rsub, -3.3895313892515355e+38)
  %unsqueeze_1: f32[B, 1, 3] = aten.unsqueeze(%mul_2, 1)
  %_to_copy_1: bf16[B, 1, 3] = aten._to_copy(%unsqueeze_1, dtype=bf16)
  %add_1: bf16[B, 3, 3] = aten.add.Tensor(%matmul, %_to_copy_1)
  %softmax: bf16[B, 3, 3] = aten.softmax.int(%add_1, -1)
  %matmul_1: bf16[B, 3, 4] = aten.matmul(%softmax, %add)
  %linear: bf16[B, 3, 4] = aten.linear(%matmul_1, @linear.weight, @linear.bias)
  return output=%linear
"""


def test_text_before_and_after(turning: Program) -> None:
    assert turning.text() == BEFORE
    assert Cast("bfloat16")(turning).text() == AFTER


def test_every_change_is_recorded(turning: Program) -> None:
    after = Cast("bfloat16")(turning)
    assert [change.what for change in after.changes] == [
        "takes bfloat16",
        "embed.weight: float32 to bfloat16",
        "linear.weight: float32 to bfloat16",
        "linear.bias: float32 to bfloat16",
        "rounded to bfloat16",
        "rounded to bfloat16",
    ]
    assert after.tensors["frequencies"].dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_large_positions_and_masked_rows_survive(turning: Program, dtype: Half) -> None:
    after = Cast(dtype)(turning)
    expected = turning.run(**turning.samples[0])["output"]
    got = after.run(**after.samples[0])["output"]
    assert got.dtype == getattr(torch, dtype)
    assert torch.isfinite(got).all()
    # The second row masks everything: any finite weights will do, as in float32.
    assert relative_error(got[0], expected[0]) < 0.02


def test_float32_comes_back(turning: Program) -> None:
    there = Cast("float16")(turning)
    back = Cast("float32")(there)
    assert {tensor.dtype for tensor in back.tensors.values()} == {torch.float32}
    assert [spec.dtype for spec in back.inputs] == [spec.dtype for spec in turning.inputs]
    # Roundings of angles and mask to float16 became nothing at all.
    assert len(list(back.nodes(aten._to_copy.default))) == len(
        list(turning.nodes(aten._to_copy.default))
    )


FAMILIES = ["resnet", "swin"]
MORE = ["llama", "qwen3", "gemma2", "gemma3", "opt", "gpt_neox", "bert", "modernbert", "vit", "t5"]


@pytest.mark.parametrize(
    "family", [*FAMILIES, *(pytest.param(one, marks=pytest.mark.slow) for one in MORE)]
)
def test_as_near_to_float32_as_the_eager_model_in_that_dtype(family: str) -> None:
    model, inputs = tiny(family)
    program = capture_model(model)
    sample = as_sample(program, inputs)
    exact = program.run(**sample)["logits"]
    for dtype in (torch.bfloat16, torch.float16):
        cast = Cast(str(dtype).removeprefix("torch."))(program)  # type: ignore[arg-type]
        got = cast.run(**in_dtypes(cast, sample))["logits"]
        with torch.no_grad():
            narrow: nn.Module = copy.deepcopy(model)
            eager = nn.Module.to(narrow, dtype)(**in_dtypes(cast, sample, inputs)).logits
        assert got.dtype == dtype
        assert relative_error(got, exact) < 1.5 * relative_error(eager, exact)


def as_sample(program: Program, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Complete the inputs of a model to those of its program: positions, an empty cache."""
    batch, length = next(iter(inputs.values())).shape[:2]
    sizes = {"B": batch, "T": length, "P": 0}
    empty = {
        spec.name: torch.zeros([evaluate(extent, sizes) for extent in spec.shape])
        for spec in program.inputs
        if spec.name.startswith("past_key_values")
    }
    given = {**inputs, **empty}
    if any(spec.name == "position_ids" for spec in program.inputs):
        given["position_ids"] = torch.arange(length).expand(batch, length)
    if any(spec.name == "token_type_ids" for spec in program.inputs):
        given["token_type_ids"] = torch.zeros(batch, length, dtype=torch.int64)
    return given


def in_dtypes(
    program: Program, sample: Mapping[str, Tensor], only: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    return {
        spec.name: sample[spec.name].to(spec.dtype)
        for spec in program.inputs
        if only is None or spec.name in only
    }


@pytest.fixture(scope="module")
def llama() -> Program:
    return capture_model(tiny("llama", layers=1)[0])


def test_a_language_model_is_cast_end_to_end(llama: Program) -> None:
    after = Cast("bfloat16")(llama)
    wide = {name for name, tensor in after.tensors.items() if tensor.dtype == torch.float32}
    assert wide == {"model.rotary_emb.inv_freq"}
    cache = [spec for spec in after.inputs if spec.name.startswith("past_key_values")]
    assert [spec.dtype for spec in cache] == [torch.bfloat16] * 2
    outputs = after.run(**after.samples[0])
    assert {value.dtype for value in outputs.values()} == {torch.bfloat16}
    assert after.source.config["dtype"] == "bfloat16"


def test_angles_of_far_positions_are_exact(llama: Program) -> None:
    after = Cast("bfloat16")(llama)
    near, far = dict(llama.samples[0]), dict(llama.samples[0])
    far["position_ids"] = near["position_ids"] + 100_003
    for sample in (near, far):
        expected = llama.run(**sample)["logits"]
        got = after.run(**in_dtypes(after, sample))["logits"]
        assert relative_error(got, expected) < 0.03


class Router(nn.Module):
    """Scores in float32 on purpose, mixes in the dtype of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 6)
        self.values = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        scores = functional.softmax(self.gate(x), dim=-1, dtype=torch.float32)
        top, chosen = scores.topk(2)
        top = (top / top.sum(-1, keepdim=True)).to(x.dtype)
        return (top.unsqueeze(-1) * self.values[chosen]).sum(-2)


@pytest.mark.parametrize("start", [torch.float32, torch.bfloat16])
def test_explicit_upcasts_stay(start: torch.dtype) -> None:
    program = from_module(Router().eval().to(start), torch.randn(3, 4).to(start))
    after = Cast("float16")(program)
    by_name = {str(node.target): node.meta.get("val") for node in after.graph.nodes}
    assert by_name["aten.softmax.int"].dtype == torch.float32
    assert by_name["aten.div.Tensor"].dtype == torch.float32
    assert by_name["aten.mul.Tensor"].dtype == torch.float16
    expected = program.run(**program.samples[0])["output"]
    assert relative_error(after.run(**after.samples[0])["output"], expected) < 0.02


def test_to_float32_conversions_fall_away() -> None:
    program = from_module(Router().eval().bfloat16(), torch.randn(3, 4).bfloat16())
    assert list(program.nodes(aten._to_copy.default))
    after = Cast("float32")(program)
    assert not list(after.nodes(aten._to_copy.default))


def test_packed_weights_stay_and_their_scales_follow() -> None:
    program = from_module(nn.Linear(32, 6).eval(), torch.randn(3, 32))
    quantized = QuantizeWeights(bits=4, group_size=32)(program)
    after = Cast("bfloat16")(quantized)
    assert torch.equal(after.tensors["weight_packed"], quantized.tensors["weight_packed"])
    assert after.tensors["weight_scale"].dtype == torch.bfloat16
    expected = quantized.run(**quantized.samples[0])["output"]
    got = after.run(**after.samples[0])["output"]
    assert got.dtype == torch.bfloat16
    assert relative_error(got, expected) < 0.01


def test_constants_fit_the_new_range() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.register_buffer("lowest", torch.tensor(torch.finfo(torch.float32).min))

        def forward(self, x: Tensor) -> Tensor:
            y = (self.scale * x).masked_fill(x > 0, -1e9)
            lowest = self.lowest
            assert isinstance(lowest, Tensor)
            return torch.where(x < -1, lowest, y)

    program = from_module(Masked().eval(), torch.tensor([[-2.0, -0.5, 0.5]] * 2))
    got = Cast("float16")(program).run(x=torch.tensor([[-2.0, -0.5, 0.5]]).half())["output"]
    assert got.tolist() == [[-65504.0, -0.5, -65504.0]]


def test_configs_inside_configs_follow() -> None:
    program = from_module(nn.Linear(2, 2).eval(), torch.randn(2, 2))
    assert dict(Cast("float16")(program).source.config) == {}
    config = {"torch_dtype": "float32", "text_config": {"dtype": "float32", "width": 2}}
    object.__setattr__(program.source, "config", config)
    assert Cast("float16")(program).source.config == {
        "torch_dtype": "float16",
        "text_config": {"dtype": "float16", "width": 2},
    }
    assert config["torch_dtype"] == "float32"


def refusal(program: Program, dtype: Half) -> str:
    with pytest.raises(NotApplicable) as caught:
        Cast(dtype)(program)
    return str(caught.value)


def test_a_dtype_that_it_has_already_is_refused(turning: Program) -> None:
    assert refusal(Cast("float16")(turning), "float16") == (
        "cast: the program computes in float16 already; leave this pass out."
    )


def test_values_beyond_the_range_are_refused() -> None:
    linear = nn.Linear(2, 2).eval()
    with torch.no_grad():
        linear.weight[0, 0] = -70_000
    program = from_module(linear, torch.randn(2, 2))
    assert refusal(program, "float16") == (
        "cast: weight reaches 7e+04, beyond the largest float16, 65504; cast to bfloat16 instead."
    )


def test_a_program_of_integers_is_refused() -> None:
    class Add(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    program = from_module(Add().eval(), torch.tensor([[1], [2]]))
    assert refusal(program, "float16") == (
        "cast: nothing in the program is floating-point; leave this pass out."
    )
