"""Sparse weights: where the zeros are, what the others make up for, refusals."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from planish.ir.capture.export import from_module
from planish.ir.isolation.programs import analyse_program
from planish.ir.program import Program
from planish.passes import name_of
from planish.passes.compensation import Curvature
from planish.passes.contract import NotApplicable
from planish.passes.pipeline import apply
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.sequential import second_moments
from planish.passes.sparsify import Sparsify
from planish.passes.sparsity import Sparsity, by_inputs, by_size, compensated
from planish.passes.work import Journal, Work
from support.pair import BEFORE, calibrated_pair
from support.shared import shared
from support.tensors import correlated


@pytest.fixture
def program() -> Program:
    return calibrated_pair()


def output_error(wrong: Tensor, inputs: Tensor) -> float:
    return float((inputs @ wrong.T).norm())


def test_the_graph_stays_and_half_of_each_weight_is_zero(program: Program) -> None:
    after, (step,) = apply(program, [Sparsify()], names=name_of)
    assert str(after) == str(program) == BEFORE
    for name in ("first.weight", "second.weight"):
        assert float((after.tensors[name] == 0).double().mean()) == 0.5
    first, second = (change.what for change in step.changes)
    assert first.startswith("first.weight: 50.0% zeros by sparsegpt; relative error 0.")
    assert second.startswith("second.weight: 50.0% zeros by sparsegpt; relative error 0.")
    assert torch.equal(after.tensors["first.bias"], program.tensors["first.bias"])
    assert analyse_program(after).verdict == "isolated"


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize(("given", "count"), [("2:4", 2), ("4:8", 4)])
def test_of_every_few_as_many_are_zero(
    method: str, given: str, count: int, program: Program
) -> None:
    after = Sparsify(sparsity=given, method=method)(program)  # type: ignore[arg-type]
    for name in ("first.weight", "second.weight"):
        periods = (after.tensors[name] == 0).unflatten(1, (-1, 2 * count))
        assert bool((periods.sum(-1) == count).all())


def test_what_goes_is_small_or_gives_little() -> None:
    matrix = torch.tensor([[4.0, -3.0, 2.0, 1.0], [0.1, 0.2, -0.3, 0.4]])
    half = Sparsity.of(0.5)
    assert by_size(matrix, half).tolist() == [[4, -3, 2, 1], [0, 0, 0, 0]]
    squares = torch.tensor([1.0, 1.0, 3.0, 100.0])
    expected = torch.tensor([[4, 0, 0, 1], [0, 0, -0.3, 0.4]])
    torch.testing.assert_close(by_inputs(matrix, half, squares), expected)


def test_the_others_make_up_for_what_goes() -> None:
    torch.manual_seed(0)
    inputs = correlated(400, 3)
    moments, _ = second_moments([inputs])
    curvature = Curvature.of(moments, 0.01, by_size=False)
    assert curvature is not None
    matrix = torch.randn(16, 64)
    errors = [
        output_error(made - matrix, inputs)
        for made in (
            compensated(matrix, Sparsity.of(0.5), curvature),
            by_inputs(matrix, Sparsity.of(0.5), moments.diagonal()),
            by_size(matrix, Sparsity.of(0.5)),
        )
    ]
    assert errors[0] < 0.7 * min(errors[1:])


def test_one_column_that_goes_is_made_up_for_by_least_squares() -> None:
    """With one zero a row in the first place, the rest is the best there is."""
    inputs = correlated(400, 3)[:, :4]
    moments, _ = second_moments([inputs])
    curvature = Curvature.of(moments, 1e-9, by_size=False)
    assert curvature is not None
    matrix = torch.tensor([[1e-3, 1.0, -1.0, 1.0]])
    made = compensated(matrix, Sparsity(0.25), curvature)
    assert made[0, 0] == 0
    best = torch.linalg.lstsq(inputs[:, 1:].double(), (inputs @ matrix.T).double()).solution
    torch.testing.assert_close(made[0, 1:].double(), best[:, 0], rtol=1e-3, atol=1e-4)


def test_symmetric_codes_keep_zeros(program: Program) -> None:
    sparse = Sparsify(sparsity="2:4")(program)
    after = QuantizeWeights(bits=4, group_size=32)(sparse)
    before = sparse.run(**sparse.samples[0])["output"]
    assert torch.isfinite(before).all()
    for node in after.nodes(torch.ops.planish.dequantize.default):
        name = str(node.args[0].target).removesuffix("_packed")  # type: ignore[union-attr]
        packed, scale, zeros, *rest = node.args
        stored = [after.tensors[str(one.target)] for one in (packed, scale)]  # type: ignore[union-attr]
        value = torch.ops.planish.dequantize(*stored, zeros, *rest)
        assert bool((value[sparse.tensors[name] == 0] == 0).all())


def test_an_interrupted_run_goes_on(program: Program, tmp_path: Path) -> None:
    work = Work(journal=Journal(tmp_path, "one"))
    whole = Sparsify()(program, work)
    kept = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert kept == ["first.weight.safetensors", "second.weight.safetensors"]
    again = Sparsify()(program, work)
    assert all(torch.equal(again.tensors[name], whole.tensors[name]) for name in whole.tensors)
    assert again.changes == whole.changes


def test_refusals(program: Program) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.only(x)
            return y

    odd = from_module(Odd().eval(), {"x": torch.randn(3, 6)})
    with pytest.raises(NotApplicable, match=r"^sparsify: only has 6 inputs, no multiple of 4"):
        Sparsify(sparsity="2:4")(odd)
    bare = dataclasses.replace(program, samples=(), calibration=())
    with pytest.raises(NotApplicable, match=r"^sparsify: there are no calibration samples"):
        Sparsify()(bare)
    assert Sparsify(method="magnitude")(bare).changes
    with pytest.raises(NotApplicable, match=r"^sparsify: .*frist"):
        Sparsify(targets=("frist",))(program)


def test_singular_moments_fall_back_and_say_so(program: Program) -> None:
    wrong = {"x": torch.full((200, 64), torch.inf)}
    after = Sparsify(targets=("first",))(dataclasses.replace(program, calibration=(wrong,)))
    assert "singular: by wanda" in after.changes[0].what


def test_it_is_told_where_only_the_first_use_of_a_weight_is_looked_at() -> None:
    made = Sparsify(sparsity=0.5, method="wanda")(shared())
    said = {change.what.split(":")[0]: change.what for change in made.changes}
    assert "by what the first of 2 layers reads" in said["layer.weight"]
    assert "the first of" not in said["last.weight"]
