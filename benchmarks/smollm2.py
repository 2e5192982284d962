"""SmolLM2-135M: size, quality and speed of w4a16 and w8a16 against float32, in one run.

    python benchmarks/smollm2.py [--quick]

Each artifact is made by `planish convert` in a process of its own, whose time and peak memory are
recorded. Decoding is compared in turns with Planish's own float32 export (same operators, same KV
cache) and with transformers in eager float32. Raw figures go to `benchmarks/results/smollm2.json`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from planish import assets
from planish.runtime.bench import Benchmark, bench
from planish.runtime.evaluate import evaluate
from planish.runtime.session import Session

RESULTS = Path(__file__).parent / "results" / "smollm2.json"
FLOAT = "passes: []\n"


def convert(model: Path, recipe: str, folder: Path) -> dict[str, float]:
    """Run the command line; seconds and peak memory in MB."""
    command = [sys.executable, "-c", "import sys; from planish.cli import main; sys.exit(main())"]
    start = time.perf_counter()
    pid = subprocess.Popen(
        [*command, "convert", str(model), "-r", recipe, "-o", str(folder), "--json"],
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(pid.pid, 0)
    assert status == 0, f"convert to {recipe} failed"
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory_mb": usage.ru_maxrss / 1000,
    }


def nbytes(folder: Path) -> dict[str, int]:
    """Bytes of the two forms of an artifact, each counted alone."""
    onnx = sum(path.stat().st_size for path in (folder / "onnx").iterdir())
    weights = folder / "model.safetensors"
    return {"onnx": onnx, "model.safetensors": weights.stat().st_size if weights.exists() else 0}


def main() -> None:
    """Convert, evaluate, time, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds, w4a16 only")
    quick = parser.parse_args().quick
    tokens, rounds = (2048, 3) if quick else (16384, 5)
    model, text = assets.smollm2(), assets.fetch("wikitext2") / "test.parquet"
    found: dict[str, Any] = {"load_average_at_start": os.getloadavg(), "artifacts": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "float32.yaml").write_text(FLOAT)
        recipes = {"float32": str(folder / "float32.yaml"), "w4a16": "w4a16"}
        if not quick:
            recipes["w8a16"] = "w8a16"
        for label, recipe in recipes.items():
            print(f"convert {label}", flush=True)
            made = convert(model, recipe, folder / label)
            session = Session.open(folder / label)
            quality = evaluate(session, text, max_tokens=tokens)
            found["artifacts"][label] = {
                "convert": made,
                "bytes": nbytes(folder / label),
                "perplexity": quality.perplexity.value,
                "tokens": quality.perplexity.tokens,
            }
            print(json.dumps(found["artifacts"][label], indent=2), flush=True)
        pairs = [(label, folder / "float32") for label in recipes if label != "float32"]
        for label, against in [*pairs, ("w4a16", model)]:
            result = _bench(folder / label, against, rounds)
            found[f"{label} against {against.name}"] = result.to_json()
            print("\n".join(result.verdicts), flush=True)
    found["load_average_at_end"] = os.getloadavg()
    found["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


def _bench(folder: Path, against: Path, rounds: int) -> Benchmark:
    is_artifact = (against / "planish.json").is_file()
    other = Session.open(against) if is_artifact else against
    return bench(Session.open(folder), other, rounds=rounds)


if __name__ == "__main__":
    main()
