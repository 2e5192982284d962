"""Hugging Face folders: what transformers loads in a fresh process gives the program's logits."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from transformers import AutoTokenizer

from planish import assets
from planish.ir import activations
from planish.ir.capture.huggingface import capture_model, from_checkpoint
from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor, dequantize
from planish.lowering.checkpoint import write_checkpoint
from planish.lowering.compressed_tensors import WRITTEN_BITS, NotExpressible
from planish.passes.binarize import Binarize
from planish.passes.fuse_conv_bn import FuseConvBn
from planish.passes.levels import Levels
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.quantize_weights import QuantizeWeights
from support.folders import loads_alike
from support.models import tiny, tiny_folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return from_checkpoint(tiny_folder("llama", tmp_path_factory.mktemp("llama"), layers=1))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "bert"])
def test_writes_back_what_was_read(family: str, tmp_path: Path) -> None:
    source = tiny_folder(family, tmp_path / "source", layers=1)
    program = from_checkpoint(source)
    (tmp_path / "out").mkdir()
    files = write_checkpoint(program, program, tmp_path / "out")
    before, after = load_file(source / "model.safetensors"), load_file(files.paths[0])
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    loads_alike(tmp_path / "out", program, fresh=family == "gpt2")


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4, "group_size": 32},
        {"bits": 8, "group_size": None},
        {"bits": 8, "group_size": 32, "ignore": ("*.mlp.*",)},
        {"bits": 4, "group_size": 32, "symmetric": False},
        {"bits": 8, "group_size": None, "symmetric": False},
        {"bits": 3, "group_size": 32},
        {"bits": 2, "group_size": 32, "symmetric": False},
        {"bits": 8, "group_size": None, "type": "float"},
    ],
    ids=str,
)
def test_quantized_layers_load_in_transformers(
    options: dict[str, object], llama: Program, tmp_path: Path
) -> None:
    program = QuantizeWeights(**options)(llama)  # type: ignore[arg-type]
    write_checkpoint(program, llama, tmp_path)
    loads_alike(tmp_path, program, fresh=options["bits"] == 4)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    assert group["weights"]["num_bits"] == options["bits"]
    assert "lm_head" in config["ignore"]
    assert "sparsity_config" not in config


@pytest.mark.parametrize("levels", [2, 3])
def test_binary_and_ternary_layers_load_in_transformers(
    levels: Levels, llama: Program, tmp_path: Path
) -> None:
    program = Binarize(levels=levels, group_size=32, calibration="none")(llama)
    files = write_checkpoint(program, llama, tmp_path)
    assert files.notes == ((WRITTEN_BITS[1][1],) if levels == 2 else ())
    loads_alike(tmp_path, program)


def test_a_product_beside_a_layer_has_no_checkpoint(llama: Program, tmp_path: Path) -> None:
    program = Binarize(levels=3, group_size=32, rank=4, calibration="none")(llama)
    with pytest.raises(NotExpressible, match=r"passes added.*tensors \(.*weight_left"):
        write_checkpoint(program, llama, tmp_path)


def test_packed_weights_are_written_as_they_are(
    llama: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Multiplied out, they would take the memory of the whole model once more."""
    program = QuantizeWeights(bits=4, group_size=32)(llama)

    def refuse(tensor: QuantizedTensor) -> None:
        raise AssertionError(tensor.shape)

    monkeypatch.setattr(QuantizedTensor, "dequantize", refuse)
    write_checkpoint(program, llama, tmp_path)


@pytest.mark.parametrize(
    ("weights", "inputs", "form"),
    [
        ({"bits": 8, "group_size": None}, {}, "int-quantized"),
        ({"bits": 7, "group_size": None}, {}, "int-quantized"),
        ({"bits": 4, "group_size": 32}, {}, "int-quantized"),
        ({"bits": 8, "group_size": None}, {"dynamic": False}, "int-quantized"),
        ({"bits": 8, "group_size": None, "type": "float"}, {"type": "float"}, "float-quantized"),
    ],
    ids=str,
)
def test_layers_whose_inputs_are_rounded_load_in_transformers(
    weights: dict[str, Any],
    inputs: dict[str, Any],
    form: str,
    llama: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """transformers rounds inputs too, int8 with a scale that is 0.4% finer than vLLM's and ours."""
    finer = {torch.int8: 127.5, torch.float8_e4m3fn: 448.0}
    monkeypatch.setattr(activations, "reach", finer.__getitem__)
    program = QuantizeActivations(**inputs)(QuantizeWeights(**weights)(llama))
    write_checkpoint(program, llama, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    theirs = QuantizationConfig.model_validate(config)
    assert theirs.format == form
    (group,) = theirs.config_groups.values()
    assert not isinstance(group, list)
    assert group.input_activations is not None
    assert group.input_activations.dynamic == inputs.get("dynamic", True)
    loads_alike(tmp_path, program)


@pytest.mark.parametrize(
    ("weights", "inputs", "why"),
    [
        ({"bits": 8, "group_size": None}, {"type": "float"}, "integers on both sides"),
        (
            {"bits": 8, "group_size": None, "targets": ("*q_proj",)},
            {},
            "with quantized weights",
        ),
    ],
)
def test_roundings_that_the_formats_cannot_say_are_refused(
    weights: dict[str, Any], inputs: dict[str, Any], why: str, llama: Program, tmp_path: Path
) -> None:
    program = QuantizeActivations(**inputs)(QuantizeWeights(**weights)(llama))
    with pytest.raises(NotExpressible, match=why):
        write_checkpoint(program, llama, tmp_path)


def test_asymmetric_layers_are_as_the_format_has_them(llama: Program, tmp_path: Path) -> None:
    """The format's own package reads zero points that transformers is told to multiply out."""
    program = QuantizeWeights(bits=4, group_size=32, symmetric=False)(llama)
    files = write_checkpoint(program, llama, tmp_path)
    assert not files.notes
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
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


@pytest.mark.parametrize("family", ["t5", "mixtral", "bert"])
def test_families_that_look_into_layers_or_stack_experts_load(family: str, tmp_path: Path) -> None:
    original = from_checkpoint(tiny_folder(family, tmp_path / "source", layers=1))
    ignore = ("*.experts.*",) if family == "mixtral" else ()
    program = QuantizeWeights(bits=4, group_size=32, ignore=ignore)(original)
    (tmp_path / "out").mkdir()
    write_checkpoint(program, original, tmp_path / "out")
    loads_alike(tmp_path / "out", program)
    config = (tmp_path / "out" / "config.json").read_text()
    assert str(tmp_path) not in config


def test_a_model_that_never_was_in_a_folder_gets_a_whole_config(tmp_path: Path) -> None:
    original = capture_model(tiny("llama", layers=1)[0])
    write_checkpoint(original, original, tmp_path)
    loads_alike(tmp_path, original)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "float32")


@pytest.mark.slow
def test_the_tokenizer_comes_out_of_a_gguf_file(tmp_path: Path) -> None:
    program = capture_model(tiny("llama", layers=1)[0])
    (file,) = assets.fetch("smollm2").glob("*.gguf")
    source = dataclasses.replace(program.source, folder=file.parent, gguf=file.name)
    program = dataclasses.replace(program, source=source)
    write_checkpoint(program, program, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer("Hello, world")["input_ids"]) == "Hello, world"


def test_two_schemes_name_their_layers(llama: Program, tmp_path: Path) -> None:
    first = QuantizeWeights(bits=4, group_size=32, targets=("*.mlp.*",))(llama)
    program = QuantizeWeights(bits=8, group_size=64)(first)
    write_checkpoint(program, llama, tmp_path)
    loads_alike(tmp_path, program)


def test_a_note_says_what_transformers_does_not_load(llama: Program, tmp_path: Path) -> None:
    first = QuantizeWeights(bits=4, group_size=32, symmetric=False, targets=("*.mlp.*",))(llama)
    program = QuantizeWeights(bits=8, group_size=64)(first)
    files = write_checkpoint(program, llama, tmp_path)
    assert "transformers cannot load them beside a second scheme" in files.notes[0]


def test_large_models_are_sharded(llama: Program, tmp_path: Path) -> None:
    files = write_checkpoint(llama, llama, tmp_path, max_shard=100_000)
    assert len(files.paths) > 1
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in files.paths}
    loads_alike(tmp_path, llama)


def test_refuses_what_a_checkpoint_cannot_hold(tmp_path: Path) -> None:
    resnet = from_checkpoint(tiny_folder("resnet", tmp_path / "resnet", layers=1))
    with pytest.raises(NotExpressible, match=r"passes added, removed or reshaped \d+ tensors"):
        write_checkpoint(FuseConvBn()(resnet), resnet, tmp_path)
    gpt2 = from_checkpoint(tiny_folder("gpt2", tmp_path / "gpt2", layers=1))
    with pytest.raises(NotExpressible, match=r"not \(only\) the weight of a module"):
        write_checkpoint(QuantizeWeights(bits=8, group_size=32)(gpt2), gpt2, tmp_path)
    qwen2 = from_checkpoint(tiny_folder("qwen2", tmp_path / "qwen2", layers=1))
    tied = QuantizeWeights(bits=8, group_size=32, embeddings=True, lm_head=True)(qwen2)
    with pytest.raises(NotExpressible, match=r"embed_tokens\.weight is quantized"):
        write_checkpoint(tied, qwen2, tmp_path)
