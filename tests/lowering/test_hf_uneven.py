"""Layers of different sizes: `per_layer_config` says which, and is compared with the program."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from planish.ir.capture.huggingface import from_checkpoint
from planish.ir.program import Program
from planish.lowering.checkpoint import write_checkpoint
from planish.lowering.compressed_tensors import NotExpressible
from planish.lowering.hf_uneven import Layers, put_together, uneven_layers
from planish.passes.prune import PruneChannels, PruneEmbedding, PruneHeads
from planish.passes.quantize_weights import QuantizeWeights
from support.models import tiny_folder

LATER = PruneChannels(ratio=0.25, importance="magnitude", ignore=("model.layers.0.*",))
HEADS = PruneHeads(ratio=0.5, importance="magnitude", ignore=("model.layers.1.*",))


def written(program: Program, original: Program, folder: Path) -> tuple[dict[str, Any], Any]:
    """The config of a checkpoint, and what was said of it."""
    folder.mkdir()
    files = write_checkpoint(program, original, folder)
    return json.loads((folder / "config.json").read_text()), files.notes


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Three layers."""
    return from_checkpoint(tiny_folder("llama", tmp_path_factory.mktemp("llama"), layers=3))


def test_a_layer_says_what_differs_and_no_more(llama: Program, tmp_path: Path) -> None:
    config, notes = written(LATER(llama), llama, tmp_path / "out")
    assert config["per_layer_config"] == {
        "1": {"intermediate_size": 144},
        "2": {"intermediate_size": 144},
    }
    assert config["intermediate_size"] == llama.source.config["intermediate_size"]
    assert any("2 layers have sizes of their own" in note for note in notes)


def test_settings_give_the_program_from_its_files(llama: Program, tmp_path: Path) -> None:
    after = HEADS(LATER(llama))
    config, _ = written(after, llama, tmp_path / "out")
    assert config["per_layer_config"]["0"] == {"num_attention_heads": 2, "num_key_value_heads": 1}
    layers = uneven_layers({name: tuple(one.shape) for name, one in after.tensors.items()})
    assert layers is not None
    model = put_together(config, layers)
    model.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"), strict=False)
    sample = after.samples[0]
    with torch.no_grad():
        got = model(**{name: one for name, one in sample.items() if one.numel()}).logits
    torch.testing.assert_close(got, after.run(**sample)["logits"], rtol=1e-4, atol=1e-4)


def test_what_changed_in_all_layers_is_said_once(llama: Program, tmp_path: Path) -> None:
    narrow = PruneEmbedding(ratio=0.25, importance="magnitude")
    config, _ = written(LATER(narrow(llama)), llama, tmp_path / "out")
    assert config["hidden_size"] == 48
    assert set(config["per_layer_config"]) == {"1", "2"}
    assert config["rms_norm_eps"] == pytest.approx(1e-6 * 64 / 48)


def test_quantized_layers_keep_their_format(llama: Program, tmp_path: Path) -> None:
    after = QuantizeWeights(bits=8, group_size=None)(LATER(llama))
    config, _ = written(after, llama, tmp_path / "out")
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert set(config["per_layer_config"]) == {"1", "2"}


def test_other_settings_are_refused(tmp_path: Path) -> None:
    gpt2 = from_checkpoint(tiny_folder("gpt2", tmp_path / "source", layers=2))
    one = PruneHeads(ratio=0.5, importance="magnitude", ignore=("transformer.h.0.*",))
    with pytest.raises(NotExpressible, match="no config of GPT2LMHeadModel gives"):
        write_checkpoint(one(gpt2), gpt2, tmp_path)


def test_only_layers_that_differ_in_sizes_alone_count() -> None:
    even = {"h.0.w": (4, 2), "h.1.w": (4, 2), "norm": (2,)}
    assert uneven_layers(even) is None
    assert uneven_layers({**even, "h.1.w": (3, 2)}) == Layers(
        "h", {0: {"w": (4, 2)}, 1: {"w": (3, 2)}}
    )
    assert uneven_layers({**even, "h.1.w": (3, 2), "h.1.b": (3,)}) is None, "other tensors"
    twice = {**even, "h.1.w": (3, 2), "g.0.w": (2,), "g.1.w": (1,)}
    assert uneven_layers(twice) is None, "two stacks"
