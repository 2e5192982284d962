"""MXFP4: elements and scales as the specification has them, and how models with it are written."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.quantization import preset_name_to_scheme
from compressed_tensors.quantization.utils.fp4_utils import cast_to_fp4
from compressed_tensors.utils import TensorStateDict
from safetensors.torch import load_file
from torch import Tensor

from planish.ir import microscaling
from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor, QuantScheme, dequantize
from planish.lowering.checkpoint import write_checkpoint
from planish.lowering.compressed_tensors import IN_BFLOAT16, NotExpressible
from planish.lowering.onnx.lower import MODEL_FILE, WIDENED_FLOATS, lower
from planish.lowering.onnx.target import CPU, STANDARD, Target
from planish.lowering.triton.lower import lower as generate
from planish.lowering.triton.regions import WIDENED_FLOATS as WIDENED_ON_GPU
from planish.passes.cast import Cast
from planish.passes.gptq import Gptq
from planish.passes.pipeline import relative_error
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.rounding import round_to_nearest
from planish.plan import plan
from support.captured import captured
from support.folders import loads_alike, quantization_of

MXFP4: dict[str, Any] = {"bits": 4, "group_size": 32, "type": "float"}
SCHEME = QuantScheme(4, 32, floating=True)


@pytest.fixture(scope="module")
def llama() -> Program:
    return QuantizeWeights(**MXFP4)(captured("llama", 1)[1])


def weights(program: Program) -> dict[str, QuantizedTensor]:
    nodes = program.nodes(dequantize)
    return dict(QuantizedTensor.read_by(node, program.tensors) for node in nodes)


def matrix(seed: int = 0) -> Tensor:
    """Rows of sizes that differ by far more than an element's range."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(12, 96, generator=draw) * torch.logspace(-6, 6, 12)[:, None]


def test_numbers_become_the_nearest_elements() -> None:
    steps = torch.arange(-900, 901) / 100  # every tie among them
    rounded = microscaling.round_(steps.clone())
    assert torch.equal(rounded, cast_to_fp4(steps.clone()))
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0])
    assert microscaling.round_(ties).tolist() == [0, 1, 1, 2, 2, 4, 4, 6]


def test_elements_lie_as_in_compressed_tensors() -> None:
    elements = microscaling.round_(torch.randn(8, 64) * 4) + 0.0  # no -0
    packed = microscaling.pack(elements)
    assert torch.equal(packed, pack_fp4_to_uint8(elements))
    assert torch.equal(microscaling.unpack(packed), elements)


def test_scales_are_powers_of_two() -> None:
    largest = torch.tensor([0.0, 1e-44, 1e-38, 0.99, 1.0, 1.5, 3.99, 4.0, 6.0, 3e38])
    found = microscaling.scale_of(largest, 1.0)
    powers = [0, -126, -126, -3, -2, -2, -1, 0, 0, 125]  # floor(log2) - 2, of 0 none
    assert found.tolist() == [2.0**power for power in powers]
    exponents = microscaling.exponents_of(found)
    assert exponents.dtype == torch.uint8
    assert exponents.tolist() == [127 + power for power in powers]
    assert torch.equal(microscaling.powers_of(exponents), found)


@pytest.mark.parametrize("search", [False, True])
def test_a_matrix_is_off_by_less_than_half_a_step(search: bool) -> None:
    weight, error = round_to_nearest(matrix(), SCHEME, search=search)
    assert (weight.packed.dtype, weight.scale.dtype) == (torch.uint8, torch.uint8)
    assert (weight.packed.shape, weight.scale.shape) == ((12, 48), (12, 3))
    wrong = (weight.dequantize() - matrix()).unflatten(1, (3, 32)).abs()
    largest = matrix().unflatten(1, (3, 32)).abs().amax(-1, keepdim=True)
    assert bool((wrong <= largest / 4).all())  # up to 8 scales stand as 6
    assert 0.05 < error < 0.13


def test_searching_is_no_worse_and_an_exact_matrix_stays() -> None:
    found = [round_to_nearest(matrix(), SCHEME, search=search)[0] for search in (False, True)]
    plain, searched = (
        float(((one.dequantize() - matrix()).square() * matrix().abs())[5].sum()) for one in found
    )
    assert searched < plain
    again, error = round_to_nearest(found[0].dequantize(), SCHEME)
    assert error == 0
    assert torch.equal(again.dequantize(), found[0].dequantize())


def test_zeros_stay_and_as_integers_nothing_changes() -> None:
    weight, _ = round_to_nearest(torch.cat([matrix(), torch.zeros(2, 96)]), SCHEME)
    assert not weight.dequantize()[-2:].any()
    integers = weight.as_integers()
    assert integers.scheme == QuantScheme(8, 32)
    assert int(integers.codes.abs().max()) <= 12
    assert torch.equal(integers.dequantize(), weight.dequantize())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes_are_held_exactly(dtype: torch.dtype) -> None:
    rows = matrix()[4:8].to(dtype)
    weight, _ = round_to_nearest(rows, SCHEME)
    assert weight.dequantize().dtype == dtype
    wide, _ = round_to_nearest(rows.float(), SCHEME)
    assert torch.equal(weight.dequantize().float(), wide.dequantize())


def test_a_model_takes_four_and_a_quarter_bits(llama: Program) -> None:
    for weight in weights(llama).values():
        assert weight.scheme == SCHEME
        stored = sum(one.nbytes for one in weight.tensors.values())
        assert 8 * stored == 4.25 * math.prod(weight.shape)
    assert all("mxfp4 (E2M1), groups of 32" in change.what for change in llama.changes)
    planned = plan(captured("llama", 1)[0], [QuantizeWeights(**MXFP4)])
    assert planned.nbytes[1] == llama.nbytes


def test_gptq_is_nearer_than_rounding(llama: Program) -> None:
    _, before = captured("llama", 1)
    sample = before.samples[0]
    want = before.run(**sample)["logits"]
    found = [Gptq(**MXFP4, sweeps=sweeps)(before) for sweeps in (0, 1)]
    errors = [float((one.run(**sample)["logits"] - want).norm()) for one in (llama, *found)]
    assert max(errors[1:]) < errors[0]
    assert {one.scheme for one in weights(found[1]).values()} == {SCHEME}


def test_a_cast_leaves_codes_and_scales(llama: Program) -> None:
    narrow = Cast(dtype="bfloat16")(llama)
    for name, weight in weights(narrow).items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight.packed, weights(llama)[name].packed)
        assert torch.equal(weight.dequantize().float(), weights(llama)[name].dequantize())


def test_transformers_loads_it(llama: Program, tmp_path: Path) -> None:
    _, original = captured("llama", 1)
    files = write_checkpoint(llama, original, tmp_path)
    assert not files.notes
    loads_alike(tmp_path, llama, fresh=True)
    _, (group,) = quantization_of(tmp_path)
    assert group.format == "mxfp4-pack-quantized"
    assert group.weights == preset_name_to_scheme("MXFP4A16", ["Linear"]).weights
    stored = load_file(files.paths[0])
    read = BaseCompressor.get_value_from_registry("mxfp4-pack-quantized")
    for name, weight in weights(llama).items():
        parts: TensorStateDict = {
            k.removeprefix(name[:-6]): v for k, v in stored.items() if name in k
        }
        assert parts.keys() == {"weight_packed", "weight_scale"}
        whole = read.decompress(parts, group)["weight"]
        assert whole is not None
        assert torch.equal(whole.float(), weight.dequantize())


def test_beside_a_second_scheme_it_loads_in_bfloat16(tmp_path: Path) -> None:
    _, original = captured("llama", 1)
    first = QuantizeWeights(**MXFP4, targets=("*.mlp.*",))(original)
    both = QuantizeWeights(bits=8, group_size=None)(first)
    assert IN_BFLOAT16 in write_checkpoint(both, original, tmp_path).notes
    narrow = Cast(dtype="bfloat16")(both)
    assert not write_checkpoint(narrow, original, tmp_path).notes
    sample = narrow.samples[0]
    want = narrow.run(**sample)["logits"].float()
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        alone = {name: one for name, one in sample.items() if not name.startswith("past")}
        got = model(**alone).logits.float()
    assert relative_error(got, want) < 0.02
    loaded = model.state_dict()  # multiplied out by the run
    for name, weight in weights(narrow).items():
        assert torch.equal(loaded[name], weight.dequantize()), name


def test_experts_load_too(tmp_path: Path) -> None:
    _, original = captured("mixtral", 1)
    program = QuantizeWeights(**MXFP4)(original)
    assert write_checkpoint(program, original, tmp_path).notes == (IN_BFLOAT16,)
    loaded = transformers.MixtralForCausalLM.from_pretrained(tmp_path).state_dict()
    for name, weight in weights(program).items():
        assert torch.equal(loaded[name].float(), weight.dequantize()), name


def test_rounded_inputs_have_no_checkpoint(llama: Program, tmp_path: Path) -> None:
    program = QuantizeActivations(type="float")(llama)
    with pytest.raises(NotExpressible, match=r"mxfp4 .* and its input"):
        write_checkpoint(program, captured("llama", 1)[1], tmp_path)


@pytest.mark.parametrize(
    "target", [dataclasses.replace(CPU, accuracy_level=1), STANDARD], ids=["contrib", "standard"]
)
def test_onnx_runtime_computes_alike(target: Target, llama: Program, tmp_path: Path) -> None:
    files = lower(llama, tmp_path, target)
    assert WIDENED_FLOATS in files.notes
    options = onnxruntime.SessionOptions()
    # Else ONNX Runtime turns standard dequantization into MatMulNBits at its own accuracy.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(tmp_path / MODEL_FILE, options)
    feeds = {name: tensor.numpy() for name, tensor in llama.samples[0].items()}
    got = torch.from_numpy(session.run(["logits"], feeds)[0])
    want = llama.run(**llama.samples[0])["logits"]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_generated_kernels_read_integers(llama: Program, tmp_path: Path) -> None:
    made = generate(llama, tmp_path / "triton")
    assert made.notes.count(WIDENED_ON_GPU) == 1
    want = llama.run(**llama.samples[0])["logits"]
    got = made.program.run(**llama.samples[0])["logits"]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
