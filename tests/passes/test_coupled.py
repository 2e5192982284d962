"""The axes that passes made shorter, found by comparing what went in with what came out."""

import pytest

from planish.ir.program import Program
from planish.passes.cast import Cast
from planish.passes.contract import Pass
from planish.passes.coupled import Coupled, coupled
from planish.passes.low_rank import LowRank
from planish.passes.prune import PruneChannels, PruneEmbedding, PruneExperts, PruneHeads
from planish.passes.prune_depth import PruneDepth
from planish.passes.quantize_weights import QuantizeWeights
from support.captured import captured

QUERIES = PruneHeads(ratio=0.5, importance="magnitude", unit="queries")
HEADS = PruneHeads(ratio=0.5, importance="magnitude")
CHANNELS = PruneChannels(ratio=0.25, importance="magnitude")
EXPERTS = PruneExperts(ratio=0.4, importance="magnitude")
STREAM = PruneEmbedding(ratio=0.25, importance="magnitude")


@pytest.fixture(scope="module")
def llama() -> Program:
    return captured("llama")[1]


def shown(one: Coupled) -> list[str]:
    return [
        f"{member.tensor.removeprefix('model.layers.0.')}[{member.dim}] "
        f"{member.shapes[0][member.dim]} -> {member.shapes[1][member.dim]}"
        for member in one.members
    ]


@pytest.mark.parametrize(
    ("family", "one", "kind", "sizes", "members"),
    [
        ("llama", CHANNELS, "channels", (192, 144), "mlp.gate_proj.weight[0] 192 -> 144, "
         "mlp.up_proj.weight[0] 192 -> 144, mlp.down_proj.weight[1] 192 -> 144"),
        ("llama", HEADS, "heads", (2, 1), "self_attn.q_proj.weight[0] 64 -> 32, "
         "self_attn.k_proj.weight[0] 32 -> 16, self_attn.v_proj.weight[0] 32 -> 16, "
         "self_attn.o_proj.weight[1] 64 -> 32"),
        ("llama", QUERIES, "heads", (2, 1), "self_attn.q_proj.weight[0] 64 -> 32, "
         "self_attn.o_proj.weight[1] 64 -> 32"),
        ("mixtral", EXPERTS, "experts", (5, 3), "mlp.gate.weight[0] 5 -> 3, "
         "mlp.experts.gate_up_proj[0] 5 -> 3, mlp.experts.down_proj[0] 5 -> 3"),
    ],
)  # fmt: skip
def test_what_had_to_go_together(
    family: str, one: Pass, kind: str, sizes: tuple[int, int], members: str
) -> None:
    program = captured(family)[1]
    first, second = coupled(program, one(program))
    assert ", ".join(shown(first)) == members
    for found in (first, second):  # one a block
        assert (found.kind, found.size, found.left) == (kind, sizes[0], (sizes[1], sizes[1]))


def test_transposed_weights_are_told_as_they_are_stored() -> None:
    program = captured("gpt2")[1]  # whose linear layers store [in, out]
    first, _ = coupled(program, HEADS(program))
    assert [(one.dim, one.shapes) for one in first.members] == [
        (1, ((64, 192), (64, 96))),
        (0, ((192,), (96,))),
        (0, ((64, 64), (32, 64))),
    ]


def test_a_stream_runs_through_everything_but_heads(llama: Program) -> None:
    (stream,) = coupled(llama, STREAM(llama))
    assert (stream.kind, stream.size, stream.left) == ("stream", 64, (48, 48))
    assert len(stream.members) == 2 * 9 + 3
    assert {member.share for member in stream.members} == {0.75}


def test_codes_have_the_shape_of_what_they_stand_for(llama: Program) -> None:
    pruned = CHANNELS(llama)
    rounded = QuantizeWeights(bits=4, group_size=None, symmetric=True)(pruned)
    assert coupled(llama, rounded) == coupled(llama, pruned)


def test_several_prunings_are_told_each(llama: Program) -> None:
    found = coupled(llama, CHANNELS(HEADS(llama)))
    assert [one.kind for one in found] == ["heads", "channels"] * 2


def test_layers_that_went_take_nothing_with_them(llama: Program) -> None:
    fewer = PruneDepth(layers=1, choose="even", protected=0)(llama)
    assert coupled(llama, fewer) == ()
    (one,) = coupled(llama, CHANNELS(fewer))
    assert len(one.members) == 3


def test_what_keeps_all_axes_is_not_told(llama: Program) -> None:
    assert coupled(llama, Cast(dtype="bfloat16")(llama)) == ()
    assert coupled(llama, LowRank(calibration="none")(llama)) == ()
