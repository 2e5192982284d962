"""The program itself: text, evaluation, edits, files, and what it refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from planish.ir import ops
from planish.ir.capture.export import CaptureFailed, from_module
from planish.ir.program import BadInput, IllFormed, Program
from planish.ir.serialize import GRAPH_FILE, TENSOR_FILE, MalformedProgram
from planish.ir.sizes import SpecializedSize

aten = torch.ops.aten


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.down(torch.relu(self.up(x)))
        return x + changed


@pytest.fixture(scope="module")
def mlp() -> Mlp:
    torch.manual_seed(0)
    return Mlp().eval()


@pytest.fixture(scope="module")
def program(mlp: Mlp) -> Program:
    return from_module(mlp, torch.randn(1, 5, 8), dynamic={"x": {1: "T"}})


GOLDEN = """\
program Mlp for 1 <= B, 1 <= T
  %x: f32[B, T, 8] = input
  %linear: f32[B, T, 12] = aten.linear(%x, @up.weight, @up.bias)
  %relu: f32[B, T, 12] = aten.relu(%linear)
  %linear_1: f32[B, T, 8] = aten.linear(%relu, @down.weight)
  %add_25: f32[B, T, 8] = aten.add.Tensor(%x, %linear_1)
  return output=%add_25
"""


def test_text_is_golden(program: Program) -> None:
    names = {word for line in GOLDEN.splitlines() for word in line.split() if word[0] == "%"}
    assert names  # the numbers in names are the exporter's, so only the rest is compared
    assert _without_numbers(str(program)) == _without_numbers(GOLDEN)


def _without_numbers(text: str) -> str:
    return re.sub(r"%([a-z]+)(_\d+)+", r"%\1", text)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 7), (4, 1), (3, 9)])
def test_runs_at_every_size(program: Program, mlp: Mlp, batch: int, length: int) -> None:
    x = torch.randn(batch, length, 8)
    torch.testing.assert_close(program.run(x=x)["output"], mlp(x))


def test_refuses_inputs_that_do_not_fit(program: Program) -> None:
    with pytest.raises(BadInput, match="takes the inputs x; given were y"):
        program.run(y=torch.zeros(1, 1, 8))
    with pytest.raises(
        BadInput, match=r"torch.float32 of shape \[B, T, 8\]; given was torch.int64"
    ):
        program.run(x=torch.zeros(1, 1, 8, dtype=torch.int64))


def test_names_are_the_modules(program: Program, mlp: Mlp) -> None:
    assert set(program.tensors) == set(mlp.state_dict())
    assert program.parameters == sum(tensor.numel() for tensor in mlp.parameters())
    assert program.nbytes == 4 * program.parameters


def test_edit_changes_a_copy(program: Program) -> None:
    before = str(program)
    with program.edit() as edit:
        for node in edit.nodes(aten.relu.default):
            edit.replace(node, edit.call(aten.gelu.default, node.args[0], before=node), "gelu")
    after = edit.program
    assert str(program) == before
    assert "aten.gelu(%linear)" in str(after)
    assert "relu" not in str(after).replace("%relu", "")
    assert [change.what for change in after.changes] == ["gelu"]
    assert after.tensors["up.weight"] is program.tensors["up.weight"]


def test_edit_drops_what_nothing_reads(program: Program) -> None:
    with program.edit() as edit:
        first, second = edit.nodes(aten.linear.default)
        edit.replace(second, first.args[0], "skipped")  # type: ignore[arg-type]
    assert list(edit.program.tensors) == []
    assert len(list(edit.program.nodes(aten.linear.default))) == 0


def test_edit_that_raises_leaves_nothing(program: Program) -> None:
    before = str(program)
    with pytest.raises(IllFormed), program.edit() as edit:  # noqa: PT012
        edit.record(next(edit.nodes()), "never kept")
        edit.read("nope", before=next(edit.nodes(aten.relu.default)))
    assert str(program) == before
    assert program.changes == ()


def test_edit_that_breaks_shapes_names_the_node(program: Program) -> None:
    with pytest.raises(IllFormed, match=r"%linear.*refuses"), program.edit() as edit:
        edit.tensors["up.weight"] = torch.zeros(12, 7)


def test_edit_cannot_read_a_tensor_that_is_not_there(program: Program) -> None:
    with pytest.raises(IllFormed, match="no tensor is named 'nope'"), program.edit() as edit:
        edit.read("nope", before=next(edit.nodes(aten.relu.default)))


def test_saves_and_loads(program: Program, tmp_path: Path) -> None:
    program.save(tmp_path / "one")
    loaded = Program.load(tmp_path / "one")
    assert str(loaded) == str(program)
    x = torch.randn(2, 3, 8)
    assert torch.equal(loaded.run(x=x)["output"], program.run(x=x)["output"])
    loaded.save(tmp_path / "two")
    for name in (GRAPH_FILE, TENSOR_FILE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def _damaged(program: Program, folder: Path, **changes: object) -> Path:
    program.save(folder)
    document = json.loads((folder / GRAPH_FILE).read_text())
    (folder / GRAPH_FILE).write_text(json.dumps(document | changes))
    return folder


def test_refuses_foreign_operators(program: Program, tmp_path: Path) -> None:
    for number, call in enumerate(
        ["os.system", "builtins.eval", "aten.from_file.default", "aten.relu_.default", "prims.cos"]
    ):
        nodes = [{"name": "a", "call": call, "args": []}, {"return": [{"node": "a"}]}]
        with pytest.raises(MalformedProgram, match=GRAPH_FILE):
            Program.load(_damaged(program, tmp_path / str(number), nodes=nodes))


def test_refuses_damaged_files(program: Program, tmp_path: Path) -> None:
    with pytest.raises(MalformedProgram, match="format 99"):
        Program.load(_damaged(program, tmp_path / "version", format=99))
    folder = _damaged(program, tmp_path / "short")
    (folder / TENSOR_FILE).write_bytes((folder / TENSOR_FILE).read_bytes()[:-4])
    with pytest.raises(MalformedProgram, match="cut short"):
        Program.load(folder)
    with pytest.raises(MalformedProgram, match="no such file"):
        Program.load(tmp_path / "nowhere")


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :4] + torch.ones(4) * x.shape[0] if x.shape[0] == 3 else x


def test_a_fixed_size_is_an_error() -> None:
    with pytest.raises(SpecializedSize, match=r"only for B = 3 \(input 'x'\)"):
        from_module(Doubling().eval(), torch.randn(3, 8))


def test_capture_refuses_training_mode_and_unknown_names(mlp: Mlp) -> None:
    with pytest.raises(CaptureFailed, match="training mode"):
        from_module(Mlp(), torch.randn(2, 8))
    with pytest.raises(CaptureFailed, match="dynamic names y, but the inputs are x"):
        from_module(mlp, torch.randn(2, 8), dynamic={"y": {1: "T"}})


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_capture_says_where_it_failed() -> None:
    with pytest.raises(CaptureFailed, match=r"Branching cannot be exported.*test_program.py"):
        from_module(Branching().eval(), torch.randn(3, 8))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_keeps_the_rest_and_the_norm(interleaved: bool) -> None:
    x, angle = torch.randn(2, 3, 5, 12), torch.randn(5, 4)
    angle = angle.repeat_interleave(2, -1) if interleaved else torch.cat([angle, angle], -1)
    turned = ops.rotary(x, angle.cos(), angle.sin(), interleaved)
    assert torch.equal(turned[..., 8:], x[..., 8:])
    torch.testing.assert_close(turned[..., :8].norm(dim=-1), x[..., :8].norm(dim=-1))
    assert not torch.allclose(turned[..., :8], x[..., :8])


@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_attention_groups_and_masks(softcap: float) -> None:
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8)
    value, mask = torch.randn(2, 2, 7, 6), torch.rand(2, 1, 5, 7) > 0.3
    mask[..., 0] = True
    got = ops.attention(query, key, value, mask, False, 0.25, softcap)
    wide, keys, values = query.double(), key.double(), value.double()
    scores = torch.einsum("bkgtd,bksd->bkgts", wide.unflatten(1, (2, 2)), keys) * 0.25
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~mask[:, :, None], -torch.inf).softmax(-1)
    expected = torch.einsum("bkgts,bksv->bkgtv", weights, values).flatten(1, 2)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    additive = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    same = ops.attention(query, key, value, additive, False, 0.25, softcap)
    torch.testing.assert_close(same, got)


def test_importing_the_program_needs_no_transformers() -> None:
    code = "import planish.ir.program, sys; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
