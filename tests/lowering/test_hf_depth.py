"""Fewer layers as a plain Hugging Face folder: what transformers loads gives the same logits."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from planish.ir.capture.huggingface import from_checkpoint
from planish.lowering.checkpoint import write_checkpoint
from planish.lowering.compressed_tensors import NotExpressible
from planish.lowering.hf_depth import shortened, stacks_of
from planish.passes.cast import Cast
from planish.passes.prune_depth import PruneDepth
from planish.passes.quantize_weights import QuantizeWeights
from support import reload
from support.models import tiny_folder

SAID: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 2},
    "gemma3": {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    "resnet": {"depths": [3, 3]},
    "mamba2": {"num_hidden_layers": 2},
    "distilbert": {"n_layers": 2},
    "t5": {"num_layers": 3, "num_decoder_layers": 3},
    "mixtral": {"num_hidden_layers": 2},
    "gpt2": {"n_layer": 2},
    "vit": {"num_hidden_layers": 2},
}
"""What the config says of a family of four layers (or four a stage) when two are left out."""

DEFAULT = {"llama", "gemma3", "resnet"}


@pytest.mark.parametrize(
    "family",
    [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in SAID],
)
def test_fewer_layers_load_in_transformers(family: str, tmp_path: Path) -> None:
    original = from_checkpoint(tiny_folder(family, tmp_path / "source", layers=4))
    program = PruneDepth(layers=2, choose="even")(original)
    if family == "llama":
        program = QuantizeWeights(bits=8, group_size=None)(program)
    folder = tmp_path / "out"
    folder.mkdir()
    write_checkpoint(program, original, folder)
    config = json.loads((folder / "config.json").read_text())
    assert {key: config[key] for key in SAID[family]} == SAID[family]
    sample = program.samples[0]
    given = {name: one for name, one in sample.items() if not name.startswith("past_")}
    save_file({name: tensor.contiguous() for name, tensor in given.items()}, folder / "inputs")
    if family == "gemma3":
        subprocess.run([sys.executable, reload.__file__, str(folder)], check=True)
        got = load_file(folder / "outputs")["got"]
    else:
        got = reload.reloaded(folder)
    expected = program.run(**sample)[program.outputs[0]]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def swin(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return from_checkpoint(tiny_folder("swin", tmp_path_factory.mktemp("swin"), layers=2))


def test_layers_that_differ_by_their_number_have_no_checkpoint(swin: Any, tmp_path: Path) -> None:
    """Every other layer of Swin shifts its windows, which only its place says."""
    program = PruneDepth(layers=1, choose="even")(swin)
    with pytest.raises(
        NotExpressible, match=r"1 of the layers in swin\.encoder\.layers\.\d\.blocks"
    ):
        write_checkpoint(program, swin, tmp_path)


def test_branches_left_out_have_no_checkpoint(swin: Any, tmp_path: Path) -> None:
    program = PruneDepth(layers=1, choose="even", unit="branch")(swin)
    assert stacks_of(program, swin) == []
    with pytest.raises(NotExpressible, match="passes added, removed or reshaped"):
        write_checkpoint(program, swin, tmp_path)


def test_with_all_layers_nothing_changes(swin: Any) -> None:
    program = Cast("bfloat16")(swin)
    assert shortened(program, swin) == (program, swin)
