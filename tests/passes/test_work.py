"""Long passes tell how far they are, and go on where an interrupted run ended."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

import planish
from planish.ir.capture.export import from_module
from planish.ir.program import Program
from planish.ir.progress import Progress
from planish.passes import gptq, name_of, work
from planish.passes.awq import Awq
from planish.passes.compensation import Rounding, compensated
from planish.passes.contract import OPTIONS, Contract, LongPass, NotApplicable, Pass
from planish.passes.gptq import Gptq
from planish.passes.pipeline import apply
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.sequential import walk
from planish.passes.smooth_quant import SmoothQuant
from planish.passes.work import UNSEEN, CannotKeep, StaleWork, Work

GPTQ = Gptq(bits=4, group_size=32)


class Three(nn.Module):
    """Two layers that read one value, and one that reads what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(32, 64), nn.Linear(32, 64)
        self.last = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.left(x).relu() * self.right(x))
        return y


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    made = from_module(Three().eval(), {"x": torch.randn(4, 32)})
    return dataclasses.replace(made, calibration=({"x": torch.randn(200, 32)},))


@pytest.mark.parametrize(
    "one",
    [
        GPTQ,
        QuantizeWeights(bits=4, group_size=32),
        QuantizeWeights(bits=4, group_size=32, clip_search="inputs"),
        Awq(bits=4, group_size=32),
        SmoothQuant(),
        QuantizeActivations(dynamic=False),
    ],
    ids=name_of,
)
def test_long_passes_tell_how_far_they_are(one: Pass, program: Program) -> None:
    told: list[tuple[str, int, int]] = []
    apply(program, [one], names=name_of, progress=lambda *what: told.append(what))
    name, *rest = told
    assert name == (name_of(one), 0, 0)
    assert rest
    assert all(0 < done <= total for _, done, total in rest)
    assert rest[-1][1] == rest[-1][2]


@dataclass(frozen=True, config=OPTIONS)
class Remembers(LongPass):
    """Writes down the program that the recipe began with."""

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")
    seen: ClassVar[list[Program | None]] = []

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        self.seen.append(work.original)
        return program


def test_long_passes_are_given_the_model_that_the_recipe_began_with(program: Program) -> None:
    Remembers.seen.clear()
    apply(program, [GPTQ, Remembers()], names=name_of)
    assert len(Remembers.seen) == 1
    assert Remembers.seen[0] is program


class Interrupted(Exception):
    """Stands for Ctrl-C."""


def stop_after(pieces: int) -> Progress:
    def tell(_: str, done: int, total: int) -> None:
        if total and done >= pieces:
            raise Interrupted

    return tell


def test_an_interrupted_run_goes_on_where_it_ended(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = apply(program, [GPTQ], names=name_of)
    with pytest.raises(Interrupted):
        apply(program, [GPTQ], names=name_of, progress=stop_after(2), resume=tmp_path)
    assert [path.name for path in sorted(tmp_path.rglob("*.safetensors"))] == [
        "left.weight.safetensors"
    ]
    widths = []

    def counted(matrix: Tensor, *given: Any) -> Rounding:
        widths.append(matrix.shape[-1])
        return compensated(matrix, *given)

    monkeypatch.setattr(gptq, "compensated", counted)
    resumed, _ = apply(program, [GPTQ], names=name_of, resume=tmp_path)
    assert widths == [64]  # of the last layer alone
    assert resumed.text() == whole.text()
    assert all(torch.equal(resumed.tensors[name], whole.tensors[name]) for name in whole.tensors)
    assert resumed.changes == whole.changes


def test_work_on_something_else_is_refused(program: Program, tmp_path: Path) -> None:
    apply(program, [GPTQ], names=name_of, resume=tmp_path)
    other_samples = dataclasses.replace(program, calibration=({"x": torch.randn(200, 32)},))
    tensors = {**program.tensors, "left.bias": program.tensors["left.bias"] + 1}
    other_model = dataclasses.replace(program, tensors=tensors)
    for other, one in (
        (other_samples, GPTQ),
        (other_model, GPTQ),
        (program, Gptq(bits=8, group_size=32)),
    ):
        with pytest.raises(StaleWork, match="another model, other samples or another recipe"):
            apply(other, [one], names=name_of, resume=tmp_path)
    apply(program, [GPTQ], names=name_of, resume=tmp_path)


def test_a_folder_belongs_to_the_whole_recipe(program: Program, tmp_path: Path) -> None:
    apply(program, [GPTQ], names=name_of, resume=tmp_path)
    with pytest.raises(StaleWork, match="another recipe"):
        apply(program, [SmoothQuant(), GPTQ], names=name_of, resume=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["0-gptq"]


def test_a_recipe_that_was_refused_at_once_may_be_put_right(
    program: Program, tmp_path: Path
) -> None:
    with pytest.raises(NotApplicable, match="middle"):
        apply(
            program,
            [Gptq(bits=4, group_size=32, ignore=("middle",))],
            names=name_of,
            resume=tmp_path,
        )
    apply(program, [GPTQ], names=name_of, resume=tmp_path)
    assert any(tmp_path.rglob("*.safetensors"))


def test_a_full_disk_is_told_and_what_is_finished_stays(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        save_file(tensors, path)
        written.append(path)
        if len(written) > 1:
            raise SafetensorError("No space left on device")

    monkeypatch.setattr(work, "save_file", full)
    with pytest.raises(CannotKeep, match=r"last\.weight\.safetensors.*No space left.*Make room"):
        apply(program, [GPTQ], names=name_of, resume=tmp_path)
    assert [path.name for path in tmp_path.rglob("*weight*")] == ["left.weight.safetensors"]


def test_damaged_work_is_named(program: Program, tmp_path: Path) -> None:
    apply(program, [GPTQ], names=name_of, resume=tmp_path)
    (piece,) = tmp_path.rglob("left.weight.safetensors")
    piece.write_bytes(piece.read_bytes()[:50])
    with pytest.raises(StaleWork, match=r"left\.weight\.safetensors is damaged"):
        apply(program, [GPTQ], names=name_of, resume=tmp_path)


def test_optimize_takes_the_folder(tmp_path: Path) -> None:
    samples = [{"x": torch.randn(50, 32)}]
    recipe = {"passes": [{"gptq": {"bits": 4, "group_size": 32}}]}
    planish.optimize(
        Three().eval(), recipe, inputs=torch.randn(2, 32), samples=samples, resume=tmp_path / "w"
    )
    assert (tmp_path / "w" / "0-gptq" / "last.weight.safetensors").exists()


def test_nodes_are_visited_in_order_and_counted(program: Program) -> None:
    told: list[tuple[int, int]] = []
    layers = list(
        program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    )

    for visit in walk(program, program.calibration, layers, tell=lambda *what: told.append(what)):
        assert visit.layers
    assert told == [(2, 3), (3, 3)]
