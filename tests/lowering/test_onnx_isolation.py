"""What Planish lowers to ONNX keeps requests apart: every family, for every batch size."""

from pathlib import Path

import pytest

from planish.ir.isolation.labels import Labels
from planish.ir.isolation.programs import analyse_onnx
from planish.lowering.onnx.lower import MODEL_FILE, lower
from planish.lowering.onnx.target import CPU
from support.captured import captured
from support.models import FAMILIES


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_proven_isolated(family: str, tmp_path: Path) -> None:
    lower(captured(family)[1], tmp_path, CPU)
    found = analyse_onnx(tmp_path / MODEL_FILE, Labels())
    assert found.verdict == "isolated", found.findings
    assert not found.unknown_operators
