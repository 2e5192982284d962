"""What an ONNX model is made for: which operators and dtypes it may use."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

OPSET = 23
"""The first version of the standard operators with `Attention`, `RotaryEmbedding` and
`RMSNormalization` (onnx.ai, operators of opset 23)."""

IR_VERSION = 11
"""The version of the ONNX file format that came with opset 23."""

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


@dataclass(frozen=True)
class Target:
    """The choices that depend on where a model will run.

    Attributes:
        contrib: the operators of `com.microsoft` that may be used. Without them quantized weights
            are read through the standard `DequantizeLinear`.
        computes: pairs of a dtype that the provider has no kernels for, and the one to compute in.
        accuracy_level: of `MatMulNBits`: 4 rounds activations to 8 bits, a block at a time, which
            is what makes it fast; 1 computes in float32.
        merge: whether quantized projections of one input become one product, then split.
        dense: names of quantized weights to store and multiply in floating point all the same.
        one_token: whether the graph of a language model will read a single new token at a time, of
            any number of texts.
    """

    contrib: frozenset[str]
    computes: tuple[tuple[torch.dtype, torch.dtype], ...] = ()
    accuracy_level: int = 4
    merge: bool = True
    dense: frozenset[str] = frozenset()
    one_token: bool = False

    def dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that stands for `dtype` in the model."""
        return dict(self.computes).get(dtype, dtype)


CPU = Target(
    contrib=frozenset(
        {
            *("MatMulNBits", "GatherBlockQuantized", "LinearAttention", "MatMulIntegerToFloat"),
            *("SkipSimplifiedLayerNormalization", "GroupQueryAttention"),
        }
    ),
    computes=((torch.bfloat16, torch.float32),),
)
"""ONNX Runtime's CPU provider, which computes nearly nothing in bfloat16."""

STANDARD = replace(CPU, contrib=frozenset())
"""Any runtime that has the standard operators of `OPSET`."""
