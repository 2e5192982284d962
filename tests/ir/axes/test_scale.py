"""Scaling: tensors take factors and their inverses, and the answer stays the same."""

import dataclasses
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from planish.ir.axes.axes import Axes, Member, find
from planish.ir.axes.linear import null_space
from planish.ir.axes.scale import Scales, Scaling, scale
from support.captured import captured
from support.families import SOME
from support.outputs import outputs


def factors(scaling: Scaling) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(scaling.shape, generator=generator, dtype=torch.float64).exp()


def columns(axes: Axes) -> dict[frozenset[tuple[str, tuple[int, ...]]], Scaling]:
    """How to scale what each weight reads, each way once."""
    found = {}
    scales = Scales(axes)
    for name, terms in axes.terms.items():
        if len(terms) > 1 and (scaling := scales.of(Member(name, 1))) is not None:
            found[frozenset(scaling.exponents)] = scaling
    return found


def far(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest element of its output."""
    return max(float((one[k] - other[k]).abs().max() / other[k].abs().max()) for k in other)


@pytest.mark.parametrize("family", SOME)
def test_scales_cancel(family: str) -> None:
    program = captured(family)[1]
    axes = find(program)
    expected = outputs(program)
    ways = list(columns(axes).values())
    assert ways
    assert far(outputs(scale(axes, program, {way: factors(way) for way in ways})), expected) < 1e-3
    noticed = 0
    # A scale that one tensor has no part in is noticed; early layers of MobileNet hardly matter.
    for way in ways[-4:]:
        some = dict(list(way.exponents.items())[1:])
        broken = dataclasses.replace(way, exponents=some)
        noticed += far(outputs(scale(axes, program, {broken: factors(way)})), expected) > 1e-3
    assert noticed >= min(4, len(ways)) - 1


def test_what_is_scaled_together_in_a_decoder() -> None:
    """The smoothing pairs of SmoothQuant and AWQ, without a list of names."""
    axes = find(captured("llama", 1)[1])

    def pairs(tensor: str) -> dict[str, int]:
        scaling = Scales(axes).of(Member(f"model.layers.0.{tensor}.weight", 1))
        assert scaling is not None
        return {
            name.removeprefix("model.layers.0.").removesuffix(".weight"): int(exponent)
            for (name, _), exponent in scaling.exponents.items()
        }

    attention = {"self_attn.q_proj": 1, "self_attn.k_proj": 1, "self_attn.v_proj": 1}
    assert pairs("self_attn.q_proj") == {**attention, "input_layernorm": -1}
    assert pairs("mlp.down_proj") == {"mlp.up_proj": -1, "mlp.down_proj": 1}
    mlp = {"mlp.gate_proj": 1, "mlp.up_proj": 1}
    assert pairs("mlp.up_proj") == {**mlp, "post_attention_layernorm": -1}
    # Two key heads for four query heads: one factor for each coordinate of each key head.
    out = Scales(axes).of(Member("model.layers.0.self_attn.o_proj.weight", 1))
    assert out is not None
    assert sorted(out.shape) == [2, 16]
    assert pairs("self_attn.o_proj") == {"self_attn.v_proj": -1, "self_attn.o_proj": 1}
    assert Scales(axes).of(Member("model.embed_tokens.weight", 1)) is None


def test_a_norm_that_multiplies_by_one_plus_its_weight_takes_a_scale() -> None:
    axes = find(captured("gemma2", 1)[1])
    scaling = Scales(axes).of(Member("model.layers.0.self_attn.q_proj.weight", 1))
    assert scaling is not None
    ((name, _),) = scaling.shifted
    assert name == "model.layers.0.input_layernorm.weight"


def test_factors_have_to_be_positive_and_of_the_scale() -> None:
    program = captured("llama", 1)[1]
    axes = find(program)
    scaling = Scales(axes).of(Member("lm_head.weight", 1))
    assert scaling is not None
    with pytest.raises(ValueError, match="positive and finite"):
        scale(axes, program, {scaling: -torch.ones(scaling.shape)})
    with pytest.raises(ValueError, match=r"factors \(3,\) for a scale of \(64,\)"):
        scale(axes, program, {scaling: torch.ones(3)})


def test_null_space() -> None:
    # x0 = x1 and x1 + x2 = 0, x3 = 0; x4 is free.
    basis = null_space(
        [{0: Fraction(1), 1: Fraction(-1)}, {1: Fraction(1), 2: Fraction(1)}, {3: Fraction(1)}], 5
    )
    vectors = [{n: int(x) for n, x in vector.items()} for vector in basis]
    assert sorted(map(sorted, vectors)) == [[0, 1, 2], [4]]
    (first,) = (vector for vector in vectors if 2 in vector)
    assert first[0] == first[1] == -first[2]
