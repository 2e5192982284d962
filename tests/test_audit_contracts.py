"""Contracts of operators without a rule: read, tried on the operator, printed as assumptions."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml
from onnx import TensorProto, helper
from torch import Tensor, nn

import planish
from planish import cli
from planish.ir.flow.contracts import BadContract
from planish.runtime.contracts import Refuted

ROWS = {"my.domain::Op": {"rows": [0, "public"]}}


def custom(
    path: Path,
    *body: onnx.NodeProto,
    result: str = "r",
    shape: tuple[int | str, ...] = ("batch", 8),
) -> Path:
    """Write `Relu(Op(x, weight))`, with the body of `Op` if there is one."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Op", ["x", "weight"], ["a"], domain="my.domain"),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    weight = onnx.numpy_helper.from_array(torch.randn(8).numpy(), "weight")
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, list(shape))],
        [value("y", TensorProto.FLOAT, None)],
        [weight],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my.domain", 1)]
    functions = []
    if body:
        functions = [
            helper.make_function("my.domain", "Op", ["p", "q"], [result], list(body), opsets)
        ]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)
    onnx.save(model, path)
    return path


def test_an_operator_that_is_not_to_be_had(tmp_path: Path) -> None:
    """O31 without a contract, O32 with one that is declared; the next test tries one."""
    path = custom(tmp_path / "m.onnx")
    assert planish.audit(path).verdict == "unproven"
    report = planish.audit(path, contracts=ROWS)
    assert report.verdict == "isolated"
    assert report.unknown_operators == {}
    (line,) = (one for one in report.assumptions if "my.domain::Op" in one)
    assert "reads inputs by rows (0 along axis 0), others whole (as declared, and not tried" in line


def test_a_function_is_tried_by_its_body(tmp_path: Path) -> None:
    body = helper.make_node("Mul", ["p", "q"], ["r"])
    report = planish.audit(custom(tmp_path / "good.onnx", body), contracts=ROWS)
    assert report.verdict == "isolated"
    assert any("(as declared; 60 random runs do not refute it)" in x for x in report.assumptions)
    assert planish.audit(tmp_path / "good.onnx", contracts=ROWS).assumptions == report.assumptions
    worse = helper.make_node("ReduceMax", ["p"], ["m"]), helper.make_node("Div", ["p", "m"], ["r"])
    with pytest.raises(Refuted, match=r"rows of others in output 0 move by .* Mend the contract"):
        planish.audit(custom(tmp_path / "bad.onnx", *worse), contracts=ROWS)


def test_what_does_not_fit_the_call_is_not_believed(tmp_path: Path) -> None:
    path = custom(tmp_path / "m.onnx", helper.make_node("Identity", ["p"], ["r"]))
    with pytest.raises(Refuted, match=r"output 0 has the shape \[3, 8\], not \[8\]"):
        planish.audit(path, contracts={"my.domain::Op": {"rows": ["public", 0]}})
    with pytest.raises(Refuted, match=r"not \[3, 7\], as its contract has it; say shapes"):
        planish.audit(path, contracts={"my.domain::Op": {"rows": [0], "shapes": [["rows", 7]]}})
    other = planish.audit(path, contracts={"my.domain::Op": {"rows": [0], "outputs": [1]}})
    assert other.verdict == "unproven"
    assert "output 0 has no B rows along axis 1" in other.findings[0].why


def test_a_public_input_that_requests_hold_is_a_leak(tmp_path: Path) -> None:
    path = custom(tmp_path / "m.onnx")
    whole = {"my.domain::Op": {"rows": ["public", 0], "shapes": [["0.0", 8]]}}
    assert planish.audit(path, contracts=whole).verdict == "unproven"
    model = onnx.load(path)
    model.graph.node[0].input[1] = "x"
    onnx.save(model, path)
    both = {"my.domain::Op": {"rows": [0, "public"]}}
    report = planish.audit(path, contracts=both)
    assert report.verdict == "leaks"
    assert report.findings[0].operator.startswith("my.domain::Op")


def test_elementwise(tmp_path: Path) -> None:
    path = custom(tmp_path / "m.onnx", helper.make_node("Add", ["p", "q"], ["r"]))
    report = planish.audit(path, contracts={"my.domain::Op": "elementwise"})
    assert report.verdict == "isolated"
    assert any("Op is elementwise (as declared; 60 random" in one for one in report.assumptions)
    turned = (
        helper.make_node("Add", ["p", "q"], ["s"]),
        helper.make_node("Softmax", ["s"], ["r"], axis=1),
    )
    path = custom(tmp_path / "m.onnx", *turned)
    with pytest.raises(Refuted, match="elements whose inputs stayed as they were"):
        planish.audit(path, contracts={"my.domain::Op": "elementwise"})


def test_another_shape_and_a_public_output(tmp_path: Path) -> None:
    path = custom(tmp_path / "m.onnx", helper.make_node("ReduceMax", ["p", "one"], ["r"]))
    model = onnx.load(path)
    one = onnx.numpy_helper.from_array(torch.tensor([1]).numpy())
    model.functions[0].node.insert(0, helper.make_node("Constant", [], ["one"], value=one))
    onnx.save(model, path)
    narrow = {"my.domain::Op": {"rows": [0], "shapes": [["rows", 1]]}}
    assert planish.audit(path, contracts=narrow).verdict == "isolated"
    public = {"my.domain::Op": {"rows": [0, "public"], "outputs": ["public"], "shapes": [[]]}}
    path = custom(path, helper.make_node("ReduceMax", ["p"], ["r"], keepdims=0))
    with pytest.raises(Refuted, match="public inputs alone"):
        planish.audit(path, contracts=public)


@torch.library.custom_op("planish_tests::tilt", mutates_args=())
def tilt(x: Tensor, weight: Tensor, factor: float) -> Tensor:
    return x * weight * factor


@tilt.register_fake
def _(x: Tensor, weight: Tensor, factor: float) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x)


@torch.library.custom_op("planish_tests::center", mutates_args=())
def center(x: Tensor) -> Tensor:
    return x - x.mean(0)


@center.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Tilted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Any:
        return tilt(x, self.weight, 2.0)


class Centered(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return center(x)


def test_operators_of_torch() -> None:
    x = torch.randn(3, 8)
    assert planish.audit(Tilted(), inputs=x).verdict == "unproven"
    declared: dict[str, Any] = {"planish_tests::tilt": {"rows": [0]}}
    report = planish.audit(Tilted(), inputs=x, contracts=declared, witness=True)
    assert report.verdict == "isolated"
    assert any("60 random runs" in one for one in report.assumptions)
    with pytest.raises(Refuted, match="planish_tests::center reads inputs by rows"):
        planish.audit(Centered(), inputs=x, contracts={"planish_tests::center": {"rows": [0]}})
    with pytest.raises(Refuted, match="planish_tests::center is elementwise"):
        planish.audit(Centered(), inputs=x, contracts={"planish_tests::center": "elementwise"})


@torch.library.custom_op("planish_tests::numbered", mutates_args=())
def numbered(x: Tensor) -> Tensor:
    return x * torch.arange(1, len(x) + 1).unsqueeze(1)


@numbered.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Ranked(nn.Module):
    """Sorts rows, numbers them, and puts them back: each learns its rank among the others."""

    def __init__(self, operator: Any) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor) -> Any:
        order = x[:, 0].argsort()
        return self.operator(x[order])[order.argsort()]


@pytest.mark.parametrize("contract", [{"rows": [0]}, "elementwise"])
def test_a_contract_does_not_say_that_rows_are_treated_alike(contract: Any) -> None:
    x = torch.randn(4, 8)
    assert planish.audit(Ranked(torch.tanh), inputs=x).verdict == "isolated"
    declared = {"planish_tests::numbered": contract}
    assert planish.audit(Ranked(numbered), inputs=x, contracts=declared).verdict == "leaks"


@torch.library.custom_op("planish_tests::counted", mutates_args=())
def counted(x: Tensor) -> Tensor:
    COUNT.add_(1)
    return x + COUNT


COUNT = torch.zeros(())


@counted.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Counted(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return counted(x)


def test_what_keeps_a_state_has_no_contract() -> None:
    with pytest.raises(Refuted, match="keeps a state or is random"):
        planish.audit(
            Counted(), inputs=torch.randn(3, 8), contracts={"planish_tests::counted": {"rows": [0]}}
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"Op": "elementwise"}, "name the operator as domain::Name"),
        ({"ai.onnx::ReduceMax": "elementwise"}, "Planish's to know"),
        ({"com.microsoft::QAttention": {"rows": [0]}}, "Planish's to know"),
        ({"aten::amax": {"rows": [0]}}, "Planish's to know"),
        ({"my::Op": "rows"}, "give elementwise, or"),
        ({"my::Op": {"row": [0]}}, "give elementwise, or"),
        ({"my::Op": {"rows": ["first"]}}, "give axes, or public, not"),
        ({"my::Op": {"rows": ["public"]}}, "no input lies by rows"),
        ({"my::Op": {"rows": [0], "shapes": [[0.1]]}}, "in quotes"),
    ],
)
def test_a_contract_is_read_strictly(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadContract, match=message):
        planish.audit(custom(tmp_path / "m.onnx"), contracts=given)


def test_in_a_spec_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = custom(tmp_path / "m.onnx")
    told = tmp_path / "spec.yaml"
    told.write_text(yaml.safe_dump({"contracts": ROWS}))
    assert cli.main(["audit", str(path)]) == 3
    assert cli.main(["audit", str(path), "--spec", str(told)]) == 0
    assert "as declared, and not tried" in capsys.readouterr().out
    told.write_text(yaml.safe_dump({"contracts": ROWS, "custom_ops": ["/not/there.so"]}))
    assert cli.main(["audit", str(path), "--spec", str(told)]) == 0
    assert "not/there.so" in capsys.readouterr().out.replace("\n", "")
