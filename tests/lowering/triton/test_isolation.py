"""Whether requests stay apart is proven of the kernels that an artifact holds, anew each time."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planish
from planish import cli
from planish.ir.axes.axes import find
from planish.ir.isolation.programs import Refused, analyse_program
from planish.ir.program import Program
from planish.ir.rules.aten import kernels
from planish.lowering import artifact
from planish.lowering.programs import program_in
from planish.verification import verify
from support.captured import captured

RECIPES = {
    "w4": "passes: [quantize_weights: {bits: 4, group_size: 32}]\ntarget: triton\n",
    "w8a8": "passes: [{quantize_weights: {bits: 8, group_size: null}}, quantize_activations]\n"
    "target: triton\n",
    "w4a8": "passes: [{quantize_weights: {bits: 4, group_size: 32}}, quantize_activations]\n"
    "target: triton\n",
}


@pytest.fixture(scope="module", params=RECIPES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPES[request.param])
    planish.optimize(captured("llama", 1)[1], recipe, output=folder / "out")
    return folder / "out"


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "out")
    return tmp_path / "out"


def test_an_artifact_of_kernels_is_proven(written: Path) -> None:
    found = verify(written)
    assert (found.verdict, found.certified, found.exit_code) == ("isolated", "isolated", 0)
    assert found.same_rules
    assert kernels.TRUSTED in found.assumptions
    lowered = artifact.read_manifest(written)["certificate"]["lowered"]
    assert lowered["file"] == "triton/program.json"
    assert lowered["verdict"] == "isolated"
    assert kernels.TRUSTED in lowered["assumptions"]


def test_the_command_line_proves_audits_and_runs_it(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", str(written)]) == 0
    assert "proven anew" in capsys.readouterr().out
    assert cli.main(["audit", str(written), "--witness", str(tmp_path)]) == 0
    assert "no row moved when other rows were replaced" in " ".join(capsys.readouterr().out.split())


def test_its_axes_are_listed(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["axes", str(written / "triton"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    program = program_in(written / "triton")
    axes = find(program)
    assert axes.reasons == ()
    packed = {name for name in program.tensors if name.endswith(("_words", "_nibbles"))}
    fixed = {
        member.tensor
        for axis in axes.all
        if not axis.allows("permute")
        for member in axis.members
        if member.dim == 1
    }
    assert packed <= fixed  # what lies in a word stays there


def edit(folder: Path, change: Callable[[list[Any]], None], *, certificate: bool) -> None:
    """Change an artifact's graph and the hashes that tell of it; of the certificate too if asked.

    The specifications that kernels.json lists are changed like those of the graph.
    """
    path = folder / artifact.TRITON_PROGRAM
    graph = json.loads(path.read_text())
    change(graph["nodes"])
    path.write_text(json.dumps(graph))
    manifest = json.loads((folder / "planish.json").read_text())
    manifest["files"] = artifact.files_of(folder)
    if certificate:
        manifest["certificate"]["lowered"]["sha256"] = artifact.sha256(path)
    (folder / "planish.json").write_text(json.dumps(manifest))


def kernel(nodes: list[Any]) -> Any:
    """The first call of a kernel."""
    return next(node for node in nodes if "row_" in node.get("call", ""))


def mixed(nodes: list[Any]) -> None:
    """Rows are turned round before a kernel reads them."""
    call = kernel(nodes)
    flip = {"name": "turned", "call": "aten.flip.default", "args": [call["args"][0], [0]]}
    nodes.insert(nodes.index(call), flip)
    call["args"][0] = {"node": "turned"}


def other_shapes(nodes: list[Any]) -> None:
    """Rows of twice the width: a kernel would read two of them for one."""
    call = kernel(nodes)
    call["args"][-2] = call["args"][-2].replace('"width": 64', '"width": 128')


def test_a_row_mixing_operator_that_was_put_in_is_found(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(copied, mixed, certificate=True)
    found = verify(copied)
    assert (found.verdict, found.certified, found.exit_code) == ("leaks", "isolated", 1)
    assert any("%turned" in one for one in found.findings)
    assert cli.main(["audit", str(copied)]) == 1
    assert "aten.flip" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "certificate", "message"),
    [
        (mixed, False, "program.json is not the file that the certificate in planish.json names."),
        (other_shapes, True, "the operator refuses its arguments (x has the shape"),
    ],
    ids=["mixed", "other shapes"],
)
def test_what_was_tampered_with_is_refused_in_a_paragraph(
    change: Callable[[list[Any]], None],
    certificate: bool,
    message: str,
    copied: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit(copied, change, certificate=certificate)
    assert cli.main(["verify", str(copied)]) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert "\n\n" not in said.strip()
    assert "Traceback" not in said


class Layer(nn.Module):
    """One product."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


@pytest.mark.parametrize("policy", ["enforce", "bitwise"])
def test_what_lowering_let_meet_is_not_written(
    policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPES["w4"])

    def leaking(program: Program, *rest: Any) -> Any:
        calls = program.graph.nodes
        if any(str(node.target).startswith("planish.weight_only") for node in calls):
            with program.edit() as changed:
                for node in changed.nodes(torch.ops.planish.weight_only.default):
                    turned = changed.call(
                        torch.ops.aten.flip.default, node.args[0], [0], before=node
                    )
                    node.update_arg(0, turned)
            program = changed.program
        return analyse_program(program, *rest)

    monkeypatch.setattr("planish.release.analyse_program", leaking)
    with pytest.raises(Refused, match="reach each other in the program with generated kernels"):
        planish.optimize(
            Layer().eval(),
            recipe,
            inputs=torch.randn(3, 64),
            output=tmp_path / "out",
            isolation=policy,
        )
    assert not (tmp_path / "out").exists()
