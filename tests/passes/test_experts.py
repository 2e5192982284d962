"""Experts in one tensor: rounded like linear layers, and named by passes that leave them alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.ir.capture.export import from_module
from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor, QuantScheme, dequantize
from planish.passes.awq import Awq
from planish.passes.choice import Target
from planish.passes.contract import NotApplicable, Pass
from planish.passes.gptq import Gptq
from planish.passes.layers import EXPERTS, layers_of
from planish.passes.mixed_precision import MixedPrecision
from planish.passes.pipeline import apply, relative_error
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.rounding import round_to_nearest
from planish.passes.smooth_quant import SmoothQuant
from support.captured import captured

BEFORE = """\
program Experts for 1 <= B
  %x: f32[B, 64] = input
  %transpose: f32[2, 64, 32] = aten.transpose.int(@up, 1, 2)
  %transpose_1: f32[2, 32, 8] = aten.transpose.int(@down, 1, 2)
  %matmul: f32[2, B, 32] = aten.matmul(%x, %transpose)
  %relu: f32[2, B, 32] = aten.relu(%matmul)
  %matmul_1: f32[2, B, 8] = aten.matmul(%relu, %transpose_1)
  %sum_1: f32[B, 8] = aten.sum.dim_IntList(%matmul_1, [0])
  return output=%sum_1
"""

AFTER = """\
program Experts for 1 <= B
  %x: f32[B, 64] = input
  %dequantize: f32[2, 32, 64] = planish.dequantize(@up_packed, @up_scale, None, 4, 32, \
[2, 32, 64], f32)
  %transpose_2: f32[2, 64, 32] = aten.transpose.int(%dequantize, 1, 2)
  %matmul: f32[2, B, 32] = aten.matmul(%x, %transpose_2)
  %relu: f32[2, B, 32] = aten.relu(%matmul)
  %dequantize_1: f32[2, 8, 32] = planish.dequantize(@down_packed, @down_scale, None, 4, 32, \
[2, 8, 32], f32)
  %transpose_3: f32[2, 32, 8] = aten.transpose.int(%dequantize_1, 1, 2)
  %matmul_1: f32[2, B, 8] = aten.matmul(%relu, %transpose_3)
  %sum_1: f32[B, 8] = aten.sum.dim_IntList(%matmul_1, [0])
  return output=%sum_1
"""

WEIGHTS = [f"model.layers.0.mlp.experts.{part}_proj" for part in ("gate_up", "down")]


class Experts(nn.Module):
    """Two experts, stored as [E, N, K], or the other way round as products read them."""

    def __init__(self, *, turned: bool) -> None:
        super().__init__()
        up, down = torch.randn(2, 32, 64), torch.randn(2, 8, 32)
        self.turned = turned
        self.up = nn.Parameter(up.mT.contiguous() if turned else up)
        self.down = nn.Parameter(down.mT.contiguous() if turned else down)

    def forward(self, x: Tensor) -> Tensor:
        up, down = (one if self.turned else one.transpose(1, 2) for one in (self.up, self.down))
        result: Tensor = ((x @ up).relu() @ down).sum(0)
        return result


def experts(*, turned: bool = False) -> Program:
    torch.manual_seed(0)
    return from_module(Experts(turned=turned).eval(), {"x": torch.randn(3, 64)})


def quantizer(**options: Any) -> QuantizeWeights:
    return QuantizeWeights(**{"bits": 4, "group_size": 32, **options})


def weights(program: Program) -> dict[str, QuantizedTensor]:
    nodes = program.nodes(dequantize)
    return dict(QuantizedTensor.read_by(node, program.tensors) for node in nodes)


def told(after: Program, before: Program) -> dict[str, str]:
    """What the changes say of experts, by tensor."""
    new = [change.what.partition(": ") for change in after.changes[len(before.changes) :]]
    return {name: what for name, _, what in new if name in WEIGHTS}


def test_products_read_packed_weights() -> None:
    before = experts()
    after = quantizer()(before)
    assert str(before) == BEFORE
    assert str(after) == AFTER
    assert [change.what.partition(";")[0] for change in after.changes] == [
        "up: int4 symmetric, groups of 32",
        "down: int4 symmetric, groups of 32",
    ]


def test_experts_stored_the_other_way_round_are_rounded_alike() -> None:
    one, other = quantizer()(experts()), quantizer()(experts(turned=True))
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    sample = one.samples[0]
    assert torch.equal(one.run(**sample)["output"], other.run(**sample)["output"])


@pytest.mark.parametrize(
    "scheme",
    [
        QuantScheme(4, 32),
        QuantScheme(3, 32, symmetric=False),
        QuantScheme(8, None, symmetric=False),
        QuantScheme(8, 32, floating=True),
    ],
    ids=str,
)
def test_a_stack_is_rounded_as_its_matrices_are(scheme: QuantScheme) -> None:
    stack = torch.randn(3, 10, 64, generator=torch.Generator().manual_seed(0))
    whole, _ = round_to_nearest(stack, scheme)
    for place, matrix in enumerate(stack):
        alone, _ = round_to_nearest(matrix, scheme)
        assert whole[place].tensors.keys() == alone.tensors.keys()
        for suffix, tensor in alone.tensors.items():
            assert torch.equal(whole[place].tensors[suffix], tensor)
        assert torch.equal(whole.dequantize()[place], alone.dequantize())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (4, 32)])
def test_a_model_of_experts_is_off_by_rounding(
    bits: int, group_size: int | None, symmetric: bool
) -> None:
    _, before = captured("qwen2_moe", 1)
    original = {name: before.tensors[name].clone() for name in WEIGHTS}
    options = quantizer(bits=bits, group_size=group_size, symmetric=symmetric)
    after, (step,) = apply(before, [options], names=lambda _: "quantize_weights")
    assert step.isolation == "isolated"
    assert after.nbytes < 0.4 * before.nbytes
    for name in WEIGHTS:
        assert torch.equal(before.tensors[name], original[name])
        error = relative_error(weights(after)[name].dequantize(), original[name])
        assert 0 < error < (0.01 if bits == 8 else 0.1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"targets": ("*.experts.*",)}, WEIGHTS),
        ({"targets": ("model.layers.0.mlp.experts",)}, WEIGHTS),
        ({"targets": (WEIGHTS[1],)}, WEIGHTS[1:]),
        ({"ignore": ("re:.*(self_attn|shared_expert|down_proj)",)}, WEIGHTS[:1]),
    ],
    ids=str,
)
def test_experts_are_chosen_by_tensor_or_module(
    options: dict[str, Any], expected: list[str]
) -> None:
    _, program = captured("qwen2_moe", 1)
    assert [*weights(quantizer(**options)(program))] == expected


def test_a_group_that_does_not_divide_the_input_features_is_refused() -> None:
    with pytest.raises(NotApplicable, match=r"128 does not divide .*experts\.gate_up_proj .*64"):
        quantizer(group_size=128, targets=(WEIGHTS[0],))(captured("mixtral", 1)[1])


def test_quantized_experts_are_layers_still() -> None:
    program = quantizer()(captured("mixtral", 1)[1])
    found = layers_of(program.graph, program, packed=True)
    named = {layer.name: layer.width for layer in found if EXPERTS in layer.roles}
    assert named == {WEIGHTS[0]: 64, WEIGHTS[1]: 192}
    with pytest.raises(NotApplicable, match="the router of experts"):
        quantizer(bits=8)(program)


@pytest.mark.parametrize(
    ("one", "words", "rounded"),
    [
        (quantizer(clip_search="inputs"), "; searched without what it reads", True),
        (Gptq(bits=4, group_size=32), "; experts: rounded to nearest", True),
        (Awq(bits=4, group_size=32), "does not look at", False),
        (SmoothQuant(), "does not look at", False),
        (MixedPrecision(Target(bits=5.0)), "loss is not measured", False),
        (QuantizeActivations(), "inputs are not rounded", False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_passes_that_learn_from_samples_say_what_they_do_to_experts(
    one: Pass, words: str, rounded: bool
) -> None:
    _, program = captured("qwen2_moe", 1)
    after = one(program)
    assert [*told(after, program)] == WEIGHTS
    assert all(words in what for what in told(after, program).values())
    assert (set(WEIGHTS) <= set(weights(after))) == rounded


def test_experts_under_ignore_are_not_spoken_of() -> None:
    _, program = captured("mixtral", 1)
    after = SmoothQuant(ignore=("*.experts",))(program)
    assert not told(after, program)


def test_experts_alone_leave_nothing_to_smooth() -> None:
    with pytest.raises(NotApplicable, match="a tensor of its own, not of experts"):
        SmoothQuant(targets=("*.experts",))(captured("mixtral", 1)[1])
