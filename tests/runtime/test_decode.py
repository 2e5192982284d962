"""A second form of a language model for single tokens, and caches that are written in place."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from torch import nn
from typer.testing import CliRunner

import planish
from planish.api import BadCall
from planish.cli import app
from planish.decoding import NotOneModel
from planish.ir.capture.huggingface import from_checkpoint
from planish.lowering.onnx.lower import lower
from planish.lowering.onnx.target import CPU
from planish.recipes import BadRecipe
from planish.runtime.causal import Cache, OneByOne, Tokens
from planish.runtime.ort_caches import ROOM, Rooms
from planish.runtime.session import Session
from planish.verification import verify

COARSE = {"quantize_weights": {"bits": 4, "group_size": None, "lm_head": True}}
RECIPE = {"passes": [], "decode": [{"quantize_weights": {"bits": 8, "group_size": None}}]}

PROMPT = np.arange(30, 42).reshape(2, 6)
MASK = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
"""Two texts, one of them padded on the left."""


@pytest.fixture(scope="module")
def pair(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> planish.Result:
    folder = tmp_path_factory.mktemp("pair") / "out"
    return planish.optimize(checkpoint, RECIPE, output=folder)


@pytest.fixture(scope="module")
def twice(checkpoint: Path, artifacts: dict[str, Path], tmp_path_factory: Any) -> Session:
    """The same weights in both forms, so that both give the same numbers."""
    folder: Path = tmp_path_factory.mktemp("twice")
    program = from_checkpoint(checkpoint)
    lower(program, folder / "onnx", decode=(program, CPU))
    (folder / "config.json").write_bytes((artifacts["onnx"] / "config.json").read_bytes())
    return Session.open(folder)


def _read(session: Session, lengths: list[int]) -> list[np.ndarray[Any, Any]]:
    """The logits of a padded prompt, and of so many further tokens at a time."""
    chance = np.random.default_rng(0)
    logits, cache = session.extend(PROMPT, MASK)
    found = [logits]
    for length in lengths:
        tokens: Tokens = chance.integers(3, 250, (2, length))
        logits, cache = session.extend(tokens, cache=cache)
        found.append(logits)
    return found


def test_caches_written_in_place_hold_what_copies_would(
    twice: Session, artifacts: dict[str, Path]
) -> None:
    """Past the room that they get at first, and with several tokens in between."""
    lengths = [1] * 20 + [3] + [1] * (ROOM + 10) + [2, 1]
    plain = Session.open(artifacts["onnx"])
    for got, want in zip(_read(twice, lengths), _read(plain, lengths), strict=True):
        np.testing.assert_allclose(got[:, -1], want[:, -1], atol=1e-4)


def test_a_step_writes_into_the_memory_that_it_was_given(twice: Session) -> None:
    _, first = twice.extend(PROMPT, MASK)
    one = np.array([[5], [6]])
    _, second = twice.extend(one, cache=first)
    _, third = twice.extend(one, cache=second)
    rooms: list[Rooms] = [next(iter(cache.states.values())) for cache in (second, third)]
    assert [room.length for room in rooms] == [7, 8]
    assert rooms[0].values is rooms[1].values
    assert rooms[0].capacity == PROMPT.shape[1] + ROOM


def test_a_single_token_is_a_prompt_too(twice: Session, artifacts: dict[str, Path]) -> None:
    plain = Session.open(artifacts["onnx"])
    got, want = (session.extend(PROMPT[:, :1])[0] for session in (twice, plain))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_arrays_may_be_fed_as_caches(twice: Session) -> None:
    """As any user of ONNX Runtime does; the result is then a copy, one position longer."""
    whole = twice.run(input_ids=PROMPT)
    past = {
        name.replace("present", "past_key_values"): state
        for name, state in whole.items()
        if name != "logits"
    }
    mask = np.ones((2, 7), np.int64)
    places = np.full((2, 1), 6)
    made = twice.run(input_ids=PROMPT[:, :1], attention_mask=mask, position_ids=places, **past)
    assert made["present.0.key"].shape == (2, 2, 7, 8)
    again = twice.run(input_ids=np.concatenate([PROMPT, PROMPT[:, :1]], 1))
    np.testing.assert_allclose(made["logits"][:, 0], again["logits"][:, -1], atol=1e-4)


def test_weights_of_both_forms_are_stored_once(twice: Session, artifacts: dict[str, Path]) -> None:
    sizes = [
        (folder / "onnx" / "model.onnx").stat().st_size
        for folder in (twice.folder, artifacts["onnx"])
    ]
    assert sizes[0] < sizes[1] + 50_000


def test_each_form_reads_what_it_is_for(
    pair: planish.Result, llama: transformers.LlamaForCausalLM
) -> None:
    assert pair.folder is not None
    session = Session.open(pair.folder)
    logits, cache = session.extend(PROMPT)
    tokens = torch.from_numpy(np.concatenate([PROMPT, PROMPT[:, :1]], 1))
    with torch.no_grad():
        want = llama(tokens).logits.numpy()
    np.testing.assert_allclose(logits, want[:, :-1], atol=1e-4)
    step, _ = session.extend(PROMPT[:, :1], cache=cache)
    error = np.linalg.norm(step[:, 0] - want[:, -1]) / np.linalg.norm(want[:, -1])
    assert 1e-4 < error < 6e-2, "single tokens are read by weights of 8 bits"


@pytest.mark.parametrize("turned", [1.0, 0.5])
def test_attention_turns_queries_and_keys_itself(
    turned: float, tokenizer: transformers.PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Of all of a head or of its first half, as three nodes would that came before it."""
    sizes: dict[str, Any] = {"vocab_size": 260, "hidden_size": 64, "intermediate_size": 48}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"partial_rotary_factor": turned, "initializer_range": 0.2}
    config = transformers.StableLmConfig(**sizes)
    torch.manual_seed(0)
    transformers.StableLmForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    result = planish.optimize(tmp_path / "model", RECIPE, output=tmp_path / "out")
    assert result.decode is not None
    apart = replace(CPU, merge=False)
    lower(result.program, tmp_path / "apart" / "onnx", decode=(result.decode.program, apart))
    (tmp_path / "apart" / "config.json").write_text(json.dumps(config.to_dict()))
    assert _kinds(tmp_path / "out")["RotaryEmbedding"] == 0
    assert _kinds(tmp_path / "apart")["RotaryEmbedding"] == 4
    sessions = [Session.open(tmp_path / name) for name in ("out", "apart")]
    for got, want in zip(*(_read(one, [1] * 5 + [2, 1]) for one in sessions), strict=True):
        np.testing.assert_allclose(got[:, -1], want[:, -1], atol=1e-4)
    assert verify(tmp_path / "out").verdict == "isolated"


def _kinds(folder: Path) -> Counter[str]:
    """How often each operator reads single tokens."""
    whole = onnx.load(folder / "onnx" / "model.onnx").graph
    (choice,) = (node for node in whole.node if node.op_type == "If")
    (branch,) = (one.g for one in choice.attribute if one.name == "then_branch")
    return Counter(node.op_type for node in branch.node)


def test_reading_one_by_one_is_the_second_form_alone(pair: planish.Result) -> None:
    assert pair.folder is not None
    assert pair.decode is not None
    session = Session.open(pair.folder)
    reader = OneByOne(session)
    logits, cache = reader.extend(PROMPT, MASK)
    assert isinstance(cache, Cache)
    assert cache.mask.tolist() == MASK.tolist()
    assert reader.label == "out, one token at a time"
    assert reader.takes_padding
    whole, _ = session.extend(PROMPT, MASK)
    assert 1e-4 < np.abs(logits - whole)[1].max() < 1


def test_what_was_made_is_told_and_proven(pair: planish.Result) -> None:
    assert pair.folder is not None
    assert pair.isolation == "isolated"
    told = pair.to_json()
    assert [step["name"] for step in told["steps"]] == ["decode: quantize_weights"]
    assert any("two forms" in note for note in told["notes"])
    manifest = json.loads((pair.folder / "planish.json").read_text())
    assert manifest["steps"][0]["name"] == "decode: quantize_weights"
    assert "decode:" in manifest["recipe"]["text"]
    assert manifest["tensor_bytes"][1] > manifest["tensor_bytes"][0], "both are stored"
    assert verify(pair.folder).verdict == "isolated"
    assert "decode: quantize_weights" in (pair.folder / "report.html").read_text()
    assert (pair.folder / "config.json").is_file(), "the first form is a checkpoint"


def test_the_gate_times_what_reads_batches_of_single_tokens(
    checkpoint: Path, tmp_path: Path
) -> None:
    result = planish.optimize(checkpoint, RECIPE, output=tmp_path / "out", gate=(1,))
    told = json.loads((tmp_path / "out" / "measurements.json").read_text())
    assert {layer for row in told["gate"] for layer in row["layers"]}
    assert result.isolation == "isolated"


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"passes": ["rotate"], "decode": [COARSE]}, "would misread the other's cache"),
        (
            {"passes": [], "decode": [{"prune_depth": {"layers": 1, "protected": 0}}]},
            "belong into both lists",
        ),
    ],
)
def test_refuses_forms_that_misread_each_other(
    recipe: dict[str, Any], words: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotOneModel, match=words):
        planish.optimize(checkpoint, recipe, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_rotates_alike_fits(checkpoint: Path) -> None:
    both = {"passes": ["rotate"], "decode": ["rotate", COARSE]}
    assert planish.optimize(checkpoint, both).decode is not None


def test_refuses_models_that_keep_no_cache() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    with pytest.raises(NotOneModel, match="does not generate with a cache"):
        planish.optimize(model, RECIPE, inputs=torch.ones(1, 4))


def test_refuses_targets_of_one_program(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BadCall, match="is for target onnx"):
        planish.optimize(checkpoint, RECIPE, target="torch", output=tmp_path / "out")
    with pytest.raises(BadRecipe, match="decode: is for target onnx, not torch"):
        planish.optimize(checkpoint, {**RECIPE, "target": "torch"})


def test_on_the_command_line(pair: planish.Result, checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text(pair.recipe.to_yaml())
    run = CliRunner().invoke
    planned = run(app, ["plan", str(checkpoint), "--recipe", str(recipe)])
    assert planned.exit_code == 0
    assert "decode: quantize_weights" in planned.output
    text = tmp_path / "text.txt"
    text.write_text("so much depends upon a red wheel barrow glazed with rain water")
    losses = []
    for more in ([], ["--one-by-one"]):
        options = ["--text", str(text), "--window", "32", "--json", *more]
        judged = run(app, ["eval", str(pair.folder), *options])
        assert judged.exit_code == 0, judged.output
        losses.append(json.loads(judged.output)["perplexity"]["loss"])
    assert 1e-7 < abs(losses[0] - losses[1]) < 0.1
