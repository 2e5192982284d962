"""Rotated and sliced models in transformers: norms get weights again, shared tables are two."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from planish.ir.capture.huggingface import from_checkpoint
from planish.ir.program import Program
from planish.lowering.checkpoint import write_checkpoint
from planish.lowering.compressed_tensors import NotExpressible
from planish.lowering.hf_folded import unfolded
from planish.passes.cast import Cast
from planish.passes.prune_depth import PruneDepth
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.rotate import Rotate
from planish.passes.slice import Slice
from support.folders import loads_alike, quantization_of
from support.models import tiny_folder

SPLIT = Slice(ratio=0.25, tied="split")
NARROW = {"hidden_size": 48, "rms_norm_eps": 1e-6 * 64 / 48}
OWN_HEAD = {"tie_word_embeddings": False}
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "turned": ("llama", Rotate(), {}),
    "turned, two tables": ("qwen2", Rotate(), OWN_HEAD),
    "cut": ("llama", SPLIT, NARROW),
    "cut, two tables": ("qwen2", SPLIT, {**NARROW, **OWN_HEAD, "head_dim": 16}),
    "cut, of a scan": (
        "mamba",
        SPLIT,
        {"hidden_size": 48, "layer_norm_epsilon": 1e-5 * 64 / 48, **OWN_HEAD},
    ),
    "cut, of experts": (
        "mixtral",
        SPLIT,
        {"hidden_size": 48, "rms_norm_eps": 1e-5 * 64 / 48, "head_dim": 16},
    ),
}


def tiny(family: str, folder: Path, layers: int = 2) -> Program:
    """A model with more tokens to calibrate on than it is wide."""
    program = from_checkpoint(tiny_folder(family, folder / "source", layers=layers))
    return dataclasses.replace(program, calibration=program.samples * 4)


def changes(program: Program, original: Program, folder: Path, *, fresh: bool) -> dict[str, Any]:
    """Write a checkpoint, compare it with the program, and give what its config changed."""
    folder.mkdir()
    write_checkpoint(program, original, folder)
    loads_alike(folder, program, fresh=fresh)
    before, config = original.source.config, json.loads((folder / "config.json").read_text())
    return {key: value for key, value in config.items() if before.get(key) != value}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow if " of " in case else ()) for case in CASES],
)
def test_turned_and_cut_models_load_as_their_class(case: str, tmp_path: Path) -> None:
    family, one, expected = CASES[case]
    program = tiny(family, tmp_path)
    found = changes(one(program), program, tmp_path / "out", fresh=case == "cut, two tables")
    assert found == pytest.approx(expected)


def test_norms_of_a_turned_model_multiply_by_ones(tmp_path: Path) -> None:
    program = tiny("llama", tmp_path)
    write_checkpoint(Rotate()(program), program, tmp_path)
    norms = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if "norm" in k}
    assert len(norms) == 5
    assert all(bool((weight == 1).all()) for weight in norms.values())


def test_what_is_added_to_one_is_stored_as_zeros(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GemmaConfig(
        vocab_size=101,
        pad_token_id=0,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        initializer_range=0.125,
    )
    model = transformers.GemmaForCausalLM(config)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(tmp_path / "source")
    program = from_checkpoint(tmp_path / "source")
    assert (
        changes(Rotate()(program), program, tmp_path / "out", fresh=False).keys() >= OWN_HEAD.keys()
    )
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert not stored["model.norm.weight"].any()


def test_turned_quantized_and_shortened_models_load(tmp_path: Path) -> None:
    program = tiny("qwen2", tmp_path, layers=3)
    turned = QuantizeWeights(bits=8, group_size=32, lm_head=True)(Rotate()(program))
    changes(turned, program, tmp_path / "turned", fresh=False)
    config, _ = quantization_of(tmp_path / "turned")
    assert not any("lm_head" in name for name in config.ignore or [])
    short = PruneDepth(layers=1, choose="even")(Rotate()(program))
    found = changes(short, program, tmp_path / "short", fresh=False)
    assert found["num_hidden_layers"] == 2


def test_a_turned_model_keeps_the_dtype_that_it_was_cast_to(tmp_path: Path) -> None:
    program = tiny("qwen2", tmp_path)
    write_checkpoint(Cast(dtype="bfloat16")(Rotate()(program)), program, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config.items() >= OWN_HEAD.items()


def test_a_width_that_heads_do_not_divide_is_refused_in_the_words_of_transformers(
    tmp_path: Path,
) -> None:
    program = tiny("llama", tmp_path)
    cut = Slice(ratio=0.2, round_to=1, tied="split")(program)
    with pytest.raises(NotExpressible, match=r'says ".*\(51\) is not a multiple of .*heads \(4\)"'):
        write_checkpoint(cut, program, tmp_path)


def test_layer_norms_that_became_others_are_not_put_back(tmp_path: Path) -> None:
    program = tiny("gpt2", tmp_path)
    with pytest.raises(NotExpressible, match="bias_with_norm"):
        write_checkpoint(Rotate()(program), program, tmp_path)


def test_what_nothing_was_folded_in_stays_as_given(tmp_path: Path) -> None:
    program = tiny("llama", tmp_path)
    quantized = QuantizeWeights(bits=8, group_size=32)(program)
    one, other = unfolded(quantized, program)
    assert one is quantized
    assert other is program
