"""The pipeline: what it measures, and that it catches passes that break their promises."""

import dataclasses
from typing import ClassVar

import pytest
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, fx, nn

from planish.ir.capture.export import from_module
from planish.ir.program import Change, IllFormed, Program
from planish.passes import name_of, pipeline
from planish.passes.cast import Cast
from planish.passes.contract import OPTIONS, Contract, NotApplicable, Pass
from planish.passes.fuse_conv_bn import FuseConvBn
from planish.passes.pipeline import UNANALYSED, BrokenPromise, apply, relative_error
from planish.passes.spill import is_spilled

aten = torch.ops.aten


@dataclass(frozen=True, config=OPTIONS)
class Scale(Pass):
    """Multiplies the weight, and claims that nothing changes."""

    contract: ClassVar[Contract] = Contract(numerics="exact", isolation="kept")
    factor: float = 1.0
    """By what."""

    def __call__(self, program: Program) -> Program:
        with program.edit() as edit:
            for node in edit.nodes(aten.linear.default):
                name = str(node.args[1].target)  # type: ignore[union-attr]
                edit.tensors[name] = edit.tensors[name] * self.factor
                edit.record(node, f"{name}: times {self.factor}")
        return edit.program


@dataclass(frozen=True, config=OPTIONS)
class LossyScale(Scale):
    """The same, and says so."""

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")


@dataclass(frozen=True, config=OPTIONS)
class ScalesByTheBatch(Pass):
    """Divides by the largest number of the whole batch, and claims to keep requests apart."""

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    def __call__(self, program: Program) -> Program:
        with program.edit() as edit:
            for node in list(edit.nodes(aten.relu.default)):
                after = next(iter(node.users))
                largest = edit.call(aten.amax.default, node, before=after)
                scaled = edit.call(aten.div.Tensor, node, largest, before=after)
                edit.replace(node, scaled, "scaled")
                largest.replace_input_with(scaled, node)
        return edit.program


@dataclass(frozen=True, config=OPTIONS)
class ForgetsTensors(Pass):
    """Leaves a graph that reads a tensor which is not there."""

    contract: ClassVar[Contract] = Contract(numerics="exact", isolation="kept")

    def __call__(self, program: Program) -> Program:
        return dataclasses.replace(program, tensors={})


@dataclass(frozen=True, config=OPTIONS)
class Refuses(Pass):
    """Is never applicable."""

    contract: ClassVar[Contract] = Contract(numerics="exact", isolation="kept")

    def __call__(self, program: Program) -> Program:
        raise NotApplicable(f"refuses: {program.source.name} is not for me; leave this pass out.")


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    return from_module(net, torch.randn(3, 8))


def run(program: Program, *passes: Pass) -> Program:
    return apply(program, passes, names=name_of)[0]


def test_a_pass_that_claims_to_be_exact_and_is_not_is_caught(program: Program) -> None:
    with pytest.raises(BrokenPromise) as caught:
        run(program, Scale(factor=1.01))
    message = str(caught.value)
    assert message.startswith("Scale promises the same function, yet output differs by ")
    assert "rounding would be under 1e-04" in message


def test_rounding_is_no_broken_promise(program: Program) -> None:
    run(program, Scale(factor=1.0 + 1e-6))


def test_a_lossy_pass_is_measured_instead(program: Program) -> None:
    after, (step,) = apply(program, [LossyScale(factor=1.01)], names=name_of)
    sample = program.samples[0]
    before = program.run(**sample)["output"]
    expected = relative_error(after.run(**sample)["output"], before)
    assert step.error == pytest.approx(expected)
    assert 0.005 < expected < 0.05


def test_large_outputs_wait_in_files(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (kept,) = apply(program, [LossyScale(factor=1.01)], names=name_of)
    monkeypatch.setattr(pipeline, "LARGE", 0)
    held = pipeline.evaluated(program)
    assert all(is_spilled(tensor) for outputs in held for tensor in outputs.values())
    _, (spilled,) = apply(program, [LossyScale(factor=1.01)], names=name_of)
    assert spilled.error == kept.error


@pytest.mark.parametrize("kind", [Scale, LossyScale])
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_numbers_that_stop_being_finite_are_caught(
    program: Program, kind: type[Scale], factor: float
) -> None:
    with pytest.raises(BrokenPromise, match="not finite any more"):
        run(program, kind(factor=factor))


def test_a_pass_that_lets_requests_meet_is_caught(program: Program) -> None:
    with pytest.raises(BrokenPromise) as caught:
        run(program, ScalesByTheBatch())
    message = str(caught.value)
    assert message.startswith("ScalesByTheBatch promises to keep requests of a batch apart")
    assert "at aten.amax.default %amax" in message
    apply(program, [ScalesByTheBatch()], names=name_of, isolation=False)


def test_an_ill_formed_result_is_caught(program: Program) -> None:
    with pytest.raises(IllFormed, match="no tensor is named"):
        run(program, ForgetsTensors())


def test_a_refusal_comes_through(program: Program) -> None:
    with pytest.raises(NotApplicable, match="Sequential is not for me"):
        run(program, Refuses())


def test_each_error_is_against_the_step_before(program: Program) -> None:
    _, steps = apply(program, [LossyScale(factor=1.5), LossyScale(factor=1.0)], names=name_of)
    assert [step.error > 0.1 for step in steps if step.error is not None] == [True, False]


def test_steps_say_what_was_done() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d(6)).eval()
    program = from_module(net, torch.randn(2, 4, 9))
    told: list[tuple[str, int, int]] = []
    passes = [FuseConvBn(), Cast("bfloat16")]
    after, (fused, cast) = apply(
        program, passes, names=name_of, progress=lambda *what: told.append(what)
    )
    assert told == [("fuse_conv_bn", 0, 0), ("cast", 0, 0)]
    assert (fused.numerics, cast.numerics) == ("exact", "lossy")
    assert (fused.options, cast.options) == ({"ignore": ()}, {"dtype": "bfloat16"})
    # 72 weights and four vectors of 6, one of them made into a bias; then two bytes each.
    assert fused.parameters == (72 + 4 * 6, 72 + 6)
    assert fused.nbytes == (4 * (72 + 4 * 6), 4 * 78)
    assert cast.parameters == (78, 78)
    assert cast.nbytes == (4 * 78, 2 * 78)
    assert [change.node for change in fused.changes] == ["getitem"]
    assert len(cast.changes) == 3
    assert (*fused.changes, *cast.changes) == after.changes
    assert fused.isolation == cast.isolation == "isolated"
    _, (unasked, _) = apply(program, passes, names=name_of, isolation=False)
    assert unasked.isolation == UNANALYSED
    assert fused.seconds > 0
    assert fused.error is not None
    assert fused.error < 1e-6


def test_no_passes_leave_the_program(program: Program) -> None:
    assert apply(program, [], names=name_of) == (program, ())


def test_without_samples_nothing_is_measured(program: Program) -> None:
    bare = dataclasses.replace(program, samples=())
    _, (step,) = apply(bare, [Scale(factor=2.0)], names=name_of)
    assert step.error is None


def test_minus_infinity_in_an_output_is_no_defect() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.masked_fill(x > 0, float("-inf"))

    program = from_module(Masked().eval(), torch.tensor([[-1.0, 1.0], [-2.0, 2.0]]))
    _, (step,) = apply(program, [Cast("bfloat16")], names=name_of)
    assert step.error == 0.0


def test_the_name_of_a_pass_outside_the_table_is_its_class() -> None:
    assert name_of(Refuses()) == "Refuses"
    assert name_of(FuseConvBn()) == "fuse_conv_bn"


@pytest.mark.parametrize(
    ("got", "expected", "error"),
    [([1.0, 2.0], [1.0, 2.0], 0.0), ([3.0, 5.0], [3.0, 4.0], 0.2), ([0.0], [0.0], 0.0)],
)
def test_relative_error(got: list[float], expected: list[float], error: float) -> None:
    assert relative_error(torch.tensor(got), torch.tensor(expected)) == pytest.approx(error)


def test_relative_error_leaves_out_what_was_not_finite() -> None:
    expected = torch.tensor([1.0, float("-inf")])
    assert relative_error(torch.tensor([1.0, 0.0]), expected) == 0.0


def test_nodes_are_not_shared_between_programs(program: Program) -> None:
    after = run(program, Scale())
    mine: set[fx.Node] = set(program.graph.nodes)
    assert mine.isdisjoint(after.graph.nodes)


def precision() -> str:
    """How float32 matrices are multiplied now."""
    return str(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]


@dataclass(frozen=True, config=OPTIONS)
class Says(Pass):
    """Changes nothing, and records how float32 matrices are multiplied meanwhile."""

    contract: ClassVar[Contract] = Contract(numerics="exact", isolation="kept")
    fails: bool = False
    """Whether to end there."""

    def __call__(self, program: Program) -> Program:
        if self.fails:
            raise NotApplicable("fails, having been asked to.")
        change = Change("output", precision())
        return dataclasses.replace(program, changes=(*program.changes, change))


@dataclass(frozen=True, config=OPTIONS)
class LossySays(Says):
    """The same, and may round."""

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")


def test_only_lossy_passes_multiply_as_quickly_as_the_processor_can(program: Program) -> None:
    before = precision()
    _, (exact, lossy) = apply(program, [Says(), LossySays()], names=lambda one: type(one).__name__)
    assert [change.what for change in exact.changes] == [before]
    assert [change.what for change in lossy.changes] == ["bf16"]
    assert precision() == before
    with pytest.raises(NotApplicable):
        apply(program, [LossySays(fails=True)], names=lambda one: type(one).__name__)
    assert precision() == before
