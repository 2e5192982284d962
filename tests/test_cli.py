"""The command line: the main job on a tiny model, and what it says to bad input."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from planish import api, cli, recipes
from planish.ir.errors import PlanishError
from planish.lowering import artifact
from support.models import tiny_folder

W4 = "passes:\n  - quantize_weights:\n      bits: 4\n      group_size: 32\n"


class Ran(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> Ran:
        capfd.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        said = capfd.readouterr()
        return Ran(code, str(said.out), str(said.err))

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("llama", tmp_path_factory.mktemp("source") / "llama")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "w4.yaml"
    path.write_text(W4)
    return path


@pytest.fixture(scope="module")
def converted(
    model: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    folders = [tmp_path_factory.mktemp("out") / name for name in ("one", "two")]
    for folder in folders:
        assert cli.main(["convert", str(model), "-r", str(recipe), "-o", str(folder)]) == 0
    return folders[0], folders[1]


def test_convert_writes_a_verified_artifact(converted: tuple[Path, Path]) -> None:
    artifact.verify(converted[0])
    manifest = artifact.read_manifest(converted[0])
    (step,) = manifest["steps"]
    assert step["name"] == "quantize_weights"
    assert step["rewrites"] == len(step["changes"]) == 14
    assert manifest["isolation"] == manifest["certificate"]["verdict"] == "isolated"
    assert set(manifest["certificate"]["outputs"].values()) == {"isolated"}
    assert "model.safetensors" in manifest["inputs"]
    assert {"onnx/model.onnx", "model.safetensors", "recipe.yaml"} <= set(manifest["files"])


def test_two_runs_give_the_same_bytes(converted: tuple[Path, Path]) -> None:
    one, two = (artifact.files_of(folder) for folder in converted)
    assert one == two
    manifests = [(folder / artifact.MANIFEST).read_bytes() for folder in converted]
    assert manifests[0] == manifests[1]


def test_without_a_checkpoint_the_tokenizer_is_carried_along(
    model: Path, tmp_path: Path, run: Run
) -> None:
    source = tmp_path / "source"
    shutil.copytree(model, source)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "r.yaml").write_text("passes: [{low_rank: {ratio: 0.9}}]")
    ran = run("convert", source, "-r", tmp_path / "r.yaml", "-o", tmp_path / "out")
    assert ran.code == 0
    notes = artifact.read_manifest(tmp_path / "out")["notes"]
    assert any(note.startswith("no Hugging Face checkpoint was written: ") for note in notes)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_json_is_for_machines(model: Path, recipe: Path, tmp_path: Path, run: Run) -> None:
    ran = run("convert", model, "-r", recipe, "-o", tmp_path / "out", "--target", "torch", "--json")
    told = json.loads(ran.out)
    assert ran.code == 0
    assert told["file_bytes"]["torch"] > 0
    assert told["tensor_bytes"][0] > told["tensor_bytes"][1]
    tokens = json.loads(run("recipes", "--json").out)
    assert {"fold", "bf16", "w8a16", "w4a16"} <= set(tokens)
    assert "quantize_weights" in json.loads(run("passes", "--json").out)


@pytest.mark.parametrize("asked", [None, "onnx"])
def test_the_target_is_the_recipe_s_unless_told(
    asked: str | None, model: Path, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "recipe.yaml").write_text("target: torch\n" + W4)
    options = ("--target", asked) if asked else ()
    out = tmp_path / "out"
    assert run("convert", model, "-r", tmp_path / "recipe.yaml", "-o", out, *options).code == 0
    expected = asked or "torch"
    assert artifact.read_manifest(out)["target"] == expected
    assert {(out / name).is_dir() for name in ("onnx", "torch") if name != expected} == {False}
    assert (out / expected).is_dir()


def test_several_mistakes_stand_one_below_another(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(W4.replace("bits: 4", "bit: 4") + "targt: torch\n")
    ran = run("recipes", "show", path)
    first, *lines = ran.err.splitlines()
    assert (ran.code, first) == (2, "error:")
    assert len(lines) == 3
    assert all(line.startswith(f"  {path}:") for line in lines)


def test_a_recipe_is_shown_as_it_reads_back(run: Run) -> None:
    """Long lines are not wrapped to the width of a window."""
    ran = run("recipes", "show", "prefill-decode-cpu")
    assert ran.out == recipes.load("prefill-decode-cpu").to_yaml()


def _without_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "holds no config.json"


def _broken_config(folder: Path) -> str:
    (folder / "config.json").write_text("{")
    return "is not valid JSON"


def _without_weights(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return "holds no weights"


def _truncated(folder: Path) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return "is damaged or cut short"


def _reconfigured(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def _other_shape(folder: Path) -> str:
    _reconfigured(folder, intermediate_size=128)
    return "does not load as LlamaForCausalLM"


def _more_layers(folder: Path) -> str:
    _reconfigured(folder, num_hidden_layers=3)
    return "lacks 9 of the tensors"


def _unknown_architecture(folder: Path) -> str:
    _reconfigured(folder, architectures=["BananaForCausalLM"])
    return "'BananaForCausalLM' is not one that transformers"


def _not_a_number(folder: Path) -> str:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return "model.norm.weight holds 1 NaN or infinite values"


@pytest.mark.parametrize(
    "damage",
    [
        _without_config,
        _broken_config,
        _without_weights,
        _truncated,
        _other_shape,
        _more_layers,
        _unknown_architecture,
        _not_a_number,
    ],
)
def test_bad_checkpoints(
    damage: Callable[[Path], str], model: Path, recipe: Path, tmp_path: Path, run: Run
) -> None:
    shutil.copytree(model, tmp_path / "model")
    expected = damage(tmp_path / "model")
    ran = run("convert", tmp_path / "model", "-r", recipe, "-o", tmp_path / "out")
    _refused(ran, expected, tmp_path)


def _refused(ran: Ran, expected: str, folder: Path) -> None:
    assert ran.code == 2
    assert expected in ran.err
    assert "Traceback" not in ran.err
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("passes:\n  - quantise_weights\n", "did you mean"),
        (W4.replace("bits: 4", "bit: 4"), "bit"),
        (W4.replace("bits: 4", "bits: 5"), "bits"),
        (W4.replace("32", "128"), "does not divide the input features of"),
        (W4 + "      ignore: ['model.layer.0.*']\n", "matches none"),
    ],
)
def test_bad_recipes(text: str, expected: str, model: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    ran = run("convert", model, "-r", tmp_path / "recipe.yaml", "-o", tmp_path / "out")
    _refused(ran, expected, tmp_path)


def test_bad_arguments(model: Path, recipe: Path, tmp_path: Path, run: Run) -> None:
    for arguments, expected in (
        (("convert", tmp_path / "none", "-r", recipe, "-o", tmp_path / "out"), "no such folder"),
        (("convert", model, "-r", "w4a17", "-o", tmp_path / "out"), "did you mean w4a16"),
        (("convert", model, "-r", recipe), "Missing option"),
        (("convert", model, "-r", recipe, "-o", tmp_path / "out", "--target", "x"), "onnx, torch"),
        (("convert", "json:nope", "-r", recipe, "-o", tmp_path / "out"), "no attribute 'nope'"),
        (("generate", tmp_path, "hello"), "holds"),
    ):
        _refused(run(*arguments), expected, tmp_path)


def test_a_folder_that_is_not_ours_is_left_alone(
    model: Path, recipe: Path, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("meow")
    ran = run("convert", model, "-r", recipe, "-o", tmp_path / "photos")
    assert ran.code == 2
    assert "was not written by Planish" in ran.err
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.png"]


def test_no_space_left(
    model: Path, recipe: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    _refused(run("convert", model, "-r", recipe, "-o", tmp_path / "out"), "MB are free", tmp_path)


def test_ctrl_c_leaves_the_old_artifact(
    converted: tuple[Path, Path],
    model: Path,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "apply", interrupt)
    ran = run("convert", model, "-r", recipe, "-o", converted[1])
    assert ran.code == 130
    assert "interrupted" in ran.err
    artifact.verify(converted[1])


def test_a_module_of_one_s_own(tmp_path: Path, run: Run) -> None:
    out, module = tmp_path / "out", "support.models:convnet"
    assert run("convert", module, "-r", "fold", "-o", out).code == 0
    ran = run("bench", out, "--against", module, "--batch-size", 2, "--json")
    told = json.loads(ran.out)
    assert [row["phase"] for row in told["rows"]] == ["forward"]
    assert "PyTorch eager" in told["against"]
    (tmp_path / "text.txt").write_text("Some words.")
    (tmp_path / "q.jsonl").write_text('{"question": "?", "choices": ["a", "b"], "answer": 0}')
    for arguments in (
        ("eval", out, "--text", tmp_path / "text.txt"),
        ("eval", out, "--choices", tmp_path / "q.jsonl"),
        ("generate", out, "hello"),
    ):
        ran = run(*arguments)
        assert ran.code == 2
        assert "does not generate" in ran.err
        assert "Traceback" not in ran.err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(PlanishError, match="no such folder"):
        cli.main(["--debug", "convert", f"{tmp_path}/none", "-r", "fold", "-o", f"{tmp_path}/out"])


def test_axes_are_listed_without_weights(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    told = run("axes", tmp_path)
    assert told.code == 0, told.err
    lines = told.out.splitlines()
    assert lines[0].startswith("axis 0: 101  model.embed_tokens.weight[0]  fixed  (looked up at")
    assert any("mlp.gate_proj.weight[0] and 2 more  permute, cut" in line for line in lines)
    found = json.loads(run("axes", tmp_path, "--json").out)
    assert found["not_understood"] == []
    assert found["axes"][1]["cut"] is True
    assert {"tensor": "model.norm.weight", "dim": 0} in found["axes"][1]["members"]
    assert {site["kind"] for site in found["axes"][0]["sites"]} == {"looked up"}
