"""Reading ONNX models: shapes, known numbers, functions, control flow."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from planish.ir.flow import onnx_context
from planish.ir.flow.known import Counting, Numbers
from planish.ir.flow.onnx import read_model
from planish.ir.flow.onnx_context import TooLarge
from planish.ir.flow.polynomial import Polynomial
from planish.ir.flow.vocabulary import Unranked
from support.onnx_written import Dims, dependences, graph, model, node, value, verdict

B, T = Polynomial.symbol("B"), Polynomial.symbol("T")


def shape(proto: onnx.ModelProto, name: str = "y") -> tuple[object, ...]:
    return read_model(proto).outputs[name].shape


def test_names_of_sizes() -> None:
    flow = read_model(model([node("Neg", "x", "y")], {"x": ["B", None, 3], "z": ["B", None]}))

    x, z = (one.shape for one in flow.inputs)
    assert x[0] == z[0] == B
    assert x[1] != z[1]
    assert x[2] == 3


def test_outputs_left_out_are_not_inputs_left_out() -> None:
    """Both have the empty name; the spread of a norm's rows is no table of angles."""
    skip = node("SkipSimplifiedLayerNormalization", "x x w", "n", domain="com.microsoft")
    skip.output.extend(["", "", "s"])
    inputs = "n n n key value lengths total - - - bias"
    heads = {"num_heads": 1, "kv_num_heads": 1, "domain": "com.microsoft"}
    attend = node("GroupQueryAttention", inputs, "y", **heads)
    past: Dims = ["B", 1, "P", 8]
    dims: dict[str, Dims | None] = {"x": ["B", "T", 8], "key": past, "value": past}
    dims |= {"lengths": ["B"], "bias": ["B", 1, "T", "S"]}
    stored = {"w": np.ones(8, np.float32), "total": np.int32(4)}

    assert verdict(model([skip, attend], dims, stored=stored)) == "isolated"


@pytest.mark.parametrize(("positions", "found"), [("own", "isolated"), ("first", "moved")])
def test_whose_angles_attention_reads(positions: str, found: str) -> None:
    """A table with a row for each text says nothing of others where each reads its own."""
    attend = node(
        "GroupQueryAttention",
        f"x - - key value lengths total cos sin {positions}",
        "y",
        domain="com.microsoft",
        num_heads=1,
        kv_num_heads=1,
        do_rotary=1,
    )
    count = [node("Shape", "angle", "n", end=1), node("Squeeze", "n zero", "b")]
    count += [node("Range", "none b one", "each"), node("Unsqueeze", "each last", "own")]
    count += [node("Sub", "own own", "first")]
    tables = [node("Concat", "angle nothing", name, axis=0) for name in ("cos", "sin")]
    past: Dims = ["B", 1, "P", 16]
    dims: dict[str, Dims | None] = {"x": ["B", 1, 48], "key": past, "value": past}
    dims |= {"lengths": ["B"], "angle": ["B", 8]}
    stored = {"total": np.int32(4), "nothing": np.zeros((4, 8), np.float32)}
    stored |= {"zero": np.array([0]), "none": np.int64(0), "one": np.int64(1)}
    stored |= {"last": np.array([1])}

    assert verdict(model([*count, *tables, attend], dims, stored=stored)) == found


def test_odd_names_of_sizes_stay_apart() -> None:
    flow = read_model(model([], {"x": ["a+b", "a_b", "u0", "0"]}, outputs="x"))

    sizes = flow.inputs[0].shape
    assert len(set(sizes)) == 4
    assert "u0" not in map(str, sizes)  # which would be a size that data decide


def test_stated_shapes_of_results_are_not_believed() -> None:
    proto = model([node("Transpose", "x", "y", perm=[1, 0])], {"x": ["B", "T"]})
    proto.graph.output[0].CopyFrom(value("y", ["B", "T"]))
    proto.graph.value_info.append(value("y", ["B", "T"]))

    assert shape(proto) == (T, B)


def test_given_shapes_take_the_place_of_stated_ones() -> None:
    proto = model([node("Neg", "x", "y")], {"x": ["n", 4]})

    assert read_model(proto, {"x": (B, 4)}).outputs["y"].shape == (B, 4)


def test_a_name_makes_no_batch() -> None:
    proto = model([node("Softmax", "x", "y", axis=0)], {"x": ["T", "batch_size"]})

    assert verdict(proto) == "value"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ([0, -1], (B, T * 8)),
        ([0, 0, 2, 4], (B, T, 2, 4)),
        ([-1, 8], (B * T, 8)),
        ([-1], (B * T * 8,)),
    ],
)
def test_reshape(target: list[int], expected: tuple[object, ...]) -> None:
    call = node("Reshape", "x s", "y")

    assert shape(model([call], {"x": ["B", "T", 8]}, stored={"s": np.array(target)})) == expected


def test_a_reshape_that_takes_length_for_batch() -> None:
    nodes = [
        node("Shape", "x", "n"),
        node("Gather", "n swap", "s"),
        node("Reshape", "x s", "y"),
    ]
    proto = model(nodes, {"x": ["B", "T"]}, stored={"swap": np.array([1, 0])})

    assert shape(proto) == (T, B)
    assert verdict(proto) == "value"


def test_a_size_that_may_be_zero_means_something_else() -> None:
    nodes = [
        node("Shape", "x", "n"),
        node("Sub", "n one", "m"),  # [B - 1, T - 1]: for a batch of 1, 0 keeps the size
        node("Reshape", "x m", "y"),
    ]
    proto = model(nodes, {"x": ["B", "T"]}, stored={"one": np.array([1, 1])})

    assert isinstance(shape(proto)[:], tuple)
    assert verdict(proto) == "unknown"


def test_a_target_from_data_is_unknown_from_there_on() -> None:
    nodes = [node("Reshape", "x s", "r"), node("Softmax", "r", "y")]
    proto = model(nodes, {"x": ["B", 8], "s": [2]}, integers=["s"])

    assert isinstance(shape(proto), Unranked)
    assert verdict(proto, shared=["s"]) == "unknown"


def test_sizes_that_may_differ_are_not_taken_for_equal() -> None:
    proto = model([node("Add", "a b", "y")], {"a": ["B", "T"], "b": ["B", "S"]})

    assert shape(proto) == (B, Polynomial.symbol("broadcast(S, T)"))
    assert verdict(proto) == "isolated"


def test_positions_cut_to_the_length_have_the_length() -> None:
    nodes = [
        node("Shape", "x", "n", start=1, end=2),
        node("Slice", "table zero n axis", "p"),
        node("Add", "x p", "y"),
    ]
    stored = {
        "table": np.zeros((1, 512), np.float32),
        "zero": np.array([0]),
        "axis": np.array([1]),
    }

    assert shape(model(nodes, {"x": ["B", "T"]}, stored=stored)) == (B, T)


def known(nodes: list[onnx.NodeProto], **stored: object) -> object:
    proto = model(nodes, {"x": ["B", "T", 8]}, stored={k: np.asarray(v) for k, v in stored.items()})
    flow = read_model(proto)
    found = flow.known.get(flow.outputs["y"])
    return found.array.tolist() if isinstance(found, Numbers) else found


SHAPE = node("Shape", "x", "n")


def test_known_numbers() -> None:
    assert known([node("Shape", "x", "y")]) == [B, T, 8]
    assert known([node("Size", "x", "y")]) == B * T * 8
    assert known([SHAPE, node("Gather", "n i", "y")], i=-1) == 8
    assert known([SHAPE, node("Mul", "n i", "y")], i=2) == [B * 2, T * 2, 16]
    assert known([SHAPE, node("ReduceProd", "n", "y", keepdims=0)]) == B * T * 8
    assert known([SHAPE, node("Equal", "n i", "y")], i=-1) == [False, False, False]
    assert known([SHAPE, node("Equal", "n i", "y")], i=5) is None
    assert known([SHAPE, node("Max", "n i", "y")], i=1) == [B, T, 8]
    assert known([SHAPE, node("Div", "n i", "y")], i=[1, 1, 2]) == [B, T, 4]


def test_known_ranges() -> None:
    nodes = [SHAPE, node("Gather", "n i", "m"), node("Range", "zero m one", "y")]

    assert known(nodes, i=0, zero=0, one=1) == Counting(0, (1,))


def test_floats_and_narrow_integers_are_not_followed() -> None:
    def cast(to: int) -> object:
        return known([SHAPE, node("Cast", "n", "m", to=to), node("Cast", "m", "y", to=7)])

    assert cast(TensorProto.INT32) == [B, T, 8]
    assert cast(TensorProto.FLOAT) is None
    assert cast(TensorProto.INT8) is None


def test_what_would_wrap_is_not_known() -> None:
    nodes = [node("Mul", "big big", "y")]

    assert known(nodes, big=np.array([2**20], np.int32)) is None
    assert known(nodes, big=np.array([2**20], np.int64)) == [2**40]


def test_external_data_are_not_opened(tmp_path: Path) -> None:
    proto = model(
        [node("Add", "x w", "y")], {"x": ["B", 4]}, stored={"w": np.ones((4,), np.float32)}
    )
    onnx.save(
        proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    (tmp_path / "w.bin").chmod(0)

    assert read_model(tmp_path / "m.onnx").outputs["y"].shape == (B, 4)


def function(name: str, nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["a"], ["b"], nodes, imports, ["axis"])


def test_functions_are_looked_into() -> None:
    inner = node("Softmax", "a", "b")
    inner.attribute.append(
        onnx.AttributeProto(name="axis", ref_attr_name="axis", type=onnx.AttributeProto.INT)
    )
    own = [function("Mix", [inner])]

    def proto(axis: int) -> onnx.ModelProto:
        call = node("Mix", "x", "y", domain="own", axis=axis)
        return model([call], {"x": ["B", 8]}, functions=own)

    assert verdict(proto(0)) == "value"
    assert verdict(proto(1)) == "isolated"
    assert read_model(proto(1)).unknown_operators == {}


def test_functions_that_call_themselves_end() -> None:
    own = [function("Mix", [node("Mix", "a", "b", domain="own")])]
    proto = model([node("Mix", "x", "y", domain="own")], {"x": ["B", 8]}, functions=own)

    assert verdict(proto) == "unknown"


def test_functions_that_unfold_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_context, "_MOST_STEPS", 1000)
    own = []
    for n in range(20):
        inner = f"F{n + 1}"
        twice = [node(inner, "a", "c", domain="own"), node(inner, "c", "b", domain="own")]
        own.append(function(f"F{n}", twice))
    proto = model([node("F0", "x", "y", domain="own")], {"x": ["B", 8]}, functions=own)

    with pytest.raises(TooLarge, match="unfolded"):
        read_model(proto)


def branches(condition: list[onnx.NodeProto], **stored: object) -> onnx.ModelProto:
    then = graph([node("Softmax", "x", "t", axis=0)], {}, "t")
    other = graph([node("Neg", "x", "e")], {}, "e")
    call = node("If", "c", "y", then_branch=then, else_branch=other)
    arrays = {name: np.asarray(one) for name, one in stored.items()}
    return model([*condition, call], {"x": ["B", 8]}, stored=arrays)


def test_a_branch_that_data_choose() -> None:
    first = node("Gather", "x zero", "r")
    trigger = [first, node("ReduceMax", "r", "m", keepdims=0), node("Greater", "m limit", "c")]

    assert verdict(branches(trigger, zero=0, limit=np.float32(13.37))) == "control value"


def test_branches_that_sizes_choose_are_both_read() -> None:
    gate = [
        SHAPE,
        node("Gather", "n zero", "m"),
        node("Greater", "m limit", "c"),
    ]

    assert verdict(branches(gate, zero=0, limit=6)) == "value"
    assert verdict(branches(gate, zero=1, limit=9)) == "isolated"  # 8 > 9 is never so


def loop(body: onnx.GraphProto) -> onnx.ModelProto:
    call = node("Loop", "trips - x", "y", body=body)
    return model([call], {"x": ["B", 8]}, stored={"trips": np.int64(3)})


def step(nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
    return graph(
        [node("Identity", "go", "on"), *nodes],
        {"i": [], "go": [], "v": ["B", 8]},
        "on w",
        integers=["i"],
        truths=["go"],
    )


@pytest.mark.parametrize(("axis", "expected"), [(0, "value"), (1, "isolated")])
def test_loops(axis: int, expected: str) -> None:
    assert verdict(loop(step([node("Softmax", "v", "w", axis=axis)]))) == expected


def test_loops_read_names_outside() -> None:
    proto = loop(step([node("Softmax", "x", "s", axis=0), node("Add", "v s", "w")]))

    assert verdict(proto) == "value"


def test_what_grows_in_a_loop() -> None:
    proto = loop(step([node("Concat", "v v", "w", axis=1)]))
    flow = read_model(proto)

    assert flow.unknown_operators == {}
    assert flow.outputs["y"].shape[0] == B
    assert verdict(proto) == "isolated"


def scan(axis: int) -> onnx.ModelProto:
    """A running sum along one axis of [B, T, 8]."""
    state: Dims = ["B", 8] if axis else ["T", 8]
    body = graph(
        [node("Add", "s e", "t"), node("Identity", "t", "o")], {"s": state, "e": state}, "t o"
    )
    nodes = [
        node("ReduceSum", "x axes", "zero", keepdims=0),
        node("Sub", "zero zero", "start"),
        node(
            "Scan",
            "start x",
            "last y",
            body=body,
            num_scan_inputs=1,
            scan_input_axes=[axis],
            scan_output_axes=[axis],
        ),
    ]
    return model(nodes, {"x": ["B", "T", 8]}, "y last", stored={"axes": np.array([axis])})


def test_scans() -> None:
    assert verdict(scan(1)) == "isolated"
    assert "value" in verdict(scan(0))


def test_unknown_operators_are_counted() -> None:
    nodes = [node("Mystery", "x", "a", domain="own"), node("Mystery", "a", "y", domain="own")]
    proto = model(nodes, {"x": ["B", 8]})

    # The second one is given what nothing is known of, which is not its fault.
    assert read_model(proto).unknown_operators == {"own::Mystery@1": 1}
    assert verdict(proto) == "unknown"


def test_an_unknown_operator_reads_what_its_graphs_read() -> None:
    hidden = graph([node("Neg", "x", "h")], {}, "h")
    proto = model([node("Mystery", "", "y", domain="own", body=hidden)], {"x": ["B", 8]})

    assert verdict(proto) == "unknown"


def test_sizes_that_data_decide_are_data() -> None:
    nodes = [
        node("NonZero", "x", "nz"),
        node("Shape", "nz", "n"),
        node("Cast", "n", "y", to=1),
    ]

    assert verdict(model(nodes, {"x": ["B", 8]})) == "shape"


def test_sequences() -> None:
    nodes = [
        node("SplitToSequence", "x", "s", axis=0),
        node("SequenceAt", "s i", "y"),
    ]
    flow = read_model(model(nodes, {"x": [3, 8]}, stored={"i": np.int64(2)}))
    (only,) = dependences(flow)["y"].maps

    assert str(only) == "2"
