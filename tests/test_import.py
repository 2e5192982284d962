import subprocess
import sys
from pathlib import Path

import pytest

import planish

HEAVY = {"torch", "transformers", "onnxruntime", "onnx", "matplotlib", "pyarrow"}


def modules_after(statement: str) -> set[str]:
    """Give the names of the modules that a fresh interpreter holds after a statement."""
    script = f"import sys\n{statement}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("statement", ["import planish", "import planish; dir(planish)"])
def test_importing_planish_loads_nothing_heavy(statement: str) -> None:
    assert not modules_after(statement) & HEAVY


def test_help_loads_nothing_heavy() -> None:
    help_of_cli = """
sys.argv = ["planish", "--help"]
from planish.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
"""
    assert not modules_after(help_of_cli) & HEAVY


def test_running_an_onnx_model_loads_no_torch() -> None:
    loaded = modules_after("import planish.runtime.session, planish.runtime.ort_backend")
    assert "torch" not in loaded


def test_running_an_artifact_loads_no_pass() -> None:
    loaded = modules_after("import planish; planish.load")
    assert not {name for name in loaded if name.startswith(("planish.passes", "planish.recipes"))}


@pytest.mark.parametrize("name", planish.__all__)
def test_public_names_are_there(name: str) -> None:
    assert name in dir(planish)
    assert getattr(planish, name) is getattr(planish, name)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="module 'planish' has no attribute 'optimise'"):
        planish.optimise  # noqa: B018


def test_the_package_says_that_it_is_typed() -> None:
    assert planish.__file__ is not None
    assert (Path(planish.__file__).parent / "py.typed").is_file()


def test_lowering_to_triton_needs_no_triton() -> None:
    """Generators and references import without it; what would run a kernel says what to install."""
    script = """
sys.modules["triton"] = None
from planish.lowering.triton import build, lower, row_specs
from planish.runtime import triton_backend
try:
    build.function_of(row_specs.RowWise(64, norm="rms"))
except build.NoTriton as error:
    print(error, file=sys.stderr)
"""
    loaded = modules_after(script)
    assert "planish.lowering.triton.lower" in loaded
    assert "planish[gpu]" in loaded
