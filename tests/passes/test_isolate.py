"""Repairing leaks: text, the numbers of each request alone, counts, and refusals."""

from collections.abc import Callable

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import Tensor, nn
from torch.nn import functional

import planish
from planish.ir.capture.export import from_module
from planish.ir.isolation.programs import Refused
from planish.passes.contract import NotApplicable
from planish.passes.isolate import Isolate

reference = torch.ops.quantized_decomposed
X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
X[2] *= 50


class Of(nn.Module):
    """A function, and a batch norm that it may use."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def program(function: Callable[[nn.Module, Tensor], Tensor], x: Tensor = X) -> planish.Program:
    torch.manual_seed(0)
    module = Of(function)
    module.norm.running_mean = torch.randn(8)
    return from_module(module.eval(), x)


def symmetric(_: nn.Module, x: Tensor) -> Tensor:
    scale = x.abs().amax().clamp_min(1e-6) / 127
    return (x / scale).round().clamp(-127, 127) * scale


def asymmetric(_: nn.Module, x: Tensor) -> Tensor:
    scale = (x.max() - x.min()) / 255
    zero = (-x.min() / scale).round()
    codes = ((x / scale).round() + zero).clamp(0, 255).to(torch.uint8)
    return (codes.float() - zero) * scale


def both_at_once(_: nn.Module, x: Tensor) -> Tensor:
    least, most = torch.aminmax(x)
    scale = torch.maximum(-least, most) / 127
    return (x / scale).round() * scale


def kept_dimensions(_: nn.Module, x: Tensor) -> Tensor:
    scale = x.abs().amax(dim=(0, 1, 2), keepdim=True) / 7
    return (x / scale).round() * scale


def by_channel(_: nn.Module, x: Tensor) -> Tensor:
    scale = x.abs().amax(dim=(0, 1)) / 127
    return (x / scale).round() * scale


def by_reference(_: nn.Module, x: Tensor) -> Tensor:
    scale, zero = reference.choose_qparams.tensor(x, -128, 127, 1e-6, torch.int8)
    codes = reference.quantize_per_tensor.tensor(x, scale, zero, -128, 127, torch.int8)
    dequantize = reference.dequantize_per_tensor.tensor
    result: Tensor = dequantize(codes, scale, zero, -128, 127, torch.int8)
    return result


def by_symmetric_reference(_: nn.Module, x: Tensor) -> Tensor:
    scale, zero = reference.choose_qparams_symmetric.tensor(x, 0, 255, 1e-6, torch.uint8)
    codes = reference.quantize_per_tensor.tensor(x, scale, zero, 0, 255, torch.uint8)
    dequantize = reference.dequantize_per_tensor.tensor
    result: Tensor = dequantize(codes, scale, zero, 0, 255, torch.uint8)
    return result


def twice(module: nn.Module, x: Tensor) -> Tensor:
    return symmetric(module, torch.tanh(asymmetric(module, x)))


RANGES = (
    symmetric,
    asymmetric,
    both_at_once,
    kept_dimensions,
    by_channel,
    by_reference,
    by_symmetric_reference,
    twice,
)


@pytest.mark.parametrize("function", RANGES)
def test_each_request_is_given_what_the_model_gives_it_alone(
    function: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    before = program(function)
    assert planish.audit(before).verdict == "leaks"
    after = Isolate()(before)
    assert planish.audit(after).verdict == "isolated"
    together = after.run(x=X)["output"]
    for row in range(3):
        alone = before.run(x=X[row : row + 1])["output"]
        assert torch.equal(together[row : row + 1], alone)
    assert not torch.equal(together, before.run(x=X)["output"])


@pytest.mark.parametrize("function", [by_reference, by_symmetric_reference])
def test_reference_operators_are_captured_as_they_compute(
    function: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    assert torch.equal(program(function).run(x=X)["output"], function(nn.Identity(), X))


def test_text_and_count() -> None:
    before = program(symmetric, X[:, 0])
    assert before.text().splitlines()[3:5] == [
        "  %amax: f32[] = aten.amax(%abs_1)",
        "  %clamp_min: f32[] = aten.clamp_min(%amax, 1e-06)",
    ]
    after = Isolate()(before)
    assert after.text() == (
        """\
program Of for 1 <= B
  %x: f32[B, 8] = input
  %abs_1: f32[B, 8] = aten.abs(%x)
  %amax_1: f32[B, 1] = aten.amax(%abs_1, [1], True)
  %clamp_min: f32[B, 1] = aten.clamp_min(%amax_1, 1e-06)
  %div: f32[B, 1] = aten.div.Tensor(%clamp_min, 127)
  %div_1: f32[B, 8] = aten.div.Tensor(%x, %div)
  %round_1: f32[B, 8] = aten.round(%div_1)
  %clamp: f32[B, 8] = aten.clamp(%round_1, -127, 127)
  %mul: f32[B, 8] = aten.mul.Tensor(%clamp, %div)
  return output=%mul
"""
    )
    (change,) = after.changes
    assert (change.node, change.what) == ("amax", "one range a row, over dimension 1")


def test_tokens_folded_into_the_batch_have_a_range_each() -> None:
    def folded(module: nn.Module, x: Tensor) -> Tensor:
        return symmetric(module, x.reshape(-1, 8)).reshape(x.shape)

    after = Isolate()(program(folded))
    assert planish.audit(after).verdict == "isolated"
    for token in range(5):
        part = X[1:2, token : token + 1]
        expected = symmetric(nn.Identity(), part)
        assert torch.equal(after.run(x=X)["output"][1:2, token : token + 1], expected)


def test_a_batch_norm_in_training_mode_takes_its_running_statistics() -> None:
    def training(module: nn.Module, x: Tensor) -> Tensor:
        norm: nn.BatchNorm1d = module.norm  # type: ignore[assignment]
        assert norm.running_mean is not None
        assert norm.running_var is not None
        kept = norm.running_mean.clone(), norm.running_var.clone()
        return functional.batch_norm(x, *kept, norm.weight, norm.bias, training=True)

    after = Isolate()(program(training, X[:, 0]))
    assert planish.audit(after).verdict == "isolated"
    evaluated = program(lambda module, x: module.norm(x), X[:, 0])  # type: ignore[operator]
    assert torch.equal(after.run(x=X[:, 0])["output"], evaluated.run(x=X[:, 0])["output"])


def test_memory_begins_as_zeros() -> None:
    def uninitialized(_: nn.Module, x: Tensor) -> Tensor:
        more = torch.empty(8), torch.empty_like(x), x.new_empty(8, dtype=torch.float64)
        return x + more[0] + more[1] + more[2].float()

    after = Isolate()(program(uninitialized))
    assert planish.audit(after).verdict == "isolated"
    assert len(after.changes) == 3
    assert torch.equal(after.run(x=X)["output"], X)


REFUSED: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], str]] = {
    "no quantization": (lambda _, x: x / x.abs().amax(), "no quantization follows"),
    "a mean": (lambda _, x: x - x.mean(0), "no local repair is known"),
    "given back": (lambda _, x: ((x / x.amax()).round(), x.amax()), "caller is given it"),  # type: ignore[dict-item,return-value]
    "the batch alone": (
        lambda _, x: (x / x.amax(0)).round(),
        "it spans nothing but the batch",
    ),
    "in the middle": (
        lambda _, x: (x / x.amax((0, 2)).unsqueeze(-1)).round(),
        "along dimensions in the middle",
    ),
    "read as a number": (
        lambda _, x: (x / x.amax().expand(8)).round(),
        "%expand reads it as one number",
    ),
    "another rank": (
        lambda _, x: (x.sum(1) / x.amax()).round(),
        "which it scales, has 2 dimensions",
    ),
    "another dtype": (
        lambda _, x: (x / x.amax().double()).round(),
        "would become torch.float64",
    ),
    "no statistics": (
        lambda _, x: functional.batch_norm(x[:, 0], None, None, training=True),
        "no local repair is known",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_local_repair_is_refused(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(NotApplicable, match=message):
        Isolate()(program(function))


def test_some_of_several_are_repaired_only_if_asked() -> None:
    def mixed(module: nn.Module, x: Tensor) -> Tensor:
        return symmetric(module, x) - x.mean(0)

    with pytest.raises(NotApplicable, match=r"of 2 findings 1 .* With partial: true the others"):
        Isolate()(program(mixed))
    after = Isolate(partial=True)(program(mixed))
    (finding,) = planish.audit(after).findings
    assert finding.operator == "aten.mean.dim"
    assert len(after.changes) == 1


def test_nothing_to_do() -> None:
    with pytest.raises(NotApplicable, match="is proven isolated already"):
        Isolate()(program(lambda _, x: torch.tanh(x)))


def test_in_a_recipe_under_enforce() -> None:
    model = program(symmetric)
    with pytest.raises(Refused):
        planish.optimize(model, {"passes": [{"cast": {"dtype": "float16"}}]})
    result = planish.optimize(model, "isolate")
    assert result.isolation == "isolated"
    assert [step.isolation for step in result.steps] == ["isolated"]
    assert result.certificate["verdict"] == "isolated"
