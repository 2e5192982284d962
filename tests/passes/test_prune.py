"""Pruning channels, heads, experts and streams: what goes, what that equals, what is refused."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.ir.axes.axes import Axes, Axis, find
from planish.ir.axes.cut import cut, zeroed
from planish.ir.capture.export import from_module
from planish.ir.program import Program
from planish.passes import name_of, prune
from planish.passes.contract import NotApplicable
from planish.passes.groups import groups_of
from planish.passes.pipeline import apply
from planish.passes.prune import Prune, PruneChannels, PruneEmbedding, PruneExperts, PruneHeads
from support.captured import captured
from support.families import SOME

STREAM = "layer norm"
LIMITS = {
    **dict.fromkeys(("phi", "opt", "gpt2", "gpt_neox", "falcon", "vit", "swin"), STREAM),
    **dict.fromkeys(("bert", "distilbert", "roberta", "modernbert", "convnext"), STREAM),
    "t5": "output",
}
"""What forbids to prune a stream, by family."""

HEADLESS = {"resnet", "convnext", "mobilenet_v2", "mamba"}
GROUPED = {
    *("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi", "phi3"),
    *("mixtral", "qwen2_moe", "mamba2"),
}
"""Where heads share keys, or as in Mamba-2 states."""

EXPERTS = {"mixtral", "qwen2_moe"}


def expected(family: str, one: Prune) -> str | None:
    """What a pass says of a family, where it does not prune it."""
    if isinstance(one, PruneExperts):
        return None if family in EXPERTS else "has no experts"
    if isinstance(one, PruneHeads):
        if family in HEADLESS:
            return "has no attention heads"
        return "no two queries" if one.unit == "queries" and family not in GROUPED else None
    if isinstance(one, PruneEmbedding):
        return f"cannot: {LIMITS[family]} at" if family in LIMITS else None
    return "has no channels" if family == "mamba2" else None


@pytest.mark.parametrize(
    "one",
    [
        PruneChannels(ratio=0.4, importance="magnitude"),
        PruneHeads(ratio=0.5, importance="magnitude"),
        PruneHeads(ratio=0.5, importance="magnitude", unit="queries"),
        PruneExperts(ratio=0.4, importance="magnitude"),
        PruneEmbedding(ratio=0.25, importance="magnitude"),
    ],
    ids=["channels", "heads", "queries", "experts", "embedding"],
)
@pytest.mark.parametrize("family", SOME)
def test_every_family_is_pruned_as_by_zeroing_or_refused_with_the_site(
    family: str, one: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = captured(family)[1]
    said = expected(family, one)
    if said is not None:
        with pytest.raises(NotApplicable, match=f"^{one.called}: .*{said}"):
            one(program)
        return
    asked: list[tuple[Axes, Program, dict[Axis, Tensor]]] = []

    def spied(axes: Axes, given: Program, kept: dict[Axis, Tensor]) -> Program:
        asked.append((axes, given, kept))
        return cut(axes, given, kept)

    monkeypatch.setattr(prune, "cut", spied)
    after, (step,) = apply(program, [one], names=name_of, isolation=False)
    assert after.parameters < program.parameters
    assert step.error is not None
    assert step.changes
    if isinstance(one, PruneExperts):
        return
    zero = zeroed(*asked[0])
    states = {name for name in program.outputs if "present" in name}
    for sample, fed in zip(program.samples, after.samples, strict=True):
        want, got = zero.run(**sample), after.run(**fed)
        for name in set(want) - states:
            torch.testing.assert_close(got[name], want[name], rtol=1e-3, atol=1e-4)


class Gated(nn.Module):
    """Channels of which 0 writes nothing, 1 is never read, 2 is always 0, and 5 is 4 again."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 4, bias=bias)
        with torch.no_grad():
            self.up.weight[0], self.up.bias[0] = 0, 0
            self.down.weight[:, 1] = 0
            self.up.bias[2] = -100
            self.up.weight[5], self.up.bias[5] = self.up.weight[4], self.up.bias[4]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(torch.relu(self.up(x)))
        return y


def gated(bias: bool = False) -> Program:
    module = Gated(bias)
    torch.manual_seed(2)
    return from_module(module.eval(), torch.randn(64, 6))


def pruned(program: Program, **options: Any) -> Program:
    return PruneChannels(**options)(program)


def test_golden_text() -> None:
    program = gated()
    after = pruned(program, ratio=0.25, importance="activation")
    assert program.text() == GOLDEN
    assert after.text() == GOLDEN.replace("B, 8", "B, 6")
    assert [change.what for change in after.changes] == ["up.weight[0] and 2 more: 8 -> 6"]


GOLDEN = """\
program Gated for 1 <= B
  %x: f32[B, 6] = input
  %linear: f32[B, 8] = aten.linear(%x, @up.weight, @up.bias)
  %relu: f32[B, 8] = aten.relu(%linear)
  %linear_1: f32[B, 4] = aten.linear(%relu, @down.weight)
  return output=%linear_1
"""


def same(one: Program, other: Program) -> bool:
    sample = one.samples[0]
    got, want = one.run(**sample)["output"], other.run(**sample)["output"]
    return torch.allclose(got, want, atol=1e-4)


def test_what_counts_least_by_each_importance_goes_first() -> None:
    program = gated()
    for importance in ("activation", "wanda", "taylor", "reconstruction"):
        # Channels 0 and 2 are always 0 ...
        assert same(pruned(program, ratio=0.25, importance=importance), program), importance
    for importance in ("wanda", "taylor", "reconstruction"):
        # ... and 1 is not read.
        assert same(pruned(program, ratio=0.375, importance=importance), program), importance
    # A copy is missed by all that ask of each channel alone.
    again = pruned(program, ratio=0.5, importance="reconstruction", repair=True, ridge=1e-6)
    assert same(again, program)
    assert not same(pruned(program, ratio=0.5, importance="wanda"), program)


def test_magnitude_and_chance_need_no_samples() -> None:
    program = dataclasses.replace(gated(), samples=())
    kept = pruned(program, ratio=0.25, importance="magnitude").tensors["down.weight"]
    sizes = program.tensors["up.weight"].square().sum(1)
    sizes += program.tensors["down.weight"].square().sum(0)
    expected = sizes.topk(6).indices.sort().values
    assert torch.equal(kept, program.tensors["down.weight"][:, expected])
    first, second = (pruned(program, ratio=0.5, importance="random", seed=n) for n in (1, 2))
    assert not torch.equal(first.tensors["up.weight"], second.tensors["up.weight"])
    with pytest.raises(NotApplicable, match="prune_channels: there are no calibration samples"):
        pruned(program, ratio=0.25)


class Convolved(nn.Module):
    """Two convolutions with batch norms, of which the first scales channels 1 and 3 by little."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.two = nn.Conv2d(6, 5, 3, stride=2, padding=1, dilation=2)
        with torch.no_grad():
            self.norm.weight[[1, 3]] = 1e-3
            self.norm.bias[[1, 3]] = 0
            self.norm.weight[5] = -2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(torch.relu(self.norm(self.one(x))))
        return y


def test_batch_norms_tell_which_channels_count() -> None:
    program = from_module(Convolved().eval(), torch.randn(2, 3, 9, 9))
    after = pruned(program, ratio=1 / 3, importance="batch_norm")
    assert torch.equal(after.tensors["norm.weight"], program.tensors["norm.weight"][[0, 2, 4, 5]])
    assert after.tensors["two.weight"].shape == (5, 4, 3, 3)
    with pytest.raises(NotApplicable, match=r"batch norm along it.*prune before fuse_conv_bn"):
        pruned(gated(), ratio=0.5, importance="batch_norm")


class Twice(nn.Module):
    """Two MLPs in a row, of which the second counts for nearly nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = Gated(), nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        y: Tensor = hidden + 1e-3 * self.out(self.second(hidden))
        return y


def test_one_scope_for_all_takes_what_counts_least_anywhere() -> None:
    program = from_module(Twice().eval(), torch.randn(64, 6))
    after = pruned(program, ratio=0.5, scope="global", importance="taylor")
    sizes = after.tensors["first.up.weight"].shape[0], after.tensors["out.weight"].shape[1]
    assert sum(sizes) == 8
    assert (sizes[0] == 7 and sizes[1] == 1) or sizes[1] < sizes[0]
    each = pruned(program, ratio=0.5, importance="taylor")
    assert each.tensors["first.up.weight"].shape[0] == each.tensors["out.weight"].shape[1] == 4


def test_multiples_stay() -> None:
    program = gated()
    assert pruned(program, ratio=0.3, round_to=4).tensors["up.weight"].shape == (4, 6)
    assert pruned(program, ratio=0.9, round_to=2).tensors["up.weight"].shape == (2, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.05}, "removes none of the 8 channels of an MLP or a convolution of up.weight"),
        ({"ratio": 0.2, "round_to": 8}, "of which multiples of 8 stay"),
        ({"ratio": 0.5, "targets": ("upp",)}, "'upp' matches none of the 1 groups.*mean 'up'"),
        ({"ratio": 0.5, "ignore": ("down",)}, "all groups that it is to prune are ignored"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(NotApplicable, match=f"^prune_channels: .*{message}"):
        pruned(gated(), **options)


def test_nothing_is_pruned_twice_in_one_recipe() -> None:
    passes = [PruneChannels(ratio=0.25), PruneChannels(ratio=0.25)]
    with pytest.raises(NotApplicable, match="was pruned by a pass before this one, from 8 to 6"):
        apply(gated(), passes, names=name_of)


def test_fewer_experts_than_are_chosen_are_refused() -> None:
    with pytest.raises(NotApplicable, match="prune_experts: 1 are left where %topk chooses 2"):
        PruneExperts(ratio=0.8)(captured("mixtral")[1])
    with pytest.raises(NotApplicable, match="wanda says nothing of"):
        Prune.__call__(_Experts(ratio=0.4), captured("mixtral")[1])


class _Experts(Prune):
    called, kind = "prune_experts", "experts"


def test_experts_that_are_never_chosen_go_and_nothing_changes() -> None:
    program = captured("mixtral")[1]
    (first, *_) = [group for group in groups_of(program) if group.kind == "experts"]
    name = next(one.tensor for one in first.axis.members if program.tensors[one.tensor].dim() == 2)
    axes = find(program)
    values = axes.values
    assert values
    # A router whose first two rows always lose never sends a token to the first two experts.
    router = program.tensors[name].clone()
    router[:2] = 0
    tensors = {**program.tensors, name: router}
    quiet = dataclasses.replace(program, tensors=tensors)
    after = PruneExperts(ratio=0.4, importance="activation")(quiet)
    assert after.tensors[name].shape[0] == 3


def test_caches_and_samples_follow_the_heads() -> None:
    program = captured("llama")[1]
    after = PruneHeads(ratio=0.5)(program)
    shapes = {spec.name: spec.shape for spec in after.inputs}
    assert shapes["past_key_values.0.key"][1] == 1
    assert after.samples[-1]["past_key_values.0.key"].shape[1] == 1
    assert after.samples[-1]["past_key_values.0.key"].shape[2] > 0
    queries = PruneHeads(ratio=0.5, unit="queries")(program)
    assert {spec.name: spec.shape for spec in queries.inputs}["past_key_values.0.key"][1] == 2
    assert queries.tensors["model.layers.0.self_attn.q_proj.weight"].shape == (32, 64)
