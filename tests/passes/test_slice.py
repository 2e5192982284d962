"""Slicing: what is turned, cut and put between, what repair gives back, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import planish
from planish.ir.axes.cut import zeroed
from planish.ir.axes.rotate import rotate
from planish.ir.capture.export import from_module
from planish.ir.program import Program
from planish.passes import name_of
from planish.passes.bases import by_energy, components, evenly
from planish.passes.contract import NotApplicable
from planish.passes.pipeline import apply, relative_error
from planish.passes.slice import Slice
from planish.passes.work import Journal, Work
from support.captured import captured
from support.stream import Stream

BEFORE = """\
program Stream for 1 <= B
  %x: i64[B, 5] = input
  %embedding: f32[B, 5, 12] = aten.embedding(@table.weight, %x)
  %rms_norm_1: f32[B, 5, 12] = planish.rms_norm(%embedding, @norm.weight, 1e-06)
  %linear: f32[B, 5, 8] = aten.linear(%rms_norm_1, @up.weight)
  %relu: f32[B, 5, 8] = aten.relu(%linear)
  %linear_1: f32[B, 5, 12] = aten.linear(%relu, @down.weight)
  %add: f32[B, 5, 12] = aten.add.Tensor(%embedding, %linear_1)
  %linear_2: f32[B, 5, 17] = aten.linear(%add, @table.weight)
  return output=%linear_2
"""

SHARED = """\
program Stream for 1 <= B
  %x: i64[B, 5] = input
  %embedding: f32[B, 5, 12] = aten.embedding(@table.weight, %x)
  %linear_3: f32[B, 5, 8] = aten.linear(%embedding, @embedding.basis.weight)
  %rms_norm_1: f32[B, 5, 8] = planish.rms_norm(%linear_3, @rms_norm_1.weight, 1.5e-06)
  %linear: f32[B, 5, 8] = aten.linear(%rms_norm_1, @up.weight)
  %relu: f32[B, 5, 8] = aten.relu(%linear)
  %linear_1: f32[B, 5, 8] = aten.linear(%relu, @down.weight)
  %add: f32[B, 5, 8] = aten.add.Tensor(%linear_3, %linear_1)
  %linear_4: f32[B, 5, 12] = aten.linear(%add, @linear_2.basis.weight)
  %linear_2: f32[B, 5, 17] = aten.linear(%linear_4, @table.weight)
  return output=%linear_2
"""

PER_BLOCK = """\
program Stream for 1 <= B
  %x: i64[B, 5] = input
  %embedding: f32[B, 5, 8] = aten.embedding(@table.weight, %x)
  %rms_norm_1: f32[B, 5, 8] = planish.rms_norm(%embedding, @rms_norm_1.weight, 1.5e-06)
  %linear: f32[B, 5, 8] = aten.linear(%rms_norm_1, @up.weight)
  %relu: f32[B, 5, 8] = aten.relu(%linear)
  %linear_1: f32[B, 5, 8] = aten.linear(%relu, @down.weight)
  %linear_3: f32[B, 5, 8] = aten.linear(%embedding, @add.skip.weight)
  %add: f32[B, 5, 8] = aten.add.Tensor(%linear_3, %linear_1)
  %linear_2: f32[B, 5, 17] = aten.linear(%add, @table.weight.of.linear_2)
  return output=%linear_2
"""


def learning(program: Program, count: int) -> Program:
    """Return a program with so many more samples, drawn like its first."""
    chance = torch.Generator().manual_seed(1)

    def drawn(name: str, value: Tensor) -> Tensor:
        if name in ("x", "input_ids") and not value.is_floating_point():
            return torch.randint(3, int(value.max()), value.shape, generator=chance)
        return torch.randn(value.shape, generator=chance) if name == "pixel_values" else value

    samples = [
        {name: drawn(name, value) for name, value in program.samples[0].items()}
        for _ in range(count)
    ]
    return dataclasses.replace(program, calibration=tuple(samples))


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    made = from_module(Stream(17).eval(), {"x": torch.randint(0, 17, (3, 5))})
    return learning(made, 8)


def test_one_basis_turns_and_cuts_the_stream(program: Program) -> None:
    after, (step,) = apply(program, [Slice(ratio=0.3, round_to=4)], names=name_of)
    assert program.text() == BEFORE
    assert after.text() == SHARED
    assert step.isolation == "isolated"


def test_each_block_has_a_basis_and_skips_pass_between_them(program: Program) -> None:
    one = Slice(ratio=0.3, round_to=4, bases="per_block", tied="split")
    after = one(program)
    assert after.text() == PER_BLOCK


def test_what_changed_is_told(program: Program) -> None:
    kept = Slice(ratio=0.3, round_to=4, repair=False)(program)
    assert [one.what for one in kept.changes] == [
        "a matrix between the table and the stream",
        "a matrix between the stream and the table",
        "weight norm_weight folded into its readers",
        "8 of 12: up.weight[1] and 3 more, 0.9465 of what is read",
    ]
    each = Slice(ratio=0.3, round_to=4, bases="per_block", tied="split", repair=False)(program)
    assert [one.what for one in each.changes] == [
        "weight norm_weight folded into its readers",
        "a matrix on the skip connection embedding",
        "8 of 12: table.weight[1] and 2 more, 0.9491 of what is read",
        "8 of 12: down.weight[0] and 2 more, 0.9703 of what is read",
    ]


def test_a_tied_table_stays_one_or_becomes_two(program: Program) -> None:
    kept = Slice(ratio=0.3, round_to=4)(program)
    assert torch.equal(kept.tensors["table.weight"], program.tensors["table.weight"])
    assert kept.parameters == 17 * 12 + 2 * 12 * 8 + 2 * 8 * 8 + 8
    split = Slice(ratio=0.3, round_to=4, tied="split")(program)
    assert split.parameters == 2 * 17 * 8 + 2 * 8 * 8 + 8


FAMILIES = [
    *("llama", "phi3", "falcon", "mixtral", "mamba2"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            *("qwen2", "qwen3", "mistral", "phi", "opt", "gpt2", "gpt_neox", "qwen2_moe", "mamba"),
            "vit",
        )
    ),
]
"""Families whose stream rotates."""


@pytest.mark.parametrize("bases", ["shared", "per_block"])
@pytest.mark.parametrize("family", FAMILIES)
def test_slicing_is_rotating_and_zeroing(family: str, bases: str) -> None:
    program = learning(captured(family)[1], 4)
    one = Slice(ratio=0.25, bases=bases, repair=False)  # type: ignore[arg-type]
    after, (step,) = apply(program, [one], names=name_of)
    assert step.isolation == "isolated"
    sliced = one.opened(program)
    rows, _ = one.found(sliced, Work())
    turned = rotate(sliced.axes, sliced.program, dict(zip(sliced.along, rows, strict=True)))
    expected = zeroed(sliced.axes, turned, dict.fromkeys(sliced.along, torch.arange(48)))
    for got, sample in zip(after.samples, expected.samples, strict=True):
        wanted = expected.run(**sample)["logits"]
        assert relative_error(after.run(**got)["logits"], wanted) < 1e-4
        assert relative_error(turned.run(**sample)["logits"], wanted) > 1e-2


@pytest.mark.parametrize(
    ("family", "samples"),
    [
        ("llama", 24),
        pytest.param("gpt2", 24, marks=pytest.mark.slow),
        pytest.param("vit", 24, marks=pytest.mark.slow),
        # Attention and MLP are written as one, whose inputs are as many as those of both.
        pytest.param("falcon", 72, marks=pytest.mark.slow),
    ],
)
def test_repair_comes_closer_on_what_it_learned_from(family: str, samples: int) -> None:
    program = learning(captured(family)[1], samples)

    def wrong(one: Slice) -> float:
        after = one(program)
        errors = [
            relative_error(after.run(**got)["logits"], program.run(**given)["logits"])
            for got, given in zip(after.calibration[:3], program.calibration[:3], strict=True)
        ]
        return sum(errors)

    for bases in ("shared", "per_block"):
        options: dict[str, Any] = {"ratio": 0.25, "bases": bases}
        assert wrong(Slice(**options, repair=True)) < 0.95 * wrong(Slice(**options))


@pytest.mark.parametrize(
    ("family", "site"),
    [
        ("gemma2", r"scaled by a parameter at planish\.rms_norm .*post_attention_layernorm"),
        ("gemma3", r"scaled by a parameter at planish\.rms_norm .*post_attention_layernorm"),
        ("bert", r"scaled by a parameter at aten\.layer_norm.*bert\.embeddings\.LayerNorm"),
        ("swin", r"scaled by a parameter at aten\.layer_norm.*swin\.embeddings\.norm"),
        ("resnet", r"scaled by a parameter at aten\._native_batch_norm"),
    ],
)
def test_what_does_not_rotate_is_refused_with_the_site(family: str, site: str) -> None:
    with pytest.raises(NotApplicable, match="^slice: no residual stream of .* rotates.*" + site):
        Slice()(captured(family, 1)[1])


def test_fewer_tokens_than_directions_are_refused(program: Program) -> None:
    few = dataclasses.replace(
        program,
        calibration=program.calibration[:0],
        samples=({"x": torch.zeros(1, 5, dtype=torch.int64)},),
    )
    with pytest.raises(NotApplicable) as raised:
        Slice(ratio=0.3, round_to=4)(few)
    assert str(raised.value) == (
        "slice: 5 calibration tokens do not tell which of 12 directions carry most; give more text "
        "with --samples FILE or samples=."
    )


def test_places_with_few_tokens_are_left_as_cut(program: Program) -> None:
    """Of 15 tokens 12 directions can be told, and no least squares of 8 inputs."""
    few = dataclasses.replace(program, calibration=program.calibration[:1])
    after, plain = (Slice(ratio=0.3, round_to=4, repair=one)(few) for one in (True, False))
    assert any(one.what.startswith("not repaired: ") for one in after.changes)
    assert all(torch.equal(after.tensors[key], plain.tensors[key]) for key in plain.tensors)


def test_a_ratio_that_removes_nothing_is_refused(program: Program) -> None:
    with pytest.raises(NotApplicable, match=r"ratio 0\.1 of a stream of 12 leaves all of it"):
        Slice(ratio=0.1, round_to=4)(program)
    with pytest.raises(ValueError, match="greater than 0"):
        Slice(ratio=0.0)


class Interrupted(Exception):
    """What stops a run."""


@pytest.mark.parametrize("bases", ["shared", "per_block"])
def test_an_interrupted_run_goes_on_to_the_same_result(
    program: Program, tmp_path: Path, bases: str
) -> None:
    one = Slice(ratio=0.3, round_to=4, bases=bases, repair=True, read_correction=0.5)  # type: ignore[arg-type]

    def stop(done: int, total: int) -> None:
        if (done, total) == (2, 3):
            raise Interrupted

    journal = Journal(tmp_path / "work", "this")
    with pytest.raises(Interrupted):
        one(program, Work(stop, journal))
    assert len(list((tmp_path / "work").glob("*.safetensors"))) > 1
    resumed, whole = one(program, Work(journal=journal)), one(program)
    assert resumed.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(resumed.tensors[key], whole.tensors[key]) for key in whole.tensors)


def test_components_are_orthogonal_sorted_and_signed() -> None:
    rows = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = rows.T @ (rows * torch.tensor([5.0, 1, 1, 3, 1, 0.1]))
    basis, carried = components((moments + moments.T) / 2)
    torch.testing.assert_close(basis @ basis.T, torch.eye(6, dtype=torch.float64))
    assert bool((carried.diff() <= 0).all())
    assert bool((basis.gather(1, basis.abs().argmax(1, keepdim=True)) > 0).all())


def test_widths_are_multiples_and_add_up() -> None:
    assert evenly([576, 64], 0.1, 8) == [520, 56]
    assert evenly([16], 0.99, 8) == [8]
    flat, steep = torch.ones(64), torch.tensor(0.5) ** torch.arange(64)
    assert by_energy([flat, steep], 0.25, 8) == [64, 32]
    assert sum(by_energy([flat, steep, flat], 0.25, 8)) == sum(evenly([64] * 3, 0.25, 8))


def test_a_sliced_model_runs_in_onnx_runtime(tmp_path: Path) -> None:
    """Of a tied model, with a basis for each block: matrices beside the table and on the skips."""
    program = captured("qwen2", 1)[1]
    chance = torch.Generator().manual_seed(0)
    samples = [{"input_ids": torch.randint(3, 101, (8, 16), generator=chance)}]
    one = Slice(ratio=0.25, bases="per_block")
    result = planish.optimize(program, [one], samples=samples, output=tmp_path / "out")
    assert result.steps[0].isolation == "isolated"
    sample = {name: value[:2] for name, value in result.program.samples[0].items()}
    expected = result.program.run(**sample)["logits"]
    found = planish.load(tmp_path / "out").run(input_ids=sample["input_ids"])["logits"]
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-4)
