"""Axes of ONNX files: initializers are permuted, the graph stays, and so does the answer."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from planish.ir.axes.axes import find_in, order
from planish.ir.axes.terms import leaves
from planish.ir.carried import pairs
from planish.ir.flow.onnx import read_model
from planish.lowering.onnx.lower import lower
from support.captured import captured

SIZES = {
    "batch_size": 2,
    "sequence_length": 5,
    "past_sequence_length": 0,
    "total_sequence_length": 5,
}


def results(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    given = {one.name: feeds[one.name] for one in session.get_inputs()}
    # Caches are permuted with the rest: only what is no state counts.
    names = [one.name for one in session.get_outputs() if not one.name.startswith("present")]
    return [np.asarray(one) for one in session.run(names, given)]


def feeds_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(0)
    feeds = {}
    for one in model.graph.input:
        dims = one.type.tensor_type.shape.dim
        shape = [SIZES.get(dim.dim_param, dim.dim_value) for dim in dims]
        assert all(n or dim.dim_param in SIZES for n, dim in zip(shape, dims, strict=True))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type)
        if np.issubdtype(dtype, np.floating):
            feeds[one.name] = chance.standard_normal(shape).astype(dtype)
        else:
            feeds[one.name] = np.ones(shape, dtype)
    return feeds


@pytest.mark.parametrize("family", ["bert", "llama", "mixtral", "resnet", "gpt2", "swin"])
def test_permuting_initializers_changes_nothing(family: str, tmp_path: Path) -> None:
    lower(captured(family, 1)[1], tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    flow = read_model(tmp_path / "model.onnx")
    found = find_in(flow, pairs((one.name for one in flow.inputs), flow.outputs))
    assert found.reasons == ()
    moved = {
        axis.leaf: torch.arange(int(str(axis.size))).roll(1)
        for axis in found.all
        if axis.allows("permute")
    }
    assert len(moved) > 2
    feeds = feeds_of(model)
    expected = results(model, feeds)
    changed = 0
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        for dim, term in enumerate(found.terms[tensor.name]):
            if any(leaf in moved for leaf in leaves(term)):
                array = np.take(array, order(term, moved).numpy(), dim)
                changed += 1
        tensor.CopyFrom(onnx.numpy_helper.from_array(array.copy(), tensor.name))
    assert changed > len(moved)
    for got, want in zip(results(model, feeds), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
