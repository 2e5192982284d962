"""The one table of emitters: every operator that can be lowered to ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from planish.lowering.onnx.activations import ACTIVATIONS
from planish.lowering.onnx.attention import ATTENTION
from planish.lowering.onnx.builder import Emitter
from planish.lowering.onnx.composites import COMPOSITES
from planish.lowering.onnx.creation import CREATION
from planish.lowering.onnx.elementwise import ELEMENTWISE
from planish.lowering.onnx.indexing import INDEXING
from planish.lowering.onnx.integer import ROUNDED
from planish.lowering.onnx.movement import MOVEMENT
from planish.lowering.onnx.products import PRODUCTS
from planish.lowering.onnx.quantized import QUANTIZED
from planish.lowering.onnx.reduction import REDUCTION
from planish.lowering.onnx.stacks import STACKS
from planish.lowering.onnx.windows import WINDOWS

EMITTERS: Mapping[Callable[..., Any], Emitter] = MappingProxyType(
    ELEMENTWISE
    | ACTIVATIONS
    | CREATION
    | MOVEMENT
    | INDEXING
    | REDUCTION
    | PRODUCTS
    | WINDOWS
    | COMPOSITES
    | ATTENTION
    | QUANTIZED
    | ROUNDED
    | STACKS
)
"""By the operator, as a program's nodes name it."""
