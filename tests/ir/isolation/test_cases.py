"""Models read once for each outcome of what sizes and shared inputs decide."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from planish.ir.flow.known import numbers
from planish.ir.flow.onnx import input_shapes, read_cases
from planish.ir.flow.onnx_cases import MOST, Case, Formula, of_call, of_input, of_known
from planish.ir.flow.polynomial import Polynomial
from planish.ir.isolation.labels import Labels
from planish.ir.isolation.programs import analyse_onnx
from planish.ir.isolation.verdict import Analysis
from support.onnx_written import Dims, graph, model, node

B, T = Polynomial.symbol("B"), Polynomial.symbol("T")
SIZE = [node("Shape", "x", "sizes"), node("Gather", "sizes one", "t")]
STORED = {"one": np.int64(1), "axis": np.array([1]), "flat": np.array([-1])}
IDENTITY = [node("Identity", "x", "z")]
SQUEEZE = [node("Squeeze", "x axis", "z")]
FLIP = [node("Slice", "x last before first back", "z")]
FLIPPED = {
    "last": np.array([-1]),
    "before": np.array([-(2**40)]),
    "first": np.array([0]),
    "back": np.array([-1]),
}


def branch(
    condition: str, then: list[onnx.NodeProto], other: list[onnx.NodeProto], result: str = "y"
) -> onnx.NodeProto:
    return node(
        "If",
        condition,
        result,
        then_branch=graph(then, {}, "z"),
        else_branch=graph(other, {}, "z"),
    )


def audited(nodes: list[onnx.NodeProto], outputs: str = "y", **labels: object) -> Analysis:
    inputs: dict[str, Dims] = {"x": ["B", "T", 4], "rate": []}
    proto = model(nodes, inputs, outputs, stored=STORED | FLIPPED | {"three": np.int64(3)})
    return analyse_onnx(proto, Labels(shared=("rate",), **labels))  # type: ignore[arg-type]


def cases(nodes: list[onnx.NodeProto]) -> int:
    proto = model(
        nodes, {"x": ["B", "T", 4]}, stored=STORED | {str(n): np.int64(n) for n in range(9)}
    )
    return len(read_cases(proto, input_shapes(proto), None, ()))


def test_branches_of_different_rank_on_a_size() -> None:
    found = audited([*SIZE, node("Equal", "t one", "is"), branch("is", SQUEEZE, IDENTITY)])

    assert found.verdict == "isolated"
    assert found.inputs[0].shape == (B, T, 4)


def test_a_condition_that_data_decide_is_not_split() -> None:
    most = node("ReduceMax", "x", "m", keepdims=0)
    found = audited([most, node("Greater", "m rate", "is"), branch("is", SQUEEZE, IDENTITY)])

    assert found.unknown_operators == {"ai.onnx::If@21": 1}
    assert {one.kind for one in found.findings} == {"value", "unknown"}


def test_a_shared_input_decides_as_sizes_do() -> None:
    nodes = [node("Greater", "rate zero", "is"), branch("is", SQUEEZE, IDENTITY)]
    proto = model(nodes, {"x": ["B", 1, 4], "rate": []}, stored=STORED | {"zero": np.float32(0)})

    assert analyse_onnx(proto, Labels(shared=("rate",))).verdict == "isolated"
    unshared = analyse_onnx(proto, Labels())
    assert unshared.verdict == "unproven"
    assert unshared.unknown_operators == {"ai.onnx::If@21": 1}


@pytest.mark.parametrize("operator", ["Equal", "Greater", "Less"])
def test_a_leak_in_one_case_is_a_leak(operator: str) -> None:
    either = [*SIZE, node(operator, "t three", "is"), node("Not", "is", "no")]

    for one in ("is", "no"):
        found = audited([*either, branch(one, FLIP, IDENTITY)])
        assert found.verdict == "leaks"
        assert audited([*either, branch(one, IDENTITY, FLIP)]).verdict == "leaks"


def test_a_case_that_sizes_contradict_is_left_out() -> None:
    nodes = [
        *SIZE,
        node("Sub", "t one", "u"),
        node("Add", "t one", "v"),
        node("Equal", "v one", "is"),
    ]

    assert audited([*nodes, branch("is", FLIP, IDENTITY)]).verdict == "isolated"
    assert (
        audited([*nodes[:-1], node("Equal", "u one", "is"), branch("is", FLIP, IDENTITY)]).verdict
        == "leaks"
    )


def test_what_decides_together_is_decided_together() -> None:
    """The second branch undoes the first: no run takes one of each side."""
    back = [node("Unsqueeze", "s axis", "z")]
    nodes = [
        *SIZE,
        node("Equal", "t one", "is"),
        branch("is", SQUEEZE, IDENTITY, "s"),
        node("Equal", "t one", "again"),
        branch("again", back, [node("Identity", "s", "z")]),
    ]

    assert audited(nodes).verdict == "isolated"
    assert cases(nodes) == 2


def test_one_row_in_a_case_says_nothing_of_the_model() -> None:
    nodes = [
        node("Shape", "x", "sizes"),
        node("Gather", "sizes zero", "b"),
        node("Equal", "b one", "is"),
    ]
    stored = STORED | FLIPPED | {"zero": np.int64(0)}
    alone = model([*nodes, branch("is", FLIP, IDENTITY)], {"x": ["B", 4]}, stored=stored)
    several = model([*nodes, branch("is", IDENTITY, FLIP)], {"x": ["B", 4]}, stored=stored)

    found = analyse_onnx(alone, Labels())
    assert found.verdict == "isolated"
    assert not any("one row" in text for text in found.assumptions)
    assert analyse_onnx(several, Labels()).verdict == "leaks"


def stopping(condition: list[onnx.NodeProto]) -> Analysis:
    """An LSTM over time, given one dimension too many unless there are 4 of x's."""
    stored = STORED | {
        "w": np.zeros((1, 8, 4), np.float32),
        "r": np.zeros((1, 8, 2), np.float32),
        "half": np.float32(0.5),
    }
    nodes = [
        *condition,
        branch("is", [node("Identity", "x", "z")], [node("Unsqueeze", "x axis", "z")], "s"),
        node("LSTM", "s w r", "o", hidden_size=2),
        node("Neg", "o", "y"),
    ]
    return analyse_onnx(
        model(nodes, {"x": ["T", "B", 4]}, stored=stored), Labels({"x": 1}, {"y": 2})
    )


def test_a_case_in_which_every_run_stops_is_left_out_and_told() -> None:
    found = stopping([node("Shape", "x", "n", start=0, end=1), node("Equal", "n one", "is")])

    assert found.verdict == "isolated"
    assert [one for one in found.assumptions if "fails" in one] == [
        "every run fails where not T is 1: ai.onnx::LSTM@14 is given a sequence of 4 dimensions, "
        "not 3"
    ]


def test_what_data_may_stop_is_not_left_out() -> None:
    most = [node("ReduceMax", "x", "m", keepdims=0), node("Greater", "m half", "is")]

    found = stopping(most)
    assert found.unknown_operators == {"ai.onnx::If@21": 1}
    assert found.verdict != "isolated"
    assert not any("fails" in text for text in found.assumptions)


def test_an_operator_that_only_some_runs_reach_stops_not_all() -> None:
    """Data decide whether it is reached, so the case is not left out."""
    lstm = [node("LSTM", "x w r", "o", hidden_size=2), node("Identity", "x", "z")]
    stored = STORED | {"w": np.zeros((1, 8, 4), np.float32), "r": np.zeros((1, 8, 2), np.float32)}
    nodes = [
        *SIZE,
        node("Equal", "t one", "short"),
        node("ReduceMax", "x", "m", keepdims=0),
        node("Cast", "m", "is", to=TensorProto.BOOL),
        branch("short", IDENTITY, SQUEEZE, "f"),
        branch("is", lstm, IDENTITY),
    ]
    found = analyse_onnx(model(nodes, {"x": ["B", "T", 4, 1]}, stored=stored), Labels())

    assert found.verdict == "leaks"
    assert not any("fails" in text for text in found.assumptions)


def test_no_more_cases_than_a_few() -> None:
    """Beyond them a condition is left open: alike branches are joined, others are unknown."""
    many = [
        each
        for n in range(9)
        for each in (
            node("Equal", f"t {n}", f"is{n}"),
            branch(f"is{n}", IDENTITY, IDENTITY, f"y{n}"),
        )
    ]
    sums = [
        each
        for n in range(9)
        for each in (
            node("Greater", f"t {n}", f"is{n}"),
            branch(f"is{n}", IDENTITY, IDENTITY, f"y{n}"),
        )
    ]

    assert cases([*SIZE, *many, node("Identity", "y8", "y")]) <= MOST
    assert cases([*SIZE, *sums, node("Identity", "y8", "y")]) == MOST


def test_chance_decides_nothing_beforehand() -> None:
    drawn = [node("RandomNormal", "", "n", shape=[1]), node("Greater", "n n", "is")]

    assert cases([*drawn, branch("is", IDENTITY, IDENTITY)]) == 1


def test_no_name_looks_like_a_formula() -> None:
    one = of_known(numbers(1))
    assert one is not None
    assert of_input("1", "INT64") != one
    compared = of_call("Equal", {}, (one, one), True)
    assert compared is not None
    assert of_input(compared.text, "BOOL") != compared


@pytest.mark.parametrize(
    ("size", "said"),
    [(T, {"T": 3}), (T + 1, {"T": 2}), (5 - T, {"T": 2}), (T * 2, {}), (T * T, {}), (T + B, {})],
)
def test_what_an_equation_says_of_a_size(size: Polynomial, said: dict[str, int]) -> None:
    sides = Formula("size", number=size), Formula("3", number=3)
    compared = of_call("Equal", {}, sides, True)
    assert compared is not None

    no, yes = Case().either(compared)
    assert no.sizes == {}
    assert yes.sizes == said


def test_an_equation_that_no_size_solves() -> None:
    compared = of_call("Equal", {}, (Formula("T", number=T), Formula("0", number=0)), True)
    assert compared is not None

    assert [list(one.truths.values()) for one in Case().either(compared)] == [[False]]


def test_another_size_that_is_called_as_the_batch() -> None:
    """A reshape across requests stays one, whatever a file calls its sizes."""
    turn = [
        node("Shape", "x", "b", start=0, end=1),
        node("Shape", "x", "t", start=1, end=2),
        node("Concat", "t b", "sizes", axis=0),
        node("Reshape", "x sizes", "y"),
    ]

    assert analyse_onnx(model(turn, {"x": ["batch", "B"]}), Labels()).verdict == "leaks"


def test_an_input_of_one_row_does_not_make_a_batch_of_one() -> None:
    nodes = [node("Add", "h c", "g"), node("Add", "x g", "s"), node("CumSum", "s zero", "y")]
    inputs: dict[str, Dims] = {"x": ["T", 4], "h": [1, 4], "c": [1, 4]}
    proto = model(nodes, inputs, stored={"zero": np.int64(0)})

    assert analyse_onnx(proto, Labels()).verdict == "leaks"
    assert analyse_onnx(proto, Labels(shared=("h", "c"))).verdict == "leaks"


def test_an_input_that_is_all_of_one_request() -> None:
    """A recording of any length is the one request of a batch that the model fixes at one row."""
    nodes = [node("Add", "x h", "s"), node("CumSum", "s zero", "y")]
    stored = {"zero": np.int64(0)}
    one = model(nodes, {"x": ["T", 4], "h": [1, 4]}, stored=stored)
    open_ = model(nodes, {"x": ["T", 4], "h": ["N", 4]}, stored=stored)

    found = analyse_onnx(one, Labels({"x": None}))
    assert found.verdict == "isolated"
    assert "x is all of the one request in a batch (as declared)" in found.assumptions
    assert analyse_onnx(open_, Labels({"x": None})).verdict == "leaks"
    (whose, *_) = analyse_onnx(
        model([node("Neg", "x", "y"), node("Add", "x h", "z")], {"x": ["T", 4], "h": ["N", 4]}),
        Labels({"x": None}),
    ).findings
    assert (whose.kind, whose.node) == ("unknown", "x")


@pytest.mark.parametrize(
    "wrong",
    [
        [*SIZE, node("SequenceConstruct", "x", "s"), node("Add", "t s", "y")],
        [*SIZE, node("Greater", "t", "is"), branch("is", SQUEEZE, IDENTITY)],
        [*SIZE, node("SkipLayerNormalization", "t x one", "y", domain="com.microsoft")],
    ],
    ids=["a sequence in place of a number", "one side of a comparison", "ranks that do not fit"],
)
def test_calls_that_do_not_fit_end_nothing(wrong: list[onnx.NodeProto]) -> None:
    assert audited(wrong).verdict == "unproven"
