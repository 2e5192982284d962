"""Rounding activations: the graph, the numbers, what stays apart, what is refused."""

import dataclasses
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import planish
from planish.ir.activations import ActivationScheme, fake_quantize
from planish.ir.capture.export import from_module
from planish.ir.isolation.programs import analyse_program
from planish.ir.program import Program
from planish.passes.contract import NotApplicable
from planish.passes.pipeline import apply, relative_error
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.quantize_weights import QuantizeWeights
from support.captured import captured
from support.shared import shared


class Pair(nn.Module):
    """Two layers that read one value, and one that reads what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(32, 16), nn.Linear(32, 16, bias=False)
        self.last = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.left(x).relu() * self.right(x))
        return y


@pytest.fixture
def pair() -> Program:
    torch.manual_seed(0)
    rows = torch.randn(6, 32) * torch.logspace(-2, 2, 6)[:, None]
    made = from_module(Pair().eval(), {"x": rows})
    return QuantizeWeights(bits=8, group_size=None)(made)


AFTER = """
  %fake_quantize: f32[B, 32] = planish.fake_quantize(%x, None, i8, True)
"""


def roundings(program: Program) -> list[tuple[str, ActivationScheme]]:
    nodes = program.nodes(fake_quantize)
    return [(str(node.args[0]), ActivationScheme.read_by(node)) for node in nodes]


def test_layers_that_read_one_value_read_one_rounding_of_it(pair: Program) -> None:
    after = QuantizeActivations()(pair)
    assert roundings(pair) == []
    assert roundings(after) == [("x", ActivationScheme()), ("gated", ActivationScheme())]
    assert AFTER.strip() in after.text()
    assert [change.what for change in after.changes[-2:]] == [
        "left, right: int8, per token, dynamic",
        "last: int8, per token, dynamic",
    ]


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_each_token_is_rounded_to_its_own_scale(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 64) * torch.logspace(-6, 6, 5)[:, None]
    rounded = fake_quantize(x, None, dtype, True)
    alone = torch.cat([fake_quantize(row[None], None, dtype, False) for row in x])
    assert torch.equal(rounded, alone)
    for got, row in zip(rounded, x, strict=True):
        assert 0.001 < relative_error(got, row) < 0.04
    together = fake_quantize(x, None, dtype, False)
    assert bool((together[0] == 0).all())  # lost beside the largest row


def test_zeros_stay_zeros_and_what_is_no_number_stays_in_its_row() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, float("nan")], [1.0, -0.5]])
    for dtype in (torch.int8, torch.float8_e4m3fn):
        rounded = fake_quantize(x, None, dtype, True)
        assert rounded[0].tolist() == [0, 0]
        assert bool(rounded[1].isnan().all())
        assert relative_error(rounded[2], x[2]) < 0.01
    assert fake_quantize(torch.ones(0, 4), None, torch.int8, True).shape == (0, 4)


@pytest.mark.parametrize(("kind", "bound"), [("int", 0.02), ("float", 0.06)])
def test_dynamic_scales_per_token_lose_little_and_stay_apart(
    pair: Program, kind: Any, bound: float
) -> None:
    (step,) = apply(pair, [QuantizeActivations(type=kind)], names=lambda _: "a")[1]
    assert step.error is not None
    assert 0 < step.error < bound
    assert step.isolation == "isolated"


def test_dynamic_scales_of_tensors_leak_and_are_refused(pair: Program) -> None:
    after = QuantizeActivations(granularity="tensor")(pair)
    verdict = analyse_program(after)
    assert verdict.verdict == "leaks"
    assert "fake_quantize" in str(verdict.findings[0])
    recipe = {
        "passes": [
            {"quantize_weights": {"bits": 8, "group_size": None}},
            {"quantize_activations": {"granularity": "tensor"}},
        ]
    }
    with pytest.raises(planish.PlanishError, match="granularity: token"):
        planish.optimize(Pair().eval(), recipe, inputs={"x": torch.randn(3, 32)})


def test_static_scales_are_those_of_the_calibration_samples(pair: Program) -> None:
    calibration = tuple({"x": torch.full((2, 32), top)} for top in (1.0, -3.0))
    given = dataclasses.replace(pair, calibration=calibration)
    after = QuantizeActivations(dynamic=False)(given)
    assert roundings(after)[0] == ("x", ActivationScheme(dynamic=False, per_token=False))
    assert float(after.tensors["left.input_scale"]) == pytest.approx(3 / 127)
    assert analyse_program(after).verdict == "isolated"
    clipped = fake_quantize(torch.tensor([[9.0, -9.0]]), torch.tensor(3 / 127), torch.int8, False)
    assert clipped.flatten().tolist() == pytest.approx([3.0, -128 * 3 / 127])


def test_a_language_model_keeps_its_head_in_floating_point() -> None:
    _, llama = captured("llama")
    after = QuantizeActivations()(llama)
    (returned,) = after.graph.find_nodes(op="output")
    logits = dict(zip(after.outputs, returned.args[0], strict=True))["logits"]
    assert logits.args[0].target is not fake_quantize
    assert len(roundings(after)) == 4 * sum("input_layernorm" in name for name in after.tensors)


def test_experts_read_rounded_values_where_asked() -> None:
    _, mixtral = captured("mixtral", 1)
    weights = QuantizeWeights(bits=8, group_size=None)(mixtral)
    left, after = QuantizeActivations()(weights), QuantizeActivations(experts=True)(weights)
    assert any("of experts, whose inputs are not rounded" in one.what for one in left.changes)
    assert not any("of experts" in one.what for one in after.changes)
    assert len(roundings(after)) == len(roundings(left)) + 2
    sample = mixtral.samples[0]
    error = relative_error(weights.run(**sample)["logits"], after.run(**sample)["logits"])
    assert 0 < error < 0.05
    assert analyse_program(after).verdict == "isolated"
    alone = QuantizeActivations(experts=True, targets=("*.experts",))(weights)
    assert len(roundings(alone)) == 2


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"targets": ("nothing",)}, r"^quantize_activations: 'nothing' matches none"),
        ({"ignore": ("Linear",)}, "leave no linear layer"),
        ({"dynamic": False}, "there are no calibration samples"),
    ],
)
def test_refusals_say_why(pair: Program, options: dict[str, Any], why: str) -> None:
    bare = dataclasses.replace(pair, samples=(), calibration=())
    with pytest.raises(NotApplicable, match=why):
        QuantizeActivations(**options)(bare)


def test_what_is_rounded_already_is_refused(pair: Program) -> None:
    with pytest.raises(NotApplicable, match="what left reads is rounded already"):
        QuantizeActivations()(QuantizeActivations()(pair))


def test_values_that_are_not_finite_have_no_static_scale(pair: Program) -> None:
    x = torch.ones(2, 32)
    x[0, 0] = float("inf")
    given = dataclasses.replace(pair, calibration=({"x": x},))
    with pytest.raises(NotApplicable, match="x is not finite on the calibration samples"):
        QuantizeActivations(dynamic=False)(given)


def test_options_are_checked() -> None:
    with pytest.raises(ValidationError, match="granularity"):
        QuantizeActivations(granularity="row")  # type: ignore[arg-type]


def test_each_use_of_a_shared_weight_has_its_own_static_scale() -> None:
    program = shared()
    made = QuantizeActivations(dynamic=False, targets=("layer",))(program)
    scales: list[Any] = [node.args[1] for node in made.nodes(fake_quantize)]
    first, second = (float(made.tensors[str(scale.target)]) for scale in scales)
    assert second > 10 * first
    want, got = (one.run(**program.samples[0])["output"] for one in (program, made))
    assert float((want - got).norm() / want.norm()) < 0.02
