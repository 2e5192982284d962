"""Repair by least squares: layers as rows and a matrix, and what they are fitted to."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx.node import map_arg

from planish.ir.capture.export import from_module
from planish.ir.program import Program
from planish.passes import name_of
from planish.passes.contract import NotApplicable
from planish.passes.pipeline import apply, relative_error
from planish.passes.prune import PruneChannels
from planish.passes.readers import readers_of
from planish.passes.reconstruct import Reconstruct
from planish.passes.work import Journal, StaleWork, Work
from support.captured import captured


class Layers(nn.Module):
    """Every kind of layer that can be fitted, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.plane = nn.Conv2d(3, 8, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
        self.point = nn.Conv2d(8, 6, 1, bias=False)
        self.line = nn.Conv1d(6, 8, 3, stride=2, padding=2, dilation=2)
        self.wide, self.out = nn.Linear(8, 12), nn.Linear(12, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        plane = torch.relu(self.point(torch.relu(self.plane(x))))
        line = torch.relu(self.line(plane.flatten(2)))
        y: Tensor = self.out(torch.relu(self.wide(line.transpose(1, 2))))
        return y


def layers(dtype: torch.dtype = torch.float32) -> Program:
    return from_module(Layers().eval().to(dtype), torch.randn(4, 3, 9, 10, dtype=dtype))


def test_a_layer_is_a_matrix_of_what_it_reads() -> None:
    program = layers()
    seen = 0
    values = _values(program)
    for reader in readers_of(program):
        rows = reader.rows(values[reader.source.name])
        given = rows @ reader.matrix(program.tensors).T
        if reader.bias is not None:
            given = given + program.tensors[reader.bias]
        expected = reader.outputs(values[reader.node.name])
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
        stored = program.tensors[reader.weight]
        assert torch.equal(reader.stored(reader.matrix(program.tensors), stored), stored)
        seen += 1
    assert seen == 5


def test_a_stored_transposition_comes_back_as_it_was() -> None:
    program = captured("gpt2")[1]
    turned = [one for one in readers_of(program) if one.read.op != "get_attr"]
    assert len(turned) == 8
    stored = program.tensors[turned[0].weight]
    assert torch.equal(turned[0].stored(turned[0].matrix(program.tensors), stored), stored)


def _values(program: Program) -> dict[str, Tensor]:
    with_all = dataclasses.replace(program)
    found: dict[str, Tensor] = {}
    for node in with_all.graph.nodes:
        if node.op == "placeholder":
            found[node.name] = program.samples[0][str(node.target)]
        elif node.op == "get_attr":
            found[node.name] = program.tensors[str(node.target)]
        elif node.op == "call_function":
            arguments = map_arg(node.args, lambda one: found[one.name])
            found[node.name] = node.target(*arguments, **node.kwargs)
    return found


def off(after: Program, before: Program) -> float:
    """How far what a program gives is from what another does, on other samples than its own."""
    torch.manual_seed(7)
    x = 4 * torch.randn(8, 3, 9, 10, dtype=before.inputs[0].dtype)
    return relative_error(after.run(x=x)["output"], before.run(x=x)["output"])


@pytest.mark.parametrize("importance", ["wanda", "reconstruction"])
def test_repair_brings_every_kind_of_layer_closer(importance: str) -> None:
    torch.manual_seed(3)
    program = from_module(Layers().eval(), 4 * torch.randn(128, 3, 9, 10))
    plain = PruneChannels(ratio=0.5, importance=importance)(program)  # type: ignore[arg-type]
    fixed = PruneChannels(ratio=0.5, importance=importance, repair=True)(program)  # type: ignore[arg-type]
    assert off(fixed, program) < 0.8 * off(plain, program)
    told = [change.what for change in fixed.changes if "fitted" in change.what]
    assert len(told) == 4
    assert told[0].startswith("point.weight: fitted, error of its outputs 0.")


def test_the_pass_repairs_what_passes_before_it_lost() -> None:
    torch.manual_seed(3)
    program = from_module(Layers().eval(), 4 * torch.randn(128, 3, 9, 10))
    passes = [PruneChannels(ratio=0.5), Reconstruct()]
    after, (lost, mended) = apply(program, passes, names=name_of)
    plain = PruneChannels(ratio=0.5)(program)
    assert off(after, program) < 0.8 * off(plain, program)
    assert lost.error is not None
    assert mended.error is not None
    # Layers that lost outputs cannot give what they gave.
    assert [change.what.split(":")[0] for change in mended.changes] == ["out.weight"]
    changed = [k for k, t in after.tensors.items() if not torch.equal(t, plain.tensors[k])]
    assert changed == ["out.weight"]


def test_few_rows_are_held_by_the_ridge_and_said() -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 4))
    program = from_module(module.eval(), torch.randn(5, 4))
    after = PruneChannels(ratio=0.25, repair=True)(program)
    assert after.changes[-1].what.endswith("held by the ridge: 5 rows for 25 inputs")
    assert all(bool(torch.isfinite(one).all()) for one in after.tensors.values())


def test_refusals() -> None:
    program = layers()
    with pytest.raises(NotApplicable, match="no model before this pass"):
        Reconstruct()(program)
    with pytest.raises(NotApplicable, match="every layer gives what it gave"):
        Reconstruct()(program, Work(original=program))
    with pytest.raises(NotApplicable, match="no layer to be fitted"):
        Reconstruct(targets=("nothing",))(program, Work(original=program))
    plain = PruneChannels(ratio=0.25, importance="magnitude")(program)
    empty = dataclasses.replace(program, samples=())
    with pytest.raises(NotApplicable, match="reconstruct: there are no calibration"):
        Reconstruct()(dataclasses.replace(plain, samples=()), Work(original=empty))


def test_an_interrupted_repair_goes_on(tmp_path: Path) -> None:
    program = layers()
    one = PruneChannels(ratio=0.25, repair=True)
    whole = one(program, Work(journal=Journal(tmp_path, "this")))
    assert {path.stem for path in tmp_path.glob("*.safetensors")} == {
        "scores", "point.weight", "line.weight", "wide.weight", "out.weight"
    }  # fmt: skip
    (tmp_path / "out.weight.safetensors").unlink()
    again = one(program, Work(journal=Journal(tmp_path, "this")))
    assert again.changes == whole.changes
    assert all(torch.equal(again.tensors[name], one) for name, one in whole.tensors.items())
    with pytest.raises(StaleWork, match="another model"):
        one(program, Work(journal=Journal(tmp_path, "other")))
