"""One verdict by google-deepmind's batch-isolation-checker, in an environment that has it.

    PYTHONPATH=CHECKER:JAXONNXRUNTIME python benchmarks/audit_checker.py FILE.onnx '{"state": 1}'

Prints one line of JSON. The file has its sizes fixed already (`audit_side_by_side.py` does that);
the object names the inputs and outputs whose batch does not lie along axis 0. What is called, and
in which order, is what the checker's own survey of public models calls once sizes are fixed.
"""

# The checker and its libraries are not in the environment of the type checkers.
# pyright: reportMissingImports=false

import contextlib
import io
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

VERDICTS = {"PASSED": "isolated", "FAILED": "leaks"}
LIBRARIES = ("jax", "onnx", "onnxruntime", "numpy")


def judge(path: str, axes: dict[str, int]) -> dict[str, Any]:
    """Give the verdict, or the step at which there was none and why."""
    import jax  # noqa: PLC0415
    import jaxonnxruntime  # noqa: PLC0415
    import onnx  # noqa: PLC0415
    from batching_security_checker import backend  # noqa: PLC0415
    from batching_security_checker.core import (  # noqa: PLC0415
        config_class,
        labels,
        model_summary,
        models,
    )
    from batching_security_checker.report import stages  # noqa: PLC0415
    from onnxruntime.tools import symbolic_shape_infer  # noqa: PLC0415

    jax.config.update("jax_enable_x64", True)
    jaxonnxruntime.config_class.config.update(
        "jaxort_only_allow_initializers_as_static_args", False
    )
    config_class.config.update("taint_dtype", "uint16")
    found: dict[str, Any] = {"verdict": None, "step": "load"}
    start = time.perf_counter()
    try:
        model = onnx.load(path)
        models.ModelFixer().fix_model(model)
        found["step"] = "shapes"
        model = inferred(model, symbolic_shape_infer.SymbolicShapeInference.infer_shapes, onnx)
        found["shapes_fixed"] = stages.is_fixed_model(model)[0]
        found["step"] = "operators"
        missing = model_summary.missing_operators(model)[1]
        lacking = sorted(name for names in missing.values() for name in names)
        if lacking:
            raise NotImplementedError(f"no rule for {', '.join(lacking)}")
        found["step"] = "labels"
        labeler = labels.BatchDimLabeler(io_batch_dim=0, io_batch_dim_exceptions=axes)
        given, expected = labeler.get_labeled_inputs_outputs(model, {})
        found["step"] = "propagation"
        report = backend.TaintBackendRep(model).run(given, expected, info_level=0)
        found |= {"verdict": VERDICTS[report.proof_status], "step": "done"}
    except Exception as error:
        lines = [*str(error).strip().splitlines(), ""]
        found["error"] = f"{type(error).__name__}: {lines[0][:200]}"
    found["seconds"] = time.perf_counter() - start
    return found


def inferred(model: Any, symbolic: Any, onnx: Any) -> Any:
    """Infer shapes as the checker does, and where that fails by onnx itself."""
    try:
        return symbolic(model)
    except Exception:
        return onnx.shape_inference.infer_shapes(model)


def main() -> None:
    """Judge the file, and print what was found and what it took."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        found = judge(sys.argv[1], json.loads(sys.argv[2]))
    high = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    found |= {
        "process_seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time(),
        "peak_memory_mb": int(high) / 1000,
        "versions": {name: version(name) for name in LIBRARIES},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
