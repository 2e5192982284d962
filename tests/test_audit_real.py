"""Real models that packages carry: each with the verdict that running it confirms."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from planish import assets
from planish.auditing import audit
from planish.confirm import confirm, runnable
from planish.repairing import fix

pytestmark = pytest.mark.slow

ISOLATED = [
    ("onnx-minilm-int8", "model.onnx"),
    ("onnx-paraphrase", "paraphrase-MiniLM-L3-v2.onnx"),
    ("onnx-mobilenet", "mobilenetv2-7.onnx"),
    ("onnx-ocr", "PP-OCRv6_det_small.onnx"),
    ("onnx-ocr", "PP-OCRv6_rec_small.onnx"),
    ("onnx-ocr", "ch_ppocr_mobile_v2.0_cls_mobile.onnx"),
]
_STATE: dict[str, Any] = {"batch_axes": {"state": 1}, "output_axes": {"stateN": 1}}
_RATE: dict[str, Any] = {**_STATE, "shared": ["sr"]}
RECURRENT: dict[str, dict[str, Any]] = {
    "silero_vad.onnx": _RATE,
    "silero_vad_16k_op15.onnx": _RATE,
    "silero_vad_16k_sequence.onnx": {
        "batch_axes": {"input": None, "h": 1, "c": 1},
        "output_axes": {"hn": 1, "cn": 1},
    },
    "silero_vad_half.onnx": _STATE,
    "silero_vad_op18_ifless.onnx": _RATE,
    "silero_vad_openvino_16k.onnx": _STATE,
}
"""Where requests lie in files whose first axis is layers or time; most hold branches on sizes."""

DYNAMIC = {
    "onnx-minilm-dynamic": ("model_quantized.onnx", 48),
    "onnx-ner-dynamic": ("model.onnx", 17),
    "onnx-reranker-dynamic": ("model.onnx", 34),
}
"""Quantized with one scale for the whole batch, at so many places."""


@pytest.mark.parametrize(("asset", "file"), ISOLATED)
def test_float_and_weight_only_models_are_isolated(asset: str, file: str) -> None:
    report = audit(assets.fetch(asset) / file)
    assert report.verdict == "isolated", report.findings
    assert report.unknown_operators == {}


@pytest.mark.parametrize(("asset", "file"), [ISOLATED[0], ISOLATED[1]])
def test_running_them_does_not_contradict_the_proof(asset: str, file: str, tmp_path: Path) -> None:
    path = assets.fetch(asset) / file
    audit(path, witness=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("asset", DYNAMIC)
def test_dynamic_quantization_is_found_witnessed_and_repaired(asset: str, tmp_path: Path) -> None:
    file, places = DYNAMIC[asset]
    path = assets.fetch(asset) / file
    report = audit(path)
    assert report.verdict == "leaks"
    assert len(report.findings) == places
    assert {one.operator for one in report.findings} == {"ai.onnx::DynamicQuantizeLinear@11"}
    assert all(one.path[0].operator == "input" for one in report.findings)
    confirmed = confirm(report, runnable(path), tmp_path)
    assert all(one.witness for one in confirmed.findings)
    fixed = fix(path, tmp_path / "fixed.onnx")
    assert len(fixed.changes) == places
    assert fixed.report.verdict == "isolated"
    audit(tmp_path / "fixed.onnx", witness=tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("file", RECURRENT)
def test_recurrent_models_leak_along_the_first_axis_and_not_along_their_own(
    file: str, tmp_path: Path
) -> None:
    path = assets.fetch("onnx-silero") / file
    assert audit(path).verdict == "leaks"
    report = audit(path, **RECURRENT[file])
    assert report.verdict == "isolated", report.findings
    assert report.unknown_operators == {}
    confirm(report, runnable(path), tmp_path)


@pytest.mark.parametrize("file", [one for one in RECURRENT if one != "silero_vad.onnx"])
def test_a_run_shows_that_they_leak_along_the_first_axis(file: str) -> None:
    """Of the one left out, see the next."""
    report = audit(assets.fetch("onnx-silero") / file, witness=True)
    assert report.witnesses


@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_state_along_the_first_axis_reaches_both_of_its_rows(rate: int) -> None:
    """Row 1 of `state` is the cell; two requests that are taken to be its rows meet."""
    session = onnxruntime.InferenceSession(assets.fetch("onnx-silero") / "silero_vad.onnx")
    feeds = {
        "input": np.zeros((2, rate * 32 // 1000), np.float32),
        "state": np.zeros((2, 2, 128), np.float32),
        "sr": np.array(rate),
    }
    before = session.run(None, feeds)
    feeds["state"][1] = 1
    for old, new in zip(before, session.run(None, feeds), strict=True):
        assert not np.array_equal(np.asarray(old)[0], np.asarray(new)[0])


@pytest.mark.parametrize("file", ["silero_vad_half.onnx", "silero_vad_16k_op15.onnx"])
def test_runs_fail_where_the_audit_assumes_that_they_do(file: str) -> None:
    """Of 16 kHz, lengths from 704 on leave more than one step for the recurrent cell."""
    path = assets.fetch("onnx-silero") / file
    (told,) = (one for one in audit(path).assumptions if one.startswith("every run fails where"))
    assert "(sequence - 192)/128" in told
    session = onnxruntime.InferenceSession(path)
    names = {one.name for one in session.get_inputs()}
    for length, runs in ((192, True), (512, True), (703, True), (704, False), (1500, False)):
        feeds = {
            "input": np.zeros((2, length), np.float32),
            "state": np.zeros((2, 2, 128), np.float32),
            "sr": np.array(16000),
        }
        given = {name: one for name, one in feeds.items() if name in names}
        if runs:
            session.run(None, given)
        else:
            with pytest.raises(InvalidArgument):
                session.run(None, given)


def test_a_checkpoint_and_its_export(smollm2: Path) -> None:
    report = audit(smollm2)
    assert report.verdict == "isolated"
    assert len(report.outputs) == 61
