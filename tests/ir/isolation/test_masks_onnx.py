"""Masks of packed batches in ONNX: what torch writes, and the operator of attention itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

import planish
from support.corpus_masks import ISOLATED, LEAKS, All, Case
from support.corpus_packed import WIDTH

AUTO = torch.export.Dim.AUTO
IDS = np.array([0, 0, 0, 1, 2, 2, 2])
OWN = {
    name: case
    for name, case in ISOLATED.items()
    if name.startswith(("added, the", "one less", "blocks that", "written out", "without a"))
}
MIXED = {
    name: LEAKS[name]
    for name in (
        *("a mask that is not low", "requests up to one's own", "a softmax over queries"),
        *("a mask after the softmax", "values again without a mask", "values of other rows"),
        *("the first row sees nothing, so all", "the logarithm of a softmax"),
    )
}


def moved(path: Path, x: np.ndarray) -> list[bool]:
    """Whether a request is given something else when another request's rows change."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    before: Sequence[Any] = session.run(None, {"x": x, "ids": IDS})
    found = [False] * len(before)
    for request in range(3):
        own = request == IDS
        changed = x.copy()
        changed[own] = np.random.default_rng(request).normal(size=x[own].shape) * 9
        after: Sequence[Any] = session.run(None, {"x": changed, "ids": IDS})
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            found[number] |= not np.array_equal(one[~own], other[~own])
            assert not np.array_equal(one[own], other[own])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("cases", "isolated"), [(OWN, True), (MIXED, False)])
def test_exported(tmp_path: Path, cases: Mapping[str, Case], isolated: bool) -> None:
    torch.manual_seed(0)
    given = (torch.randn(7, WIDTH), torch.from_numpy(IDS))
    program: Any = torch.onnx.export(
        All(cases).eval(), given, input_names=["x", "ids"], dynamic_shapes=({0: AUTO},) * 2
    )
    path = tmp_path / "masks.onnx"
    program.save(path)
    report = planish.audit(path, segment_ids=["ids"])
    said = [one.verdict == "isolated" for one in report.outputs]
    assert said == [isolated] * len(cases)
    assert moved(path, given[0].numpy()) == [not isolated] * len(cases)


def attention(path: Path, mask: str, **attributes: Any) -> Path:
    """`Attention` of x [N, 8] to itself by a mask of `ids` [N], of truth values or added."""
    nodes = [
        helper.make_node("Unsqueeze", ["ids", "one"], ["rows"]),
        helper.make_node("Equal", ["rows", "ids"], ["truths"]),
        helper.make_node("Where", ["truths", "zero", "low"], ["added"]),
        helper.make_node("Unsqueeze", ["x", "zeroth"], ["heads"]),
        helper.make_node(
            "Attention", ["heads", "heads", "heads", mask], ["mixed"],
            q_num_heads=2, kv_num_heads=2, **attributes,
        ),
        helper.make_node("Squeeze", ["mixed", "zeroth"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "masked",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", WIDTH])],
        [
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
            helper.make_tensor("low", TensorProto.FLOAT, [], [float(np.finfo(np.float32).min)]),
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            helper.make_tensor("zeroth", TensorProto.INT64, [1], [0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("mask", ["truths", "added"])
def test_attention(tmp_path: Path, mask: str) -> None:
    path = attention(tmp_path / "attention.onnx", mask)
    assert planish.audit(path, segment_ids=["ids"]).verdict == "isolated"
    x = np.random.default_rng(0).normal(size=(7, WIDTH)).astype(np.float32)
    assert moved(path, x) == [False]


def test_attention_whose_scores_are_capped(tmp_path: Path) -> None:
    """The version decides whether the mask is added before the cap."""
    path = attention(tmp_path / "attention.onnx", "added", softcap=5.0)
    assert planish.audit(path, segment_ids=["ids"]).verdict == "leaks"


def test_attention_without_its_mask(tmp_path: Path) -> None:
    path = attention(tmp_path / "attention.onnx", "")
    assert planish.audit(path, segment_ids=["ids"]).verdict == "leaks"
