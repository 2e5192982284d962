"""Planish's audit and google-deepmind's batch-isolation-checker on the same ONNX files.

    python benchmarks/audit_side_by_side.py [--checker DIR --jaxonnxruntime DIR --python PYTHON]

Needs Linux, checkouts of google-deepmind/batch-isolation-checker and google/jaxonnxruntime, and a
Python environment with what the checker's lock file names. Each file is judged by either tool in a
process of its own, on one core, with a time limit. Judged are the real models of `planish.assets`,
and the small graphs of `tests/support/onnx_corpus.py`, of which is known whether they leak: the
tests run them.

Planish reads each file as it is. The checker wants fixed sizes, known outputs and no input that all
share, so it is given a copy in which the sizes are fixed (a batch of 4, where the file leaves it
open), the outputs' shapes are those of a run, and shared inputs are constants. The small graphs
are of opset 21, of which it knows few operators: their copies are declared as opset 19 where a run
then gives the same. Nothing else is changed.

Without the three options Planish alone judges the files again, and the checker's results are those
of the run before.

Raw figures go to `benchmarks/results/audit_side_by_side.json`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from audit_subjects import Subject, fixed, real, small

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "audit_side_by_side.json"
LIBRARIES = ("torch", "onnx", "onnxruntime", "numpy")

PLANISH = """
import json, sys, time
start = time.perf_counter()
from pathlib import Path
from planish.auditing import audit
options = json.loads(sys.argv[2])
report = audit(sys.argv[1], **options)
high = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print(json.dumps({
    "verdict": None if report.verdict == "unproven" else report.verdict,
    "seconds": report.seconds, "process_seconds": time.perf_counter() - start,
    "cpu_seconds": time.process_time(), "peak_memory_mb": int(high) / 1000,
}))
"""


def run(command: list[str], paths: list[Path], limit: float) -> dict[str, Any]:
    """Give what a process prints in its last line, or why there is none."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {"verdict": None, "error": f"no answer within {limit:.0f} s"}
    if done.returncode:
        return {"verdict": None, "error": f"the process ended with {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(subject: Subject, told: argparse.Namespace, before: Mapping[str, Any]) -> Any:
    """Have both tools judge one file; the checker's result of before where it is not there."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "model.onnx"
        onnx.save(subject.proto, whole)
        ours = [sys.executable, "-c", PLANISH, str(whole), json.dumps(subject.options)]
        return {
            "truth": subject.truth,
            "sizes": subject.sizes,
            "planish": run(ours, [], told.limit),
            "checker": checked(subject, told, folder) if told.checker else before["checker"],
        }


def checked(subject: Subject, told: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Have the checker judge a copy of one file."""
    copy = Path(folder) / "fixed.onnx"
    onnx.save(fixed(subject), copy)
    axes = json.dumps(subject.axes)
    theirs = [told.python, str(Path(__file__).with_name("audit_checker.py")), str(copy), axes]
    return run(theirs, [told.checker, told.jaxonnxruntime], told.limit)


def summary(rows: Mapping[str, Any], tool: str) -> dict[str, Any]:
    """Count the verdicts of one tool, by truth where that is known; give medians and maxima."""
    verdicts = Counter(
        f"{row['truth'] or 'all'}: {row[tool]['verdict'] or 'none'}" for row in rows.values()
    )
    judged = [row[tool] for row in rows.values() if row[tool]["verdict"]]
    kept = ("seconds", "cpu_seconds", "peak_memory_mb")
    return {
        "verdicts": dict(verdicts),
        "median": {name: float(np.median([one[name] for one in judged])) for name in kept},
        "maximum": {name: max(one[name] for one in judged) for name in kept},
    }


def commit(checkout: Path) -> str | None:
    """Give the commit of a checkout, if it is one."""
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def judged(
    subjects: Mapping[str, Subject], told: argparse.Namespace, before: Mapping[str, Any]
) -> dict[str, Any]:
    """Have every file judged, print a line each, and say where and by what."""
    load = os.getloadavg()
    rows: dict[str, Any] = {}
    for name, subject in subjects.items():
        row = rows[name] = compare(subject, told, before.get("files", {}).get(name, {}))
        cells = [f"{row[tool]['verdict'] or 'none':<9}" for tool in ("planish", "checker")]
        print(*cells, f"{row['truth'] or '':<9}", name, row["checker"].get("error", ""), flush=True)
    return {
        "summary": {tool: summary(rows, tool) for tool in ("planish", "checker")},
        "load_average_at_start": load,
        "load_average_at_end": os.getloadavg(),
        "machine": {"processor": platform.machine(), "python": platform.python_version()},
        "versions": {name: version(name) for name in LIBRARIES},
        "commits": {
            **before.get("commits", {}),
            "planish": commit(ROOT),
            **{
                name: commit(checkout)
                for name, checkout in (
                    ("batch-isolation-checker", told.checker),
                    ("jaxonnxruntime", told.jaxonnxruntime),
                )
                if checkout
            },
        },
        "files": rows,
    }


def main() -> None:
    """Judge every file by both, print a line each, and write the results."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--checker", type=Path, help="a checkout of the checker")
    options.add_argument("--jaxonnxruntime", type=Path, help="a checkout of that")
    options.add_argument("--python", help="the interpreter that has its libraries")
    options.add_argument("--limit", type=float, default=600, help="seconds for a file and tool")
    options.add_argument("--only", choices=("real", "small"), help="leave the others as they were")
    told = options.parse_args()
    if len({bool(one) for one in (told.checker, told.jaxonnxruntime, told.python)}) > 1:
        options.error("give --checker, --jaxonnxruntime and --python together, or none of them")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for kind, subjects in (("real", real), ("small", small)):
        if told.only in (None, kind):
            found[kind] = judged(subjects(), told, found.get(kind, {}))
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
