"""Integer kernels: sums are exact, by the fast kernels where these allow it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from planish.runtime import ort_backend
from planish.runtime.machine import this_machine
from planish.runtime.ort_backend import OnnxBackend
from planish.runtime.saturation import DEPTH, extreme_product, saturates


def test_a_session_multiplies_the_largest_integers_exactly(tmp_path: Path) -> None:
    (tmp_path / "product.onnx").write_bytes(extreme_product())
    backend = OnnxBackend(tmp_path / "product.onnx", "cpu")
    for rows in (1, 8, 300):
        sums = backend.run({"x": np.full((rows, DEPTH), 255, np.uint8)})["sums"]
        assert (sums == 255 * 127 * DEPTH).all()


@pytest.mark.parametrize("answer", [True, False])
def test_slow_kernels_are_asked_for_only_where_the_fast_ones_saturate(
    answer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    real = onnxruntime.InferenceSession

    def noted(model: Path, options: Any, **rest: Any) -> Any:
        given.append(options.get_session_config_entry("session.x64quantprecision"))
        return real(model, options, **rest)

    (tmp_path / "product.onnx").write_bytes(extreme_product())
    monkeypatch.setattr(ort_backend, "saturates", lambda: answer)
    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    OnnxBackend(tmp_path / "product.onnx", "cpu")
    assert given == [str(int(answer))]


def test_what_is_found_agrees_with_what_the_processor_says_of_itself() -> None:
    machine = this_machine()
    if machine.system != "Linux x86_64":
        pytest.skip("only Linux on x86 tells, and only x86 saturates")
    assert saturates() == (not {"avx_vnni", "avx512_vnni"} & {*machine.instructions})
