"""Quantizing weights: text, numbers, which layers are chosen, and refusals."""

import dataclasses
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from planish.ir.capture.export import from_module
from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor, QuantScheme, dequantize, unpack
from planish.passes.contract import NotApplicable
from planish.passes.format import Override
from planish.passes.pipeline import apply, relative_error
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.rounding import round_to_nearest
from support.captured import captured
from support.pair import BEFORE, Pair, packed_text


def pair(width: int = 32) -> Program:
    torch.manual_seed(0)
    return from_module(Pair(width).eval(), {"x": torch.randn(3, 64)})


def quantizer(**options: Any) -> QuantizeWeights:
    return QuantizeWeights(**{"bits": 4, "group_size": 32, **options})


def quantized_names(program: Program) -> list[str]:
    nodes = program.nodes(dequantize)
    return [QuantizedTensor.read_by(node, program.tensors)[0] for node in nodes]


def why_not(program: Program, **options: Any) -> str:
    with pytest.raises(NotApplicable) as raised:
        quantizer(**options)(program)
    return str(raised.value)


def test_each_linear_reads_its_packed_weight() -> None:
    before = pair()
    after = quantizer()(before)
    assert str(before) == BEFORE
    assert str(after) == packed_text(4)
    assert [change.what.partition(";")[0] for change in after.changes] == [
        "first.weight: int4 symmetric, groups of 32",
        "second.weight: int4 symmetric, groups of 32",
    ]


def test_some_layers_may_take_formats_of_their_own() -> None:
    fine = Override(bits=8, group_size=None, targets=("second",))
    ignored = Override(bits=2, group_size=32, targets=("s*",))
    after = quantizer(overrides=(fine, ignored))(pair())
    assert [change.what.partition(";")[0] for change in after.changes] == [
        "first.weight: int4 symmetric, groups of 32",
        "second.weight: int8 symmetric, per channel",
    ]
    alone = quantizer(bits=8, group_size=None, targets=("second",))(pair())
    assert torch.equal(after.tensors["second.weight_packed"], alone.tensors["second.weight_packed"])


def test_overrides_must_name_layers_and_fit_them() -> None:
    other = Override(bits=8, group_size=None, targets=("secnd",))
    assert why_not(pair(), overrides=(other,)) == (
        "quantize_weights: 'secnd' matches none of the 2 layers with weights; "
        "did you mean 'second'?"
    )
    wide = Override(bits=8, group_size=128, targets=("first",))
    assert "a group size of 128 does not divide the input features of first (64)" in why_not(
        pair(), overrides=(wide,)
    )
    with pytest.raises(ValidationError, match="name at least one layer"):
        Override(bits=8, group_size=None, targets=())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, None])
@pytest.mark.parametrize(("bits", "bound"), [(8, 0.01), (4, 0.13), (3, 0.27), (2, 0.65)])
def test_weights_are_off_by_rounding(
    bits: int, bound: float, group_size: int | None, symmetric: bool
) -> None:
    before = pair(64)
    options = quantizer(bits=bits, group_size=group_size, symmetric=symmetric)
    after, (step,) = apply(before, [options], names=lambda _: "quantize_weights")
    for node in after.nodes(dequantize):
        name, weight = QuantizedTensor.read_by(node, after.tensors)
        assert weight.scheme == QuantScheme(bits, group_size, symmetric)
        assert 0 < relative_error(weight.dequantize(), before.tensors[name]) < bound
    assert step.error is not None
    assert 0 < step.error < 2 * bound
    assert after.nbytes < before.nbytes


@pytest.mark.parametrize("group_size", [32, None])
def test_weights_become_8_bit_floats(group_size: int | None) -> None:
    before = pair(64)
    after = quantizer(bits=8, group_size=group_size, type="float")(before)
    for node in after.nodes(dequantize):
        name, weight = QuantizedTensor.read_by(node, after.tensors)
        assert weight.scheme == QuantScheme(8, group_size, floating=True)
        assert weight.packed.dtype == torch.float8_e4m3fn
        assert 0.005 < relative_error(weight.dequantize(), before.tensors[name]) < 0.03
    assert "fp8 (E4M3)" in after.changes[0].what


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 3},
        {"bits": 4, "group_size": 64},
        {"symmetric": False},
        {"bits": 8, "symmetric": False},
    ],
    ids=str,
)
def test_only_some_formats_can_be_floats(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"have 8 bits .* or 4 bits .*, and are symmetric"):
        quantizer(type="float", **options)


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_on_the_grid_are_kept_exactly(symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(-8, 8, (6, 64), dtype=torch.int8, generator=generator)
    codes[:, ::32], codes[:, 1::32] = -8, 7
    scale = torch.full((6, 2), 0.25)
    scheme = QuantScheme(4, 32, symmetric)
    zeros = None if symmetric else torch.full((6, 2), -3, dtype=torch.int8)
    exact = QuantizedTensor.from_codes(scheme, torch.float32, codes, scale, zeros)
    found, error = round_to_nearest(exact.dequantize(), scheme, search=False)
    assert error == 0
    assert torch.equal(found.packed, exact.packed)


def weighted_error(matrix: Tensor, rounded: QuantizedTensor) -> float:
    return float(((rounded.dequantize() - matrix).square() * matrix.abs()).sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 128, None])
def test_the_search_lowers_the_error_it_minimizes(group_size: int | None, symmetric: bool) -> None:
    torch.manual_seed(3)
    matrix = torch.randn(200, 384) * torch.rand(200, 1)
    scheme = QuantScheme(4, group_size, symmetric)
    searched, _ = round_to_nearest(matrix, scheme)
    plain, _ = round_to_nearest(matrix, scheme, search=False)
    assert weighted_error(matrix, searched) < 0.95 * weighted_error(matrix, plain)


def test_the_largest_number_is_stored_as_the_lowest_code() -> None:
    matrix = torch.tensor([[4.0, -1.0, 0.5, 0.0], [-4.0, 1.0, 0.5, 0.0]])
    rounded, _ = round_to_nearest(matrix, QuantScheme(4), search=False)
    assert rounded.scale.tolist() == [[-0.5], [0.5]]
    assert unpack(rounded.packed, 4, 4).tolist() == [[-8, 2, -1, 0], [-8, 2, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_and_vanishing_groups_stay_finite(dtype: torch.dtype, symmetric: bool) -> None:
    matrix = torch.zeros(2, 64, dtype=dtype)
    matrix[1, :32] = torch.finfo(dtype).smallest_normal
    rounded, error = round_to_nearest(matrix, QuantScheme(4, 32, symmetric))
    assert rounded.dequantize().isfinite().all()
    assert rounded.dequantize()[0].eq(0).all()
    assert error <= 1
    assert rounded.scale.dtype == dtype


@pytest.mark.parametrize("chunk_rows", [1, 7, 1000])
def test_chunks_do_not_show(chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(50, 64, generator=torch.Generator().manual_seed(5))
    whole, _ = round_to_nearest(matrix, QuantScheme(4, 32, symmetric=False))
    monkeypatch.setattr("planish.passes.rounding._CHUNK", 64 * chunk_rows)
    parts, _ = round_to_nearest(matrix, QuantScheme(4, 32, symmetric=False))
    assert all(torch.equal(parts.tensors[end], tensor) for end, tensor in whole.tensors.items())


def test_the_head_embeddings_and_routers_are_left_alone() -> None:
    _, program = captured("mixtral", 1)
    after = quantizer()(program)
    kinds = {name.split(".")[-2] for name in quantized_names(after)}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "experts"}
    assert len(after.changes) - len(program.changes) == 6


def test_the_head_and_the_embeddings_on_request() -> None:
    _, program = captured("llama", 1)
    linear = quantized_names(quantizer()(program))
    assert len(linear) == 7
    assert quantized_names(quantizer(lm_head=True)(program)) == [*linear, "lm_head.weight"]
    embedding = "model.embed_tokens.weight"
    assert quantized_names(quantizer(embeddings=True)(program)) == [embedding, *linear]


def test_a_tied_embedding_is_quantized_once_and_only_if_both_are_asked_for() -> None:
    _, program = captured("qwen2", 1)
    names = quantized_names(quantizer(embeddings=True, lm_head=True)(program))
    assert len(names) == 8
    assert names[0] == "model.embed_tokens.weight"
    message = why_not(program, lm_head=True)
    assert "model.embed_tokens is the embedding and the language-model head" in message
    assert "embeddings: true" in message
    assert quantized_names(quantizer(lm_head=True, ignore=("lm_head",))(program)) == names[1:]


def test_a_weight_stored_the_other_way_round_is_turned() -> None:
    _, program = captured("gpt2", 1)
    after = quantizer(bits=8)(program)
    assert len(quantized_names(after)) == 4
    for node in after.nodes(dequantize):
        name, weight = QuantizedTensor.read_by(node, after.tensors)
        assert relative_error(weight.dequantize(), program.tensors[name].T) < 0.01
    sample = program.samples[0]
    error = relative_error(after.run(**sample)["logits"], program.run(**sample)["logits"])
    assert error < 0.02


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"targets": ("first",)}, ["first.weight"]),
        ({"targets": ("second.weight",)}, ["second.weight"]),
        ({"targets": ("f*",)}, ["first.weight"]),
        ({"targets": ("re:.*nd$",)}, ["second.weight"]),
        ({"ignore": ("re:f",)}, ["second.weight"]),
        ({"targets": ("*",), "ignore": ("first", "first.weight")}, ["second.weight"]),
    ],
    ids=str,
)
def test_layers_are_chosen_by_name_glob_or_expression(
    options: dict[str, Any], expected: list[str]
) -> None:
    assert quantized_names(quantizer(**options)(pair())) == expected


def test_a_second_pass_takes_what_the_first_left() -> None:
    program = quantizer(targets=("first",))(pair())
    program = quantizer(bits=8, group_size=None)(program)
    bits = [
        QuantizedTensor.read_by(n, program.tensors)[1].scheme.bits
        for n in program.nodes(dequantize)
    ]
    assert bits == [4, 8]
    assert "no linear layer" in why_not(program)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": ("fist",)}, ["'fist'", "did you mean 'first'"]),
        ({"ignore": ("linear",)}, ["'linear'", "did you mean 'Linear'"]),
        ({"targets": ("re:nothing",)}, ["'re:nothing' matches none of the 2 layers"]),
        ({"ignore": ("*",)}, ["ignore leaves none"]),
        ({"group_size": 128}, ["128", "first, second (8, 64)", "null (per channel)"]),
    ],
    ids=str,
)
def test_refusals_say_what_would_help(options: dict[str, Any], words: list[str]) -> None:
    message = why_not(pair(8), **options) if "group_size" in options else why_not(pair(), **options)
    assert message.startswith("quantize_weights: ")
    assert all(word in message for word in words), message


def test_a_group_that_does_not_divide_comes_with_one_that_does() -> None:
    message = why_not(pair(), group_size=64)
    assert "does not divide the input features of second (32); group_size: 32 does" in message


def test_special_layers_named_without_their_option_are_refused() -> None:
    _, program = captured("llama", 1)
    message = why_not(program, targets=("lm_head",))
    assert "lm_head is the language-model head" in message
    assert "lm_head: true" in message
    _, experts = captured("mixtral", 1)
    assert "router of experts" in why_not(experts, targets=("*.gate",))


def test_a_program_without_linear_layers_is_refused() -> None:
    program = from_module(nn.Conv2d(3, 4, 3).eval(), torch.randn(2, 3, 8, 8))
    assert "Conv2d has no linear layer" in why_not(program)


@pytest.mark.parametrize(
    "options",
    [{"bits": 5}, {"group_size": 48}, {"targets": ("re:(",)}, {"symmetric": 1}, {"clip": True}],
    ids=str,
)
def test_bad_options_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises((ValidationError, TypeError)):
        quantizer(**options)


def calibrated(program: Program) -> Program:
    """The pair, of inputs with a mean and with a few loud channels."""
    size = torch.ones(64)
    size[::8] = 12
    x = (torch.randn(400, 64, generator=torch.Generator().manual_seed(4)) + 0.7) * size
    return dataclasses.replace(program, calibration=({"x": x[:200]}, {"x": x[200:]}))


def output_errors(program: Program, **options: Any) -> tuple[float, float]:
    """Of the first layer: the relative error of its output and that of the output's mean."""
    after = quantizer(**options)(program)
    x = torch.cat([sample["x"] for sample in program.calibration])
    (node, *_) = after.nodes(dequantize)
    weight = QuantizedTensor.read_by(node, after.tensors)[1].dequantize()
    expected = x @ program.tensors["first.weight"].T + program.tensors["first.bias"]
    got = x @ weight.T + after.tensors["first.bias"]
    return relative_error(got, expected), relative_error(got.mean(0), expected.mean(0))


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_search_by_inputs_lowers_the_error_of_the_output(symmetric: bool) -> None:
    program = calibrated(pair())
    plain, _ = output_errors(program, symmetric=symmetric)
    by_inputs, _ = output_errors(program, symmetric=symmetric, clip_search="inputs")
    assert by_inputs < 0.9 * plain


def test_bias_correction_keeps_the_mean_of_the_output() -> None:
    program = calibrated(pair())
    without, mean_without = output_errors(program)
    corrected, mean = output_errors(program, bias_correction=True)
    assert mean_without > 0.01
    assert mean < 1e-5
    assert corrected < without
    first, second = quantizer(bias_correction=True)(program).changes
    assert first.what.endswith("; bias corrected")
    assert "bias" not in second.what  # it has none


def test_what_learns_from_samples_is_refused_without_them() -> None:
    bare = dataclasses.replace(pair(), samples=(), calibration=())
    message = "quantize_weights: there are no calibration samples; pass --samples FILE or samples=."
    assert why_not(bare, clip_search="inputs") == message
    assert why_not(bare, bias_correction=True) == message


def test_a_bias_that_others_read_too_is_not_corrected() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 32), nn.Linear(64, 32)
            self.second.bias = self.first.bias

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.first(x) * self.second(x)
            return result

    program = from_module(Shared().eval(), {"x": torch.randn(3, 64)})
    after = quantizer(bias_correction=True)(program)
    assert after.tensors["first.bias"] is program.tensors["first.bias"]
    assert not any("bias corrected" in change.what for change in after.changes)


def test_inputs_of_float16_do_not_overflow_the_search() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32, bias=False)).eval().half()
    loud = torch.randn(50, 64).half()
    loud[:, 3] = 400  # whose square is more than float16 holds
    program = dataclasses.replace(
        from_module(model, {"input": loud}), calibration=({"input": loud},)
    )
    (change,) = QuantizeWeights(bits=4, group_size=32, clip_search="inputs")(program).changes
    assert "searched without" not in change.what
    whole = loud.float() @ program.tensors["0.weight"].float().T

    def error(search: Any) -> float:
        after = QuantizeWeights(bits=4, group_size=32, clip_search=search)(program)
        (got,) = after.run(input=loud).values()
        return float((got.float() - whole).norm() / whole.norm())

    assert error("inputs") < error(False)


def test_inputs_that_are_not_finite_are_told_and_not_learned_from() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32, bias=False)).eval()
    broken = torch.randn(50, 64)
    broken[0, 0] = torch.nan
    sample = {"input": torch.randn(4, 64)}
    program = dataclasses.replace(from_module(model, sample), calibration=({"input": broken},))
    after = QuantizeWeights(bits=4, group_size=32, clip_search="inputs")(program)
    assert "searched without what it reads" in after.changes[0].what
    plain = QuantizeWeights(bits=4, group_size=32, clip_search=True)(program)
    assert torch.equal(after.run(**sample)["output"], plain.run(**sample)["output"])
