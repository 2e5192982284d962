"""Files that are not ONNX, or that two programs could understand differently, are refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from planish.ir.errors import PlanishError
from planish.ir.flow.lint import check, load
from planish.ir.flow.malformed import (
    AmbiguousGraph,
    AmbiguousTensor,
    ForeignData,
    Malformed,
    NotOnnx,
    UnknownFormat,
)
from planish.ir.flow.onnx import read_model
from support.onnx_written import graph, model, node


def sound() -> onnx.ModelProto:
    stored = {"w": np.ones((8,), np.float32)}
    return model([node("Mul", "x w", "a"), node("Neg", "a", "y")], {"x": ["B", 8]}, stored=stored)


def test_a_sound_model_passes() -> None:
    check(sound())


@pytest.mark.parametrize(
    "equation", ["ij,jk->ik", "...ij, ...jk -> ...ik", "bii", "aB,Bc", "ij->", ""]
)
def test_equations_of_letters_pass(equation: str) -> None:
    check(model([node("Einsum", "x x", "y", equation=equation)], {"x": ["B", 8]}))


@pytest.mark.parametrize("equation", ["abcd,ab35&>dc", "ij->jk->k", "i.j", "ij->a,b", b"\xff"])
def test_what_is_no_equation_is_refused(equation: str) -> None:
    with pytest.raises(AmbiguousGraph, match="takes letters"):
        check(model([node("Einsum", "x x", "y", equation=equation)], {"x": ["B", 8]}))


def cyclic(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[1] = "y"


def unsorted(proto: onnx.ModelProto) -> None:
    first = proto.graph.node.pop(0)
    proto.graph.node.append(first)


def undefined(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[1] = "nothing"


def twice(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].output[0] = "a"


def over_a_stored_tensor(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].output[0] = "w"


def two_of_a_name(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(proto.graph.initializer[0])


def no_such_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "elsewhere"


def a_shadow(proto: onnx.ModelProto) -> None:
    inner = graph([node("Neg", "x", "t")], {}, "t", stored={"w": np.ones(1, np.float32)})
    other = graph([node("Neg", "x", "e")], {}, "e")
    proto.graph.node.append(node("If", "x", "z", then_branch=inner, else_branch=other))


def an_attribute_twice(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].attribute.extend([helper.make_attribute("axis", n) for n in (0, 1)])


def a_function_of_onnx(proto: onnx.ModelProto) -> None:
    imports = [helper.make_opsetid("", 21)]
    nodes = [node("Softmax", "a", "b", axis=0)]
    proto.functions.append(helper.make_function("", "Neg", ["a"], ["b"], nodes, imports))


@pytest.mark.parametrize(
    "spoil",
    [
        cyclic,
        unsorted,
        undefined,
        twice,
        over_a_stored_tensor,
        two_of_a_name,
        no_such_output,
        a_shadow,
        an_attribute_twice,
        a_function_of_onnx,
    ],
)
def test_names_that_are_not_clear(spoil: Callable[[onnx.ModelProto], None]) -> None:
    proto = sound()
    spoil(proto)

    with pytest.raises(AmbiguousGraph):
        read_model(proto)


def tensor(proto: onnx.ModelProto) -> TensorProto:
    one: TensorProto = proto.graph.initializer[0]
    return one


def two_contents(proto: onnx.ModelProto) -> None:
    """O13 of the corpus of audits."""
    tensor(proto).float_data.extend([2.0] * 8)


def too_short(proto: onnx.ModelProto) -> None:
    tensor(proto).raw_data = b"1234"


def too_few(proto: onnx.ModelProto) -> None:
    tensor(proto).ClearField("raw_data")
    tensor(proto).float_data.extend([2.0] * 3)


def another_field(proto: onnx.ModelProto) -> None:
    tensor(proto).ClearField("raw_data")
    tensor(proto).int64_data.extend([2] * 8)


def huge(proto: onnx.ModelProto) -> None:
    tensor(proto).dims[:] = [2**40, 2**40]


def negative(proto: onnx.ModelProto) -> None:
    tensor(proto).dims[:] = [-8]


def no_type(proto: onnx.ModelProto) -> None:
    tensor(proto).data_type = 999


def inside_and_outside(proto: onnx.ModelProto) -> None:
    tensor(proto).external_data.add(key="location", value="w.bin")


def two_values(proto: onnx.ModelProto) -> None:
    attribute = helper.make_attribute("axis", 1)
    attribute.f = 0.5
    proto.graph.node[1].attribute.append(attribute)


def no_attribute_type(proto: onnx.ModelProto) -> None:
    attribute = helper.make_attribute("axis", 1)
    attribute.ClearField("type")
    proto.graph.node[1].attribute.append(attribute)


def another_attribute_type(proto: onnx.ModelProto) -> None:
    no_attribute_type(proto)
    proto.graph.node[1].attribute[0].type = onnx.AttributeProto.FLOAT


def in_a_function(proto: onnx.ModelProto) -> None:
    constant = helper.make_tensor("", TensorProto.FLOAT, (1,), [1.0])
    constant.raw_data = np.float32(2).tobytes()
    nodes = [node("Constant", "", "c", value=constant), node("Mul", "a c", "b")]
    imports = [helper.make_opsetid("", 21)]
    proto.functions.append(helper.make_function("own", "Hidden", ["a"], ["b"], nodes, imports))


def a_default_of_another_type(proto: onnx.ModelProto) -> None:
    in_a_function(proto)
    proto.functions[0].node[0].attribute[0].t.ClearField("raw_data")
    default = proto.functions[0].attribute_proto.add(name="axis", i=1)
    default.type = onnx.AttributeProto.FLOAT


@pytest.mark.parametrize(
    "spoil",
    [
        two_contents,
        too_short,
        too_few,
        another_field,
        huge,
        negative,
        no_type,
        inside_and_outside,
        two_values,
        no_attribute_type,
        another_attribute_type,
        in_a_function,
        a_default_of_another_type,
    ],
)
def test_tensors_that_are_not_clear(spoil: Callable[[onnx.ModelProto], None]) -> None:
    proto = sound()
    spoil(proto)

    with pytest.raises(AmbiguousTensor):
        read_model(proto)


def outside(proto: onnx.ModelProto, location: str, **more: str) -> None:
    one = tensor(proto)
    one.ClearField("raw_data")
    one.data_location = TensorProto.EXTERNAL
    for key, text in {"location": location, **more}.items():
        one.external_data.add(key=key, value=text)


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../w.bin", "a/../../w.bin", "C:\\w.bin", "..\\w"]
)
def test_data_outside_the_folder(location: str) -> None:
    proto = sound()
    outside(proto, location)

    with pytest.raises(ForeignData, match="outside"):
        read_model(proto)


def test_data_that_are_missing(tmp_path: Path) -> None:
    proto = sound()
    outside(proto, "w.bin")
    onnx.save(proto, tmp_path / "m.onnx")

    with pytest.raises(ForeignData, match=r"w\.bin"):
        read_model(tmp_path / "m.onnx")


def test_data_that_are_too_short(tmp_path: Path) -> None:
    proto = sound()
    outside(proto, "w.bin", offset="16")
    onnx.save(proto, tmp_path / "m.onnx")
    (tmp_path / "w.bin").write_bytes(bytes(32))

    with pytest.raises(ForeignData, match="too short"):
        read_model(tmp_path / "m.onnx")


def test_a_link_out_of_the_folder(tmp_path: Path) -> None:
    inner = tmp_path / "model"
    inner.mkdir()
    (tmp_path / "secret").write_bytes(bytes(32))
    (inner / "w.bin").symlink_to(tmp_path / "secret")
    proto = sound()
    outside(proto, "w.bin")
    onnx.save(proto, inner / "m.onnx")

    with pytest.raises(ForeignData, match="link"):
        read_model(inner / "m.onnx")


@pytest.mark.parametrize("version", [1, 999])
def test_unknown_formats(version: int) -> None:
    proto = sound()
    proto.ir_version = version

    with pytest.raises(UnknownFormat, match=str(version)):
        read_model(proto)


def test_two_versions_of_one_domain() -> None:
    proto = sound()
    proto.opset_import.append(helper.make_opsetid("ai.onnx", 11))

    with pytest.raises(UnknownFormat, match="more than once"):
        read_model(proto)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n", b"not a model at all", bytes(100)])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)

    with pytest.raises(NotOnnx):
        load(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotOnnx):
        load(tmp_path / "none.onnx")


def test_every_cut_of_a_file_is_refused_or_read(tmp_path: Path) -> None:
    content = sound().SerializeToString()
    path = tmp_path / "m.onnx"
    for end in range(0, len(content), 7):
        path.write_bytes(content[:end])
        try:
            read_model(path)
        except PlanishError as problem:
            assert isinstance(problem, Malformed)  # noqa: PT017


def test_damaged_files_are_refused_or_read(tmp_path: Path) -> None:
    content = sound().SerializeToString()
    random = np.random.default_rng(1)
    path = tmp_path / "m.onnx"
    for _ in range(300):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 3):
            damaged[place] = random.integers(0, 256)
        path.write_bytes(bytes(damaged))
        try:
            read_model(path)
        except PlanishError as problem:
            assert "\n" not in str(problem)  # noqa: PT017
