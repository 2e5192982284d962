"""Plans against what the passes do with weights, and estimates against a conversion."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic.dataclasses import dataclass

from planish import api, recipes
from planish.ir.program import Program
from planish.passes import name_of
from planish.passes.contract import OPTIONS, Contract, Pass
from planish.passes.pipeline import apply
from planish.plan import Plan, plan
from support.captured import captured
from support.models import tiny_folder

RECIPE = {
    "passes": [
        {"cast": {"dtype": "bfloat16"}},
        {"quantize_weights": {"bits": 4, "group_size": 32, "symmetric": False}},
    ]
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("qwen2", tmp_path_factory.mktemp("qwen2"), layers=1)


@pytest.fixture(scope="module")
def planned(folder: Path) -> Plan:
    return plan(folder, RECIPE)


def test_a_plan_is_what_happens(folder: Path, planned: Plan) -> None:
    before = api.capture(folder)
    after, steps = apply(before, recipes.load(RECIPE).passes, names=name_of)
    assert planned.nbytes == (before.nbytes, after.nbytes)
    assert planned.refusal is None
    assert [step.name for step in planned.steps] == ["cast", "quantize_weights"]
    for said, done in zip(planned.steps, steps, strict=True):
        assert (said.nbytes, said.rewrites) == (done.nbytes, len(done.changes))
        assert (said.options, said.numerics) == (done.options, done.numerics)
        assert not said.needs_data
    assert planned.parameters == (before.parameters, before.parameters)
    assert sum(planned.forms.values()) == after.nbytes
    assert any("int4" in form for form in planned.forms)


def test_no_weight_is_read(folder: Path, planned: Plan, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert plan(tmp_path, RECIPE).nbytes == planned.nbytes


def test_a_plan_is_json_and_text(planned: Plan) -> None:
    read = json.loads(json.dumps(planned.to_json()))
    assert read["nbytes"] == list(planned.nbytes)
    text = planned.text()
    for said in ("quantize_weights: 7 rewrites", "parameters", "peak memory", "time", "disk"):
        assert said in text


def test_a_refusal_is_part_of_the_plan() -> None:
    found = plan(captured("qwen2")[1], "fold")
    assert found.refusal is not None
    assert found.refusal.name == "fuse_conv_bn"
    assert found.refusal.reason.startswith("the program has no batch norm")
    assert f"fuse_conv_bn refuses: {found.refusal.reason}" in found.text()
    assert found.steps == ()


@dataclass(frozen=True, config=OPTIONS)
class _DropZeroes(Pass):
    """A pass that looks at values."""

    contract: ClassVar[Contract] = Contract(numerics="exact", isolation="kept")

    def __call__(self, program: Program) -> Program:
        if any(float(tensor.abs().sum()) == 0 for tensor in program.tensors.values()):
            raise AssertionError("not reached in this test")
        return program


def test_a_pass_that_needs_data_says_so() -> None:
    found = plan(captured("qwen2")[1], [_DropZeroes(), *recipes.load("bf16").passes])
    first, second = found.steps
    assert (first.needs_data, second.needs_data) == (True, False)
    assert "depends on the weights' values" in found.text()
    assert found.nbytes[1] < found.nbytes[0]


def test_the_captured_program_keeps_its_data() -> None:
    program = captured("qwen2")[1]
    plan(program, "bf16")
    assert all(not tensor.is_meta for tensor in program.tensors.values())


_MEASURE = """
import sys, time
from planish import api
api.optimize(sys.argv[1], sys.argv[2], output=sys.argv[3], isolation="off")
# Not ru_maxrss, which starts with what the parent held.
(line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(line.split()[1]) * 1024, time.process_time())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident set from /proc")
def test_estimates_are_right_to_a_third(smollm2: Path, tmp_path: Path) -> None:
    said = plan(smollm2, "w4a16").estimate
    output = tmp_path / "out"
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(smollm2), "w4a16", str(output)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    peak, seconds = map(float, run.stdout.split()[-2:])
    disk = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    assert said.disk == pytest.approx(disk, rel=0.02)
    assert said.peak_memory == pytest.approx(peak, rel=1 / 3)
    assert said.seconds == pytest.approx(seconds, rel=1 / 3)
