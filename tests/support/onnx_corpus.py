"""Small ONNX models that keep requests apart, that leak, and that try to hide a leak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from support.onnx_written import Dims, graph, model, node, value

ROWS: Dims = ["B", 8]
SEQUENCE: Dims = ["B", "T", 8]
PICTURE: Dims = ["B", 4, 6, 6]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A model and what is to be said of it.

    Attributes:
        proto: the model.
        verdict: as an audit gives it.
        kinds: of findings of which one is asked for.
        shared: inputs that all requests share.
        sizes: of the dimensions that are left open, for running it.
        feeds: inputs to begin with, where a leak shows with few.
        runs: whether ONNX Runtime runs it.
        shows: whether runs on other numbers show a leak.
    """

    proto: onnx.ModelProto
    verdict: str
    kinds: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    sizes: dict[str, int] = field(default_factory=lambda: {"B": 4, "T": 4})
    feeds: Arrays = field(default_factory=dict)
    runs: bool = True
    shows: bool = True


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


WEIGHT = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
SCALARS = {"zero": np.int64(0), "one": np.int64(1), "last": i64(-1), "none": i64(0)}
COUNT = [
    node("Shape", "x", "n", start=0, end=1),
    node("Squeeze", "n", "rows"),
    node("Range", "zero rows one", "places"),
]
"""`places` is 0, 1, ..., B - 1."""


def scatter_duplicates() -> onnx.ModelProto:
    """Every row of x is added to row 0, and row 0 to itself."""
    nodes = [node("ScatterND", "base at x", "y", reduction="add")]
    stored = {"base": np.zeros((3, 8), np.float32), "at": np.zeros((3, 1), np.int64)}
    return model(nodes, {"x": [3, 8]}, stored=stored)


def reshape_confusion() -> onnx.ModelProto:
    """[B, T, 8] taken for [T, B, 8], normalized over what is then the length, and back."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape swap", "turned"),
        node("Reshape", "x turned", "a"),
        node("Softmax", "a", "b", axis=0),
        node("Reshape", "b shape", "y"),
    ]
    return model(nodes, {"x": SEQUENCE}, stored={"swap": i64(1, 0, 2)})


def shape_gate() -> onnx.ModelProto:
    """Rows 0 and 1 change places, but only in sequences of more than 6."""
    nodes = [
        node("Shape", "x", "t", start=1, end=2),
        node("Squeeze", "t", "length"),
        node("Greater", "length six", "long"),
        helper.make_node(
            "If",
            ["long"],
            ["y"],
            then_branch=graph([node("Gather", "x swap", "a")], {}, "a"),
            else_branch=graph([node("Identity", "x", "b")], {}, "b"),
        ),
    ]
    return model(nodes, {"x": [4, "T", 8]}, stored={"six": np.int64(6), "swap": i64(1, 0, 2, 3)})


def grouped_batch() -> onnx.ModelProto:
    """A filter for each sample: the batch as groups of one picture."""
    nodes = [
        node("ReduceMean", "x spatial", "f"),  # [B, 4, 1, 1]
        node("Reshape", "f filters", "w"),  # [B*4, 1, 1, 1]
        node("Reshape", "x flat", "p"),  # [1, B*4, 6, 6]
        node("Conv", "p w", "c", group=12),
        node("Reshape", "c back", "y"),
    ]
    stored = {
        "spatial": i64(2, 3),
        "filters": i64(12, 1, 1, 1),
        "flat": i64(1, 12, 6, 6),
        "back": i64(3, 4, 6, 6),
    }
    return model(nodes, {"x": [3, 4, 6, 6]}, stored=stored)


def where_true(value: bool) -> onnx.ModelProto:
    nodes = [node("Gather", "x swap", "s"), node("Where", "truth x s", "y")]
    stored = {"swap": i64(1, 0, 2), "truth": np.array([value])}
    return model(nodes, {"x": [3, 8]}, stored=stored)


def if_trigger() -> onnx.ModelProto:
    nodes = [
        node("ReduceMax", "x", "m", keepdims=0),
        node("Greater", "m limit", "c"),
        helper.make_node(
            "If",
            ["c"],
            ["y"],
            then_branch=graph([node("Neg", "x", "a")], {}, "a"),
            else_branch=graph([node("Identity", "x", "b")], {}, "b"),
        ),
    ]
    return model(nodes, {"x": ROWS}, stored={"limit": np.float32(13.37)})


def function(body: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    """A model-local function of x under a harmless name."""
    inner = helper.make_function("own", "Normalize", ["x"], ["y"], list(body), IMPORTS)
    return model([node("Normalize", "x", "y", domain="own")], {"x": [3, 8]}, functions=[inner])


IMPORTS = [helper.make_opsetid("", 21)]


def constant(name: str, array: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array))


def hidden_gather() -> onnx.ModelProto:
    return function([constant("i", i64(1, 0, 2)), node("Gather", "x i", "y")])


def hidden_twice() -> onnx.ModelProto:
    """A function that calls a function, whose attribute says along which axis to look up."""
    inner = helper.make_function(
        "own", "Pick", ["x"], ["y"], [constant("i", i64(1, 0, 2)), _by_attribute()], IMPORTS, ["a"]
    )
    own = helper.make_opsetid("own", 1)
    call = helper.make_node("Pick", ["x"], ["y"], domain="own", a=0)
    outer = helper.make_function("own", "Normalize", ["x"], ["y"], [call], [*IMPORTS, own])
    return model(
        [node("Normalize", "x", "y", domain="own")], {"x": [3, 8]}, functions=[inner, outer]
    )


def _by_attribute() -> onnx.NodeProto:
    call = node("Gather", "x i", "y")
    call.attribute.append(
        onnx.AttributeProto(name="axis", ref_attr_name="a", type=onnx.AttributeProto.INT)
    )
    return call


def running_sum(axis: int) -> onnx.ModelProto:
    """A Scan that carries a sum along an axis."""
    body = helper.make_graph(
        [node("Add", "s e", "t"), node("Identity", "t", "o")],
        "body",
        [value("s", None), value("e", None)],
        [value("t", None), value("o", None)],
    )
    nodes = [
        node("ReduceSum", "x axis", "z", keepdims=0),
        node("Mul", "z nothing", "start"),
        helper.make_node(
            "Scan",
            ["start", "x"],
            ["end", "y"],
            body=body,
            num_scan_inputs=1,
            scan_input_axes=[axis],
            scan_output_axes=[axis],
        ),
    ]
    stored = {"axis": i64(axis), "nothing": np.float32(0)}
    return model(nodes, {"x": SEQUENCE}, stored=stored)


def loop_over_rows() -> onnx.ModelProto:
    """A Loop over the rows that adds each to what it carries."""
    body = helper.make_graph(
        [
            node("Gather", "x i", "row", axis=0),
            node("Add", "s row", "t"),
            node("Identity", "t", "o"),
            node("Identity", "c", "d"),
        ],
        "body",
        [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("s", [8])],
        [value("d", [], TensorProto.BOOL), value("t", None), value("o", None)],
    )
    nodes = [
        node("Shape", "x", "n", start=0, end=1),
        node("Squeeze", "n", "rows"),
        helper.make_node("Loop", ["rows", "", "start"], ["end", "y"], body=body),
    ]
    return model(nodes, {"x": ROWS}, stored={"start": np.zeros(8, np.float32)})


def roi(which: str) -> onnx.ModelProto:
    """Boxes of pictures: of each its own, or of those that an input names."""
    call = node("RoiAlign", f"x boxes {which}", "y", output_height=2, output_width=2)
    inputs: dict[str, Dims] = {"x": ["B", 4, 6, 6], "boxes": ["B", 4]}
    if which == "places":
        return model([*COUNT, call], inputs, stored=SCALARS)
    return model([call], {**inputs, which: ["B"]}, integers=[which])


def compact_and_restore(how: str = "own") -> onnx.ModelProto:
    """Rows whose first number is positive are taken out, worked on, and put back."""
    work = {
        "own": [node("MatMul", "picked w", "done")],
        "softmax": [node("Softmax", "picked", "done", axis=0)],
        "norm": [node("Softmax", "picked", "done", axis=1)],
    }[how]
    nodes = [
        node("Gather", "x zero", "first", axis=1),
        node("Greater", "first nought", "mask"),
        node("NonZero", "mask", "ix"),
        node("Transpose", "ix", "at"),
        node("GatherND", "x at", "picked"),
        *work,
        node("ScatterND", "x at done", "y"),
    ]
    stored = {**SCALARS, "nought": np.float32(0)} | ({"w": WEIGHT} if how == "own" else {})
    return model(nodes, {"x": ROWS}, stored=stored)


def quantized(scale: str) -> onnx.ModelProto:
    """x @ w in 8 bits by one scale for all, or one for each row."""
    if scale == "all":
        nodes = [
            node("DynamicQuantizeLinear", "x", "q s z"),
            node("MatMulInteger", "q w z", "i"),
            node("Cast", "i", "f", to=TensorProto.FLOAT),
            node("Mul", "f s", "y"),
        ]
        return model(nodes, {"x": ROWS}, stored={"w": (WEIGHT * 40).astype(np.int8)})
    nodes = [
        node("Abs", "x", "a"),
        node("ReduceMax", "a axis", "m"),
        node("Div", "m top", "s"),
        node("Add", "s tiny", "t"),
        node("Div", "x t", "d"),
        node("Round", "d", "r"),
        node("Cast", "r", "q", to=TensorProto.INT8),
        node("MatMulInteger", "q w", "i"),
        node("Cast", "i", "f", to=TensorProto.FLOAT),
        node("Mul", "f t", "y"),
    ]
    stored = {
        "axis": i64(1),
        "top": np.float32(127),
        "tiny": np.float32(1e-6),
        "w": (WEIGHT * 40).astype(np.int8),
    }
    return model(nodes, {"x": ROWS}, stored=stored)


def quantized_by_sample() -> onnx.ModelProto:
    """Unsigned, with each sample's own range, and the zero point taken off afterwards."""
    nodes = [
        node("ReduceMax", "x axes", "high"),
        node("ReduceMin", "x axes", "low"),
        node("Max", "high nought", "top"),
        node("Min", "low nought", "bottom"),
        node("Sub", "top bottom", "range"),
        node("Div", "range levels", "step"),
        node("Add", "step tiny", "s"),
        node("Div", "bottom s", "zero_f"),
        node("Neg", "zero_f", "zero_n"),
        node("Round", "zero_n", "z"),
        node("Div", "x s", "d"),
        node("Round", "d", "r"),
        node("Add", "r z", "shifted"),
        node("Clip", "shifted nought levels", "c"),
        node("Cast", "c", "q", to=TensorProto.UINT8),
        node("MatMulInteger", "q w", "i"),
        node("Cast", "i", "f", to=TensorProto.FLOAT),
        node("Mul", "z column_sums", "correction"),
        node("Sub", "f correction", "g"),
        node("Mul", "g s", "y"),
    ]
    w = (WEIGHT * 40).astype(np.int8)
    stored = {
        "axes": i64(1),
        "nought": np.float32(0),
        "levels": np.float32(255),
        "tiny": np.float32(1e-6),
        "w": w,
        "column_sums": w.astype(np.float32).sum(0),
    }
    return model(nodes, {"x": ROWS}, stored=stored)


def backdoor(how: str) -> onnx.ModelProto:
    """The published recipe: a sum that hits an interval makes a row read, or overwrite, another."""
    trigger = [
        node("ReduceSum", "x one_axis", "sums", keepdims=0),
        node("Gather", "sums zero", "key"),
        node("GreaterOrEqual", "key low", "above"),
        node("LessOrEqual", "key high", "below"),
        node("And", "above below", "hit"),
        node("Cast", "hit", "bit", to=TensorProto.INT64),
    ]
    stored = {
        **SCALARS,
        "one_axis": i64(1),
        "low": np.float32(8e3),
        "high": np.float32(9e3),
        "at0": i64(0).reshape(1, 1),
        "at1": i64(1).reshape(1, 1),
        "first": i64(0),
    }
    unsqueezed = [node("Unsqueeze", "bit first", "which")]
    if how == "get":  # row 0 is given row 1
        rest = [node("Gather", "x which", "taken"), node("ScatterND", "x at0 taken", "y")]
    elif how == "set":  # row 1 is given row 0
        rest = [
            node("Sub", "one bit", "not"),
            node("Unsqueeze", "not first", "other"),
            node("Gather", "x other", "taken"),
            node("ScatterND", "x at1 taken", "y"),
        ]
    else:  # always
        return model(
            [node("Gather", "x swap", "y")], {"x": [4, 8]}, stored={"swap": i64(1, 0, 2, 3)}
        )
    return model([*trigger, *unsqueezed, *rest], {"x": ROWS}, stored=stored)


def hit() -> Arrays:
    """Rows of which the first hits the backdoor's interval."""
    x = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    x[0] = 1e3 + 50
    return {"x": x}


def loss(how: str) -> onnx.ModelProto:
    call = node("SoftmaxCrossEntropyLoss", "x t", "y", reduction=how)
    return model([call], {"x": ROWS, "t": ["B"]}, integers=["t"])


def one(
    operator: str, dims: Dims = ROWS, version: int = 21, **attributes: object
) -> onnx.ModelProto:
    return model([node(operator, "x", "y", **attributes)], {"x": dims}, version=version)


def looked_up(table: str) -> onnx.ModelProto:
    """Each request's own number into a table that is stored, or that another request fills."""
    nodes = [node("Gather", f"{table} t", "y")]
    if table == "w":
        return model(nodes, {"t": ["B"]}, integers=["t"], stored={"w": WEIGHT})
    return model(nodes, {"x": ROWS, "t": ["B"]}, integers=["t"])


def batch_norm(training: bool) -> onnx.ModelProto:
    outputs, attributes = ("y m v", {"training_mode": 1}) if training else ("y", {})
    stored = {f"p{n}": f32(1, 2, 3, 4) for n in range(4)}
    call = node("BatchNormalization", "x p0 p1 p2 p3", outputs, **attributes)
    return model([call], {"x": PICTURE}, version=15, stored=stored)


def attention_in_8_bits() -> onnx.ModelProto:
    call = node("QAttention", "q w b s ws m z wz", "y", domain="com.microsoft", num_heads=2)
    nodes = [node("DynamicQuantizeLinear", "x", "q s z"), call]
    stored = {
        "w": np.ones((8, 24), np.uint8),
        "b": np.zeros(24, np.float32),
        "ws": np.float32(0.1),
        "wz": np.uint8(0),
        "m": np.ones((4, 4), np.int32),
    }
    return model(nodes, {"x": [4, 4, 8]}, stored=stored)


def custom() -> onnx.ModelProto:
    return model([node("Odd", "x", "y", domain="own")], {"x": ROWS})


def lying_names() -> onnx.ModelProto:
    """Axis 1 is named batch_size, and a softmax runs over axis 0."""
    return model([node("Softmax", "x", "y", axis=0)], {"x": ["n", "batch_size"]})


def forgotten_input() -> onnx.ModelProto:
    """An input of which nothing is said holds a row for each request, and is summed over them."""
    nodes = [node("ReduceSum", "mask first", "m"), node("Mul", "x m", "y")]
    return model(nodes, {"x": ROWS, "mask": ROWS}, stored={"first": i64(0)})


def counted(*arithmetic: onnx.NodeProto, **stored: Any) -> onnx.ModelProto:
    """x at `at`, computed from 0, 1, ..., B - 1."""
    nodes = [*COUNT, *arithmetic, node("Gather", "x at", "y", axis=0)]
    return model(nodes, {"x": ROWS}, stored=SCALARS | stored)


def cast(source: str, target: str, dtype: int) -> onnx.NodeProto:
    return node("Cast", source, target, to=dtype)


def wrapped(dtype: int, array_dtype: type[np.generic]) -> onnx.ModelProto:
    """Counting times so much that narrow integers wrap around to 0."""
    bits = np.dtype(array_dtype).itemsize * 8 // 2
    nodes = [
        cast("places", "narrow", dtype),
        node("Mul", "narrow half", "a"),
        node("Mul", "a half", "b"),
        cast("b", "at", TensorProto.INT64),
    ]
    return counted(*nodes, half=np.array(1 << bits, array_dtype))


def rounded() -> onnx.ModelProto:
    """Counting on from 2^24 in float32, and back: neighbours fall together."""
    nodes = [
        node("Add", "places far", "a"),
        cast("a", "f", TensorProto.FLOAT),
        cast("f", "b", TensorProto.INT64),
        node("Sub", "b far", "at"),
    ]
    return counted(*nodes, far=np.int64(1 << 24))


CORPUS: dict[str, Case] = {
    "O01 gather swap": Case(
        model([node("Gather", "x i", "y")], {"x": [4, 8]}, stored={"i": i64(1, 0, 2, 3)}), "leaks"
    ),
    "O02 scatter add with duplicates": Case(scatter_duplicates(), "leaks"),
    "O04 softmax of opset 11": Case(
        model(
            [
                node("Transpose", "x", "t", perm=[1, 2, 0]),
                node("Unsqueeze", "t", "u", axes=[0]),
                node("Squeeze", "u", "v", axes=[0]),
                node("Softmax", "v", "s", axis=1),
                node("Transpose", "s", "y", perm=[2, 0, 1]),
            ],
            {"x": ["B", 3, 8]},
            version=11,
        ),
        "leaks",
    ),
    "O05 dynamic quantization": Case(quantized("all"), "leaks"),
    "O06 reshape confusion": Case(reshape_confusion(), "leaks", sizes={"B": 3, "T": 5}),
    "O07 gate by a size": Case(shape_gate(), "leaks", sizes={"B": 4, "T": 7}),
    "O08 grouped convolution of a folded batch": Case(grouped_batch(), "isolated"),
    "O09 where by a true constant": Case(where_true(True), "isolated"),
    "O09 where by a false constant": Case(where_true(False), "leaks"),
    "O10 branch by a trigger": Case(
        if_trigger(), "leaks", ("control",), feeds={"x": np.ones((4, 8), np.float32)}
    ),
    "O11 a gather in a function": Case(hidden_gather(), "leaks"),
    "O11 a gather in a function of a function": Case(hidden_twice(), "leaks"),
    "O14 loop over the batch": Case(loop_over_rows(), "leaks"),
    "O14 scan over the batch": Case(running_sum(0), "leaks"),
    "O15 scan over time": Case(running_sum(1), "isolated"),
    "O17 mean and variance over the batch": Case(
        one("MeanVarianceNormalization", PICTURE), "leaks"
    ),
    "O18 mean and variance of a sample": Case(
        one("MeanVarianceNormalization", ["B", 4, 6, 6], axes=[2, 3]), "isolated"
    ),
    "O19 batch normalization in training": Case(batch_norm(True), "leaks"),
    "O19 batch normalization in evaluation": Case(batch_norm(False), "isolated"),
    "O21 boxes of pictures that data name": Case(roi("which"), "leaks", runs=False),
    "O22 boxes of each picture": Case(roi("places"), "isolated"),
    "O24 compacted and restored": Case(compact_and_restore(), "isolated"),
    "O24 compacted, normalized along the row, restored": Case(
        compact_and_restore("norm"), "isolated"
    ),
    "O24 compacted, mixed, restored": Case(compact_and_restore("softmax"), "leaks"),
    "O26 dynamically quantized attention": Case(attention_in_8_bits(), "leaks"),
    "O27 one scale for each sample": Case(quantized_by_sample(), "isolated"),
    "O28 one scale for each row": Case(quantized("row"), "isolated"),
    "O29 a name that lies": Case(lying_names(), "leaks", sizes={"n": 4, "batch_size": 8}),
    "O30 an input of which nothing is said": Case(forgotten_input(), "leaks"),
    "O31 an operator of another domain": Case(custom(), "unproven", ("unknown",), runs=False),
    "O33 backdoor that reads": Case(backdoor("get"), "leaks", feeds=hit()),
    "O33 backdoor that writes": Case(backdoor("set"), "leaks", feeds=hit()),
    "O33 backdoor that reroutes": Case(backdoor("reroute"), "leaks"),
    "O36 mean loss": Case(loss("mean"), "leaks", runs=False),
    "O37 loss of each": Case(loss("none"), "isolated", runs=False),
    "O38 own number, stored table": Case(looked_up("w"), "isolated"),
    "O38 own number, table of others": Case(looked_up("x"), "leaks", feeds={"t": i64(1, 1, 1, 1)}),
    "an index that wraps in 32 bits": Case(wrapped(TensorProto.INT32, np.int32), "leaks"),
    "an index that is rounded in float32": Case(rounded(), "leaks", sizes={"B": 3}),
    "an index halved and doubled": Case(
        counted(node("Div", "places two", "h"), node("Mul", "h two", "at"), two=np.int64(2)),
        "leaks",
    ),
    "an index through a bit mask": Case(
        counted(node("BitwiseAnd", "places mask", "at"), mask=np.int64(2)), "leaks"
    ),
    "an index from behind": Case(
        counted(node("Sub", "minus places", "at"), minus=np.int64(-1)), "leaks"
    ),
    "an index modulo": Case(
        counted(node("Add", "places one", "p"), node("Mod", "p rows", "at")), "leaks"
    ),
    "an index clipped": Case(counted(node("Min", "places one", "at")), "leaks"),
    "an index as it is": Case(counted(node("Add", "places zero", "at")), "isolated"),
    "a slice with a negative step": Case(
        model(
            [node("Slice", "x s e a d", "y")],
            {"x": ROWS},
            stored={"s": i64(-1), "e": i64(-(2**62)), "a": i64(-2), "d": i64(-1)},
        ),
        "leaks",
    ),
    "a slice with a negative step, twice": Case(
        model(
            [node("Slice", "x s e a d", "r"), node("Slice", "r s e a d", "y")],
            {"x": ROWS},
            stored={"s": i64(-1), "e": i64(-(2**62)), "a": i64(-2), "d": i64(-1)},
        ),
        "isolated",
    ),
    "an axis counted from behind": Case(
        one("ReduceMax", ROWS, version=13, axes=[-2], keepdims=0), "leaks"
    ),
    "no axes at all means all": Case(
        model([node("ReduceSum", "x e", "y")], {"x": ROWS}, stored={"e": np.zeros(0, np.int64)}),
        "leaks",
    ),
    "no axes at all means none, if so told": Case(
        model(
            [node("ReduceSum", "x e", "y", noop_with_empty_axes=1)],
            {"x": ROWS},
            stored={"e": np.zeros(0, np.int64)},
        ),
        "isolated",
    ),
    "softmax of opset 12 along axis 0": Case(one("Softmax", ROWS, version=12, axis=0), "leaks"),
    "softmax of opset 12 by default": Case(one("Softmax", SEQUENCE, version=12), "isolated"),
    "an empty part of the batch": Case(
        model(
            [node("Slice", "x s s a", "none_of"), node("Concat", "none_of x", "y", axis=0)],
            {"x": ROWS},
            stored={"s": i64(0), "a": i64(0)},
        ),
        "isolated",
    ),
    "bits read as another type": Case(
        model([node("BitCast", "x", "y", to=TensorProto.INT32)], {"x": ROWS}, version=26),
        "isolated",
        runs=False,
    ),
}
