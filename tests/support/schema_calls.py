"""Calls of pointwise operators and of those that create tensors, made from their schemas."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from planish.ir.operators import schema
from support.refute import Sample, evaluate, target, tensors_of

SHAPES = (
    ((3, 2, 2), (3, 2, 2), (3, 2, 2)),
    ((4, 1), (3, 1, 2), (2,)),
    ((3, 3), (3,), (3, 1)),
)
"""Of the first, second and third tensor: of one tensor, broadcast, and of equal sizes."""

NUMBERS: dict[str, Any] = {
    "Scalar": 2,
    "float": 0.5,
    "int": 1,
    "SymInt": 3,
    "bool": True,
    "SymInt[]": [3, 4],
    "int[]": [1],
}

SPECIAL: dict[str, tuple[Any, ...]] = {
    "aten.arange.default": (4,),
    "aten.arange.start": (1, 4),
    "aten.arange.start_step": (1, 9, 2),
    "aten.linspace.default": (0, 1, 4),
    "aten.logspace.default": (0, 1, 4),
    "aten.randint.low": (0, 4, [3]),
    "aten.randint_like.low_dtype": (torch.zeros(3, 4), 0, 4),
    "aten.empty_strided.default": ([3, 4], [4, 1]),
    "aten.new_empty_strided.default": (torch.zeros(3, 4), [3, 4], [4, 1]),
    "aten.empty_permuted.default": ([3, 4], [0, 1]),
    "aten.fake_quantize_per_tensor_affine.default": (torch.rand(3, 4), 0.1, 0, 0, 255),
    "aten.to.device": (torch.rand(3, 4), torch.device("cpu"), torch.float64),
    "aten.to.dtype": (torch.rand(3, 4), torch.float64),
    "aten.feature_dropout.default": (torch.rand(3, 4, 2), 0.5, True),
    "aten.fake_quantize_per_tensor_affine.tensor_qparams": (
        torch.rand(3, 3),
        torch.tensor([0.1]),
        torch.tensor([0], dtype=torch.int32),
        0,
        255,
    ),
    "aten.fake_quantize_per_channel_affine.default": (
        torch.randn(3, 3),
        torch.rand(3) / 9,
        torch.zeros(3, dtype=torch.int32),
        0,
        0,
        255,
    ),
    "aten.prelu.default": (torch.randn(3, 3, 3), torch.rand(3)),
    "aten.bernoulli.default": (torch.rand(3, 4),),
    "aten.bernoulli.Tensor": (torch.rand(3, 4), torch.rand(3, 4)),
    "aten.clamp.default": (torch.randn(3, 4), -1, 1),
    "aten.clip.default": (torch.randn(3, 4), -1, 1),
    "aten.clamp.Tensor": (torch.randn(3, 3), torch.randn(3), torch.randn(3, 1)),
    "aten.clip.Tensor": (torch.randn(3, 3), torch.randn(3), torch.randn(3, 1)),
    "aten.masked_fill.Tensor": (torch.randn(3, 3), torch.rand(3) > 0.5, torch.tensor(2.0)),
}
"""Arguments that the schema does not tell."""

NAMED: dict[str, dict[str, Any]] = {
    **{
        f"aten.{packet}.{kind}_mode": {"rounding_mode": "floor"}
        for packet in ("div", "divide")
        for kind in ("Tensor", "Scalar")
    },
    "aten.round.decimals": {"decimals": 1},
}
"""Arguments that can only be given by name."""


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, number: int) -> Tensor:
    chance = torch.Generator().manual_seed(number)
    if dtype == torch.bool:
        return torch.rand(shape, generator=chance) > 0.5
    if dtype == torch.int64:
        return torch.randint(1, 5, shape, generator=chance)
    return torch.rand(shape, generator=chance) + 1


def _calls(operator: str) -> Iterator[Sample]:
    """Every choice of shapes and dtypes, whether or not the operator takes it."""
    if operator in SPECIAL:
        yield Sample(operator, SPECIAL[operator])
        return
    needed = [
        argument
        for argument in schema(target(operator)).arguments
        if not argument.has_default_value() and not argument.kwarg_only
    ]
    kinds = [_kind(argument) for argument in needed]
    tensors = kinds.count("Tensor")
    for shapes in SHAPES[:1] if tensors == 1 else SHAPES[1:]:
        for dtypes in product((torch.float32, torch.int64, torch.bool), repeat=tensors):
            pairs = zip(shapes, dtypes)  # noqa: B905
            made = [_tensor(*pair, number) for number, pair in enumerate(pairs)]
            tensor = iter(made)
            args = tuple(next(tensor) if kind == "Tensor" else NUMBERS.get(kind) for kind in kinds)
            yield Sample(operator, args, NAMED.get(operator, {}))


def _kind(argument: Any) -> str:
    text = str(argument.real_type)
    return {"number": "Scalar", "List[int]": "int[]", "List[SymInt]": "SymInt[]"}.get(text, text)


def generated(operator: str) -> list[Sample]:
    """Some calls that the operator takes, one of each choice of shapes."""
    found: dict[Any, Sample] = {}
    for sample in _calls(operator):
        inputs, _ = tensors_of(sample)
        key = tuple(tuple(one.shape) for one in inputs)
        if key in found:
            continue
        try:
            evaluate(sample, inputs, inputs)
        except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError):
            continue
        found[key] = sample
    return list(found.values())
