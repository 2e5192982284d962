"""Smoothing, AWQ and rotation leave what real architectures compute as it is."""

import pytest

from planish.passes import name_of
from planish.passes.awq import Awq
from planish.passes.contract import NotApplicable, Pass
from planish.passes.pipeline import apply
from planish.passes.rotate import Rotate
from planish.passes.smooth_quant import SmoothQuant
from support.captured import captured
from support.models import FAMILIES

QUICK = {"llama", "opt", "bert"}
EACH = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]

PASSES: tuple[Pass, ...] = (SmoothQuant(), Awq(bits=4, group_size=None, grid=2), Rotate())

NEVER = {
    "resnet": PASSES,
    "mobilenet_v2": PASSES,
    "modernbert": PASSES[2:],
    "convnext": PASSES[2:],
}
"""Where no linear layer reads what can be scaled, or nothing rotates."""


@pytest.mark.parametrize("family", EACH)
def test_the_answer_stays_the_same(family: str) -> None:
    program = captured(family)[1]
    for one in PASSES:
        if one in NEVER.get(family, ()):
            with pytest.raises(NotApplicable):
                one(program)
            continue
        after, (step,) = apply(program, [one], names=name_of)
        assert step.changes
        assert step.error is not None
        assert step.error < 2e-5
        assert step.isolation == "isolated"
        assert any(after.tensors.get(name) is not old for name, old in program.tensors.items())
