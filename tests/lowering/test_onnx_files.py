"""The files that lowering writes: names, structure, bytes."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from planish.ir.capture.export import from_module
from planish.ir.program import Program
from planish.lowering.onnx.lower import DATA_FILE, MODEL_FILE, lower
from support.captured import captured


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    folder = tmp_path_factory.mktemp("llama")
    lower(captured("llama")[1], folder)
    return onnx.load(folder / MODEL_FILE)


def test_inputs_and_outputs_have_the_customary_names(llama: onnx.ModelProto) -> None:
    def shapes(values: object) -> dict[str, list[str | int]]:
        return {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in values  # type: ignore[attr-defined]
        }

    batch, length, past, total = (
        "batch_size",
        "sequence_length",
        "past_sequence_length",
        "total_sequence_length",
    )
    given, returned = shapes(llama.graph.input), shapes(llama.graph.output)
    assert given["input_ids"] == given["position_ids"] == [batch, length]
    assert given["attention_mask"] == [batch, total]
    assert given["past_key_values.1.value"] == [batch, 2, past, 16]
    assert returned["logits"] == [batch, length, 101]
    assert returned["present.0.key"] == [batch, 2, total, 16]


def test_weights_keep_their_names_and_layout(llama: onnx.ModelProto) -> None:
    program = captured("llama")[1]
    stored = {one.name: list(one.dims) for one in llama.graph.initializer}
    for name, tensor in program.tensors.items():
        assert stored[name] == list(tensor.shape)


def test_a_block_is_as_few_nodes_as_can_be(llama: onnx.ModelProto) -> None:
    kinds = Counter(node.op_type for node in llama.graph.node)
    expected = {"Attention": 2, "RotaryEmbedding": 4, "MatMul": 15}
    assert {kind: kinds[kind] for kind in expected} == expected
    assert kinds["SkipSimplifiedLayerNormalization"] == 4, "sums of the stream with their norms"
    assert kinds["RMSNormalization"] == 1, "that of the embeddings, which are no sum"
    assert kinds["Add"] == 1, "of lengths"
    assert kinds["Transpose"] == 15, "only weights are transposed, and those when loaded"
    assert kinds["Concat"] == 1, "the angles; caches are joined by the attention"


def test_nodes_tell_their_module_and_nothing_about_the_machine(llama: onnx.ModelProto) -> None:
    assert llama.producer_name == "planish"
    modules = {prop.value for node in llama.graph.node for prop in node.metadata_props}
    assert any(module.endswith("layers.1.self_attn.q_proj") for module in modules)
    names = [node.name for node in llama.graph.node]
    assert len(names) == len(set(names)), "names are unique"
    contents = llama.SerializeToString()
    for trace in (sys.prefix, str(Path.cwd()), "site-packages", ".py", "forward"):
        assert trace.encode() not in contents


def test_the_same_program_gives_the_same_bytes(tmp_path: Path) -> None:
    program = captured("qwen2")[1]
    program.save(tmp_path / "saved")
    for folder, one in (("a", program), ("b", program), ("c", Program.load(tmp_path / "saved"))):
        lower(one, tmp_path / folder)
    first, second, third = ((tmp_path / name / MODEL_FILE).read_bytes() for name in "abc")
    assert first == second
    assert first == third


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    program = captured("qwen2")[1]
    files = lower(program, tmp_path)
    assert files.nbytes < program.nbytes + 40_000
    stored = [one.name for one in onnx.load(tmp_path / MODEL_FILE).graph.initializer]
    assert sum("embed_tokens" in name or "lm_head" in name for name in stored) == 1


def test_large_models_have_a_file_of_weights(tmp_path: Path) -> None:
    program = captured("llama")[1]
    one, two = (
        lower(program, tmp_path / "one"),
        lower(program, tmp_path / "two", external_above=100_000),
    )
    assert [path.name for path in one.paths] == [MODEL_FILE]
    assert [path.name for path in two.paths] == [MODEL_FILE, DATA_FILE]
    assert two.paths[0].stat().st_size < 100_000
    assert two.nbytes == sum(path.stat().st_size for path in two.paths)
    feeds = {name: tensor.numpy() for name, tensor in program.samples[0].items()}
    logits = [
        onnxruntime.InferenceSession(files.paths[0]).run(["logits"], feeds)[0]
        for files in (one, two)
    ]
    np.testing.assert_array_equal(logits[0], logits[1])


class _Passing(nn.Module):
    """Returns an input as it is, one tensor twice, and a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(3.0))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x + self.weight
        return x, y, y, self.weight, x


def test_outputs_that_are_inputs_weights_or_one_another(tmp_path: Path) -> None:
    x = torch.randn(2, 3)
    program = from_module(_Passing().eval(), {"x": x})
    lower(program, tmp_path)
    given = onnxruntime.InferenceSession(tmp_path / MODEL_FILE).run(None, {"x": x.numpy()})
    for array, want in zip(given, program.run(x=x).values(), strict=True):
        torch.testing.assert_close(torch.from_numpy(array), want)
