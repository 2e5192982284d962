"""Calls of ONNX operators that onnx's own node tests lack: batches above 1, and com.microsoft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from support.onnx_oracle import Case, runner

MICROSOFT = "com.microsoft"
RANDOM = np.random.default_rng(7)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return (RANDOM.random(shape) * 0.1 + 0.01).astype(np.float32)


def codes(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return RANDOM.integers(0, 100, shape).astype(dtype)


def whole(*numbers: int, dtype: Any = np.int64) -> np.ndarray:
    return np.array(numbers, dtype=dtype)


def number(value: Any, dtype: Any = np.float32) -> np.ndarray:
    return np.array(value, dtype=dtype)


SCALE, ZERO, SIGNED = number(0.05), number(3, np.uint8), number(0, np.int8)


def call(
    operator: str,
    *inputs: np.ndarray | None,
    domain: str = "",
    outputs: int = 1,
    version: int = 21,
    stored: Sequence[int] = (),
    **attributes: Any,
) -> Case:
    """A model of one node. `stored` inputs are part of it."""
    names = ["" if one is None else f"x{place}" for place, one in enumerate(inputs)]
    results = [f"y{place}" for place in range(outputs)]
    node = helper.make_node(operator, names, results, domain=domain, **attributes)
    return finished(operator, [node], inputs, results, version, stored)


def finished(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: Sequence[np.ndarray | None],
    results: list[str],
    version: int,
    stored: Sequence[int] = (),
) -> Case:
    """A model of these nodes, and what it computes."""
    given = {f"x{place}": one for place, one in enumerate(inputs) if one is not None}
    kept = {f"x{place}" for place in stored}
    graph = helper.make_graph(
        nodes,
        name,
        [
            helper.make_tensor_value_info(
                key, helper.np_dtype_to_tensor_dtype(one.dtype), one.shape
            )
            for key, one in given.items()
            if key not in kept
        ],
        [onnx.ValueInfoProto(name=one) for one in results],
        [numpy_helper.from_array(given[key], key) for key in sorted(kept)],
    )
    imports = [
        helper.make_opsetid("", version),
        helper.make_opsetid(MICROSOFT, 1),
        helper.make_opsetid("ai.onnx.ml", 3),
    ]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    fed = {key: one for key, one in given.items() if key not in kept}
    return Case(f"made {name}", model, fed, runner(model)(fed))


def standard() -> list[Case]:
    """Calls of ai.onnx."""
    x, w = floats(2, 4, 5, 5), floats(6, 4, 3, 3)
    return [
        call("Conv", x, w, floats(6)),
        call("Conv", x, floats(6, 2, 3, 3), group=2, pads=[1, 1, 1, 1], strides=[2, 2]),
        call("Conv", x, w, auto_pad="SAME_UPPER", strides=[2, 2]),
        call("ConvInteger", codes(2, 4, 5, 5), codes(6, 4, 3, 3), ZERO, ZERO),
        call(
            "QLinearConv",
            *(codes(2, 4, 5, 5), SCALE, ZERO, codes(6, 4, 3, 3), SCALE, ZERO, SCALE, ZERO),
        ),
        call("Col2Im", floats(2, 12, 16), whole(5, 5), whole(2, 2), stored=(1, 2)),
        call("OneHot", whole(0, 2, 1), number(3, np.int64), floats(2), stored=(1,)),
        call("Resize", x, None, number([1, 1, 2, 2]), stored=(2,), mode="linear"),
        call("Resize", x, None, None, whole(2, 4, 3, 7), stored=(3,), mode="nearest"),
        call("Resize", x, number([1, 1, 2, 2]), version=10, stored=(1,)),
        call("Upsample", x, number([1, 1, 2, 2]), version=9, stored=(1,)),
        call("Upsample", x, version=7, scales=[1.0, 1.0, 2.0, 2.0]),
        call(
            "STFT",
            *(floats(2, 16, 1), number(4, np.int64), floats(8), number(8, np.int64)),
            stored=(1, 3),
        ),
        call("GlobalLpPool", x),
        call("MaxRoiPool", x, number([[0, 0, 0, 3, 3], [1, 1, 1, 4, 4]]), pooled_shape=[2, 2]),
        call("SimplifiedLayerNormalization", floats(2, 3, 8), floats(8), axis=-1),
        call("Softmax", floats(2, 3, 4), version=11, axis=1),
        call("Softmax", floats(2, 3, 4), version=11, axis=0),
        call("LogSoftmax", floats(2, 3, 4), version=11),
        call("Split", floats(2, 6), version=11, axis=1, split=[2, 4], outputs=2),
        call("Slice", floats(4, 6), version=9, starts=[1, -3], ends=[3, 2**31], axes=[0, 1]),
        call("Squeeze", floats(2, 1, 3), version=11, axes=[1]),
        call("Unsqueeze", floats(2, 3), version=11, axes=[0, 3]),
        call("Pad", floats(2, 3), version=10, pads=[0, 1, 0, 2]),
        call("Clip", floats(2, 3), version=6, min=-0.5, max=0.5),
        call("Dropout", floats(2, 3), version=10, outputs=2),
        call("TopK", floats(3, 5), version=9, k=2, axis=-1, outputs=2),
        call("ReduceSum", floats(2, 3, 4), version=11, axes=[1], keepdims=0),
        call("ReduceMean", floats(2, 3, 4), version=13, axes=[-1]),
        call("Scatter", floats(3, 4), whole(1, 0).reshape(1, 2), floats(1, 2), version=10),
        call(
            "BatchNormalization",
            *(x, floats(4), floats(4), floats(4), positive(4)),
            version=9,
        ),
        call("MeanVarianceNormalization", x, axes=[2, 3]),
        call(
            "MaxUnpool",
            floats(2, 1, 2, 2),
            whole(0, 3, 8, 11, 16, 19, 24, 27).reshape(2, 1, 2, 2),
            kernel_shape=[2, 2],
            strides=[2, 2],
        ),
        call("DynamicQuantizeLinear", floats(2, 3), outputs=3),
        *sequences(),
        *classical(),
    ]


def alike() -> list[Case]:
    """Calls in which sizes are alike, so that a rule shows that confuses them, or steps of time."""
    return [
        call("TopK", floats(3, 3), whole(3), stored=(1,), axis=0, outputs=2),
        call("Transpose", floats(3, 3, 3), perm=[1, 2, 0]),
        call("RNN", floats(3, 2, 4), floats(1, 3, 4), floats(1, 3, 3), hidden_size=3),
        call("GRU", floats(3, 2, 4), floats(1, 9, 4), floats(1, 9, 3), hidden_size=3),
        call("LSTM", floats(3, 2, 4), floats(1, 12, 4), floats(1, 12, 3), hidden_size=3),
    ]


def sequences() -> list[Case]:
    """Operators of sequences, which only make sense one after another."""
    node = helper.make_node
    split = node("SplitToSequence", ["x0"], ["s"], axis=0)
    parts = node("SplitToSequence", ["x0", "x1"], ["s"], axis=1)
    x = floats(3, 4)
    first, two = number(1, np.int64), whole(2, 2)
    return [
        finished(
            "SequenceAt",
            [split, node("SequenceAt", ["s", "x1"], ["y"])],
            [x, first],
            ["y"],
            21,
            (1,),
        ),
        finished(
            "ConcatFromSequence",
            [parts, node("ConcatFromSequence", ["s"], ["y"], axis=1)],
            [x, two],
            ["y"],
            21,
            (1,),
        ),
        finished(
            "SequenceInsert",
            [
                node("SequenceConstruct", ["x0", "x1"], ["s"]),
                node("SequenceInsert", ["s", "x0"], ["t"]),
                node("SequenceErase", ["t", "x2"], ["u"]),
                node("ConcatFromSequence", ["u"], ["y"], axis=0, new_axis=1),
                node("SequenceLength", ["u"], ["n"]),
            ],
            [x, floats(3, 4), first],
            ["y", "n"],
            21,
            (2,),
        ),
        finished(
            "SequenceEmpty",
            [
                node("SequenceEmpty", [], ["s"], dtype=TensorProto.FLOAT),
                node("SequenceInsert", ["s", "x0"], ["t"]),
                node("SequenceAt", ["t", "x1"], ["y"]),
            ],
            [x, number(0, np.int64)],
            ["y"],
            21,
            (1,),
        ),
    ]


def classical() -> list[Case]:
    """Calls of ai.onnx.ml."""
    ml, x = "ai.onnx.ml", floats(3, 2)
    weights: dict[str, Any] = {"coefficients": [1.0, 2.0, -1.0, 0.5], "intercepts": [0.1, -0.1]}
    tree: dict[str, Any] = {
        "nodes_treeids": [0, 0, 0],
        "nodes_nodeids": [0, 1, 2],
        "nodes_featureids": [0, 0, 0],
        "nodes_values": [0.0, 0.0, 0.0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_truenodeids": [1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0],
    }
    machine: dict[str, Any] = {
        "kernel_type": "LINEAR",
        "kernel_params": [0.5, 0.0, 3.0],
        "support_vectors": [1.0, 2.0, 3.0, 4.0],
    }
    return [
        call("Scaler", x, domain=ml, offset=[0.1], scale=[2.0]),
        call("Normalizer", x, domain=ml, norm="L2"),
        call("Imputer", x, domain=ml, imputed_value_floats=[1.0], replaced_value_float=0.0),
        call("Binarizer", x, domain=ml, threshold=0.1),
        call("LabelEncoder", whole(1, 2, 3), domain=ml, keys_int64s=[1, 2], values_int64s=[5, 6]),
        call("LinearRegressor", x, domain=ml, targets=2, **weights),
        call("LinearClassifier", x, domain=ml, classlabels_ints=[0, 1], outputs=2, **weights),
        call(
            "SVMRegressor",
            x,
            domain=ml,
            coefficients=[1.0, -1.0],
            rho=[0.2],
            n_supports=2,
            **machine,
        ),
        call(
            "SVMClassifier",
            x,
            domain=ml,
            classlabels_ints=[0, 1],
            coefficients=[1.0, -1.0],
            rho=[0.2],
            vectors_per_class=[1, 1],
            outputs=2,
            **machine,
        ),
        call(
            "TreeEnsembleRegressor",
            x,
            domain=ml,
            n_targets=1,
            target_ids=[0, 0],
            target_nodeids=[1, 2],
            target_treeids=[0, 0],
            target_weights=[1.0, 2.0],
            **tree,
        ),
        call(
            "TreeEnsembleClassifier",
            x,
            domain=ml,
            classlabels_int64s=[0, 1],
            class_ids=[0, 1],
            class_nodeids=[1, 2],
            class_treeids=[0, 0],
            class_weights=[1.0, 2.0],
            outputs=2,
            **tree,
        ),
    ]


def microsoft() -> list[Case]:
    """Calls of com.microsoft, in floats."""
    ms, x = MICROSOFT, floats(2, 3, 8)
    picture = floats(2, 4, 5, 5)
    table, narrow = floats(6, 8), floats(8)
    words = RANDOM.integers(0, 6, (2, 3)).astype(np.int32)
    cos, sin = floats(10, 2), floats(10, 2)
    positions = np.tile(np.arange(3, dtype=np.int64), (2, 1))
    heads: dict[str, Any] = {"domain": ms, "num_heads": 2}
    return [
        call("Gelu", x, domain=ms),
        call("QuickGelu", x, domain=ms, alpha=1.0),
        call("FastGelu", x, narrow, domain=ms),
        call("BiasGelu", x, narrow, domain=ms),
        call(
            "FusedMatMul",
            floats(2, 8, 3),
            floats(2, 5, 8),
            domain=ms,
            transA=1,
            transB=1,
            alpha=0.5,
        ),
        call("FusedMatMul", floats(3, 2, 8), floats(2, 8, 5), domain=ms, transBatchA=1),
        call("FusedMatMul", floats(2, 3, 8), floats(8, 2, 5), domain=ms, transBatchB=1),
        call("FusedConv", picture, floats(6, 4, 3, 3), floats(6), domain=ms, activation="Relu"),
        call("FusedGemm", floats(3, 4), floats(4, 5), floats(5), domain=ms, activation="Relu"),
        call(
            "SkipLayerNormalization",
            x,
            floats(2, 3, 8),
            narrow,
            floats(8),
            floats(8),
            domain=ms,
            outputs=1,
        ),
        call("SkipSimplifiedLayerNormalization", x, floats(2, 3, 8), narrow, domain=ms),
        call(
            "EmbedLayerNormalization",
            *(words, words % 2, table, floats(6, 8), floats(2, 8), narrow, narrow),
            np.ones((2, 3), np.int32),
            domain=ms,
            outputs=2,
        ),
        call(
            "MatMulNBits",
            *(floats(2, 3, 32), codes(5, 2, 8), floats(5 * 2)),
            domain=ms,
            K=32,
            N=5,
            bits=4,
            block_size=16,
        ),
        call(
            "GatherBlockQuantized",
            *(codes(6, 16), words.astype(np.int64), floats(6, 2)),
            domain=ms,
            bits=4,
            block_size=16,
            gather_axis=0,
            quantize_axis=1,
        ),
        call("MultiHeadAttention", x, x + 1, x - 1, floats(24), **heads),
        call(
            "MultiHeadAttention",
            x,
            floats(2, 4, 8),
            floats(2, 4, 8),
            None,
            None,
            floats(1, 2, 3, 4),
            **heads,
        ),
        call(
            "MultiHeadAttention",
            *(x, x, x, None, None, None, floats(2, 2, 5, 4), floats(2, 2, 5, 4)),
            outputs=3,
            **heads,
        ),
        call("Attention", x, floats(8, 24), floats(24), np.ones((2, 3), np.int32), **heads),
        call(
            "Attention",
            x,
            floats(8, 24),
            floats(24),
            None,
            floats(2, 2, 2, 5, 4),
            outputs=2,
            **heads,
        ),
        call("RotaryEmbedding", floats(2, 3, 8), positions, cos, sin, domain=ms),
        call("RotaryEmbedding", floats(2, 2, 3, 4), positions, cos, sin, domain=ms),
        call(
            "GroupQueryAttention",
            *(floats(2, 3, 16), floats(2, 3, 8), floats(2, 3, 8)),
            *(floats(2, 1, 0, 8), floats(2, 1, 0, 8), whole(2, 2, dtype=np.int32)),
            number(3, np.int32),
            domain=ms,
            num_heads=2,
            kv_num_heads=1,
            outputs=3,
            stored=(6,),
        ),
        call(
            "GroupQueryAttention",
            *(floats(2, 1, 64), None, None, floats(2, 1, 3, 16), floats(2, 1, 3, 16)),
            *(whole(3, 3, dtype=np.int32), number(4, np.int32), floats(4, 8), floats(4, 8)),
            whole(1, 2).reshape(2, 1),
            domain=ms,
            num_heads=2,
            kv_num_heads=1,
            do_rotary=1,
            outputs=3,
            stored=(6, 9),
        ),
        call("ExpandDims", x, number(1, np.int32), domain=ms, stored=(1,)),
        call("Inverse", floats(2, 3, 3), domain=ms),
        call("CDist", floats(3, 4), floats(5, 4), domain=ms, metric="euclidean"),
        call("Trilu", floats(2, 4, 4), domain=ms, upper=0),
        call(
            "MoE",
            floats(6, 8),
            floats(6, 2),
            floats(2, 16, 8),
            None,
            floats(2, 8, 16),
            domain=ms,
            k=1,
            activation_type="gelu",
        ),
    ]


def quantized() -> list[Case]:
    """Calls of com.microsoft, on quantized tensors."""
    ms, x = MICROSOFT, codes(2, 3, 8)
    picture = codes(2, 4, 5, 5)
    last = codes(2, 5, 5, 4)
    y = (SCALE, ZERO)
    recurrent = (codes(1, 8, 16, dtype=np.int8), codes(1, 4, 16, dtype=np.int8))
    return [
        call(
            "DynamicQuantizeMatMul", floats(2, 3, 8), codes(8, 5), SCALE, ZERO, floats(5), domain=ms
        ),
        call(
            "MatMulIntegerToFloat",
            x,
            codes(8, 5),
            SCALE,
            positive(5),
            ZERO,
            codes(5),
            floats(5),
            domain=ms,
        ),
        call("QLinearAdd", x, *y, codes(8), *y, *y, domain=ms),
        call("QLinearMul", x, *y, codes(2, 3, 8), *y, *y, domain=ms),
        call("QLinearSigmoid", x, *y, *y, domain=ms, stored=(1, 2, 3, 4)),
        call("QLinearLeakyRelu", x, *y, *y, domain=ms, stored=(1, 2, 3, 4), alpha=0.1),
        call("QLinearConcat", *y, x, *y, codes(2, 3, 4), *y, domain=ms, axis=2),
        call(
            "QLinearSoftmax",
            x,
            *y,
            number(1 / 256),
            number(0, np.uint8),
            domain=ms,
            axis=-1,
            opset=13,
        ),
        call("QLinearAveragePool", picture, *y, *y, domain=ms, kernel_shape=[2, 2]),
        call("QLinearAveragePool", last, *y, *y, domain=ms, kernel_shape=[2, 2], channels_last=1),
        call("QLinearGlobalAveragePool", picture, *y, *y, domain=ms),
        call("QLinearWhere", codes(2, 3, 8) > 50, x, *y, codes(8), *y, *y, domain=ms),
        call("QLinearConv", picture, *y, codes(6, 4, 3, 3), *y, *y, domain=ms),
        call("QGemm", codes(3, 4), *y, codes(4, 5), *y, None, *y, domain=ms),
        call("NhwcMaxPool", last, domain=ms, kernel_shape=[2, 2]),
        call("QuantizeLinear", floats(2, 3), *y, domain=ms),
        call("DequantizeLinear", codes(2, 3), *y, domain=ms),
        call(
            "QAttention",
            *(x, codes(8, 24), floats(24), SCALE, SCALE, None, ZERO, ZERO),
            domain=ms,
            num_heads=2,
        ),
        call(
            "DynamicQuantizeLSTM",
            *(floats(3, 2, 8), *recurrent, None, None, None, None, None),
            *(positive(1), whole(0, dtype=np.int8), positive(1), whole(0, dtype=np.int8)),
            domain=ms,
            hidden_size=4,
            outputs=3,
        ),
    ]
