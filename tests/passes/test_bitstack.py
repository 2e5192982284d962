"""Stacks of sign blocks: graph, numbers, budgets, later budgets, lowering, refusals."""

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pydantic
import pytest
import torch
from torch import Tensor

import planish
from planish import api
from planish.ir.capture.export import from_module
from planish.ir.compare import compare
from planish.ir.isolation.programs import analyse_program
from planish.ir.program import Program
from planish.ir.stack import CannotFit, SignStack, fitted, pack_signs, sign_stack
from planish.lowering.onnx.lower import MODEL_FILE, lower
from planish.lowering.onnx.target import CPU
from planish.passes import name_of
from planish.passes.bitstack import BitStack, Budget, stacked
from planish.passes.cast import Cast
from planish.passes.contract import NotApplicable
from planish.passes.distill import Distill
from planish.passes.pipeline import apply, relative_error
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.work import Journal, Work
from planish.runtime.backend import CannotOpen
from planish.runtime.session import Session
from planish.runtime.torch_backend import TorchBackend
from support.captured import captured
from support.models import tiny_folder
from support.pair import BEFORE, Pair, calibrated_pair
from support.tensors import correlated

AFTER = """\
program Pair for 1 <= B
  %x: f32[B, 64] = input
  %sign_stack: f32[32, 64] = planish.sign_stack(@first.weight_signs, @first.weight_left, \
@first.weight_right, @first.weight_errors)
  %linear: f32[B, 32] = aten.linear(%x, %sign_stack, @first.bias)
  %relu: f32[B, 32] = aten.relu(%linear)
  %linear_1: f32[B, 8] = aten.linear(%relu, @second.weight)
  return output=%linear_1
"""


@pytest.fixture
def program() -> Program:
    return calibrated_pair()


def stacks(program: Program) -> dict[str, SignStack]:
    return dict(SignStack.read_by(node, program.tensors) for node in program.nodes(sign_stack))


def error(after: Program, before: Program) -> float:
    sample = before.calibration[0]
    return relative_error(after.run(**sample)["output"], before.run(**sample)["output"])


def test_a_layer_reads_its_stack(program: Program) -> None:
    after, (step,) = apply(program, [BitStack(blocks=3, rank=4, ignore=("second",))], names=name_of)
    assert str(program) == BEFORE
    assert str(after) == AFTER
    (change,) = step.changes
    assert change.what.startswith("first.weight: 3 blocks of signs, rank 4; relative error 0.0")
    assert analyse_program(after).verdict == "isolated"
    (stack,) = stacks(after).values()
    assert stack.signs.shape == (3, 32, 64 // 8)
    assert (stack.signs.dtype, stack.left.dtype) == (torch.uint8, torch.float16)
    assert stack.block_bytes == 32 * 64 // 8 + 2 * 4 * (32 + 64) + 4
    saved = program.nbytes - after.nbytes
    assert saved == 4 * 32 * 64 - 3 * stack.block_bytes


def test_the_report_counts_a_stack_as_the_matrix_it_stands_for(program: Program) -> None:
    after = BitStack(blocks=2, rank=4)(program)
    first, second = compare(program, after)
    assert first.form == ("float32", "2 blocks of signs, rank 4")
    assert first.parameters == (64 * 32 + 32,) * 2
    assert first.shapes == (((32, 64),),) * 2
    assert first.nbytes[1] == 4 * 32 + 2 * stacks(after)["first.weight"].block_bytes
    value = stacks(after)["second.weight"].value
    wanted = program.tensors["second.weight"]
    assert second.error == pytest.approx(float((value - wanted).norm() / wanted.norm()))


@pytest.mark.parametrize("columns", [1, 8, 13])
def test_signs_take_a_bit_each(columns: int) -> None:
    matrix = torch.randn(5, columns)
    matrix[0, 0] = 0.0
    packed = pack_signs(matrix)
    assert (packed.dtype, packed.shape) == (torch.uint8, (5, -(-columns // 8)))
    ones = torch.ones(1, 5, 1), torch.ones(1, 1, columns)
    signs = SignStack(packed[None], *ones, torch.ones(1)).value
    assert torch.equal(signs, torch.where(matrix < 0, -1.0, 1.0))


def test_every_block_lowers_what_is_left_by_a_third() -> None:
    torch.manual_seed(0)
    matrix, whole = torch.randn(48, 40), torch.ones(40)
    stack = stacked(matrix, 6, 4, torch.float32, whole)
    errors = [float((stack.first(n).value - matrix).norm() / matrix.norm()) for n in range(1, 7)]
    torch.testing.assert_close(stack.errors, torch.tensor(errors))
    assert all(after < 2 / 3 * before for before, after in pairwise([1.0, *errors]))


def test_one_block_is_the_signs_times_the_nearest_sizes() -> None:
    torch.manual_seed(1)
    matrix = torch.randn(24, 40)
    values = torch.linalg.svdvals(matrix.abs().double())
    nearest = float(values[5:].norm() / values.norm())  # Eckart and Young, 1936
    stack = stacked(matrix, 1, 5, torch.float32, torch.ones(40))
    assert float(stack.errors[0]) == pytest.approx(nearest, rel=1e-4)


def test_all_ranks_are_the_matrix_itself(program: Program) -> None:
    after = BitStack(blocks=1, rank=64, factors="float32")(program)
    assert error(after, program) < 1e-5


def test_loud_inputs_count_more(program: Program) -> None:
    errors = {}
    for how in ("inputs", "none"):
        after = BitStack(blocks=1, rank=2, ignore=("second",), calibration=how)(program)
        errors[how] = error(after, program)
    assert errors["inputs"] < errors["none"]


def test_scales_leave_no_trace_in_the_signs_and_weigh_the_error() -> None:
    torch.manual_seed(2)
    matrix, scale = torch.randn(32, 16), torch.logspace(-2, 1, 16)
    plain = stacked(matrix, 2, 3, torch.float32, torch.ones(16))
    scaled = stacked(matrix, 2, 3, torch.float32, scale)
    assert torch.equal(plain.signs[0], scaled.signs[0])

    def weighted(stack: SignStack) -> float:
        return float(((stack.value - matrix) * scale).norm() / (matrix * scale).norm())

    assert weighted(scaled) == pytest.approx(float(scaled.errors[-1]), rel=1e-4)
    assert weighted(scaled) < weighted(plain)


@pytest.mark.parametrize("budget", [Budget(share=0.5), Budget(bytes=3000)])
def test_the_budget_is_kept_and_used_up(budget: Budget, program: Program) -> None:
    after = BitStack(blocks=16, rank=2, budget=budget)(program)
    allowed = budget.bytes or program.nbytes // 2
    largest = max(one.block_bytes for one in stacks(after).values())
    assert allowed - largest < after.nbytes <= allowed
    assert "first.weight: of 16 blocks the first: " in after.changes[2].what
    assert len(after.changes) == 4  # two layers made, and two shortened


def test_blocks_that_gain_most_a_byte_stay(program: Program) -> None:
    """Against every other way to fill the budget, one block of a layer after the other."""
    whole = BitStack(blocks=4, rank=2)(program)
    first, second = stacks(whole).values()
    rest = whole.nbytes - sum(4 * one.block_bytes for one in (first, second))
    steps = sorted(
        (-one.gain(number) / one.block_bytes, number, one.block_bytes)
        for one in (first, second)
        for number in range(1, 4)
    )
    taken = rest + first.block_bytes + second.block_bytes
    for _, _, nbytes in steps:
        assert fitted(whole, taken).nbytes == taken
        taken += nbytes


def test_a_larger_budget_never_takes_fewer_blocks(program: Program) -> None:
    whole = BitStack(blocks=8, rank=2)(program)
    counts = [
        [one.blocks for one in stacks(fitted(whole, nbytes)).values()]
        for nbytes in range(1200, whole.nbytes + 100, 100)
    ]
    for fewer, more in pairwise(counts):
        assert all(one <= other for one, other in zip(fewer, more, strict=True))
    assert counts[0] < counts[-1] == [8, 8]


def test_a_budget_later_gives_what_a_budget_at_once_gives(program: Program) -> None:
    at_once = BitStack(blocks=8, rank=2, budget=Budget(bytes=3000))(program)
    whole = BitStack(blocks=8, rank=2)(program)
    bare = dataclasses.replace(whole, samples=(), calibration=())
    for later in (fitted(bare, 3000), BitStack(budget=Budget(bytes=3000))(bare)):
        assert later.text() == at_once.text()
        for name, tensor in at_once.tensors.items():
            assert torch.equal(later.tensors[name], tensor)
    assert all(one.blocks == 8 for one in stacks(whole).values())  # the input stays
    short = stacks(fitted(whole, 3000))["first.weight"].signs
    assert short.untyped_storage().nbytes() == short.nbytes  # the others are not kept in memory


def test_a_stored_model_is_given_a_budget_without_the_original(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "model")
    (folder / "vocab.note").touch()  # stands for what text is read by, which is carried along
    one = BitStack(blocks=6, rank=4, calibration="none")
    result = api.optimize(folder, (one,), output=tmp_path / "out", target="torch")
    assert any("(bitstack), which no loader of checkpoints reads" in note for note in result.notes)
    assert "checkpoint" not in result.files
    tokens = np.array([[5, 7, 9]])
    whole = planish.load(tmp_path / "out").run(input_ids=tokens)["logits"]
    np.testing.assert_array_equal(
        whole, planish.load(tmp_path / "out", memory=10**9).run(input_ids=tokens)["logits"]
    )
    allowed = result.program.nbytes * 2 // 3
    few = planish.load(tmp_path / "out", memory=allowed).run(input_ids=tokens)["logits"]
    kept = fitted(result.program, allowed)
    assert kept.nbytes <= allowed
    alone = Session(tmp_path / "out", TorchBackend(tmp_path / "out", program=kept))
    np.testing.assert_array_equal(few, alone.run(input_ids=tokens)["logits"])
    assert np.abs(few - whole).max() > 1e-3
    again = BitStack(budget=Budget(bytes=allowed))
    made = api.optimize(tmp_path / "out", (again,), output=tmp_path / "smaller", target="onnx")
    assert (tmp_path / "smaller" / "vocab.note").is_file()
    assert made.files["onnx"] < allowed + 200_000
    found = planish.load(tmp_path / "smaller").run(input_ids=tokens)["logits"]
    np.testing.assert_allclose(found, few, rtol=1e-4, atol=1e-4)
    with pytest.raises(CannotOpen, match=r"^1,000 bytes are less than the [\d,]+ that Llama"):
        planish.load(tmp_path / "out", memory=1000)


def test_other_artifacts_have_no_blocks_to_choose(program: Program, tmp_path: Path) -> None:
    api.optimize(program, (BitStack(blocks=2, rank=2),), output=tmp_path / "onnx")
    with pytest.raises(CannotOpen, match=r"holds no torch/program.json, and memory= chooses"):
        planish.load(tmp_path / "onnx", memory=10**6)
    cast = (Cast("bfloat16"),)
    api.optimize(program, cast, output=tmp_path / "torch", target="torch")
    with pytest.raises(CannotOpen, match=r"^Pair has no layers that are stacks of blocks\.$"):
        planish.load(tmp_path / "torch", memory=10**6)


def test_onnx_runtime_puts_stacks_together(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(13, 21), torch.nn.ReLU(), torch.nn.Linear(21, 5))
    before = from_module(module.eval(), torch.randn(3, 13))
    after = BitStack(blocks=3, rank=2)(before)
    lower(after, tmp_path, CPU)
    session = onnxruntime.InferenceSession(
        tmp_path / MODEL_FILE, providers=["CPUExecutionProvider"]
    )
    x = torch.randn(7, 13)
    name = after.inputs[0].name
    (found,) = session.run(None, {name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), after.run(**{name: x})["output"])


@pytest.mark.parametrize("target", ["onnx", "torch", "triton"])
def test_a_stored_model_has_the_size_of_its_blocks(target: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = from_module(Pair(512).eval(), {"x": correlated(3, 0)})
    result = api.optimize(
        before, (BitStack(blocks=2, rank=2),), output=tmp_path / "out", target=target
    )
    assert result.isolation == "isolated"
    assert result.program.nbytes <= result.files[target] < result.program.nbytes + 16_000
    x = correlated(4, 2)
    found = planish.load(tmp_path / "out", provider="cpu").run(x=x)["output"]
    torch.testing.assert_close(torch.from_numpy(found), result.program.run(x=x)["output"])


def test_stacks_go_with_other_passes() -> None:
    _, llama = captured("llama")
    passes = (
        BitStack(blocks=2, rank=4, targets=("*.mlp.*",)),
        QuantizeWeights(bits=8, group_size=None),
        Cast("bfloat16"),
    )
    after, steps = apply(llama, passes, names=name_of)
    assert len(stacks(after)) == 6
    assert [step.isolation for step in steps] == ["isolated"] * 3
    assert {one.value.dtype for one in stacks(after).values()} == {torch.bfloat16}
    with pytest.raises(NotApplicable, match=r"^distill: .* are quantized \(%sign_stack\)"):
        Distill()(BitStack(blocks=1)(llama), Work(original=llama))


def test_an_interrupted_run_goes_on(program: Program, tmp_path: Path) -> None:
    one = BitStack(blocks=2, rank=2)
    work = Work(journal=Journal(tmp_path, "one"))
    first = one(program, work)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    changed = {**program.tensors, "first.weight": torch.zeros(32, 64)}
    second = one(dataclasses.replace(program, tensors=changed), work)  # what is kept is taken
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def large(program: Program) -> Program:
    tensors: dict[str, Tensor] = {**program.tensors}
    tensors["first.weight"] = tensors["first.weight"] * 1e12
    return dataclasses.replace(program, tensors=tensors)


def test_refusals(program: Program) -> None:
    with pytest.raises(NotApplicable, match=r"^bitstack: .*frist"):
        BitStack(targets=("frist",))(program)
    bare = dataclasses.replace(program, samples=(), calibration=())
    with pytest.raises(NotApplicable, match=r"^bitstack: there are no calibration samples"):
        BitStack()(bare)
    assert BitStack(calibration="none")(bare).changes
    with pytest.raises(NotApplicable, match=r"^bitstack: 10 bytes are less than the [\d,]+ that P"):
        BitStack(budget=Budget(bytes=10))(program)
    with pytest.raises(NotApplicable, match=r"^bitstack: the layers of Pair are stacks already"):
        BitStack()(BitStack(blocks=1)(program))
    with pytest.raises(NotApplicable, match=r"^bitstack: first.weight has numbers too large for"):
        BitStack()(large(program))
    assert BitStack(factors="bfloat16")(large(program)).changes
    with pytest.raises(CannotFit, match=r"^Pair has no layers that are stacks of blocks\.$"):
        fitted(program, 10**9)
    with pytest.raises(pydantic.ValidationError, match="exactly one of share, bytes"):
        Budget(share=0.5, bytes=10)
