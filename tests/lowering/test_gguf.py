"""GGUF files: what a reader finds in them, and that they compute what the program does."""

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
import torch
from transformers import AutoTokenizer

import planish
from planish import assets
from planish.ir.capture.huggingface import from_checkpoint
from planish.ir.program import Program, Source
from planish.ir.quant import QuantizedTensor, dequantize
from planish.lowering.compressed_tensors import NotExpressible
from planish.lowering.gguf import write_gguf
from planish.lowering.gguf_tokenizer import write_tokenizer
from planish.passes.cast import Cast
from planish.passes.pipeline import relative_error
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.rotate import Rotate
from support.models import VOCABULARY, tiny_folder


def folder_of(family: str, folder: Path) -> Path:
    """Save a tiny model with a byte-level tokenizer of as many tokens."""
    tiny_folder(family, folder, layers=2)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 4]
    vocabulary = {token: number for number, token in enumerate(["<s>", *alphabet, "ab", "abc"])}
    merges = [("a", "b"), ("ab", "c")]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<s>"])
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return from_checkpoint(folder_of("llama", tmp_path_factory.mktemp("llama")))


SCHEMES = [
    ({"bits": 4, "group_size": 64}, gguf.GGMLQuantizationType.Q4_0),
    ({"bits": 4, "group_size": 32, "symmetric": False}, gguf.GGMLQuantizationType.Q4_1),
    ({"bits": 3, "group_size": 32}, gguf.GGMLQuantizationType.Q4_0),
    ({"bits": 8, "group_size": None}, gguf.GGMLQuantizationType.Q8_0),
]


@pytest.mark.parametrize(("options", "kind"), SCHEMES, ids=str)
def test_blocks_stand_for_the_weights(
    options: dict[str, Any], kind: gguf.GGMLQuantizationType, llama: Program, tmp_path: Path
) -> None:
    program = QuantizeWeights(**options)(llama)
    size = write_gguf(program, llama, tmp_path / "model.gguf")
    assert size == (tmp_path / "model.gguf").stat().st_size
    found = {one.name: one for one in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    weights = dict(
        QuantizedTensor.read_by(node, program.tensors) for node in program.nodes(dequantize)
    )
    for name, called in (
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight"),
    ):
        stored = found[called]
        assert stored.tensor_type == kind
        value = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type))
        assert relative_error(value, weights[name].dequantize()) < 1e-3  # scales in float16
    assert found["token_embd.weight"].tensor_type == gguf.GGMLQuantizationType.F32


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_what_reads_it_computes_the_same(family: str, tmp_path: Path) -> None:
    original = from_checkpoint(folder_of(family, tmp_path / family))
    for program, bound in (
        (original, 1e-5),
        (Rotate()(original), 1e-4),
        (QuantizeWeights(bits=4, group_size=32)(original), 5e-3),
    ):
        write_gguf(program, original, tmp_path / "model.gguf")
        again = from_checkpoint(tmp_path / "model.gguf")
        sample = program.samples[0]
        want, got = (one.run(**sample)["logits"] for one in (program, again))
        assert relative_error(got, want) < bound


def test_the_same_program_gives_the_same_bytes(llama: Program, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_gguf(llama, llama, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_tokenizer_is_read_back(llama: Program, tmp_path: Path) -> None:
    write_gguf(llama, llama, tmp_path / "model.gguf")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == VOCABULARY
    assert tokens[-1] == "[PAD100]"
    assert fields["tokenizer.ggml.merges"].contents() == ["a b", "ab c"]
    assert fields["tokenizer.ggml.token_type"].contents()[0] == gguf.TokenType.CONTROL
    loaded = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    text = "abcab"
    assert (
        loaded(text)["input_ids"]
        == tokenizers.Tokenizer.from_file(
            str(llama.source.folder / "tokenizer.json")  # type: ignore[operator]
        )
        .encode(text)
        .ids
    )


def test_a_gguf_file_keeps_its_tokenizer(tmp_path: Path) -> None:
    (source,) = assets.fetch("smollm2").glob("*.gguf")
    meta = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    write_tokenizer(writer, Source(name="S", folder=source.parent, gguf=source.name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    made = gguf.GGUFReader(tmp_path / "t.gguf").fields
    fields = {name: one for name, one in meta.fields.items() if name.startswith("tokenizer.")}
    assert len(fields) > 5
    for name, field in fields.items():
        assert made[name].contents() == field.contents()


@pytest.mark.parametrize(
    ("options", "rounded", "why"),
    [
        ({"bits": 8, "group_size": 32, "symmetric": False}, False, "8 bits with zero points"),
        ({"bits": 8, "group_size": None, "type": "float"}, False, "no blocks for fp8"),
        ({"bits": 8, "group_size": None}, True, "no blocks for int8"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(
    options: dict[str, Any], rounded: bool, why: str, llama: Program, tmp_path: Path
) -> None:
    program = QuantizeWeights(**options)(llama)
    program = QuantizeActivations()(program) if rounded else program
    with pytest.raises(NotExpressible, match=why):
        write_gguf(program, llama, tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "opt"}, "GGUF files are written of llama, mistral"),
        ({"model_type": "mixtral"}, "GGUF files are written of llama, mistral"),
        ({"model_type": "mistral", "sliding_window": 64}, "its attention has a window"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "its rotary positions are scaled"),
    ],
)
def test_other_models_are_refused(
    config: dict[str, Any], why: str, llama: Program, tmp_path: Path
) -> None:
    source = dataclasses.replace(llama.source, config={**llama.source.config, **config})
    other = dataclasses.replace(llama, source=source)
    with pytest.raises(NotExpressible, match=why):
        write_gguf(other, other, tmp_path / "model.gguf")


def test_a_model_without_a_tokenizer_is_refused(llama: Program, tmp_path: Path) -> None:
    other = dataclasses.replace(llama, source=dataclasses.replace(llama.source, folder=tmp_path))
    with pytest.raises(NotExpressible, match=r"has no tokenizer\.json"):
        write_gguf(other, other, tmp_path / "model.gguf")


def test_a_model_in_bfloat16_is_written_in_float32(llama: Program, tmp_path: Path) -> None:
    write_gguf(Cast("bfloat16")(llama), llama, tmp_path / "model.gguf")
    (norm,) = (
        one
        for one in gguf.GGUFReader(tmp_path / "model.gguf").tensors
        if one.name == "output_norm.weight"
    )
    assert norm.tensor_type == gguf.GGMLQuantizationType.F32


def test_an_artifact_has_one_where_it_is_asked_for(tmp_path: Path) -> None:
    model = folder_of("llama", tmp_path / "llama")
    recipe = {"passes": [{"quantize_weights": {"bits": 8, "group_size": 32}}]}
    result = planish.optimize(model, recipe, output=tmp_path / "out", gguf=True)
    assert result.files["model.gguf"] == (tmp_path / "out" / "model.gguf").stat().st_size
    again = from_checkpoint(tmp_path / "out" / "model.gguf")
    sample = result.program.samples[0]
    want, got = (one.run(**sample)["logits"] for one in (result.program, again))
    assert relative_error(got, want) < 5e-3
    weights = {"bits": 8, "group_size": 32, "symmetric": False}
    recipe = {"passes": [{"quantize_weights": weights}]}
    with pytest.raises(NotExpressible, match="zero points"):
        planish.optimize(model, recipe, output=tmp_path / "out", gguf=True)
    assert (tmp_path / "out" / "model.gguf").exists()  # what was there stays
