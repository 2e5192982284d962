"""Ten thousand random programs, whose verdicts are compared with runs.

    python benchmarks/soundness.py [PROCESSES]

Programs are drawn as ATen and as ONNX, each by a seed of its own, and run with every request in
turn kept and all others replaced (`tests/support/fuzz.py`). Figures go to
`benchmarks/results/soundness.json`; programs that contradict their verdict are printed, and the
script ends with 1. It takes a quarter of an hour of one core.
"""

import json
import logging
import multiprocessing
import os
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "soundness.json"
LIBRARIES = ("torch", "onnx", "onnxruntime", "numpy")

CHUNK = 100
CHUNKS = {"aten": 16, "onnx": 86}
"""How many times so many programs, by kind; those of chunk n have the seeds from 10,000 n on."""


# Each process finds the helpers of the tests by it, and what they hand back.
sys.path.append(str(ROOT / "tests"))


def judge(chunk: tuple[str, int]) -> tuple[str, Any, float]:
    """Judge the programs of one chunk: their kind, the count, a processor's seconds."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    import torch  # noqa: PLC0415

    from planish.ir import ops  # noqa: PLC0415
    from support import fuzz, random_onnx_programs, random_programs  # noqa: PLC0415

    assert ops  # it declares planish's operators
    torch.set_num_threads(1)
    kind, number = chunk
    made: Any = {"aten": random_programs, "onnx": random_onnx_programs}[kind]
    start = time.process_time()
    count = fuzz.judged(made.programs(10_000 * number), CHUNK)
    return kind, count, time.process_time() - start


def main() -> None:
    """Judge both kinds side by side, print their figures, and write them."""
    processes = int(sys.argv[1]) if len(sys.argv) > 1 else os.cpu_count()
    chunks = [(kind, n + 1) for kind, number in CHUNKS.items() for n in range(number)]
    counts: dict[str, Any] = {}
    seconds = dict.fromkeys(CHUNKS, 0.0)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for kind, count, taken in pool.imap_unordered(judge, chunks):
            counts[kind] = counts[kind] + count if kind in counts else count
            seconds[kind] += taken
            print(f"{kind}: {counts[kind].programs} programs, {seconds[kind]:.0f} s", flush=True)
    found = {
        kind: {
            **vars(count),
            "operators": dict(count.operators.most_common()),
            "first_seeds": [10_000 * (n + 1) for n in range(CHUNKS[kind])],
            "cpu_seconds": seconds[kind],
        }
        for kind, count in counts.items()
    }
    versions = {name: version(name) for name in LIBRARIES}
    RESULTS.write_text(json.dumps({"versions": versions, "kinds": found}, indent=2) + "\n")
    for count in counts.values():
        print(count, *count.wrong, sep="\n")
        count.check()


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
