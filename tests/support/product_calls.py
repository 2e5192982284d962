"""Calls of contractions: matrix products, convolutions, attention, and planish's own operators."""

from __future__ import annotations

from typing import Any

import torch
from transformers.integrations import moe

from planish.ir import activations, quant, stack
from support.refute import Sample
from support.tensors import b, f

CALLS: dict[str, list[tuple[Any, ...]]] = {
    "linear.default": [
        (f(3, 4, 2), f(3, 2), f(3)),
        (f(3, 3), f(3, 3)),
        (f(2), f(3, 2), f(3)),
    ],
    "mm.default": [(f(3, 4), f(4, 2)), (f(3, 3), f(3, 3))],
    "bmm.default": [(f(3, 4, 2), f(3, 2, 4)), (f(3, 3, 3), f(3, 3, 3))],
    "matmul.default": [
        (f(3), f(3)),
        (f(3, 3), f(3)),
        (f(3), f(3, 3)),
        (f(3), f(2, 3, 2)),
        (f(2, 1, 3, 3), f(3, 3, 3)),
        (f(3, 3, 3), f(3)),
        (f(3, 3, 3), f(3, 3)),
    ],
    "_int_mm.default": [
        (
            torch.randint(-5, 5, (32, 16), dtype=torch.int8),
            torch.randint(-5, 5, (16, 8), dtype=torch.int8),
        ),
    ],
    "addmm.default": [(f(3), f(3, 3), f(3, 3)), (f(3, 1), f(3, 4), f(4, 3))],
    "baddbmm.default": [(f(3, 1, 3), f(3, 3, 3), f(3, 3, 3)), (f(3), f(3, 3, 2), f(3, 2, 3))],
    "dot.default": [(f(3), f(3))],
    "vdot.default": [(f(3), f(3))],
    "mv.default": [(f(3, 3), f(3)), (f(3, 2), f(2))],
    "outer.default": [(f(3), f(3))],
    "ger.default": [(f(3), f(4))],
    "trace.default": [(f(3, 3),)],
    "einsum.default": [
        ("ij,jk->ik", [f(3, 3), f(3, 3)]),
        ("ij,jk", [f(3, 3), f(3, 3)]),
        ("ba,bc", [f(3, 3), f(3, 3)]),
        ("ii->i", [f(3, 3)]),
        ("ii", [f(3, 3)]),
        ("bhtd,bhsd->bhts", [f(2, 2, 3, 2), f(2, 2, 3, 2)]),
        ("...ij,...jk->...ik", [f(3, 1, 3, 3), f(3, 3, 3)]),
        ("...i,...i->...", [f(3, 3, 3), f(3)]),
        ("i...,i...", [f(3, 3), f(3, 3)]),
        ("Ab,bA->A", [f(3, 3), f(3, 3)]),
        ("ab,cd->dcba", [f(2, 2), f(2, 2)]),
        ("ij->j", [f(3, 3)]),
        ("a,a->a", [f(3), f(3)]),
        ("iij->ji", [f(3, 3, 3)]),
        ("ij,ij->ij", [f(3, 1), f(3, 3)]),
    ],
    "convolution.default": [
        (f(2, 4, 5), f(6, 2, 3), f(6), [1], [1], [1], False, [0], 2),
        (f(2, 4, 5), f(4, 3, 3), f(6), [2], [1], [1], True, [1], 2),
        (f(1, 6, 4, 4), f(6, 2, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 3),
        (f(3, 3, 3, 3), f(3, 3, 1, 1), f(3), [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
        (f(1, 6, 5), f(6, 1, 2), None, [1], [0], [2], False, [0], 6),
        (f(1, 4, 3), f(4, 1, 2), None, [1], [0], [1], True, [0], 4),
    ],
    "conv1d.default": [
        (f(2, 4, 5), f(6, 2, 3), f(6), [2], [1], [1], 2),
        (f(4, 5), f(4, 1, 3), None, [1], [1], [2], 4),
        (f(3, 3, 3), f(3, 3, 1)),
    ],
    "conv2d.default": [
        (f(2, 4, 4, 4), f(4, 2, 3, 3), f(4), [1, 1], [1, 1], [1, 1], 2),
        (f(4, 4, 4), f(2, 4, 3, 3)),
        (f(1, 4, 4, 4), f(8, 1, 3, 3), None, [1, 1], [1, 1], [1, 1], 4),
    ],
    "conv3d.default": [(f(2, 2, 3, 3, 3), f(2, 2, 2, 2, 2), f(2))],
    "conv1d.padding": [(f(2, 4, 5), f(4, 2, 3), f(4), [1], "same", [1], 2)],
    "conv2d.padding": [(f(2, 3, 4, 4), f(3, 3, 3, 3), None, [1, 1], "valid")],
    "conv3d.padding": [(f(1, 2, 3, 3, 3), f(2, 1, 3, 3, 3), None, [1, 1, 1], "same", [1, 1, 1], 2)],
    "conv_transpose1d.default": [
        (f(2, 4, 3), f(4, 3, 2), f(6), [2], [0], [1], 2),
        (f(4, 3), f(4, 1, 2), None, [1], [0], [0], 4),
    ],
    "conv_transpose2d.input": [(f(2, 4, 3, 3), f(4, 2, 2, 2), f(4), [1, 1], [0, 0], [0, 0], 2)],
    "conv_transpose3d.input": [(f(1, 2, 2, 2, 2), f(2, 2, 2, 2, 2), f(2))],
    "scaled_dot_product_attention.default": [
        (f(2, 2, 3, 2), f(2, 2, 3, 2), f(2, 2, 3, 2)),
        (f(2, 2, 3, 2), f(2, 2, 3, 2), f(2, 2, 3, 3), b(2, 1, 3, 3)),
        (f(2, 3, 3, 2), f(1, 3, 3, 2), f(2, 3, 3, 2), f(3, 3)),
        (f(2, 3, 2), f(2, 3, 2), f(2, 3, 2), None, 0.0, True),
        (f(3, 2), f(4, 2), f(4, 2)),
        (f(3, 3, 3, 3), f(3, 1, 3, 3), f(3, 1, 3, 3), f(3, 3, 3, 3)),
    ],
    "_scaled_dot_product_flash_attention_for_cpu.default": [
        (f(2, 2, 3, 2), f(2, 2, 4, 2), f(2, 2, 4, 2)),
    ],
}
"""By operator, without the namespace."""

GROUPED: list[tuple[Any, ...]] = [
    (f(2, 4, 3, 2), f(2, 2, 3, 2), f(2, 2, 3, 2)),
    (f(2, 4, 3, 2), f(2, 2, 3, 2), f(2, 2, 3, 2), f(2, 4, 3, 3)),
    (f(2, 4, 3, 2), f(2, 2, 3, 2), f(2, 2, 3, 2), f(1, 3, 3)),
    (f(1, 6, 3, 2), f(1, 3, 3, 2), f(1, 3, 3, 2)),
    (f(2, 4, 2, 2), f(2, 2, 2, 2), f(2, 4, 2, 2)),
    (f(2, 4, 2, 2), f(2, 4, 2, 2), f(2, 2, 2, 2)),
]
"""Queries that share key heads."""

_SCAN = (f(2, 3, 4, 2), f(2, 3, 4).abs(), -f(4, 3).abs(), f(2, 3, 2, 3), f(2, 3, 2, 3))

PLANISH: dict[str, list[tuple[Any, ...]]] = {
    "attention": [
        (f(2, 4, 3, 2), f(2, 2, 3, 2), f(2, 2, 3, 2), None, True, 1.0),
        (f(2, 4, 3, 2), f(2, 2, 3, 2), f(2, 2, 3, 2), f(2, 1, 3, 3), False, 1.0, 5.0),
    ],
    "rotary": [
        (f(2, 2, 3, 4), f(3, 4), f(3, 4)),
        (f(2, 2, 3, 4), f(2, 1, 3, 4), f(2, 1, 3, 4), True),
        (f(2, 2, 3, 6), f(2, 1, 3, 4), f(2, 1, 3, 4)),
    ],
    "rms_norm": [(f(3, 3), f(3), 1e-5), (f(2, 3, 4), None, 1e-5)],
    "gated": [(f(3, 3), f(3, 3), "silu")],
    "fake_quantize": [
        (f(3, 4), None, torch.int8, True),
        (f(2, 3, 4), None, torch.float8_e4m3fn, True),
        (f(3, 4), torch.tensor(0.02), torch.int8, False),
        (f(3, 4), torch.tensor(0.02), torch.float8_e4m3fn, False),
        (f(3, 4), None, torch.int8, False),
    ],
    "selective_scan": [(*_SCAN, f(4), f(2, 4, 2, 3)), (*_SCAN, None, f(2, 4, 2, 3))],
}


REGISTERS = (activations, moe, quant, stack)
"""Modules that register operators when they are imported."""

ROWS_OF_GROUPS = f(8, 16), f(2, 16, 16), torch.tensor([3, 8], dtype=torch.int32)


def _quantized() -> Sample:
    """Any codes will do: shapes alone matter."""
    packed = torch.randint(0, 255, (4, 16), dtype=torch.uint8)
    name = "planish.dequantize"
    return Sample(name, (packed, f(4, 1), None, 4, 32, [4, 32], torch.float32))


def _stack() -> Sample:
    """Two blocks of a matrix [4, 16]."""
    signs = torch.randint(0, 255, (2, 4, 2), dtype=torch.uint8)
    return Sample("planish.sign_stack", (signs, f(2, 4, 3), f(2, 3, 16), f(2)))


SAMPLES = [Sample(f"aten.{name}", args) for name, calls in CALLS.items() for args in calls]
SAMPLES += [
    Sample("aten.scaled_dot_product_attention.default", args, {"enable_gqa": True})
    for args in GROUPED
]
SAMPLES += [
    Sample(
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        (f(2, 2, 2, 2), f(2, 2, 2, 2), f(2, 2, 2, 2)),
        {"attn_mask": f(2, 2, 2, 2)},
    ),
    *(Sample(f"planish.{name}", args) for name, calls in PLANISH.items() for args in calls),
    _quantized(),
    _stack(),
    Sample("transformers.grouped_mm_fallback.default", ROWS_OF_GROUPS),
    Sample(
        "aten._grouped_mm.default",
        tuple(one.bfloat16() if one.is_floating_point() else one for one in ROWS_OF_GROUPS),
    ),
]
