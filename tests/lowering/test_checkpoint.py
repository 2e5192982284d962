"""Hugging Face folders: what transformers loads in a fresh process gives the program's logits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file, save_file

from planish.ir.capture.huggingface import from_checkpoint
from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor, dequantize
from planish.lowering.checkpoint import NotExpressible, write_checkpoint
from planish.passes.fuse_conv_bn import FuseConvBn
from planish.passes.quantize_weights import QuantizeWeights
from support.models import tiny_folder

LOADER = """
import sys, json, warnings
warnings.simplefilter("ignore")
import torch, transformers
from safetensors.torch import load_file, save_file
transformers.logging.set_verbosity_error()
folder = sys.argv[1]
config = json.load(open(folder + "/config.json"))
kind = getattr(transformers, config["architectures"][0])
model, info = kind.from_pretrained(folder, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
with torch.no_grad():
    inputs = load_file(folder + "/inputs")
    result = model.eval()(**inputs)
save_file({"got": result[0].contiguous()}, folder + "/outputs")
"""


def _reload(folder: Path, program: Program) -> None:
    """Compare what a fresh process computes from a folder with the program, without a past."""
    sample = {
        name: tensor
        for name, tensor in program.samples[0].items()
        if not name.startswith("past_key_values")
    }
    save_file({name: tensor.contiguous() for name, tensor in sample.items()}, folder / "inputs")
    subprocess.run([sys.executable, "-c", LOADER, str(folder)], check=True)
    got = load_file(folder / "outputs")["got"]
    expected = program.run(**program.samples[0])[program.outputs[0]]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "bert"])
def test_writes_back_what_was_read(family: str, tmp_path: Path) -> None:
    source = tiny_folder(family, tmp_path / "source")
    program = from_checkpoint(source)
    (tmp_path / "out").mkdir()
    files = write_checkpoint(program, program, tmp_path / "out")
    before, after = load_file(source / "model.safetensors"), load_file(files.paths[0])
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    _reload(tmp_path / "out", program)


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4, "group_size": 32},
        {"bits": 8, "group_size": None},
        {"bits": 8, "group_size": 32, "ignore": ("*.mlp.*",)},
        {"bits": 4, "group_size": 32, "symmetric": False},
        {"bits": 8, "group_size": None, "symmetric": False},
    ],
)
def test_quantized_layers_load_in_transformers(options: dict[str, object], tmp_path: Path) -> None:
    original = from_checkpoint(tiny_folder("llama", tmp_path / "source"))
    program = QuantizeWeights(**options)(original)  # type: ignore[arg-type]
    (tmp_path / "out").mkdir()
    write_checkpoint(program, original, tmp_path / "out")
    _reload(tmp_path / "out", program)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    assert group["weights"]["num_bits"] == options["bits"]
    assert "lm_head" in config["ignore"]
    assert "sparsity_config" not in config


def test_asymmetric_layers_are_as_the_format_has_them(tmp_path: Path) -> None:
    """The format's own package reads zero points that transformers is told to multiply out."""
    original = from_checkpoint(tiny_folder("llama", tmp_path / "source"))
    program = QuantizeWeights(bits=4, group_size=32, symmetric=False)(original)
    (tmp_path / "out").mkdir()
    files = write_checkpoint(program, original, tmp_path / "out")
    assert not files.notes
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(config).config_groups["group_0"]
    stored = load_file(files.paths[0])
    for node in program.nodes(dequantize):
        name, tensor = QuantizedTensor.read_by(node, program.tensors)
        layer = {
            key.removeprefix(name.removesuffix("weight")): value
            for key, value in stored.items()
            if key.startswith(name)
        }
        weight = PackedQuantizationCompressor.decompress(layer, scheme)["weight"]
        torch.testing.assert_close(weight, tensor.dequantize())


def test_two_schemes_name_their_layers(tmp_path: Path) -> None:
    original = from_checkpoint(tiny_folder("llama", tmp_path / "source"))
    first = QuantizeWeights(bits=4, group_size=32, targets=("*.mlp.*",))(original)
    program = QuantizeWeights(bits=8, group_size=64)(first)
    (tmp_path / "out").mkdir()
    write_checkpoint(program, original, tmp_path / "out")
    _reload(tmp_path / "out", program)


def test_a_note_says_what_transformers_does_not_load(tmp_path: Path) -> None:
    original = from_checkpoint(tiny_folder("llama", tmp_path / "source", layers=1))
    first = QuantizeWeights(bits=4, group_size=32, symmetric=False, targets=("*.mlp.*",))(original)
    program = QuantizeWeights(bits=8, group_size=64)(first)
    files = write_checkpoint(program, original, tmp_path)
    assert "transformers cannot load them beside a second scheme" in files.notes[0]


def test_large_models_are_sharded(tmp_path: Path) -> None:
    program = from_checkpoint(tiny_folder("llama", tmp_path / "source"))
    (tmp_path / "out").mkdir()
    files = write_checkpoint(program, program, tmp_path / "out", max_shard=100_000)
    assert len(files.paths) > 1
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in files.paths}
    _reload(tmp_path / "out", program)


def test_refuses_what_a_checkpoint_cannot_hold(tmp_path: Path) -> None:
    resnet = from_checkpoint(tiny_folder("resnet", tmp_path / "resnet"))
    with pytest.raises(NotExpressible, match=r"passes added, removed or reshaped \d+ tensors"):
        write_checkpoint(FuseConvBn()(resnet), resnet, tmp_path)
    gpt2 = from_checkpoint(tiny_folder("gpt2", tmp_path / "gpt2"))
    with pytest.raises(NotExpressible, match=r"not \(only\) the weight of a module"):
        write_checkpoint(QuantizeWeights(bits=8, group_size=32)(gpt2), gpt2, tmp_path)
    qwen2 = from_checkpoint(tiny_folder("qwen2", tmp_path / "qwen2", layers=1))
    tied = QuantizeWeights(bits=8, group_size=32, embeddings=True, lm_head=True)(qwen2)
    with pytest.raises(NotExpressible, match=r"embed_tokens\.weight is quantized"):
        write_checkpoint(tied, qwen2, tmp_path)
