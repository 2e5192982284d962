"""Pieces of source text that several generators write."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planish.lowering.triton.fields import Epilogue

INDENT = "    "

HEAD = """\
import triton
import triton.language as tl
"""

MODULE = '''"""{about}

Written by planish.lowering.triton from the specification below, which decides every word of it.

{spec}
"""
'''

ACTIVATION_LINES: dict[str, tuple[str, ...]] = {
    "silu": ("y = y * tl.sigmoid(y)",),
    "gelu": ("y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))",),
    "gelu_tanh": (
        "# tanh(z) = 2 · sigmoid(2z) - 1",
        "y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))",
    ),
    "relu": ("y = tl.where(y < 0.0, 0.0, y)  # NaN stays",),
}
"""Each activation of float32 numbers `y`; see `planish.ir.ops.ACTIVATIONS`."""

OPERAND_OPERATIONS = {"bias": "+", "multiply": "*", "residual": "+"}
"""What is done with each tensor of an epilogue."""


@dataclass(frozen=True)
class Source:
    """A generated kernel.

    Attributes:
        function: the name of the kernel in the text.
        text: a Python module.
        tensors: the kernel's arguments that are tensors, in order; `rows`, the number of rows,
            and the constant `PLAIN` follow.
    """

    function: str
    text: str
    tensors: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """The hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def indented(lines: Iterable[str], depth: int) -> list[str]:
    """Lines moved to the right; empty ones stay empty."""
    return [INDENT * depth + line if line else "" for line in lines]


def signature(
    function: str,
    tensors: Sequence[str],
    constants: Mapping[str, tuple[int | float, str]],
    more: Sequence[str] = ("rows",),
) -> list[str]:
    """The first lines of a kernel.

    Args:
        function: its name.
        tensors: its arguments that are tensors.
        constants: its numbers, by name, with what they are. They are arguments with defaults,
            which Triton's interpreter handles better than constants of the module.
        more: its other arguments, whose values are not compiled in.
    """
    fixed = [
        f"{name}: tl.constexpr = {value},  # {what}" for name, (value, what) in constants.items()
    ]
    return [
        f"@triton.jit(do_not_specialize={list(more)})".replace("'", '"'),
        f"def {function}(",
        *indented([f"{name}_ptr," for name in tensors], 1),
        *indented([f"{name}," for name in more], 1),
        *indented(["PLAIN: tl.constexpr,  # whether to do without assembly", *fixed], 1),
        "):",
    ]


def spec_text(spec: Any) -> str:
    """A specification, one field a line; those of one inside it further to the right."""
    lines = [f"{type(spec).__name__}:"]
    for name in spec.__dataclass_fields__:
        value = getattr(spec, name)
        told = spec_text(value) if name == "product" else str(value)
        first, *rest = told.splitlines()
        lines += indented([f"{name} = {first}", *rest], 1)
    return "\n".join(lines)


def module(about: str, spec: Any, parts: Iterable[Sequence[str]]) -> str:
    """A whole module: what it is, imports, then its parts with two empty lines between them."""
    head = MODULE.format(about=about, spec=spec_text(spec)) + "\n" + HEAD + "\n"
    bodies = ["\n".join(lines).rstrip() for lines in parts if lines]
    return head + "\n" + "\n\n\n".join(bodies) + "\n"


def epilogue(given: Epilogue, vector: str, spread: str) -> list[str]:
    """Lines that turn float32 sums `y` into what is stored at `place` where `inside` holds.

    Args:
        given: what to do.
        vector: offsets of the features in a vector [N].
        spread: how a vector of features becomes a tile, such as `[:, None]`.
    """
    lines = []
    if given.bias:
        load = f"tl.load(bias_ptr + {vector}, mask={vector} < N, other=0.0)"
        lines.append(f"y += {load}.to(tl.float32){spread}")
    if given.activation:
        lines += ACTIVATION_LINES[given.activation]
    for name in ("multiply", "residual"):
        if name in given.operands:
            load = f"tl.load({name}_ptr + place, mask=inside, other=0.0)"
            lines.append(f"y {OPERAND_OPERATIONS[name]}= {load}.to(tl.float32)")
    return lines
