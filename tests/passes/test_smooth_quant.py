"""SmoothQuant: factors, where they go, what is left alone, and that the function stays."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from planish.ir.capture.export import from_module
from planish.ir.program import Program
from planish.passes import name_of
from planish.passes.contract import NotApplicable
from planish.passes.pipeline import apply
from planish.passes.smooth_quant import SmoothQuant, rounded_error, smoothing_factors
from support.captured import captured

TEXT = """\
program Block for 1 <= B
  %x: f32[B, 8] = input
  %linear: f32[B, 16] = aten.linear(%x, @embed.weight, @embed.bias)
  %rms_norm_1: f32[B, 16] = planish.rms_norm(%linear, @norm.weight, 1e-06)
  %linear_1: f32[B, 24] = aten.linear(%rms_norm_1, @gate.weight)
  %linear_2: f32[B, 24] = aten.linear(%rms_norm_1, @up.weight)
  %gated: f32[B, 24] = planish.gated(%linear_1, %linear_2, 'silu')
  %linear_3: f32[B, 16] = aten.linear(%gated, @down.weight)
  %gelu: f32[B, 16] = aten.gelu(%linear_3)
  %linear_4: f32[B, 4] = aten.linear(%gelu, @last.weight)
  return output=%linear_4
"""


class Block(nn.Module):
    """A gated layer behind a norm, and a layer behind what is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(8, 16), nn.RMSNorm(16, eps=1e-6)
        nn.init.uniform_(self.norm.weight, 0.5, 2)
        self.gate, self.up = nn.Linear(16, 24, bias=False), nn.Linear(16, 24, bias=False)
        self.down, self.last = nn.Linear(24, 16, bias=False), nn.Linear(16, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.embed(x))
        inner = self.down(nn.functional.silu(self.gate(hidden)) * self.up(hidden))
        y: Tensor = self.last(nn.functional.gelu(inner))
        return y


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    made = from_module(Block().eval(), {"x": torch.randn(5, 8)})
    return dataclasses.replace(made, calibration=({"x": torch.randn(50, 8)},) * 2)


def hidden(program: Program) -> Tensor:
    """What gate and up read, from the tensors."""
    x = torch.cat([sample["x"] for sample in program.calibration])
    tensors = program.tensors
    stream = x @ tensors["embed.weight"].T + tensors["embed.bias"]
    scaled: Tensor = nn.functional.rms_norm(stream, (16,), tensors["norm.weight"], 1e-6)
    return scaled


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_factors_are_those_of_equation_4(program: Program, alpha: float) -> None:
    after = SmoothQuant(alpha=alpha, ignore=("down",))(program)
    assert program.text() == after.text() == TEXT
    inputs = hidden(program).abs().amax(0)
    both = torch.cat([program.tensors["gate.weight"], program.tensors["up.weight"]])
    factors = inputs**alpha / both.abs().amax(0) ** (1 - alpha)
    torch.testing.assert_close(
        after.tensors["gate.weight"], program.tensors["gate.weight"] * factors
    )
    torch.testing.assert_close(
        after.tensors["norm.weight"], program.tensors["norm.weight"] / factors
    )
    ends = torch.cat([after.tensors["gate.weight"], after.tensors["up.weight"]]).abs().amax(0)
    if alpha == 0:
        torch.testing.assert_close(ends, torch.ones(16))
    if alpha == 1:
        torch.testing.assert_close(hidden(after).abs().amax(0), torch.ones(16))
    if alpha == 0.5:
        torch.testing.assert_close(hidden(after).abs().amax(0), ends)


def test_what_changed_is_told(program: Program) -> None:
    after, (step,) = apply(program, [SmoothQuant()], names=name_of)
    assert step.error is not None
    assert step.error < 1e-6
    assert [(one.node, one.what.partition(" factors")[0]) for one in after.changes] == [
        ("linear", "embed.weight: left as it is, since %x, which it reads, cannot be scaled"),
        ("linear_4", "last.weight: left as it is, since %gelu, which it reads, cannot be scaled"),
        ("linear_1", "gate.weight, up.weight: 16"),
        ("linear_3", "down.weight: 24"),
    ]


def test_a_second_time_changes_nothing(program: Program) -> None:
    """With alpha 0.5, inputs and weights are equally large once scaled: all factors are 1."""
    once = SmoothQuant(ignore=("down",))(program)
    twice = SmoothQuant(ignore=("down",))(once)
    assert once.tensors.keys() == twice.tensors.keys()
    for name, tensor in once.tensors.items():
        torch.testing.assert_close(twice.tensors[name], tensor)
    assert "from 1 to 1" in twice.changes[-1].what


def test_channels_without_a_size_keep_theirs() -> None:
    inputs = torch.tensor([4.0, 0.0, 4.0, float("inf"), float("nan")])
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    assert smoothing_factors(inputs, weights, 0.5).tolist() == [2, 1, 1, 1, 1]


def test_ignored_layers_do_not_decide_and_are_scaled_along(program: Program) -> None:
    after = SmoothQuant(ignore=("up", "down"))(program)
    ends = after.tensors["gate.weight"].abs().amax(0)
    torch.testing.assert_close(hidden(after).abs().amax(0), ends)
    assert not torch.equal(after.tensors["up.weight"], program.tensors["up.weight"])
    assert torch.equal(after.tensors["down.weight"], program.tensors["down.weight"])


def test_query_heads_that_read_one_key_head_share_factors() -> None:
    program = captured("llama", 1)[1]
    after = SmoothQuant(targets=("*.o_proj",))(program)
    layer = "model.layers.0.self_attn"
    changed = {name for name in after.tensors if after.tensors[name] is not program.tensors[name]}
    assert changed == {f"{layer}.v_proj.weight", f"{layer}.o_proj.weight"}
    ratio = after.tensors[f"{layer}.o_proj.weight"] / program.tensors[f"{layer}.o_proj.weight"]
    (heads,) = ratio[:1].unflatten(1, (4, 16))
    torch.testing.assert_close(heads[0], heads[1])
    torch.testing.assert_close(heads[2], heads[3])
    assert not torch.allclose(heads[0], heads[2], rtol=0.01)


def why_not(program: Program, one: SmoothQuant) -> str:
    with pytest.raises(NotApplicable) as raised:
        one(program)
    return str(raised.value)


def test_refusals(program: Program) -> None:
    said = why_not(program, SmoothQuant(targets=("last",)))
    assert said == (
        "smooth_quant: no layer that was asked for reads what can be scaled: last.weight: left as "
        "it is, since %gelu, which it reads, cannot be scaled. Leave this pass out."
    )
    assert "'donw' matches none of the 5 layers" in why_not(program, SmoothQuant(targets=("donw",)))
    assert "leave no linear layer of Block" in why_not(program, SmoothQuant(ignore=("Linear",)))
    bare = dataclasses.replace(program, samples=(), calibration=())
    assert "no calibration samples; pass --samples" in why_not(bare, SmoothQuant())


def outlier(program: Program, channel: int, by: float) -> Program:
    """The program with one channel of what gate and up read much louder, and weights softer."""
    tensors = dict(program.tensors)
    tensors["norm.weight"] = tensors["norm.weight"].clone()
    tensors["norm.weight"][channel] *= by
    for name in ("gate.weight", "up.weight"):
        tensors[name] = tensors[name].clone()
        tensors[name][:, channel] /= by
    return dataclasses.replace(program, tensors=tensors)


def test_a_search_takes_what_loses_least(program: Program) -> None:
    loud = outlier(program, 3, 30)
    searched = SmoothQuant(alpha="search", ignore=("down",))(loud)
    found = next(change.what for change in searched.changes if "gate" in change.what)
    share = float(found.partition("squared error ")[2].split()[0])
    assert 0 < share < 0.2
    rows = hidden(loud)
    errors = {}
    for alpha in (step / 10 for step in range(11)):
        after = SmoothQuant(alpha=alpha, ignore=("down",))(loud)
        factors = (loud.tensors["norm.weight"] / after.tensors["norm.weight"]).double()
        errors[alpha] = sum(
            rounded_error(rows, loud.tensors[name], factors)
            for name in ("gate.weight", "up.weight")
        )
    assert f"alpha {min(errors, key=errors.__getitem__):g}:" in found


def test_a_search_leaves_alone_what_loses_least_as_it_is(program: Program) -> None:
    even = dataclasses.replace(program, calibration=({"x": torch.zeros(4, 8)},))
    tensors = {**even.tensors, "embed.bias": torch.ones(16), "norm.weight": torch.ones(16)}
    for name in ("gate.weight", "up.weight"):
        tensors[name] = torch.full_like(even.tensors[name], 0.5)
    even = dataclasses.replace(even, tensors=tensors)
    after = SmoothQuant(alpha="search", ignore=("down",))(even)
    assert any("no others lose less" in change.what for change in after.changes)
    assert torch.equal(after.tensors["norm.weight"], torch.ones(16))
