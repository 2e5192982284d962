"""Sessions: what they take and give, and what they refuse."""

import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from onnx import parser

from planish.lowering.artifact import BadArtifact
from planish.lowering.onnx.lower import lower
from planish.lowering.onnx.target import STANDARD
from planish.passes.quantize_weights import QuantizeWeights
from planish.runtime.backend import CannotOpen, RunFailed
from planish.runtime.causal import NotCausal, state_names
from planish.runtime.session import Session
from planish.runtime.values import BadInput
from support.captured import captured


def test_describes_inputs_and_outputs(artifacts: dict[str, Path], recurrent: Path) -> None:
    eager, onnx_model = (Session.open(artifacts[target]) for target in ("torch", "onnx"))
    assert list(map(str, eager.inputs))[:2] == [
        "input_ids: int64[B, T]",
        "attention_mask: int64[B, P+T]",
    ]
    assert list(map(str, onnx_model.inputs))[:2] == [
        "input_ids: int64[batch_size, sequence_length]",
        "attention_mask: int64[batch_size, total_sequence_length]",
    ]
    assert str(eager.outputs[0]) == "logits: float32[B, T, 260]"
    assert str(Session.open(recurrent).inputs[2]) == "past_embedded: float32[batch, past, 8]"
    assert onnx_model.provider == "cpu"


def test_run_equals_the_model(session: Session, llama: transformers.LlamaForCausalLM) -> None:
    tokens = torch.randint(260, (2, 5))
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        expected = llama(tokens, attention_mask=mask, position_ids=positions).logits.numpy()
    for given in (tokens, tokens.numpy(), tokens.tolist()):
        found = session.run(input_ids=given, attention_mask=mask.tolist())
        assert found["present.1.key"].shape == (2, 2, 5, 8)
        np.testing.assert_allclose(found["logits"][mask == 1], expected[mask == 1], atol=1e-5)


def test_extend_continues_where_it_stopped(session: Session, recurrent: Path) -> None:
    tokens = np.arange(12).reshape(2, 6)
    whole, _ = session.extend(tokens)
    _, cache = session.extend(tokens[:, :2])
    _, cache = session.extend(tokens[:, 2:5], cache=cache)
    last, cache = session.extend(tokens[:, 5:], cache=cache)
    np.testing.assert_allclose(last[:, 0], whole[:, 5], atol=1e-5)
    assert cache.mask.shape == (2, 6)
    _, cache = Session.open(recurrent).extend(tokens)
    assert set(cache.states) == {"past_embedded", "past_sum"}
    assert isinstance(cache.states["past_sum"], onnxruntime.OrtValue)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"tokens": [[1]]}, "unknown: tokens"),
        ({"input_ids": [[1]], "past_key_values.0.key": [0.0]}, "missing: attention_mask"),
        ({"input_ids": [[1.5]]}, "int64 matrix"),
        ({"input_ids": [[1], [2, 3]]}, "rows differ in length"),
        ({"input_ids": [[1]], "position_ids": [1]}, "has 1"),
        ({"input_ids": [[1]], "position_ids": [[1, 2]]}, "is 2 there, but 1 in input_ids"),
        ({"input_ids": [[1]], "position_ids": torch.tensor([[1.0]])}, "convert it to int64"),
        ({"input_ids": [[1, -1]]}, "given was -1"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "do not fit a mask"),
    ],
)
def test_refuses_what_does_not_fit(
    session: Session, inputs: dict[str, object], reason: str
) -> None:
    with pytest.raises(BadInput, match=reason):
        session.run(**inputs)


def test_names_what_failed_inside_the_model(session: Session) -> None:
    with pytest.raises(RunFailed, match=r"index out of range|out of data bounds"):
        session.run(input_ids=[[1000]])


def test_refuses_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(CannotOpen, match=r"holds neither onnx/model\.onnx"):
        Session.open(tmp_path)
    with pytest.raises(CannotOpen, match="is no folder"):
        Session.open(tmp_path / "missing")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(CannotOpen, match="cannot load"):
        Session.open(tmp_path)


def test_reads_the_manifest(recurrent: Path, tmp_path: Path) -> None:
    assert Session.open(recurrent).manifest == {}
    folder = shutil.copytree(recurrent, tmp_path / "artifact")
    (folder / "planish.json").write_text('{"format": 1, "target": "onnx"}')
    assert Session.open(folder).manifest["target"] == "onnx"
    (folder / "planish.json").write_text("{")
    with pytest.raises(BadArtifact, match="cannot be read"):
        Session.open(folder)


def test_refuses_cuda_where_there_is_none(
    artifacts: dict[str, Path], recurrent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CannotOpen, match="CPU only"):
        Session.open(artifacts["torch"], provider="cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(CannotOpen, match="no CUDA provider"):
        Session.open(recurrent, provider="cuda")


def test_threads_are_given_back(artifacts: dict[str, Path]) -> None:
    before = torch.get_num_threads()
    Session.open(artifacts["torch"], threads=1).run(input_ids=[[1]])
    assert torch.get_num_threads() == before


def test_models_without_a_cache_do_not_generate(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]>'
        "g (float[batch, 3] image) => (float[batch, 3] scores) { scores = Relu (image) }"
    )
    onnx.save(model, tmp_path / "onnx" / "model.onnx")
    session = Session.open(tmp_path)
    assert session.run(image=[[-1, 0, 2]])["scores"].tolist() == [[0, 0, 2]]
    with pytest.raises(BadInput, match="3 is 2 there, but 3 in the model"):
        session.run(image=np.zeros((1, 2), np.float32))
    with pytest.raises(NotCausal, match="does not generate"):
        session.generate([1, 2])


def test_bfloat16_is_float32_outside(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]>'
        "g (bfloat16[batch] x) => (bfloat16[batch] y) { y = Identity (x) }"
    )
    onnx.save(model, tmp_path / "onnx" / "model.onnx")
    given = torch.randn(50)
    given[0], given[1] = torch.nan, torch.inf
    found = Session.open(tmp_path).run(x=given)["y"]
    np.testing.assert_array_equal(found, given.bfloat16().float().numpy())
    assert found.dtype == np.float32


def test_states_are_matched_by_name() -> None:
    inputs = ("input_ids", "past_key_values.0.key", "past_conv.0")
    assert state_names(inputs, ("logits", "present.0.key", "present_conv.0")) == {
        "past_key_values.0.key": "present.0.key",
        "past_conv.0": "present_conv.0",
    }
    with pytest.raises(NotCausal, match=r"past_conv\.0"):
        state_names(inputs, ("logits", "present.0.key"))


@pytest.mark.parametrize("bits", [4, 8])
def test_standard_operators_leave_activations_alone(bits: Literal[4, 8], tmp_path: Path) -> None:
    program = QuantizeWeights(bits=bits, group_size=32)(captured("bert", layers=1)[1])
    lower(program, tmp_path / "onnx", STANDARD)
    (sample,) = program.samples
    expected = program.run(**sample)
    for name, got in Session.open(tmp_path).run(**sample).items():
        np.testing.assert_allclose(got, expected[name].numpy(), rtol=1e-4, atol=1e-5)
