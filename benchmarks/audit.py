"""Auditing real models: verdict, seconds, peak memory of each, in a process of its own.

    python benchmarks/audit.py

The models are those that packages of the index carry (`planish.assets`), float, weight-only and
dynamically quantized, and SmolLM2 as a checkpoint, whose capture is timed apart from its analysis.
Raw figures go to `benchmarks/results/audit.json`.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from planish import assets

RESULTS = Path(__file__).parent / "results" / "audit.json"

ONE = """
import json, resource, sys, time
from pathlib import Path
from planish.auditing import audit
start = time.perf_counter()
import planish.ir.flow.onnx
imported = time.perf_counter() - start
report = audit(sys.argv[1])
again = audit(sys.argv[1]) if sys.argv[1].endswith(".onnx") else report
print(json.dumps({
    "verdict": report.verdict, "nodes": report.nodes, "findings": len(report.findings),
    "unknown_operators": dict(report.unknown_operators), "first_seconds": report.seconds,
    "warm_seconds": again.seconds, "import_seconds": imported,
    "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
}))
"""

ANALYSIS = """
import json, sys, time
from planish.ir.capture.meta import from_config
from planish.ir.isolation.programs import analyse_program
start = time.perf_counter()
program = from_config(sys.argv[1])
captured = time.perf_counter() - start
seconds = []
for _ in range(5):
    start = time.perf_counter()
    analysis = analyse_program(program)
    seconds.append(time.perf_counter() - start)
print(json.dumps({
    "verdict": analysis.verdict, "nodes": len(program.graph.nodes), "capture_seconds": captured,
    "analysis_seconds": seconds,
}))
"""


def run(script: str, target: Path) -> dict[str, Any]:
    """Give what a script prints of one target, run by one thread in a fresh interpreter."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Audit every model, print a line each, and write the results."""
    found: dict[str, Any] = {"load_average_at_start": os.getloadavg(), "models": {}}
    files = [
        (name, path)
        for name in assets.ASSETS
        if name.startswith("onnx-")
        for path in sorted(assets.fetch(name).glob("*.onnx"))
    ]
    for name, path in files:
        one = {**run(ONE, path), "bytes": path.stat().st_size}
        found["models"][f"{name}/{path.name}"] = one
        told = f"{one['verdict']:<9} {one['nodes']:>5} nodes  {one['warm_seconds']:.3f} s"
        print(f"{told}  {one['peak_memory_mb']:.0f} MB  {name}/{path.name}", flush=True)
    found["smollm2"] = run(ANALYSIS, assets.smollm2())
    print(json.dumps(found["smollm2"]))
    found["load_average_at_end"] = os.getloadavg()
    found["seconds_since_epoch"] = time.time()
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
