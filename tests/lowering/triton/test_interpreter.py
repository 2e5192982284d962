"""The numerics of generated kernels, in Triton's interpreter.

The interpreter replaces Triton's functions for a whole process, so these run in others.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("interpreted_*.py"))

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def interpreted(marks: str) -> None:
    # numpy warns where the functions of a masked lane overflow
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *FILES,
    ]
    quiet = ["-W", "ignore::RuntimeWarning", "-W", "ignore:TRITON_DEFAULT_FP_FUSION"]
    done = subprocess.run(
        [*command, "-m", marks, *quiet],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def test_kernels_compute_what_they_say() -> None:
    assert len(FILES) == 4
    interpreted("not slow and not gpu")


@pytest.mark.slow
def test_kernels_compute_what_they_say_at_length() -> None:
    interpreted("slow and not gpu")
