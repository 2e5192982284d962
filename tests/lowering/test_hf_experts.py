"""Quantized experts in a checkpoint: one by one, as loaders read them."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.utils import TensorStateDict
from safetensors.torch import load_file
from torch import Tensor

from planish.ir.capture.huggingface import capture_model, from_checkpoint
from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor, dequantize
from planish.lowering.checkpoint import write_checkpoint
from planish.lowering.compressed_tensors import NotExpressible
from planish.passes.format import Override
from planish.passes.gptq import Gptq
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.quantize_weights import QuantizeWeights
from support.folders import loads_alike, quantization_of
from support.models import FAMILIES

W4: dict[str, Any] = {"bits": 4, "group_size": 32}
W8: dict[str, Any] = {"bits": 8, "group_size": None}
FP8: dict[str, Any] = {**W8, "type": "float"}

MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 5},
    "qwen3_moe": {"num_experts": 5, "moe_intermediate_size": 96, "head_dim": 32},
    "olmoe": {"num_experts": 5},
}
"""Options of their own, beside those that decoders share."""


def model(kind: str) -> transformers.PreTrainedModel:
    """Build a random model of one layer."""
    shared = {k: v for k, v in FAMILIES["mixtral"].options.items() if k != "num_local_experts"}
    config = transformers.AutoConfig.for_model(kind, **shared, **MODELS[kind], num_hidden_layers=1)
    torch.manual_seed(0)
    built: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config)
    built.eval()
    return built


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A checkpoint of transformers: some names are those of its files."""
    folder = tmp_path_factory.mktemp("mixtral")
    model("mixtral").save_pretrained(folder)
    return from_checkpoint(folder)


@cache
def captured(kind: str) -> Program:
    return capture_model(model(kind))


def stacks(program: Program) -> dict[str, Tensor]:
    """Multiply the stacks of experts out, by name."""
    read = (QuantizedTensor.read_by(node, program.tensors) for node in program.nodes(dequantize))
    return {name: one.dequantize() for name, one in read if len(one.shape) == 3}


@pytest.mark.parametrize(
    "kind", ["mixtral", "qwen3_moe", pytest.param("olmoe", marks=pytest.mark.slow)]
)
def test_packed_experts_load_in_a_process_of_transformers_alone(
    kind: str, mixtral: Program, tmp_path: Path
) -> None:
    original = mixtral if kind == "mixtral" else captured(kind)
    program = QuantizeWeights(**W4)(original)
    files = write_checkpoint(program, original, tmp_path)
    assert not files.notes
    loads_alike(tmp_path, program, fresh=True)
    config, groups = quantization_of(tmp_path)
    assert [group.targets for group in groups] == [["Linear"]]
    home = "block_sparse_moe" if kind == "mixtral" else "mlp"
    ignored = config.ignore or []
    assert {"lm_head", f"model.layers.0.{home}.gate"} <= {*ignored}
    assert not any("experts" in one for one in ignored)


def test_the_formats_own_package_reads_each_expert(mixtral: Program, tmp_path: Path) -> None:
    program = QuantizeWeights(**W4)(mixtral)
    (path,) = write_checkpoint(program, mixtral, tmp_path).paths
    stored, whole = load_file(path), stacks(program)
    _, (scheme,) = quantization_of(tmp_path)
    read = BaseCompressor.get_value_from_registry("pack-quantized")
    home = "model.layers.0.mlp.experts"
    for expert in range(5):
        first, third = whole[f"{home}.gate_up_proj"][expert].chunk(2)
        second = whole[f"{home}.down_proj"][expert]
        for name, expected in {"w1": first, "w2": second, "w3": third}.items():
            module = f"model.layers.0.block_sparse_moe.experts.{expert}.{name}."
            held: TensorStateDict = {
                k.removeprefix(module): v for k, v in stored.items() if module in k
            }
            assert held.keys() == {"weight_packed", "weight_scale", "weight_shape"}
            weight = read.decompress(held, scheme)["weight"]
            assert weight is not None
            torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize(
    ("first", "rest", "inputs"),
    [
        ({**W4, "targets": ("*.experts",)}, W8, False),
        ({**W4, "targets": ("*.experts",)}, W8, True),
        ({**W8, "targets": ("*.experts",)}, FP8, False),
        ({**FP8, "targets": ("*.experts",)}, W4, False),
    ],
    ids=["4-and-8", "4-and-w8a8", "8-and-fp8", "fp8-and-4"],
)
def test_experts_have_a_scheme_of_their_own(
    first: dict[str, Any],
    rest: dict[str, Any],
    inputs: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = captured("qwen3_moe")
    program = QuantizeWeights(**rest)(QuantizeWeights(**first)(original))
    if inputs:
        finer = {torch.int8: 127.5}.__getitem__  # transformers' own, see test_checkpoint
        monkeypatch.setattr("planish.ir.activations.reach", finer)
        program = QuantizeActivations(targets=("*.self_attn.*",))(program)
    write_checkpoint(program, original, tmp_path)
    loads_alike(tmp_path, program)
    named = [group.targets for group in quantization_of(tmp_path)[1]]
    assert [r"re:model\.layers\.\d+\.mlp\.experts\.\d+\."] in named


@pytest.mark.parametrize("options", [{"bits": 3, "group_size": 32}, W8, FP8], ids=str)
def test_other_schemes_load_too(options: dict[str, Any], mixtral: Program, tmp_path: Path) -> None:
    program = QuantizeWeights(**options)(mixtral)
    write_checkpoint(program, mixtral, tmp_path)
    loads_alike(tmp_path, program)


def test_gptq_rounds_experts_that_load(mixtral: Program, tmp_path: Path) -> None:
    program = Gptq(**W4)(mixtral)
    write_checkpoint(program, mixtral, tmp_path)
    loads_alike(tmp_path, program)


@pytest.mark.parametrize("ignore", ["*.experts", "*.experts.down_proj"])
def test_experts_that_stay_are_ignored_and_a_note_says_so(
    ignore: str, mixtral: Program, tmp_path: Path
) -> None:
    program = QuantizeWeights(**W4, ignore=(ignore,))(mixtral)
    files = write_checkpoint(program, mixtral, tmp_path)
    assert "stays in floating point and in one tensor" in files.notes[0]
    loads_alike(tmp_path, program)
    config, _ = quantization_of(tmp_path)
    assert r"re:model\.layers\.0\.block_sparse_moe\.experts\.\d+\." in (config.ignore or [])


def test_files_have_the_names_of_those_that_were_read(mixtral: Program, tmp_path: Path) -> None:
    program = QuantizeWeights(**W4)(mixtral)
    (path,) = write_checkpoint(program, mixtral, tmp_path).paths
    after = {name.removesuffix("_packed") for name in load_file(path)}
    assert mixtral.source.folder is not None
    before = load_file(mixtral.source.folder / "model.safetensors").keys()
    assert {name for name in after if not name.endswith(("_scale", "_shape"))} == before


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({**W4, "symmetric": False}, r"gate_up_proj holds .*without zero points.*symmetric"),
        ({**FP8, "group_size": 32}, r"gate_up_proj holds .*one scale a row.*group_size"),
        (
            {**W4, "overrides": (Override(**W8, targets=("*.experts.down_proj",)),)},
            r"int4 .* and int8 .*by one scheme.*under ignore",
        ),
    ],
    ids=["zero-points", "fp8-groups", "two-schemes"],
)
def test_schemes_that_no_loader_reads_are_refused(
    options: dict[str, Any], why: str, mixtral: Program, tmp_path: Path
) -> None:
    with pytest.raises(NotExpressible, match=why):
        write_checkpoint(QuantizeWeights(**options)(mixtral), mixtral, tmp_path)


def test_stacks_that_files_hold_whole_are_refused(tmp_path: Path) -> None:
    options = {**FAMILIES["mixtral"].options, "num_local_experts": 5, "num_hidden_layers": 1}
    config = transformers.AutoConfig.for_model("granitemoe", **options)
    original = capture_model(transformers.AutoModelForCausalLM.from_config(config).eval())
    program = QuantizeWeights(**W4)(original)
    with pytest.raises(NotExpressible, match=r"no weight for each of them.*under ignore"):
        write_checkpoint(program, original, tmp_path)
    kept = QuantizeWeights(**W4, ignore=("*.experts",))(original)
    write_checkpoint(kept, original, tmp_path)
    loads_alike(tmp_path, kept)
