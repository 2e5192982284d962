"""Integers that name places: experts move with their router, unless their order counts."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.api import capture
from planish.ir.axes.axes import Axes, Axis, find, find_in, order, permute
from planish.ir.axes.cut import CannotCut, drop
from planish.ir.axes.terms import Leaf, leaves
from planish.ir.flow.fx import read_exported
from planish.ir.program import Program
from support.captured import captured
from support.models import tiny
from support.outputs import outputs
from support.routed import EXPERTS, FORMS, ORDERED, Form, Mixture, compared

AUTO = torch.export.Dim.AUTO
ORDER = torch.tensor([3, 0, 4, 1, 2])
STACKS = ("router.weight", "router.bias", "inner", "outer", "bias")


def axes_of(model: nn.Module, *inputs: Tensor) -> Axes:
    """The axes of a module as torch exports it, of any number of rows."""
    shapes = tuple(dict.fromkeys(range(min(one.dim(), 2)), AUTO) for one in inputs)
    exported = torch.export.export(model, inputs, dynamic_shapes=shapes)
    return find_in(read_exported(exported.run_decompositions({})))


@torch.no_grad()
def moved(model: nn.Module, axes: Axes, atoms: dict[Leaf, Tensor]) -> nn.Module:
    """A copy of a module with its parameters reordered."""
    model = copy.deepcopy(model)
    for name, tensor in model.named_parameters(remove_duplicate=False):
        for dim, term in enumerate(axes.terms.get(name, ())):
            if any(leaf in atoms for leaf in leaves(term)):
                tensor.copy_(tensor.index_select(dim, order(term, atoms)))
    return model


def mixture(form: Form) -> tuple[Mixture, Tensor]:
    torch.manual_seed(0)
    return Mixture(form).eval(), torch.randn(7, 4)


def experts(axes: Axes, *names: str) -> list[Axis]:
    """The axes along the first dimension of these tensors."""
    return [
        axis
        for axis in axes.all
        if any(one.dim == 0 and one.tensor in names for one in axis.members)
    ]


SLOW = ("grouped, added back", "grouped, sorted back", "grouped, normed", "one hot", "first")


@pytest.mark.parametrize(
    "form", [pytest.param(one, marks=[pytest.mark.slow] * (one in SLOW)) for one in FORMS]
)
def test_experts_move_with_their_router(form: str) -> None:
    model, x = mixture(FORMS[form])
    axes = axes_of(model, x)
    assert axes.reasons == ()
    (axis,) = experts(axes, *STACKS)
    assert axis.allows("permute"), axis.limits("permute")
    x = torch.randn(11, 4)
    after = moved(model, axes, {axis.leaf: ORDER})
    torch.testing.assert_close(after(x), model(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # the router counts, so the test can fail
        after.get_parameter("router.weight").copy_(model.router.weight)
    assert not torch.allclose(after(x), model(x), rtol=1e-2, atol=1e-2)


QUICK = ("compared by order", "the one after", "ends of other keys", "never put back")


@pytest.mark.parametrize(
    "form", [pytest.param(one, marks=[pytest.mark.slow] * (one not in QUICK)) for one in ORDERED]
)
def test_experts_whose_order_counts_stay(form: str) -> None:
    model, x = mixture(ORDERED[form])
    for axis in experts(axes_of(model, x), *STACKS):
        assert not axis.allows("permute"), axis
    after = copy.deepcopy(model)
    with torch.no_grad():
        for name in STACKS:
            tensor = after.get_parameter(name)
            tensor.copy_(tensor[ORDER])
    x = torch.randn(11, 4)
    assert not torch.allclose(after(x), model(x), rtol=1e-2, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
@pytest.mark.parametrize("form", ["grouped_mm", "batched_mm"])
def test_experts_of_transformers_move(family: str, form: str) -> None:
    """As transformers exports them, with products of groups or copies of the chosen experts."""
    model: Any
    model, inputs = tiny(family)
    model.set_experts_implementation(form)
    model.config.use_cache = False

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            logits: Tensor = self.model(ids, mask).logits
            return logits

    wrapped = Logits()
    given = (inputs["input_ids"], inputs["attention_mask"])
    axes = axes_of(wrapped, *given)
    assert axes.reasons == ()
    gates = [name for name in axes.terms if name.endswith("mlp.gate.weight")]
    found = experts(axes, *gates)
    assert len(found) == len(gates) == 2
    for axis in found:
        assert axis.allows("permute"), axis.limits("permute")
        assert {"gate", "gate_up_proj", "down_proj"} <= {
            part for one in axis.members for part in one.tensor.split(".")
        }
    after = moved(wrapped, axes, {axis.leaf: ORDER for axis in found})
    with torch.no_grad():
        torch.testing.assert_close(after(*given), wrapped(*given), rtol=1e-4, atol=1e-4)


def without(program: Program, name: str, removed: list[int]) -> Program:
    """A program whose router scores are minus infinity for some experts."""
    with program.edit() as edit:
        (weight,) = (node for node in edit.nodes() if node.target == name)
        for scores in weight.users:
            mask = torch.zeros(EXPERTS)
            mask[removed] = float("-inf")
            place = scores.next
            read = edit.read(f"{name}.mask", mask, before=place)
            after = edit.call(torch.ops.aten.add.Tensor, scores, read, before=place)
            edit.replace(scores, after, "never chosen")
    return edit.program


@pytest.mark.parametrize("family", ["mixtral", pytest.param("qwen2_moe", marks=pytest.mark.slow)])
def test_dropping_experts_is_never_choosing_them(family: str) -> None:
    program = captured(family)[1]
    axes = find(program)
    gates = [name for name in axes.terms if name.endswith("mlp.gate.weight")]
    found = experts(axes, *gates)
    assert len(found) == 2
    kept = (torch.tensor([0, 2, 4]), torch.tensor([1, 3]))  # in each layer others
    smaller = drop(axes, program, dict(zip(found, kept, strict=True)))
    assert smaller.parameters < program.parameters
    expected = program
    for name, removed in zip(gates, ([1, 3], [0, 2, 4]), strict=True):
        expected = without(expected, name, removed)
    got, want, before = outputs(smaller), outputs(expected), outputs(program)
    torch.testing.assert_close(got["logits"], want["logits"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got["logits"], before["logits"], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("form", ["compared", "one hot", "scattered", "copied"])
def test_dropping_experts_of_other_forms(form: str) -> None:
    model, x = mixture(FORMS[form])
    program = capture(model, (x,))
    axes = find(program)
    (axis,) = experts(axes, *STACKS)
    smaller = drop(axes, program, {axis: torch.tensor([0, 3])})
    bias = program.tensors["router.bias"].clone()
    bias[[1, 2, 4]] = float("-inf")
    tensors = {**program.tensors, "router.bias": bias}
    x = torch.randn(11, 4)
    expected = dataclasses.replace(program, tensors=tensors).run(x=x)["output"]
    torch.testing.assert_close(smaller.run(x=x)["output"], expected, rtol=1e-4, atol=1e-5)


def test_fewer_experts_than_are_chosen_are_refused() -> None:
    model, x = mixture(compared)
    program = capture(model, (x,))
    axes = find(program)
    (axis,) = experts(axes, *STACKS)
    with pytest.raises(CannotCut, match="1 are left where %topk chooses 2"):
        drop(axes, program, {axis: torch.tensor([1])})
    with pytest.raises(CannotCut, match=r"cannot be dropped: output at output"):
        drop(axes, program, {experts(axes, "leave.weight")[0]: torch.tensor([1])})


class Through(nn.Module):
    """Two layers with something between them that may depend on the order of the inner width."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(self.function(self.up(x)))
        return result


BY_PLACE = {
    "linspace": lambda x: x * torch.linspace(0, 1, 6),
    "a diagonal": lambda x: x @ (x.mT @ x + torch.eye(6)),
    "a triangle": lambda x: x @ (x.mT @ x).tril(),
    "arange": lambda x: x * torch.arange(6),
    "the first three": lambda x: x * (torch.arange(6) < 3),
    "the third": lambda x: x.masked_fill(torch.arange(6) == 2, 0),
    "argmax": lambda x: x + x.argmax(-1, keepdim=True),
    "where the maximum is": lambda x: x + x.max(-1, keepdim=True)[1],
    "written at places": lambda x: x.scatter(1, x[:, :2].abs().long().clamp(0, 5), 1.0),
    "added at places": lambda x: x.index_add(1, torch.tensor([1, 2]), x.new_ones(x.shape[0], 2)),
}


@pytest.mark.parametrize("name", BY_PLACE)
def test_what_depends_on_places_pins_them(name: str) -> None:
    torch.manual_seed(0)
    model = Through(BY_PLACE[name]).eval()
    axes = find(capture(model, (torch.randn(3, 4),)))
    for axis in experts(axes, "up.bias"):
        assert not axis.allows("permute"), axis
        assert not axis.allows("drop"), axis


def test_permuting_experts_of_a_program() -> None:
    program = captured("mixtral")[1]
    axes = find(program)
    found = experts(axes, "model.layers.0.mlp.gate.weight")
    tensors = permute(axes, program, {found[0]: ORDER})
    assert not torch.equal(
        tensors["model.layers.0.mlp.experts.down_proj"],
        program.tensors["model.layers.0.mlp.experts.down_proj"],
    )
    after = outputs(dataclasses.replace(program, tensors=tensors))
    torch.testing.assert_close(after["logits"], outputs(program)["logits"], rtol=1e-4, atol=1e-4)
