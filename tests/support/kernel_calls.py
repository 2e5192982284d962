"""Calls of the operators that generated kernels stand behind, which plain torch computes here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planish.lowering.triton import operators
from planish.lowering.triton.fields import Epilogue
from planish.lowering.triton.float_specs import Floating
from planish.lowering.triton.layout import pack_nibbles, stored
from planish.lowering.triton.plans import Choice, Plan, Product, text
from planish.lowering.triton.routed_specs import Routed
from planish.lowering.triton.row_specs import RowWise
from planish.lowering.triton.specs import GroupScaled, Scaled, WeightOnly
from support.quantized import random_weight
from support.refute import Sample
from support.tensors import f

PLAN = text(Plan((Choice(0, "reference"),)))
FULL = Epilogue(bias=True, activation="silu", multiply=True, residual=True)


def codes(*shape: int) -> Tensor:
    """Codes of 8 bits."""
    return f(*shape).mul(40).clamp(-127, 127).to(torch.int8)


def weight_only(spec: WeightOnly, *lead: int) -> Sample:
    """A product of rows [*lead, K] with a packed weight."""
    parts = list(stored(random_weight(spec), spec).values())
    x = f(*lead, spec.k)
    return _sample("weight_only", x, parts, _finish(spec, lead), text(spec), PLAN)


def group_scaled(spec: GroupScaled, *lead: int) -> Sample:
    """The same with a weight of 4 bits in groups."""
    parts = [pack_nibbles(codes(spec.n, spec.k) >> 4, spec), f(spec.groups, spec.n)]
    given = codes(*lead, spec.k), f(*lead).abs()
    return _sample("scaled_product", *given, parts, _finish(spec, lead), text(spec), PLAN)


def scaled(spec: Scaled, *lead: int) -> Sample:
    """A product of codes [*lead, K], which have a scale a row."""
    parts = [codes(spec.n, spec.k), f(spec.n)]
    given = codes(*lead, spec.k), f(*lead).abs()
    return _sample("scaled_product", *given, parts, _finish(spec, lead), text(spec), PLAN)


def routed(spec: Routed, tokens: int) -> Sample:
    """A product of rows [tokens, K], or [tokens, C, K], with the weights that they choose."""
    parts = [f(*shape) for shape in spec.stored.values()]
    lead, alone, scales = (tokens, spec.chosen), spec.product, None
    x = f(*lead[: 1 if spec.shared else 2], spec.k)
    if isinstance(alone, WeightOnly):
        each = [stored(random_weight(alone, seed), alone) for seed in range(spec.experts)]
        parts = [torch.stack([one[name] for one in each]) for name in spec.stored]
    elif isinstance(alone, GroupScaled):
        drawn = codes(spec.experts, alone.n, alone.k) >> 4
        parts[0] = torch.stack([pack_nibbles(one, alone) for one in drawn])
    elif isinstance(alone, Scaled):
        parts[0] = codes(spec.experts, alone.n, alone.k)
    if isinstance(alone, Scaled | GroupScaled):
        x, scales = codes(*x.shape), f(*x.shape[:-1]).abs()
    shapes = {"bias": (spec.experts, spec.n)}
    given = [f(*shapes.get(name, (*lead, spec.n))) for name in spec.epilogue.operands]
    chosen = torch.arange(tokens * spec.chosen).reshape(lead) * 3 % spec.experts
    return _sample("routed_product", x, scales, chosen, parts, given, text(spec), PLAN)


def rows(spec: RowWise, *lead: int) -> Sample:
    """A norm or a gate of rows [*lead, K], or their codes."""
    shapes = {"up": (*lead, spec.width)}
    given = [f(*shapes.get(name, (spec.width,))) for name in spec.operands]
    name = "row_codes" if spec.codes else "row_wise"
    return _sample(name, f(*lead, spec.width), given, text(spec), operators.KERNEL)


def _finish(spec: Product, lead: tuple[int, ...]) -> list[Tensor]:
    shapes = {"bias": (spec.n,)}
    return [f(*shapes.get(name, (*lead, spec.n))) for name in spec.epilogue.operands]


def _sample(name: str, *args: Any) -> Sample:
    return Sample(f"planish.{name}", args)


SAMPLES = [
    weight_only(WeightOnly(3, 8, "float32", "float32", group=8, lanes=16), 4),
    weight_only(WeightOnly(4, 32, "float32", "float32", 3, 16, True, 16, epilogue=FULL), 2, 3),
    weight_only(WeightOnly(4, 4, "float32", "float32", 8, 4, lanes=16), 4, 4),
    scaled(Scaled(3, 4, "float32"), 4),
    scaled(Scaled(4, 4, "float32", epilogue=FULL), 2, 4),
    group_scaled(GroupScaled(4, 4, "float32", "float32", 4, 32), 4),
    group_scaled(GroupScaled(3, 64, "float32", "float32", 32, 32, FULL), 2, 4),
    routed(Routed(WeightOnly(3, 8, "float32", "float32", group=8, lanes=16), 4, 2, True), 4),
    routed(
        Routed(
            WeightOnly(4, 32, "float32", "float32", 3, 16, True, 16, epilogue=FULL), 3, 2, False
        ),
        4,
    ),
    routed(Routed(Floating(4, 6, "float32", epilogue=FULL), 3, 3, True), 4),
    routed(Routed(Scaled(4, 6, "float32"), 3, 2, True), 4),
    routed(Routed(Scaled(3, 4, "float32", epilogue=FULL), 3, 2, False), 4),
    routed(Routed(GroupScaled(3, 64, "float32", "float32", 32, 32, FULL), 3, 2, False), 4),
    rows(RowWise(4, "float32", norm="rms"), 4),
    rows(RowWise(3, "float32", norm="rms", weight=True), 2, 3),
    rows(RowWise(4, "float32", norm="layer", weight=True, bias=True), 2, 3),
    rows(RowWise(4, "float32", activation="gelu"), 2, 3),
    rows(RowWise(4, "float32", codes="int8"), 4),
    rows(RowWise(4, "float32", norm="rms", weight=True, codes="int8"), 2, 3),
    rows(RowWise(3, "float32", activation="silu", codes="float8_e4m3fn"), 3, 3),
]
