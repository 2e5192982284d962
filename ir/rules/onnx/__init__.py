"""The table of ONNX: what each operator reads, by its domain and name.

One rule holds for all versions of an operator up to `LATEST`; it looks at the version where the
meaning changed.
"""

from planish.ir.rules.onnx import (
    attention,
    contrib,
    contrib_attention,
    contrib_blocked,
    contrib_quantized,
    creation,
    indexing,
    learning,
    ml,
    movement,
    normalization,
    pointwise,
    product,
    quantization,
    recurrent,
    reduction,
    sequence,
    slicing,
    window,
)
from planish.ir.rules.onnx.call import OnnxLearn, OnnxRule

LATEST = {"": 28, "ai.onnx.ml": 5, "com.microsoft": 1, "com.microsoft.nchwc": 1}
"""The newest opset of each domain that the rules were written for."""

RULES: dict[tuple[str, str], OnnxRule] = {
    **pointwise.RULES,
    **movement.RULES,
    **slicing.RULES,
    **reduction.RULES,
    **normalization.RULES,
    **creation.RULES,
    **window.RULES,
    **product.RULES,
    **attention.RULES,
    **indexing.RULES,
    **quantization.RULES,
    **recurrent.RULES,
    **sequence.RULES,
    **ml.RULES,
    **contrib.RULES,
    **contrib_quantized.RULES,
    **contrib_attention.RULES,
    **contrib_blocked.RULES,
}
"""By domain, "" for ai.onnx, and name."""

LEARN: dict[tuple[str, str], OnnxLearn] = {
    **learning.LEARN,
    **reduction.LEARN,
    **creation.LEARN,
    **sequence.LEARN,
}
"""What is known of results, for operators that compute small integers."""
