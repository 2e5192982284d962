"""Mixtures of experts: found in graphs, and computed for chosen experts alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from planish.ir.capture.export import from_module
from planish.ir.isolation.programs import analyse_program
from planish.ir.program import Program
from planish.ir.rules.aten import kernels
from planish.lowering.triton import operators
from planish.lowering.triton.load import load
from planish.lowering.triton.lower import kernels_of, lower
from planish.lowering.triton.plans import read_spec
from planish.lowering.triton.routed_specs import Routed
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.quantize_weights import QuantizeWeights
from support.captured import captured
from support.quantized import distance

EXPERTS, CHOSEN, WIDTH, INNER = 5, 2, 32, 64
LIMIT = 3e-6


def told(program: Program) -> list[str]:
    specs = [read_spec(str(n.args[-2])) for n in program.nodes(operators.routed_product)]
    return [f"{spec.name}: {spec.epilogue}" for spec in specs]


def same(one: Program, other: Program) -> None:
    """Two programs give the same but for the order of sums."""
    for sample in one.samples:
        wanted, found = one.run(**sample), other.run(**sample)
        assert wanted.keys() == found.keys()
        assert all(distance(found[name], wanted[name].double()) < LIMIT for name in wanted)


ROUNDINGS: list[dict[str, Any]] = [
    {"bits": 4, "group_size": 32},
    {"bits": 3, "group_size": 64, "symmetric": False},
    {"bits": 8, "group_size": None},
]


@pytest.mark.parametrize(
    ("family", "options"),
    [*(("mixtral", options) for options in ROUNDINGS), ("qwen2_moe", ROUNDINGS[0])],
    ids=str,
)
def test_only_chosen_experts_work(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    _, dense = captured(family, 1)
    program = QuantizeWeights(targets=("*.experts",), **options)(dense)
    made = lower(program, tmp_path / "triton")
    inner = 192 if family == "mixtral" else 128
    scheme = f"g{options['group_size'] or 64}{'' if options.get('symmetric', True) else 'z'}"
    last = f"g{options['group_size'] or inner}{'' if options.get('symmetric', True) else 'z'}"
    kind = f"w{options['bits']}a16"
    assert told(made.program) == [
        f"experts5_of2_{kind}_n{inner}_k64_{scheme}_m16: none",
        f"experts5_of2_{kind}_n{inner}_k64_{scheme}_m16: silu, multiply",
        f"experts5_own2_{kind}_n64_k{inner}_{last}_m16: none",
    ]
    assert not made.notes
    assert "aten.matmul" not in " ".join(made.rest)
    if options["bits"] != 3:  # rows of 64 do not fill a block
        assert made.program.nbytes < 1.1 * program.nbytes
    loaded, _ = load(tmp_path / "triton")
    same(program, loaded)


@pytest.mark.parametrize(
    ("weights", "inputs", "kind"),
    [
        ({"bits": 8, "group_size": None}, "int", "w8a8"),
        ({"bits": 8, "group_size": None, "type": "float"}, "float", "fp8"),
        ({"bits": 4, "group_size": 32}, "int", "w4a8"),
    ],
    ids=["int8", "fp8", "w4a8"],
)
def test_experts_of_rounded_activations(
    weights: dict[str, Any], inputs: Any, kind: str, tmp_path: Path
) -> None:
    targets = ("*.experts",)
    program = QuantizeWeights(targets=targets, **weights)(captured("mixtral", 1)[1])
    program = QuantizeActivations(targets=targets, type=inputs, experts=True)(program)
    made = lower(program, tmp_path / "triton")
    names = told(made.program)
    assert [name.partition(": ")[2] for name in names] == ["none", "silu, multiply", "none"], names
    assert all(kind in name for name in names), names
    roundings = [*made.program.nodes(operators.row_codes)]
    assert len(roundings) == 2, "gates and what they let through read one"
    assert not made.notes
    loaded, _ = load(tmp_path / "triton")
    same(program, loaded)
    assert analyse_program(made.program).verdict == "isolated"


def test_experts_of_activations_of_one_stored_scale_stay_with_torch(tmp_path: Path) -> None:
    """The experts are still those chosen: only their products read floats, rounded before."""
    program = QuantizeWeights(targets=("*.experts",), bits=8, group_size=None)(
        captured("mixtral", 1)[1]
    )
    given = replace(program, calibration=program.samples)
    rounded = QuantizeActivations(targets=("*.experts",), experts=True, dynamic=False)(given)
    made = lower(rounded, tmp_path / "triton")
    assert all("w8a16" in name for name in told(made.program))
    same(rounded, made.program)


def test_experts_that_are_not_quantized_have_kernels_too(tmp_path: Path) -> None:
    _, program = captured("mixtral", 1)
    made = lower(program, tmp_path / "triton")
    assert told(made.program) == [
        "experts5_of2_dense_n192_k64_m16: none",
        "experts5_of2_dense_n192_k64_m16: silu, multiply",
        "experts5_own2_dense_n64_k192_m16: none",
    ]
    same(program, made.program)


def test_requests_stay_apart(tmp_path: Path) -> None:
    program = QuantizeWeights(bits=4, group_size=32)(captured("qwen2_moe", 1)[1])
    made = lower(program, tmp_path / "triton")
    found = analyse_program(made.program)
    assert found.verdict == "isolated"
    assert kernels.TRUSTED in found.assumptions


def test_the_order_of_sums_is_the_weights_own_under_bitwise(tmp_path: Path) -> None:
    program = QuantizeWeights(bits=4, group_size=32)(captured("mixtral", 1)[1])
    made = lower(program, tmp_path / "triton", bitwise=True)
    by_weight: dict[str, set[Any]] = {}
    for spec in kernels_of(made.program):
        if isinstance(spec, Routed):
            order = spec.tiling.slices, getattr(spec.product, "scaling", None)
            by_weight.setdefault(spec.name.rpartition("_m")[0], set()).add(order)
    assert len(by_weight) == 2
    assert all(len(orders) == 1 for orders in by_weight.values())


class Mixture(nn.Module):
    """A router, experts with biases, and a way to mix what they make."""

    def __init__(self, form: "Form") -> None:
        super().__init__()
        self.form = form
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.inner = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER) / 6)
        self.outer = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH) / 8)
        self.second = nn.Parameter(torch.randn(EXPERTS, INNER // 2, WIDTH) / 6)
        self.biases = nn.Parameter(torch.randn(EXPERTS, INNER))
        self.norm = nn.RMSNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, x)

    def routed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = self.router(x).softmax(-1).topk(CHOSEN)
        return weights, chosen

    def routing(self, x: Tensor) -> Tensor:
        weights, chosen = self.routed(x)
        hits = chosen[..., None] == torch.arange(EXPERTS)
        return (hits.to(weights.dtype) * weights[..., None]).sum(1)


Form = Callable[[Mixture, Tensor], Tensor]


def mixed(y: Tensor, routing: Tensor) -> Tensor:
    return (y * routing.transpose(0, 1)[..., None]).sum(0)


def biased(m: Mixture, x: Tensor) -> Tensor:
    y = F.relu(x @ m.inner + m.biases[:, None]) @ m.outer
    return mixed(m.norm(y), m.routing(x))


def interleaved(m: Mixture, x: Tensor) -> Tensor:
    """Gates and what they let through in turns, clamped, as in gpt-oss."""
    both = x @ m.inner + m.biases[:, None]
    gate, up = both[..., ::2].clamp(max=1.0), both[..., 1::2].clamp(-1.0, 1.0)
    y = (up + 1) * (gate * torch.sigmoid(gate * 1.7)) @ m.second
    return mixed(y, m.routing(x))


def late(m: Mixture, x: Tensor) -> Tensor:
    """A bias that meets something other than a product."""
    y = (torch.tanh(x @ m.inner) * m.biases[:, None]) @ m.outer
    return mixed(y, m.routing(x))


def scattered(m: Mixture, x: Tensor) -> Tensor:
    weights, chosen = m.routed(x)
    routing = torch.zeros(x.shape[0], EXPERTS).scatter(1, chosen, weights)
    return mixed(F.gelu(x @ m.inner) @ m.outer, routing)


def form_of(form: Form) -> Program:
    torch.manual_seed(0)
    return from_module(Mixture(form).eval(), {"x": torch.randn(7, WIDTH)})


@pytest.mark.parametrize(
    ("form", "epilogues"),
    [
        (biased, ["bias, relu", "none"]),
        (interleaved, ["bias", "bias", "none"]),
        (late, ["none", "none"]),
        (scattered, ["gelu", "none"]),
    ],
)
def test_forms_of_mixtures(form: Form, epilogues: list[str], tmp_path: Path) -> None:
    program = form_of(form)
    made = lower(program, tmp_path / "triton")
    assert [one.partition(": ")[2] for one in told(made.program)] == epilogues
    assert not made.notes
    same(program, made.program)
    assert analyse_program(made.program).verdict == "isolated"


def softened(m: Mixture, x: Tensor) -> Tensor:
    """All experts work, by weights that are not a choice."""
    return mixed(F.gelu(x @ m.inner) @ m.outer, m.router(x).softmax(-1))


def shifted(m: Mixture, x: Tensor) -> Tensor:
    """The expert after the chosen one works."""
    weights, chosen = m.routed(x)
    hits = chosen[..., None] == (torch.arange(EXPERTS) + 1) % EXPERTS
    routing = (hits.to(weights.dtype) * weights[..., None]).sum(1)
    return mixed(F.gelu(x @ m.inner) @ m.outer, routing)


def written_twice(m: Mixture, x: Tensor) -> Tensor:
    """Numbers that may be equal, of which a scatter keeps one."""
    weights, chosen = m.routed(x)
    routing = torch.zeros(x.shape[0], EXPERTS).scatter(1, chosen // 2, weights)
    return mixed(F.gelu(x @ m.inner) @ m.outer, routing)


@pytest.mark.parametrize("form", [softened, shifted, written_twice])
def test_what_is_no_choice_of_experts_stays(form: Form, tmp_path: Path) -> None:
    program = form_of(form)
    made = lower(program, tmp_path / "triton")
    assert not told(made.program)
    same(program, made.program)


def among_tokens(m: Mixture, x: Tensor) -> Tensor:
    y = (x @ m.inner).cumsum(1) @ m.outer
    return mixed(y, m.routing(x))


def among_experts(m: Mixture, x: Tensor) -> Tensor:
    y = (x @ m.inner).softmax(0) @ m.outer
    return mixed(y, m.routing(x))


@pytest.mark.parametrize(("form", "name"), [(among_tokens, "cumsum"), (among_experts, "softmax")])
def test_rows_that_meet_before_they_are_mixed_stay_and_are_told(
    form: Form, name: str, tmp_path: Path
) -> None:
    program = form_of(form)
    made = lower(program, tmp_path / "triton")
    assert not told(made.program)
    (note,) = made.notes
    assert note.endswith(f"{name} is not known to treat each row by itself.")
    same(program, made.program)


def test_stacks_that_no_kernel_takes_are_told(tmp_path: Path) -> None:
    options = QuantizeWeights(type="float", bits=8, group_size=None, targets=("*.experts",))
    made = lower(options(captured("mixtral", 1)[1]), tmp_path / "triton")
    assert made.notes[0].endswith(
        "a mixture of experts, is torch's: no kernel multiplies by fp8 (E4M3), per channel without "
        "rounded activations."
    )
    assert made.notes[1:] == (
        "model.layers.0.mlp.experts.gate_up_proj, a stack of matrices, is multiplied by torch.",
        "model.layers.0.mlp.experts.down_proj, a stack of matrices, is multiplied by torch.",
    )
