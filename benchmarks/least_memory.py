"""In how little memory GPTQ runs: Planish beside llm-compressor and GPTQModel.

    python benchmarks/least_memory.py [--llmcompressor PYTHON] [--gptqmodel PYTHON]
                                      [--limits 0.85 1.05 1.4 1.7 2.1] [--samples 128]

As `quantization.py`, with SmolLM2-135M: the same drivers, samples and options. Each tool runs in a
control group of Linux that may use so many GB (10^9 bytes), from the least limit on, until it
comes to its end within twenty minutes. What a mapped file holds is taken back by the system first,
so that unlike the peak of a process (`quantization.json`) this is what a tool needs. Wants to be
root, on a machine without swap. Figures go to `benchmarks/results/least_memory.json`; tools that
are not named stay.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantization import DRIVER, ENVIRONMENT, prepare

from planish.runtime.machine import this_machine

RESULTS = Path(__file__).parent / "results" / "least_memory.json"
GROUPS = Path("/sys/fs/cgroup")
LIMITS = (0.85, 1.05, 1.4, 1.7, 2.1)
METHOD = "gptq"
LONGEST = 1200
"""Seconds that a tool gets."""


@contextmanager
def control_group(limit: float) -> Iterator[Path]:
    """The file that takes the processes of a new group, which may use so many GB."""
    old = (GROUPS / "memory").is_dir()
    tree = GROUPS / "memory" if old else GROUPS
    group = tree / f"planish-{time.time_ns()}"
    group.mkdir()
    try:
        file = group / ("memory.limit_in_bytes" if old else "memory.max")
        file.write_text(str(int(limit * 1e9)))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def tried(python: str, tool: str, limit: float, given: tuple[str, ...]) -> dict[str, Any]:
    """Whether a tool came to its end with so many GB, and after how many seconds it ended."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, control_group(limit) as processes:
        enter = f'echo $$ > {processes} && exec "$@"'
        driver = (python, "-P", str(DRIVER), "quantize", tool, METHOD, *given, f"{scratch}/out")
        code = _code(["sh", "-c", enter, "sh", *driver])
    seconds = time.perf_counter() - start
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"{tool} failed by something else than memory: {code}")
    return {"limit_gb": limit, "ended": code == 0, "seconds": seconds}


def _code(command: list[str]) -> int:
    """With what a command ends, or is ended: it may read its files again and again for hours."""
    try:
        return subprocess.run(
            command, stdout=subprocess.DEVNULL, check=False, env=ENVIRONMENT, timeout=LONGEST
        ).returncode
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL


def main() -> None:
    """Try each tool, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llmcompressor", help="a Python that has llm-compressor")
    parser.add_argument("--gptqmodel", help="a Python that has GPTQModel")
    parser.add_argument("--limits", type=float, nargs="+", default=LIMITS)
    parser.add_argument("--samples", type=int, default=128)
    asked = parser.parse_args()
    pythons = {
        "planish": sys.executable,
        "llmcompressor": asked.llmcompressor,
        "gptqmodel": asked.gptqmodel,
    }
    found = json.loads(RESULTS.read_text())["tools"] if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        trial = prepare(
            argparse.Namespace(model="smollm2", samples=asked.samples, windows=1, questions=1),
            Path(scratch),
        )
        given = (str(trial.group), str(trial.model), str(trial.samples))
        for tool, python in pythons.items():
            if python is None:
                continue
            found[tool] = []
            for limit in sorted(asked.limits):
                row = tried(python, tool, limit, given)
                found[tool].append(row)
                end = "came to its end" if row["ended"] else "was ended"
                print(f"{tool:14} {limit:5.2f} GB  {end} after {row['seconds']:.0f} s", flush=True)
                kept = {"machine": asdict(this_machine()), "samples": asked.samples, "tools": found}
                RESULTS.write_text(json.dumps(kept, indent=2) + "\n")
                if row["ended"]:
                    break


if __name__ == "__main__":
    main()
