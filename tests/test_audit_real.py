"""Real models that packages carry: each with the verdict that running it confirms."""

from pathlib import Path

import pytest

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


def test_a_checkpoint_and_its_export(smollm2: Path) -> None:
    report = audit(smollm2)
    assert report.verdict == "isolated"
    assert len(report.outputs) == 61
