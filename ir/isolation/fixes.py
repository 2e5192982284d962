"""What would help against a finding."""

from __future__ import annotations

from planish.ir.isolation.dependence import Cause

_BY_OPERATOR = (
    (
        (
            "DynamicQuantize",
            "choose_qparams",
            "QAttention",
            "linear_dynamic",
            "MatMulIntegerToFloat",
        ),
        "compute one scale for each row instead of one for the whole tensor: "
        "`planish audit --fix OUT.onnx` does it for an ONNX file, the pass `isolate` for a model "
        "that Planish converts",
    ),
    (
        ("fake_quantize",),
        "give each token its own scale (`granularity: token`), or store one (`dynamic: false`)",
    ),
    (
        ("batch_norm", "BatchNormalization"),
        "put the model into evaluation mode, so that running statistics are used: "
        "`model.eval()` before the export, `planish audit --fix OUT.onnx`, or the pass `isolate`",
    ),
    (
        ("MeanVarianceNormalization",),
        "set `axes` to the dimensions after the batch",
    ),
    (
        ("softmax", "Softmax", "norm", "Norm"),
        "normalize along a dimension of one request, not along the batch",
    ),
    (
        ("cond", "If", "while_loop", "Loop"),
        "decide for each request by a mask, or take a fixed number of steps",
    ),
    (
        ("nonzero", "NonZero", "unique", "Unique", "Compress", "masked_select"),
        "keep the shape and mask instead of picking rows",
    ),
    (("empty",), "start from zeros, as the pass `isolate` does"),
)

_BY_KIND = {
    "value": "keep to operators that read within one request, or declare the output with "
    "--internal, the rows of a request with --owner-map, or another batch axis with --output-axis",
    "control": "decide for each request by a mask instead of for the whole batch",
    "state": "keep nothing between calls, or one slot for each request",
    "shape": "keep sizes independent of the data",
    "numerics": "compare answers up to rounding, or serve each request alone where bits matter",
    "unknown": "declare what the operator reads with a contract, or replace it by operators that "
    "have rules",
}


def fix_for(cause: Cause) -> str:
    """Advice in one sentence."""
    if cause.operator == "input":
        return f"say --shared {cause.node} if all requests share it, or name its batch axis"
    if cause.kind != "unknown":
        for names, advice in _BY_OPERATOR:
            if any(name in cause.operator for name in names):
                return advice
    return _BY_KIND[cause.kind]
