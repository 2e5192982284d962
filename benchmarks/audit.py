"""Auditing real models: verdict, seconds, peak memory of each, in a process of its own.

    python benchmarks/audit.py

The models are those that packages of the index carry (`planish.assets`), float, weight-only and
dynamically quantized, and SmolLM2 as a checkpoint, whose capture is timed apart from its analysis.
Where a model holds requests along other axes than the first (`audit_axes.py`), it is audited a
second time with those. What leaks is run, to see it leak.
Raw figures go to `benchmarks/results/audit.json`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audit_axes import AXES

from planish import assets
from planish.catalogue import ASSETS

RESULTS = Path(__file__).parent / "results" / "audit.json"

ONE = """
import json, sys, time
from pathlib import Path
start = time.perf_counter()
from planish.auditing import audit
import planish.ir.flow.onnx
imported = time.perf_counter() - start
options = json.loads(sys.argv[2])
report = audit(sys.argv[1], **options)
again = audit(sys.argv[1], **options)
high = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print(json.dumps({
    "verdict": report.verdict, "nodes": report.nodes, "findings": len(report.findings),
    "unknown_operators": dict(report.unknown_operators), "first_seconds": report.seconds,
    "warm_seconds": again.seconds, "import_seconds": imported,
    "peak_memory_mb": int(high) / 1000,
}))
"""

WITNESS = """
import json, sys
from planish.auditing import audit
from planish.confirm import CannotRun
options = json.loads(sys.argv[2])
try:
    report = audit(sys.argv[1], **options, witness=True)
except CannotRun as problem:
    print(json.dumps({"not_run": str(problem)}))
else:
    names = [one.name for one in report.outputs if one.verdict == "leaks"]
    seen = {one.output for one in report.witnesses}
    print(json.dumps({"leaking_outputs": names, "witnessed": sorted(seen)}))
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


def run(script: str, target: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Give what a script prints of one target, run by one thread in a fresh interpreter."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(target), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def audited(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Give what an audit says of a file, and whether a run shows the leaks it names."""
    found = {"options": options, **run(ONE, path, options)}
    if found["verdict"] == "leaks":
        found["witness"] = run(WITNESS, path, options)
    return found


def main() -> None:
    """Audit every model, print a line each, and write the results."""
    found: dict[str, Any] = {"load_average_at_start": os.getloadavg(), "models": {}}
    files = [
        (name, path)
        for name in ASSETS
        if name.startswith("onnx-")
        for path in sorted(assets.fetch(name).glob("*.onnx"))
    ]
    for name, path in files:
        ways = {"default": audited(path, {})}
        if path.name in AXES:
            ways["own axes"] = audited(path, AXES[path.name])
        found["models"][f"{name}/{path.name}"] = {"bytes": path.stat().st_size, **ways}
        for way, one in ways.items():
            told = f"{one['verdict']:<9} {one['nodes']:>5} nodes  {one['warm_seconds']:.3f} s"
            seen = f"  seen: {one['witness'].get('witnessed')}" if "witness" in one else ""
            told += f"  {one['peak_memory_mb']:.0f} MB  {name}/{path.name} ({way}){seen}"
            print(told, flush=True)
    found["smollm2"] = run(ANALYSIS, assets.smollm2(), {})
    print(json.dumps(found["smollm2"]))
    found["load_average_at_end"] = os.getloadavg()
    found["seconds_since_epoch"] = time.time()
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
