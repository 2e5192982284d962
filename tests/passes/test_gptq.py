"""GPTQ: numbers, what it learns from, and what it does where there is nothing to learn."""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, fx, nn

from planish.ir.capture.export import from_module
from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor, QuantScheme, dequantize
from planish.passes import sequential, spill
from planish.passes.compensation import (
    Curvature,
    Rounding,
    compensated,
    drift,
    fitted,
    revisited,
)
from planish.passes.contract import NotApplicable
from planish.passes.format import Override
from planish.passes.gptq import Gptq
from planish.passes.pipeline import relative_error
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.rounding import FACTORS, parameters
from planish.passes.sequential import Run, cross_moments, second_moments, walk
from planish.passes.spill import ENDLESS, is_spilled, memory_size, spilled
from support.captured import captured
from support.shared import shared
from support.tensors import correlated

aten = torch.ops.aten


class Two(nn.Module):
    """Two layers that read one value, and one that reads what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(64, 96), nn.Linear(64, 96, bias=False)
        self.last = nn.Linear(96, 32)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.left(x).relu() * self.right(x)).exp()
        return y


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    made = from_module(Two().eval(), {"x": correlated(3, 0)})
    return dataclasses.replace(made, calibration=tuple({"x": correlated(400, n)} for n in (1, 2)))


def error(after: Program, before: Program) -> float:
    x = correlated(500, 77)
    return relative_error(after.run(x=x)["output"].log(), before.run(x=x)["output"].log())


@pytest.mark.parametrize("symmetric", [True, False])
def test_it_loses_much_less_than_rounding_to_nearest(program: Program, symmetric: bool) -> None:
    options: dict[str, Any] = {"bits": 4, "group_size": 32, "symmetric": symmetric}
    nearest = error(QuantizeWeights(**options)(program), program)
    assert error(Gptq(**options)(program), program) < 0.6 * nearest


def test_the_graph_is_that_of_rounding_to_nearest(program: Program) -> None:
    made = Gptq(bits=4, group_size=32)(program)
    assert made.text() == QuantizeWeights(bits=4, group_size=32)(program).text()
    assert [change.node for change in made.changes] == [
        "left_weight",
        "right_weight",
        "last_weight",
    ]
    assert all(
        "relative error" in one.what and "of its output 0." in one.what for one in made.changes
    )


def test_layers_that_read_one_value_may_take_different_formats(program: Program) -> None:
    plain = Gptq(bits=4, group_size=32)(program)
    fine = Override(bits=8, group_size=None, symmetric=False, targets=("right",))
    made = Gptq(bits=4, group_size=32, overrides=(fine,))(program)
    assert [one.what.partition(";")[0] for one in made.changes] == [
        "left.weight: int4 symmetric, groups of 32",
        "right.weight: int8 asymmetric, per channel",
        "last.weight: int4 symmetric, groups of 32",
    ]
    assert torch.equal(made.tensors["left.weight_packed"], plain.tensors["left.weight_packed"])
    assert error(made, program) < error(plain, program)


def test_each_layer_sees_what_those_before_it_give_once_rounded(program: Program) -> None:
    layers = list(program.graph.find_nodes(op="call_function", target=aten.linear.default))
    seen: list[tuple[list[str], Tensor, int, Tensor]] = []
    for visit in walk(program, program.calibration, layers, compared=len(program.calibration)):
        names = [node.name for node in visit.layers]
        cross = cross_moments(visit.exact, visit.inputs)
        seen.append((names, *second_moments(visit.inputs), cross))
        for node in visit.layers:
            weight = node.args[1]
            assert isinstance(weight, fx.Node)
            visit.weights[weight] = torch.full((96, 64), 0.5)
    (first, moments, rows, same), (second, after, _, cross) = seen
    assert (first, second, rows) == (["linear", "linear_1"], ["linear_2"], 800)
    x = torch.cat([sample["x"] for sample in program.calibration])
    torch.testing.assert_close(moments, x.T @ x, rtol=1e-4, atol=1e-2)
    half = torch.full((96, 64), 0.5)
    hidden = (x @ half.T + program.tensors["left.bias"]).relu() * (x @ half.T)
    torch.testing.assert_close(after, hidden.T @ hidden, rtol=1e-3, atol=1e-1)
    torch.testing.assert_close(same, moments, rtol=1e-4, atol=1e-2)
    left, right = program.tensors["left.weight"], program.tensors["right.weight"]
    exact = (x @ left.T + program.tensors["left.bias"]).relu() * (x @ right.T)
    torch.testing.assert_close(cross, exact.T @ hidden, rtol=1e-3, atol=1e-1)


def test_what_drifted_is_aimed_back() -> None:
    exact = correlated(400, 3)
    torch.manual_seed(1)
    inputs, matrix = exact + 0.3 * torch.randn_like(exact), torch.randn(16, 64)
    moments, _ = second_moments([inputs])
    drifted = drift(cross_moments([exact], [inputs]), moments, 1e-6)
    assert drifted is not None
    best = torch.linalg.lstsq(inputs.double(), (exact @ matrix.T).double()).solution.T
    torch.testing.assert_close((matrix + matrix @ drifted).double(), best, rtol=1e-2, atol=1e-3)
    assert drift(torch.full((64, 64), torch.nan), moments, 0.01) is None


def test_drift_is_measured_on_some_of_the_samples(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def counted(left: list[Tensor], right: list[Tensor]) -> Tensor:
        seen.append((len(left), len(right)))
        return cross_moments(left, right)

    samples = len(program.calibration)
    monkeypatch.setattr("planish.passes.gptq.cross_moments", counted)
    monkeypatch.setattr("planish.passes.gptq.spread", lambda samples, _: samples[::4])
    made = Gptq(bits=3, group_size=32)(program)
    assert seen == [(-(-samples // 4),) * 2] * 2
    plain = Gptq(bits=3, group_size=32, drift_correction=0)(program)
    assert error(made, program) < error(plain, program)


def test_aiming_at_the_model_as_it_was_loses_less(program: Program) -> None:
    options: dict[str, Any] = {"bits": 3, "group_size": 32}
    plain, half, whole = (
        error(Gptq(**options, drift_correction=how_far)(program), program)
        for how_far in (0, 0.5, 1)
    )
    assert half < 0.97 * plain
    assert whole < 0.95 * plain


def test_nothing_behind_the_last_layer_is_computed(program: Program) -> None:
    called = []

    class Watched(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            called.append(name)
            return super().__getitem__(name)

    layers = list(program.graph.find_nodes(op="call_function", target=aten.linear.default))[:2]
    one = dataclasses.replace(program)
    object.__setattr__(one, "tensors", Watched(program.tensors))
    assert len(list(walk(one, one.calibration, layers))) == 1
    assert called == []


def test_what_is_only_returned_is_not_kept() -> None:
    program = captured("llama")[1]
    run = Run(program, program.samples[:1])
    *_, head = program.graph.find_nodes(op="call_function", target=aten.linear.default)
    run.until(head)
    (kept,) = vars(run)["_values"]
    caches = set(program.output_nodes[1:])
    assert len(caches) == 4
    assert not caches & set(kept)
    assert head.args[0] in kept


@pytest.mark.parametrize("limit", [sequential.LIMIT, 0])
def test_samples_of_one_length_share_masks_and_angles(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequential, "SMALL", 0)
    monkeypatch.setattr(sequential, "LIMIT", limit)
    program = captured("llama")[1]
    tokens = dict(program.samples[0])
    other = {**tokens, "input_ids": tokens["input_ids"].flip(1)}
    run = Run(program, [tokens, other])
    *_, head = program.graph.find_nodes(op="call_function", target=aten.linear.default)
    products = list(program.graph.find_nodes(op="call_function", target=aten.linear.default))
    run.until(products[len(products) // 2])
    first, second = vars(run)["_values"]
    tensors = {node for node in first if isinstance(first[node], Tensor)}
    computed = {node for node in tensors if node.op != "placeholder"}
    alike = {node for node in computed if torch.equal(first[node], second[node])}
    assert alike
    assert alike < computed
    assert all(first[node] is second[node] for node in alike)
    run.until(head)
    weight = program.tensors[str(head.args[1].target)]
    for given, rows in zip((tokens, other), run.read(head.args[0]), strict=True):
        torch.testing.assert_close(aten.linear(rows, weight), program.run(**given)["logits"])


def test_what_does_not_fit_lies_in_files(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Gptq(bits=4, group_size=32)(program)
    moved = []

    def counted(tensor: Tensor) -> Tensor:
        moved.append(tensor)
        return spilled(tensor)

    monkeypatch.setattr(sequential, "spilled", counted)
    assert not moved
    monkeypatch.setattr(sequential, "LIMIT", 0)
    monkeypatch.setattr(sequential, "SMALL", 0)
    again = Gptq(bits=4, group_size=32)(program)
    assert len(moved) >= len(program.calibration)
    assert all(torch.equal(again.tensors[name], kept.tensors[name]) for name in kept.tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_a_tensor_in_a_file_holds_the_same(dtype: torch.dtype) -> None:
    tensor = (torch.randn(3, 4, 5) * 9).to(dtype).transpose(0, 1)
    moved = spilled(tensor)
    assert torch.equal(moved, tensor)
    assert (moved.shape, moved.dtype) == (tensor.shape, dtype)
    assert is_spilled(moved)
    assert not is_spilled(tensor)


def test_a_full_disk_is_an_error_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    full = functools.partial(open, "/dev/full", "r+b")
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda **_: full())
    with pytest.raises(OSError, match="space"):
        spilled(torch.zeros(1 << 16))


@pytest.fixture
def rounded() -> tuple[Rounding, Curvature]:
    torch.manual_seed(0)
    moments, _ = second_moments([correlated(400, 3)])
    curvature = Curvature.of(moments, 0.01, by_size=True)
    assert curvature is not None
    scheme, matrix = QuantScheme(4, 32), torch.randn(16, 64)
    start = parameters(scheme.grouped(matrix), torch.ones(1), scheme, FACTORS, torch.float32)
    return compensated(matrix, curvature, scheme, *start), curvature


def output_error(rounding: Rounding, curvature: Curvature) -> float:
    wrong = (rounding.matrix - rounding.value)[:, curvature.order]
    return float(((wrong @ curvature.moments) * wrong).sum())


def test_without_correlation_it_is_rounding_to_nearest() -> None:
    torch.manual_seed(0)
    matrix, scheme = torch.randn(16, 64), QuantScheme(4, 32)
    scale, zeros = parameters(scheme.grouped(matrix), torch.ones(1), scheme, FACTORS, torch.float32)
    curvature = Curvature.of(torch.eye(64) * 7, 0.01, by_size=True)
    assert curvature is not None
    rounding = compensated(matrix, curvature, scheme, scale, zeros)
    nearest = scheme.nearest(scheme.grouped(matrix), scale).flatten(-2)
    assert torch.equal(rounding.codes, nearest)
    assert torch.equal(revisited(rounding, curvature).codes, nearest)


def test_fitting_scales_and_visiting_codes_again_each_lose_less(
    rounded: tuple[Rounding, Curvature],
) -> None:
    rounding, curvature = rounded
    before = output_error(rounding, curvature)
    again = revisited(rounding, curvature)
    assert output_error(again, curvature) < before
    assert torch.equal(again.codes, again.codes.round().clamp(-8, 7))
    assert not torch.equal(again.codes, rounding.codes)
    assert output_error(fitted(again, curvature, torch.float32), curvature) < 0.99 * output_error(
        again, curvature
    )


def test_fitted_scales_are_those_of_least_squares(rounded: tuple[Rounding, Curvature]) -> None:
    rounding, curvature = rounded
    place = curvature.order.argsort()
    root = torch.linalg.cholesky(curvature.moments[place][:, place].double()).T
    codes = rounding.codes[5].double()
    given = torch.stack([root[:, :32] @ codes[:32], root[:, 32:] @ codes[32:]], dim=1)
    best = torch.linalg.lstsq(given, root @ rounding.matrix[5].double()).solution
    found = fitted(rounding, curvature, torch.float32).scale[5]
    torch.testing.assert_close(found.double(), best, rtol=2e-3, atol=0)


def test_more_sweeps_lose_less(program: Program) -> None:
    def output(sweeps: int) -> float:
        what = Gptq(bits=4, group_size=32, sweeps=sweeps)(program).changes[0].what
        return float(what.partition("of its output ")[2])

    assert output(3) < output(1) < output(0)


def test_second_moments_are_those_of_all_rows() -> None:
    inputs = [torch.randn(2, 5, 400), torch.randn(7, 400)]
    moments, count = second_moments(inputs)
    rows = torch.cat([each.reshape(-1, 400) for each in inputs])
    torch.testing.assert_close(moments, rows.T @ rows, rtol=1e-5, atol=1e-4)
    assert torch.equal(moments, moments.T)
    assert count == 17


def test_inputs_that_are_always_zero_keep_their_weights_to_nearest(program: Program) -> None:
    x = correlated(400, 1)
    x[:, 5] = 0  # on other text they may not be
    given = dataclasses.replace(program, calibration=({"x": x},))
    made = Gptq(bits=4, group_size=32)(given)
    first = next(iter(made.nodes(dequantize)))
    name, stored = QuantizedTensor.read_by(first, made.tensors)
    column, scale = program.tensors[name][:, 5], stored.scale[:, 0].abs()
    wrong = (stored.dequantize()[:, 5] - column).abs()
    within = column.abs() < 7 * scale  # the rest is clipped
    assert within.float().mean() > 0.7
    assert bool((wrong[within] <= 0.51 * scale[within]).all())
    assert bool(torch.isfinite(made.run(x=x)["output"]).all())


def test_a_weight_that_is_read_twice_is_rounded_to_nearest_and_says_so() -> None:
    made = Gptq(bits=4, group_size=32)(shared())
    said = {change.what.split(":")[0]: change.what for change in made.changes}
    assert "read by 2 layers: rounded to nearest" in said["layer.weight"]
    assert "of its output" in said["last.weight"]


def test_a_bias_is_not_corrected_twice() -> None:
    with pytest.raises(ValidationError, match="is of quantize_weights"):
        Gptq(bits=4, group_size=32, bias_correction=True)


class Stored(nn.Module):
    """A layer of what is stored, beside one of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(6, 32))
        self.inner, self.outer = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.outer(x) + self.inner(self.table).mean(0)
        return y


def test_layers_may_read_what_is_stored() -> None:
    torch.manual_seed(0)
    program = from_module(Stored().eval(), {"x": torch.randn(64, 32)})
    made = Gptq(bits=8, group_size=32)(program)
    assert len(made.changes) == 2
    want, got = (one.run(**program.samples[0])["output"] for one in (program, made))
    assert float((want - got).norm() / want.norm()) < 0.02


def test_few_tokens_are_told(program: Program) -> None:
    few = dataclasses.replace(program, calibration=({"x": correlated(5, 1)},))
    assert (
        "only 5 calibration tokens for 64 inputs"
        in Gptq(bits=4, group_size=32)(few).changes[0].what
    )


def test_drift_of_few_tokens_is_left(program: Program) -> None:
    little = dataclasses.replace(program, calibration=({"x": correlated(20, 1)},))
    options: dict[str, Any] = {"bits": 3, "group_size": 32}
    aimed, left = (Gptq(**options, drift_correction=far)(little) for far in (0.5, 0))
    assert all(torch.equal(aimed.tensors[name], left.tensors[name]) for name in left.tensors)


def test_what_is_not_finite_is_rounded_to_nearest_and_says_so(program: Program) -> None:
    x = correlated(50, 1)
    x[3, 3] = float("nan")
    made = Gptq(bits=4, group_size=32)(dataclasses.replace(program, calibration=({"x": x},)))
    assert "singular: rounded to nearest" in made.changes[0].what
    plain = QuantizeWeights(bits=4, group_size=32)(program)
    assert torch.equal(made.tensors["left.weight_packed"], plain.tensors["left.weight_packed"])


def test_without_samples_it_is_refused(program: Program) -> None:
    bare = dataclasses.replace(program, samples=(), calibration=())
    with pytest.raises(NotApplicable, match="no calibration samples; pass --samples"):
        Gptq(bits=4, group_size=32)(bare)


def test_its_refusals_carry_its_name(program: Program) -> None:
    with pytest.raises(NotApplicable, match=r"^gptq: 'nothing' matches none"):
        Gptq(bits=4, group_size=32, targets=("nothing",))(program)


def test_a_head_is_rounded_to_nearest_and_says_so() -> None:
    _, llama = captured("llama", layers=1)
    made = Gptq(bits=4, group_size=32, lm_head=True)(llama)
    (head,) = (one.what for one in made.changes if one.what.startswith("lm_head"))
    assert head.endswith("; language-model head: rounded to nearest")
    plain = QuantizeWeights(bits=4, group_size=32, lm_head=True, targets=("lm_head",))(llama)
    name = "lm_head.weight_packed"
    assert torch.equal(made.tensors[name], plain.tensors[name])


@pytest.mark.parametrize(
    ("groups", "file", "said", "size"),
    [
        ("0::/", "memory.max", "123456\n", 123456),
        ("0::/a/b", "a/memory.max", "123456\n", 123456),
        ("0::/a/b", "a/b/memory.max", "max\n", None),
        ("3:cpu:/\n4:memory:/a", "memory/a/memory.limit_in_bytes", "123456\n", 123456),
        ("4:memory:/a", "memory/memory.limit_in_bytes", "123456\n", 123456),
        ("3:cpu:/a", "cpu/a/memory.limit_in_bytes", "123456\n", None),
        (None, "memory.max", "123456\n", None),
    ],
)
def test_memory_is_what_the_control_group_allows(
    groups: str | None,
    file: str,
    said: str,
    size: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the group's and its parents' limits the least."""
    monkeypatch.setattr(spill, "GROUPS", tmp_path / "none")
    machine = memory_size()
    assert 1 << 20 < machine <= ENDLESS
    if groups is not None:
        (tmp_path / "groups").write_text(groups + "\n")
        monkeypatch.setattr(spill, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(spill, "LIMITS", tmp_path)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(said)
    assert memory_size() == (machine if size is None else size)
