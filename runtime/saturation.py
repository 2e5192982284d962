"""Whether this processor's fast integer kernels give wrong sums, found by asking them."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime

DEPTH, WIDTH = 64, 32


@cache
def saturates() -> bool:
    """Whether ONNX Runtime's default kernels for uint8 times int8 lose large sums here.

    On x86 without VNNI they add products two at a time in 16 bits, which end at 32,767 where two
    of 255 x 127 make 64,770 (onnxruntime.ai, "Quantize ONNX models", on U8S8). The largest numbers
    are multiplied once, for one row and for several, since these take different kernels.
    """
    session = onnxruntime.InferenceSession(extreme_product(), providers=["CPUExecutionProvider"])
    exact = 255 * 127 * DEPTH
    sums = [session.run(None, {"x": np.full((rows, DEPTH), 255, np.uint8)})[0] for rows in (1, 8)]
    return any(bool(np.any(one != exact)) for one in sums)


def extreme_product() -> bytes:
    """An ONNX model of one `MatMulInteger`, [rows, DEPTH] times [DEPTH, WIDTH] of only 127."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(["rows", DEPTH]))
    largest = ir.tensor(np.full((DEPTH, WIDTH), 127, np.int8), name="largest")
    weight = ir.Value(name="largest", const_value=largest)
    product = ir.node("MatMulInteger", [x, weight])
    (sums,) = product.outputs
    sums.name, sums.type = "sums", ir.TensorType(ir.DataType.INT32)
    graph = ir.Graph(
        [x], [sums], nodes=[product], initializers=[weight], opset_imports={"": 21}, name="product"
    )
    return bytes(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())
