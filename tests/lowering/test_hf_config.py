"""Configs found for new sizes: what transformers loads gives what the pruned program gives."""

import json
from pathlib import Path
from typing import Any

import pytest

from planish.ir.capture.huggingface import from_checkpoint
from planish.ir.program import Program
from planish.lowering.checkpoint import write_checkpoint
from planish.lowering.compressed_tensors import NotExpressible
from planish.lowering.hf_config import Sought, configs_for
from planish.passes.cast import Cast
from planish.passes.prune import PruneChannels, PruneEmbedding, PruneExperts, PruneHeads
from planish.passes.quantize_weights import QuantizeWeights
from support.folders import loads_alike
from support.models import tiny_folder

CHANNELS = PruneChannels(ratio=0.25, importance="magnitude")
HEADS = PruneHeads(ratio=0.5, importance="magnitude")
QUERIES = PruneHeads(ratio=0.5, importance="magnitude", unit="queries")
EXPERTS = PruneExperts(ratio=0.4, importance="magnitude")
WIDTH = PruneEmbedding(ratio=0.25, importance="magnitude")

MLP = {"intermediate_size": 144}
HALF = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
CASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("llama", CHANNELS, MLP),
    ("llama", HEADS, {"num_attention_heads": 2, "num_key_value_heads": 1}),
    ("llama", QUERIES, {"num_attention_heads": 2}),
    ("llama", WIDTH, {"hidden_size": 48, "rms_norm_eps": 1e-6 * 64 / 48}),
    ("qwen2", HEADS, HALF),
    ("qwen3", HEADS, {"num_attention_heads": 2, "num_key_value_heads": 1}),
    ("phi3", HEADS, HALF),
    ("gemma3", CHANNELS, MLP),
    ("falcon", CHANNELS, {"ffn_hidden_size": 144}),
    ("mixtral", EXPERTS, {"num_local_experts": 3}),
    ("qwen2_moe", EXPERTS, {"num_experts": 3}),
    ("gpt2", CHANNELS, {"n_inner": 144}),
    ("opt", CHANNELS, {"ffn_dim": 144}),
    ("t5", CHANNELS, {"d_ff": 144}),
    ("t5", HEADS, {"num_heads": 2}),
    ("mamba", WIDTH, {"hidden_size": 48, "layer_norm_epsilon": 1e-5 * 64 / 48}),
    ("swin", CHANNELS, {"mlp_ratio": 2.25}),
    ("vit", HEADS, {"num_attention_heads": 2, "head_dim": 16}),
]
COMMON = {("llama", 1), ("qwen2", 4), ("mixtral", 9)}


def written(program: Program, original: Program, folder: Path, *, fresh: bool = False) -> Any:
    """Write a checkpoint, compare what transformers makes of it, and give its config."""
    folder.mkdir()
    write_checkpoint(program, original, folder)
    loads_alike(folder, program, fresh=fresh)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("family", "one", "changed"),
    [
        pytest.param(
            *case,
            id=f"{case[0]}-{place}",
            marks=() if (case[0], place) in COMMON else pytest.mark.slow,
        )
        for place, case in enumerate(CASES)
    ],
)
def test_uniform_results_load_and_only_these_fields_changed(
    family: str, one: Any, changed: dict[str, Any], tmp_path: Path
) -> None:
    source = tiny_folder(family, tmp_path / "source", layers=2)
    before = json.loads((source / "config.json").read_text())
    program = from_checkpoint(source)
    after = written(one(program), program, tmp_path / "out", fresh=family == "llama")
    found = {key: value for key, value in after.items() if before.get(key) != value}
    assert found == pytest.approx(changed)


def test_pruned_and_quantized_loads(tmp_path: Path) -> None:
    program = from_checkpoint(tiny_folder("llama", tmp_path / "source", layers=1))
    pruned = PruneChannels(ratio=0.3, round_to=64, importance="magnitude")(program)
    after = QuantizeWeights(bits=8, group_size=None)(pruned)
    config = written(after, program, tmp_path / "out")
    assert config["intermediate_size"] == 128
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


def test_a_pruned_model_in_bfloat16_may_round_along_the_way(tmp_path: Path) -> None:
    program = from_checkpoint(tiny_folder("llama", tmp_path / "source", layers=2))
    write_checkpoint(Cast(dtype="bfloat16")(CHANNELS(program)), program, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["intermediate_size"], config["dtype"]) == (144, "bfloat16")


def test_what_no_config_says_is_refused(tmp_path: Path) -> None:
    gpt2 = from_checkpoint(tiny_folder("gpt2", tmp_path / "gpt2", layers=1))
    with pytest.raises(NotExpressible, match="no config of GPT2LMHeadModel gives"):
        write_checkpoint(HEADS(gpt2), gpt2, tmp_path)


def test_shapes_that_fit_and_mean_something_else_are_refused(tmp_path: Path) -> None:
    # Gemma multiplies embeddings by the root of their width, which a shorter one would change.
    program = from_checkpoint(tiny_folder("gemma3", tmp_path / "source", layers=1))
    with pytest.raises(NotExpressible, match=r"computes something else with them \(.*off\)"):
        write_checkpoint(WIDTH(program), program, tmp_path)


def test_the_search_finds_fewer_layers(tmp_path: Path) -> None:
    program = from_checkpoint(tiny_folder("llama", tmp_path / "source", layers=3))
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in program.tensors.items()
        if ".layers.2." not in name
    }
    config = next(configs_for(Sought(program.source, shapes)))
    assert config == {**program.source.config, "num_hidden_layers": 2}
