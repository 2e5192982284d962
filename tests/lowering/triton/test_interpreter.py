"""The numerics of generated kernels, in Triton's interpreter.

The interpreter replaces Triton's functions for a whole process, so these run in others.
"""

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("interpreted_*.py"))

HAS_TRITON = importlib.util.find_spec("triton") is not None
COUNTS = HAS_TRITON and (
    Version(version("triton")) >= Version("3.7") or Version(version("numpy")) < Version("2.4")
)
"""Whether the interpreter can count: bounds of loops are arrays of one number to it."""

pytestmark = [
    pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed"),
    pytest.mark.skipif(
        HAS_TRITON and not COUNTS, reason="this Triton's interpreter needs numpy before 2.4"
    ),
]


def interpreted(marks: str) -> None:
    # numpy warns where the functions of a masked lane overflow, and of how older Tritons count
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *FILES,
    ]
    quiet = ["ignore::RuntimeWarning", "ignore:TRITON_DEFAULT_FP_FUSION", "ignore:Conversion of"]
    done = subprocess.run(
        [*command, "-m", marks, *(part for one in quiet for part in ("-W", one))],
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
