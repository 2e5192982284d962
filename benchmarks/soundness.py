"""Ten thousand random programs, whose verdicts are compared with runs.

    python benchmarks/soundness.py

Programs are drawn as ATen and as ONNX, each by a seed of its own, and run with every request in
turn kept and all others replaced (`tests/support/fuzz.py`). Figures go to
`benchmarks/results/soundness.json`; programs that contradict their verdict are printed, and the
script ends with 1. It takes half an hour, most of which torch spends on shapes of ATen graphs.
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
KINDS = {"aten": (1000, 4000), "onnx": (1000, 8000)}
"""The first seed, and how many programs."""


def judge(kind: str, queue: Any) -> None:
    """Judge the programs of one kind."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.append(str(ROOT / "tests"))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    import torch  # noqa: PLC0415

    from planish.ir import ops  # noqa: PLC0415
    from support import fuzz, random_onnx_programs, random_programs  # noqa: PLC0415

    assert ops  # it declares planish's operators
    torch.set_num_threads(1)
    seed, number = KINDS[kind]
    made = {"aten": random_programs.programs, "onnx": random_onnx_programs.programs}[kind]
    start = time.perf_counter()
    count = fuzz.judged(made(seed), number)
    found = vars(count) | {"operators": dict(count.operators.most_common())}
    queue.put((kind, {"first_seed": seed, "seconds": time.perf_counter() - start, **found}))


def main() -> None:
    """Judge both kinds side by side, print their figures, and write them."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    several = [context.Process(target=judge, args=(kind, queue)) for kind in KINDS]
    for one in several:
        one.start()
    kinds = dict(queue.get() for _ in several)
    versions = {name: version(name) for name in LIBRARIES}
    RESULTS.write_text(json.dumps({"versions": versions, "kinds": kinds}, indent=2) + "\n")
    for kind, found in kinds.items():
        told = {name: one for name, one in found.items() if isinstance(one, int | float)}
        print(kind, told, *found["wrong"], sep="\n")
    sys.exit(any(found["wrong"] for found in kinds.values()))


if __name__ == "__main__":
    main()
