"""Programs as generated kernels: what is replaced, what is written, and what is refused."""

import dataclasses
import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from planish import api
from planish.ir import ops
from planish.ir.capture.export import from_module
from planish.ir.errors import PlanishError
from planish.ir.program import Program
from planish.lowering.artifact import BadArtifact
from planish.lowering.triton import operators
from planish.lowering.triton.load import load, prepared
from planish.lowering.triton.lower import kernels_of, lower
from planish.lowering.triton.plans import Choice, Plan, read_plan, read_spec, text
from planish.lowering.triton.routed_specs import Routed
from planish.lowering.triton.row_specs import RowWise
from planish.lowering.triton.specs import Scaled, WeightOnly
from planish.lowering.triton.tuning import Table, Timed, key
from planish.passes import name_of
from planish.passes.contract import Pass
from planish.passes.pipeline import apply
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.quantize_weights import QuantizeWeights
from planish.runtime.backend import CannotOpen
from planish.runtime.session import Session
from support.captured import captured
from support.quantized import distance

W4 = (QuantizeWeights(bits=4, group_size=32),)
W3Z = (QuantizeWeights(bits=3, group_size=32, symmetric=False),)
W4A8 = (QuantizeWeights(bits=4, group_size=32), QuantizeActivations())
W8A8 = (QuantizeWeights(bits=8, group_size=None), QuantizeActivations())
FP8 = (
    QuantizeWeights(type="float", bits=8, group_size=None),
    QuantizeActivations(type="float"),
)

CPU = torch.device("cpu")


@cache
def quantized(family: str, passes: tuple[Pass, ...]) -> Program:
    return apply(captured(family, 1)[1], passes, names=name_of)[0]


def told(program: Program) -> list[str]:
    """What each kernel's node computes."""
    specs = [
        read_spec(str(node.args[-2]))
        for node in program.graph.nodes
        if node.op == "call_function" and str(node.target).startswith("planish.")
        if node.target in set(OPERATORS)
    ]
    return [f"{spec.name}: {getattr(spec, 'epilogue', '-')}" for spec in specs]


OPERATORS = (
    operators.weight_only,
    operators.scaled_product,
    operators.routed_product,
    operators.row_wise,
    operators.row_codes,
)


def test_a_llama_s_regions_are_found(tmp_path: Path) -> None:
    made = lower(quantized("llama", W4), tmp_path / "triton")
    assert told(made.program) == [
        "rms_k64: -",
        "w4a16_n64_k64_g32_m16: none",
        "w4a16_n32_k64_g32_m16: none",
        "w4a16_n32_k64_g32_m16: none",
        "w4a16_n64_k64_g32_m16: residual",
        "rms_k64: -",
        "w4a16_n192_k64_g32_m16: none",
        "w4a16_n192_k64_g32_m16: silu, multiply",
        "w4a16_n64_k192_g32_m16: residual",
        "rms_k64: -",
    ]
    assert made.notes == ()
    assert made.rest == ("aten.linear (1)", "planish.attention (1)")


def test_rounded_activations_are_products_of_codes(tmp_path: Path) -> None:
    made = lower(quantized("llama", W8A8), tmp_path / "triton")
    assert told(made.program) == [
        "rms_int8_k64: -",
        "w8a8_n64_k64_m16: none",
        "w8a8_n32_k64_m16: none",
        "w8a8_n32_k64_m16: none",
        "int8_k64: -",
        "w8a8_n64_k64_m16: residual",
        "rms_int8_k64: -",
        "w8a8_n192_k64_m16: none",
        "w8a8_n192_k64_m16: none",
        "silu_gate_int8_k192: -",
        "w8a8_n64_k192_m16: residual",
        "rms_k64: -",
    ]


def test_four_bits_times_rounded_activations_are_products_of_codes(tmp_path: Path) -> None:
    made = lower(quantized("llama", W4A8), tmp_path / "triton")
    assert told(made.program) == [
        "rms_int8_k64: -",
        "w4a8_n64_k64_g32_m16: none",
        "w4a8_n32_k64_g32_m16: none",
        "w4a8_n32_k64_g32_m16: none",
        "int8_k64: -",
        "w4a8_n64_k64_g32_m16: residual",
        "rms_int8_k64: -",
        "w4a8_n192_k64_g32_m16: none",
        "w4a8_n192_k64_g32_m16: none",
        "silu_gate_int8_k192: -",
        "w4a8_n64_k192_g32_m16: residual",
        "rms_k64: -",
    ]
    assert made.notes == ()


def test_layer_norms_are_fused_with_rounding(tmp_path: Path) -> None:
    made = lower(quantized("gpt2", W8A8), tmp_path / "triton")
    assert told(made.program) == [
        "layer_int8_k64: -",
        "w8a8_n192_k64_m16: bias",
        "int8_k64: -",
        "w8a8_n64_k64_m16: bias, residual",
        "layer_int8_k64: -",
        "w8a8_n192_k64_m16: bias, gelu_tanh",
        "int8_k192: -",
        "w8a8_n64_k192_m16: bias, residual",
        "layer_k64: -",
    ]
    sample = captured("gpt2", 1)[1].samples[0]
    wanted, found = (one.run(**sample)["logits"] for one in (quantized("gpt2", W8A8), made.program))
    assert distance(found, wanted.double()) < 3e-6


class Norms(nn.Module):
    """Layer norms over one dimension, over two, and without weight and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.LayerNorm(8), nn.LayerNorm([3, 8])
        self.bare = nn.LayerNorm(8, elementwise_affine=False)

    def forward(self, x: Tensor) -> Any:
        return self.bare(self.two(self.one(x)))


def test_layer_norms_over_more_than_rows_stay_with_torch(tmp_path: Path) -> None:
    program = from_module(Norms().eval(), torch.randn(2, 3, 8))
    made = lower(program, tmp_path / "triton")
    assert told(made.program) == ["layer_k8: -", "layer_k8: -"]
    (note,) = made.notes
    assert note.endswith("norms over more than the last dimension.")
    (wanted,), (found,) = (
        one.run(**program.samples[0]).values() for one in (program, made.program)
    )
    assert torch.equal(found, wanted)


class Gate(nn.Module):
    """A gate."""

    def forward(self, x: Tensor, up: Tensor) -> Any:
        return nn.functional.silu(x) * up


def test_a_gate_that_stretches_what_it_multiplies_stays_with_torch(tmp_path: Path) -> None:
    """A kernel would read as many rows of it as x has."""
    program = from_module(Gate().eval(), (torch.randn(2, 3, 8), torch.randn(2, 3, 8)))
    assert told(lower(program, tmp_path / "whole").program) == ["silu_gate_k8: -"]
    with program.edit() as edit:
        for node in edit.nodes(ops.gated):
            one = edit.call(torch.ops.aten.slice.Tensor, node.args[1], 0, 0, 1, before=node)
            node.update_arg(1, one)
    made = lower(edit.program, tmp_path / "stretched")
    assert told(made.program) == []
    (note,) = made.notes
    assert note.endswith("reads tensors of shapes or dtypes that do not fit its rows.")


def test_zero_points_keep_weights_from_products_of_codes(tmp_path: Path) -> None:
    shifted = (QuantizeWeights(bits=4, group_size=32, symmetric=False), QuantizeActivations())
    found = told(lower(quantized("llama", shifted), tmp_path / "triton").program)
    assert found[:2] == ["rms_k64: -", "w4a16_n64_k64_g32z_m16: none"]


@pytest.mark.parametrize(
    ("family", "passes", "limit"),
    [
        ("llama", W4, 0.0),
        pytest.param("gpt2", W3Z, 0.0, marks=pytest.mark.slow),
        ("llama", W8A8, 3e-6),
        ("llama", FP8, 3e-6),
        ("llama", W4A8, 3e-6),
    ],
    ids=["w4", "w3z", "w8a8", "fp8", "w4a8"],
)
def test_what_is_written_computes_the_same(
    family: str, passes: tuple[Pass, ...], limit: float, tmp_path: Path
) -> None:
    """Without a GPU plain torch runs in place of weight-only kernels, to the last bit."""
    program = quantized(family, passes)
    lower(program, tmp_path / "triton")
    loaded, bitwise = load(tmp_path / "triton")
    assert not bitwise
    wanted, found = (one.run(**program.samples[0]) for one in (program, loaded))
    for name, value in wanted.items():
        assert distance(found[name], value.double()) <= limit


def test_what_has_no_kernel_stays_and_is_told(tmp_path: Path) -> None:
    program = quantized("llama", FP8[:1])
    made = lower(program, tmp_path / "triton")
    assert len(made.notes) == 7
    assert made.notes[0] == (
        "model.layers.0.self_attn.q_proj.weight is multiplied by torch: no kernel multiplies by "
        "fp8 (E4M3), per channel without rounded activations."
    )
    assert not list(made.program.nodes(operators.weight_only))
    found = made.program.run(**program.samples[0])["logits"]
    assert torch.equal(found, program.run(**program.samples[0])["logits"])


def test_the_same_program_gives_the_same_bytes(tmp_path: Path) -> None:
    program = quantized("llama", W4)
    for name in ("one", "two"):
        lower(program, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) > 10
    assert all(
        (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
        for file in files
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    lower(quantized("llama", W4), folder / "triton")
    return folder


def copied(written: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    for path in written.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(written)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder


def changed_source(folder: Path) -> None:
    first = min((folder / "triton/kernels").iterdir())
    first.write_text(first.read_text() + "\nimport os\n")


def changed_hash(folder: Path) -> None:
    edit(folder, lambda listing: listing["kernels"][0].update(sha256="0" * 64))


def changed_spec(folder: Path) -> None:
    edit(folder, lambda listing: listing["kernels"][1]["spec"].update(n=128))


def dropped(folder: Path) -> None:
    edit(folder, lambda listing: listing["kernels"].pop())


def older(folder: Path) -> None:
    edit(folder, lambda listing: listing.update(layout=0))


def damaged(folder: Path) -> None:
    (folder / "triton/kernels.json").write_text("{")


def changed_plan(folder: Path) -> None:
    path = folder / "triton/program.json"
    path.write_text(path.read_text().replace('\\"columns\\": 64', '\\"columns\\": 32'))


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / "triton/kernels.json"
    listing = json.loads(path.read_text())
    change(listing)
    path.write_text(json.dumps(listing))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_source, "is not what its specification generates.*Nothing in it was executed"),
        (changed_hash, "is not what its specification generates"),
        (changed_spec, "is not what its specification generates"),
        (dropped, "which kernels.json does not list"),
        (older, "format 1 with layout 0"),
        (damaged, "kernels.json cannot be read"),
        (changed_plan, "which kernels.json does not list"),
    ],
)
def test_kernels_that_do_not_match_are_refused(
    change: Callable[[Path], None], message: str, written: Path, tmp_path: Path
) -> None:
    folder = copied(written, tmp_path)
    change(folder)
    with pytest.raises(BadArtifact, match=f"(?s){message}"):
        Session.open(folder)


def test_a_session_runs_it(written: Path) -> None:
    session = Session.open(written)
    program = quantized("llama", W4)
    sample = program.samples[0]
    found = session.run(**{name: tensor.numpy() for name, tensor in sample.items()})
    assert session.provider == "cpu"
    wanted = program.run(**sample)["logits"].numpy()
    np.testing.assert_array_equal(found["logits"], wanted)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_with_the_reason(written: Path) -> None:
    with pytest.raises(CannotOpen, match="PyTorch finds no CUDA device"):
        Session.open(written, provider="cuda")


def test_nothing_in_the_graph_is_tied_to_the_cpu(written: Path) -> None:
    """Every value is made on the device that the tensors are on; `meta` stands for a GPU."""
    program, _ = load(written / "triton")
    meta = torch.device("meta")
    moved, _ = prepared(program, meta, table=Table(), bitwise=False)
    given = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device=meta)
        for name, tensor in quantized("llama", W4).samples[0].items()
    }
    found = moved.run(**given)
    assert {tensor.device.type for tensor in found.values()} == {"meta"}


def test_wrong_kernels_are_replaced_by_plain_torch(written: Path) -> None:
    program, _ = load(written / "triton")
    specs = kernels_of(program)
    wrong = frozenset(spec for spec in specs if isinstance(spec, RowWise) or spec.n == 192)
    mended, _ = prepared(program, CPU, table=Table(), bitwise=False, judge=lambda _: wrong)
    left = set(kernels_of_running(mended))
    assert left == set(specs) - wrong
    sample = quantized("llama", W4).samples[0]
    assert torch.equal(mended.run(**sample)["logits"], program.run(**sample)["logits"])


def kernels_of_running(program: Program) -> list[Any]:
    rows = [
        node for node in program.nodes(operators.row_wise) if node.args[-1] == operators.REFERENCE
    ]
    return [
        spec
        for spec in kernels_of(program)
        if not (rows and isinstance(spec, RowWise))
    ]  # fmt: skip


def test_a_dense_copy_is_kept_where_the_table_says_so(written: Path) -> None:
    program, _ = load(written / "triton")
    (first, *_) = program.nodes(operators.weight_only)
    product = read_spec(str(first.args[-2]))
    timed = (Timed(Choice(16, "dense"), 1.0), Timed(Choice(16, "dequantize"), 2.0))
    table = Table({key(product): {16: timed}})
    dense, said = prepared(program, CPU, table=table, bitwise=False, dense=True)
    assert [name for name in dense.tensors if name.endswith("_dense")] == [
        "model.layers.0.self_attn.q_proj.weight_dense",
        "model.layers.0.self_attn.o_proj.weight_dense",
    ]
    assert said[0].endswith("by the tuning table")
    assert said[1].endswith("by the model of the chip")
    plain, _ = prepared(program, CPU, table=table, bitwise=False)
    assert plain.nbytes == program.nbytes
    sample = quantized("llama", W4).samples[0]
    wanted = program.run(**sample)["logits"]
    assert torch.equal(dense.run(**sample)["logits"], wanted)
    assert torch.equal(plain.run(**sample)["logits"], wanted)


def test_operators_agree_with_their_shapes() -> None:
    product = WeightOnly(40, 64, "float32", "float32", group=32, lanes=16)
    scaled = Scaled(24, 64, "float32")
    codes, scales = torch.zeros(2, 3, 64, dtype=torch.int8), torch.ones(2, 3)
    plan = text(Plan((Choice(0, "reference"),)))
    words = torch.zeros(40, product.words, dtype=torch.int16)
    packed = [words, torch.ones(product.groups, 40)]
    routed = Routed(product, 3, 2, shared=True)
    chosen, stack = torch.tensor([[0, 1], [1, 2], [2, 0]]), [torch.stack([t] * 3) for t in packed]
    narrow = [torch.ones(24, 64, dtype=torch.int8), torch.ones(24)]
    x = torch.randn(2, 3, 64)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (operators.weight_only, (x, packed, [], text(product), plan)),
        (operators.scaled_product, (codes, scales, narrow, [], text(scaled), plan)),
        (operators.routed_product, (x[0], None, chosen, stack, [], text(routed), plan)),
        (operators.row_wise, (x, [], text(RowWise(64, "float32", norm="rms")), "kernel")),
        (operators.row_codes, (x, [], text(RowWise(64, "float32", codes="int8")), "kernel")),
    ]  # fmt: skip
    for target, given in calls:
        torch.library.opcheck(target, given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("[]", "bounds rise and end with 0"),
        ('[{"rows": 16, "how": "dense"}]', "bounds rise and end with 0"),
        ('[{"rows": 0, "how": "magic"}]', "how is 'magic'"),
        ('[{"rows": 0, "how": "kernel"}]', "a kernel, and nothing else, has a tiling"),
        ("{", "this is no plan"),
    ],
)
def test_a_plan_that_is_none_is_refused(written: str, message: str) -> None:
    with pytest.raises(PlanishError, match=message):
        read_plan(written)


def test_bitwise_needs_triton_and_tells_what_it_does_not_cover(tmp_path: Path) -> None:
    _, program = captured("llama", 1)
    with pytest.raises(api.BadCall, match="bitwise needs target triton"):
        api.optimize(program, "w4a16", isolation="bitwise")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("passes: [quantize_weights: {bits: 4, group_size: 32}]\ntarget: triton\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = api.optimize(program, recipe, isolation="bitwise", output=tmp_path / "out")
    assert made.notes[-1].endswith(
        "last bits may depend on it: aten.linear (1), planish.attention (1)"
    )
    _, bitwise = load(tmp_path / "out" / "triton")
    assert bitwise
    manifest = json.loads((tmp_path / "out" / "planish.json").read_text())
    assert manifest["target"] == "triton"
    assert {name for name in manifest["files"] if name.startswith("triton/kernels/")}
    kernels = kernels_of(Program.load(tmp_path / "out" / "triton"))
    assert {spec.scaling for spec in kernels if isinstance(spec, WeightOnly)} == {"weights"}


def test_rows_decide_what_is_done() -> None:
    plan = Plan((Choice(16, "dense"), Choice(64, "dequantize"), Choice(0, "reference")))
    assert [plan.choice(rows).how for rows in (1, 16, 17, 64, 65, 10**6)] == [
        "dense", "dense", "dequantize", "dequantize", "reference", "reference",
    ]  # fmt: skip
    assert dataclasses.asdict(read_plan(text(plan))) == dataclasses.asdict(plan)
