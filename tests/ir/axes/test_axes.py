"""Axes of every family: all that may be permuted is, at once, and the answer stays the same."""

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from planish.api import capture
from planish.ir.axes.axes import Axes, Axis, find, permute, text
from planish.ir.axes.cut import CannotCut, cut, zeroed
from planish.ir.axes.fold import center, fold_norms
from planish.ir.axes.rotate import CannotRotate, rotate
from planish.ir.axes.terms import leaves
from support.captured import captured
from support.families import SOME
from support.outputs import outputs


def shuffled(axis: Axis, seed: int) -> Tensor:
    """Return a permutation that leaves no index where it was."""
    assert isinstance(axis.size, int)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(axis.size, generator=generator)
    moved = torch.empty_like(order)
    moved[order] = order.roll(1)
    return moved


def permutable(axes: Axes) -> list[Axis]:
    return [axis for axis in axes.all if axis.size != 1 and axis.allows("permute")]


@pytest.mark.parametrize("family", SOME)
def test_permuting_every_axis_that_allows_it_changes_nothing(family: str) -> None:
    program = captured(family)[1]
    axes = find(program)
    assert axes.reasons == ()
    moved = {axis: shuffled(axis, axis.number) for axis in permutable(axes)}
    assert moved
    after = dataclasses.replace(program, tensors=permute(axes, program, moved))
    expected = outputs(program)
    for name, value in outputs(after).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", SOME)
def test_leaving_one_member_out_of_a_permutation_is_noticed(family: str) -> None:
    """Else the test above could not fail: every member of an axis counts."""
    program = captured(family)[1]
    axes = find(program)
    expected = outputs(program)
    chance = random.Random(family)
    noticed = 0
    several = [axis for axis in permutable(axes) if len(axis.members) > 1]
    for axis in chance.sample(several, min(4, len(several))):
        tensors = permute(axes, program, {axis: shuffled(axis, axis.number)})
        left_out = chance.choice(axis.members).tensor
        tensors[left_out] = program.tensors[left_out]
        after = outputs(dataclasses.replace(program, tensors=tensors))
        noticed += any(
            not torch.allclose(value, expected[name], rtol=1e-4, atol=1e-4)
            for name, value in after.items()
        )
    # A bias of keys moves nothing: softmax does not see what is added to all scores of a row.
    assert noticed >= min(4, len(several)) - 1


def half(axis: Axis) -> Tensor:
    """Return every second index, and the last."""
    assert isinstance(axis.size, int)
    indices: Tensor = torch.tensor(sorted({*range(0, axis.size, 2), axis.size - 1}))
    return indices


@pytest.mark.parametrize("family", SOME)
def test_a_cut_is_what_zeroing_gives(family: str) -> None:
    program = captured(family)[1]
    axes = find(program)
    kept = {
        axis: half(axis)
        for axis in axes.all
        if isinstance(axis.size, int) and axis.size > 2 and axis.allows("cut")
    }
    assert kept
    smaller = cut(axes, program, kept)
    assert smaller.parameters < program.parameters
    expected = outputs(zeroed(axes, program, kept))
    for name, value in outputs(smaller).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


def test_what_an_axis_does_not_allow_is_refused_with_the_site() -> None:
    program = captured("llama")[1]
    axes = find(program)
    vocabulary = next(
        axis for axis in axes.all if axis.members[0].tensor.endswith("embed_tokens.weight")
    )
    with pytest.raises(ValueError, match=r"cannot be permuted: looked up at aten\.embedding"):
        permute(axes, program, {vocabulary: torch.arange(3)})
    with pytest.raises(CannotCut, match=r"cannot be cut: looked up at aten\.embedding"):
        cut(axes, program, {vocabulary: torch.arange(3)})
    width = next(axis for axis in axes.all if axis.allows("cut"))
    with pytest.raises(CannotCut, match="would lose all of its indices"):
        cut(axes, program, {width: torch.arange(0)})


ROTATABLE = [
    *("llama", "qwen3", "phi3", "mixtral", "gpt2", "opt", "vit", "mamba2"),
    *(
        pytest.param(family, marks=pytest.mark.slow)
        for family in ("qwen2", "qwen2_moe", "mistral", "phi", "gpt_neox", "falcon", "mamba")
    ),
]
"""Families whose residual stream is normed before each block and by nothing else."""

STREAM = {
    "gpt2": "transformer.wte.weight",
    "gpt_neox": "gpt_neox.embed_in.weight",
    "falcon": "transformer.word_embeddings.weight",
    "opt": "model.decoder.embed_tokens.weight",
    "vit": "vit.embeddings.position_embeddings",
    "mamba": "backbone.embeddings.weight",
    "mamba2": "backbone.embeddings.weight",
    "bert": "bert.embeddings.word_embeddings.weight",
    "convnext": "convnext.embeddings.patch_embeddings.bias",
    "t5": "shared.weight",
}
"""A tensor whose last dimension is the stream; else that of decoders."""


def stream(axes: Axes, family: str) -> Axis:
    """The residual stream."""
    name = STREAM.get(family, "model.embed_tokens.weight")
    (leaf,) = leaves(axes.terms[name][-1])
    return next(axis for axis in axes.all if axis.leaf is leaf)


def orthogonal(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    square = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix: Tensor = torch.linalg.qr(square)[0]
    return matrix


@pytest.mark.parametrize("family", ROTATABLE)
def test_the_residual_stream_rotates_once_norms_are_folded(family: str) -> None:
    program = captured(family)[1]
    expected = outputs(program)["logits"]
    folded = fold_norms(program)
    torch.testing.assert_close(outputs(folded)["logits"], expected, rtol=1e-4, atol=1e-4)
    axes = find(folded)
    if any(site.kind == "layer norm" for site in stream(axes, family).sites):
        folded = center(axes, folded, stream(axes, family))
        torch.testing.assert_close(outputs(folded)["logits"], expected, rtol=1e-4, atol=1e-4)
        axes = find(folded)
    residual = stream(axes, family)
    by = {
        axis: orthogonal(axis.size)
        for axis in axes.all
        if isinstance(axis.size, int) and axis.allows("rotate")
    }
    assert residual in by
    turned = rotate(axes, folded, by)
    torch.testing.assert_close(outputs(turned)["logits"], expected, rtol=1e-3, atol=1e-3)
    left_out = residual.members[-1].tensor
    tensors = {**turned.tensors, left_out: folded.tensors[left_out]}
    other = outputs(dataclasses.replace(turned, tensors=tensors))["logits"]
    assert not torch.allclose(other, expected, rtol=1e-2, atol=1e-2)


def test_a_norm_with_a_scale_keeps_the_stream_from_rotating() -> None:
    program = captured("llama")[1]
    axes = find(program)
    residual = max(axes.all, key=lambda axis: len(axis.members))
    with pytest.raises(CannotRotate, match=r"scaled by a parameter at planish\.rms_norm"):
        rotate(axes, program, {residual: orthogonal(int(str(residual.size)))})


@pytest.mark.parametrize(
    ("family", "site"),
    [
        ("gemma2", r"scaled by a parameter at planish\.rms_norm .*post_attention_layernorm"),
        ("bert", r"scaled by a parameter at aten\.layer_norm.*bert\.embeddings\.LayerNorm"),
        ("convnext", r"scaled by a parameter at aten\.layer_norm.*convnext\.embeddings"),
        ("t5", r"scaled by a parameter at planish\.rms_norm .*encoder\.final_layer_norm"),
    ],
)
def test_families_whose_stream_does_not_rotate_say_where(family: str, site: str) -> None:
    program = fold_norms(captured(family)[1])
    axes = find(program)
    with pytest.raises(ValueError, match=f"cannot be centred: {site}"):
        center(axes, program, stream(axes, family))
    with pytest.raises(CannotRotate, match=r"cannot be rotated: (layer norm|scaled by)"):
        rotate(axes, program, {stream(axes, family): orthogonal(64)})


def test_a_weight_that_two_norms_share_is_folded_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Linear(3, 8), nn.Linear(8, 8)
            self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 2)
            self.norm = nn.RMSNorm(8, eps=1e-5)
            nn.init.uniform_(self.norm.weight, 0.5, 2)

        def forward(self, x: Tensor) -> Tensor:
            stream = self.embed(x)
            stream = stream + self.out(self.inner(self.norm(stream)).relu())
            result: Tensor = self.head(self.norm(stream))
            return result

    torch.manual_seed(0)
    program = capture(Shared().eval(), (torch.randn(2, 3),))
    folded = fold_norms(program)
    assert not any("norm.weight" in name for name in folded.tensors)
    x = torch.randn(5, 3)
    torch.testing.assert_close(folded.run(x=x)["output"], program.run(x=x)["output"])


@pytest.mark.parametrize("back", [False, True])
def test_a_stream_that_is_read_without_a_norm_cannot_be_centred(back: bool) -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
            self.norm, self.skip = nn.LayerNorm(8), nn.Linear(8, 8 if back else 2)

        def forward(self, x: Tensor) -> Tensor:
            stream = self.embed(x)
            out: Tensor
            if back:  # what reads the stream writes to it
                out = self.head(self.norm(stream + self.skip(stream)))
            else:
                out = self.head(self.norm(stream)) + self.skip(stream)
            return out

    program = fold_norms(capture(Raw().eval(), (torch.randn(2, 3),)))
    axes = find(program)
    width = next(axis for axis in axes.all if axis.size == 8)
    with pytest.raises(ValueError, match="reads it without a norm"):
        center(axes, program, width)


@pytest.mark.parametrize("family", ["llama", "falcon", "gpt2", "mixtral", "vit", "mobilenet_v2"])
def test_axes_as_text(family: str) -> None:
    golden = Path(__file__).parent / f"{family}.txt"
    assert text(find(captured(family, 1)[1])) == golden.read_text()
