"""State, control flow, rows of one owner, and what the auditor is told."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.ir.flow.fx import read_exported
from planish.ir.isolation.cases import analyse
from planish.ir.isolation.labels import BadLabels, Labels, Owners
from planish.ir.isolation.verdict import Analysis

X = torch.randn(4, 8)
AUTO = torch.export.Dim.AUTO
HIGHER_ORDER: Any = vars(torch)["_higher_order_ops"]  # torch has no public names for them


def audited(model: nn.Module, inputs: Sequence[Tensor] = (X,), **labels: Any) -> Analysis:
    shapes = tuple({0: AUTO} if x.dim() else None for x in inputs)
    exported = torch.export.export(model, tuple(inputs), dynamic_shapes=shapes)
    exported = exported.run_decompositions({})
    return analyse(lambda ties: read_exported(exported, ties), Labels(**labels))


class Branching(nn.Module):
    def __init__(self, of_all: bool) -> None:
        super().__init__()
        self.of_all = of_all

    def forward(self, x: Tensor, switch: Tensor) -> Any:
        predicate = (x > 3).any() if self.of_all else switch.sum() > 0
        return torch.cond(predicate, lambda x: x * 2, lambda x: x - 1, (x,))


def test_a_branch_on_the_whole_batch_is_control() -> None:
    found = audited(Branching(of_all=True), (X, torch.ones(3)), shared=("switch",))
    assert found.verdict == "leaks"
    kinds = {finding.kind for finding in found.findings}
    assert "control" in kinds or "value" in kinds
    assert any("any" in place.operator for place in found.findings[0].path)


def test_a_branch_on_what_all_share_is_isolated() -> None:
    found = audited(Branching(of_all=False), (X, torch.ones(3)), shared=("switch",))
    assert found.verdict == "isolated"
    assert "switch is the same for all requests (as declared)" in found.assumptions


class SwapInBranch(nn.Module):
    def forward(self, x: Tensor, switch: Tensor) -> Any:
        return torch.cond(switch.sum() > 0, lambda x: x.flip(0), lambda x: x.clone(), (x,))


def test_a_branch_hides_nothing() -> None:
    found = audited(SwapInBranch(), (X, torch.ones(3)), shared=("switch",))
    assert found.verdict == "leaks"


class Looping(nn.Module):
    def __init__(self, until_all: bool) -> None:
        super().__init__()
        self.until_all = until_all

    def forward(self, x: Tensor) -> Any:
        def go_on(step: Tensor, value: Tensor) -> Tensor:
            return (value < 100).any() if self.until_all else step < 3

        def body(step: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            return step + 1, value * 2

        loop: Any = HIGHER_ORDER.while_loop
        return loop(go_on, body, (torch.tensor(0), x))[1]


def test_a_loop_until_all_are_finished_is_control() -> None:
    found = audited(Looping(until_all=True))
    assert found.verdict == "leaks"


def test_a_loop_of_fixed_length_is_isolated() -> None:
    assert audited(Looping(until_all=False)).verdict == "isolated"


class Scanning(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Any:
        def step(carry: Tensor, element: Tensor) -> tuple[Tensor, Tensor]:
            carry = carry + element
            return carry, carry * 2

        scan: Any = HIGHER_ORDER.scan
        moved = x.movedim(self.dim, 0)
        _, stacked = scan(step, torch.zeros_like(moved[0]), moved)
        return stacked.movedim(0, self.dim)


def test_a_scan_over_time_is_isolated_and_one_over_the_batch_is_not() -> None:
    x = torch.randn(3, 5, 8)
    assert audited(Scanning(1), (x,)).verdict == "isolated"
    assert audited(Scanning(0), (x,)).verdict == "leaks"


class Remembering(nn.Module):
    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(8))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        out = x + self.last
        self.last.copy_(x[0])
        return out


class Counting(Remembering):
    count: Tensor

    def forward(self, x: Tensor) -> Any:
        self.count.add_(1)
        return x * self.count


def test_what_is_kept_for_the_next_call_is_state() -> None:
    found = audited(Remembering())
    assert found.verdict == "leaks"
    assert [finding.kind for finding in found.findings] == ["state"]
    assert found.outputs[-1].name == "state last"


class DelayedScaling(nn.Module):
    """Scales by the largest number of earlier calls, and keeps that of this one."""

    history: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("history", torch.ones(()))

    def forward(self, x: Tensor) -> Any:
        out = (x / self.history * 127).round() / 127 * self.history
        self.history.copy_(x.abs().amax())
        return out


def test_a_scale_kept_for_the_next_call_is_state() -> None:
    found = audited(DelayedScaling())
    assert found.verdict == "leaks"
    assert [finding.kind for finding in found.findings] == ["state"]


class Renormalizing(nn.Module):
    """A lookup that shortens the rows it finds too long, for good."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(9, 4) * 3)

    def forward(self, x: Tensor) -> Any:
        return nn.functional.embedding(x, self.table, max_norm=1.0)


def test_a_table_that_lookups_change_is_not_isolated() -> None:
    assert audited(Renormalizing(), (torch.tensor([1, 2, 3, 4]),)).verdict != "isolated"


class Normalizing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Any:
        return self.norm(x)


def test_statistics_of_the_batch_are_a_leak_and_kept() -> None:
    found = audited(Normalizing().train())
    assert found.verdict == "leaks"
    assert {one.name for one in found.outputs if one.verdict == "leaks"} >= {
        "state norm.running_mean",
        "state norm.running_var",
    }


def test_a_counter_is_no_secret() -> None:
    assert audited(Counting()).verdict == "isolated"


class Guided(nn.Module):
    """Classifier-free guidance: rows i and i + B are one request's."""

    def forward(self, x: Tensor) -> Any:
        without, with_prompt = x.chunk(2)
        return torch.cat([without + 3 * (with_prompt - without)] * 2)


class Beams(nn.Module):
    """Two neighbouring rows are one request's beams."""

    def forward(self, x: Tensor) -> Any:
        beams = x.view(-1, 2, 8)
        return (beams - beams.amax(1, keepdim=True)).view(x.shape)


class BestBeam(nn.Module):
    """One row of two neighbours is given back."""

    def forward(self, x: Tensor) -> Any:
        return x.view(-1, 2, 8).amax(1)


def test_an_output_may_have_one_row_for_each_request() -> None:
    assert audited(BestBeam(), owners=Owners(2)).verdict == "isolated"
    assert audited(BestBeam()).verdict == "leaks"
    assert audited(BestBeam(), owners=Owners(2, adjacent=False)).verdict == "leaks"


def test_rows_of_one_request_may_meet() -> None:
    assert audited(Beams()).verdict == "leaks"
    assert audited(Beams(), owners=Owners(2)).verdict == "isolated"
    assert audited(Beams(), owners=Owners(2, adjacent=False)).verdict == "leaks"
    assert audited(Guided()).verdict == "leaks"
    assert audited(Guided(), owners=Owners(2, adjacent=False)).verdict == "isolated"
    assert audited(Guided(), owners=Owners(2)).verdict == "leaks"


@pytest.mark.parametrize(
    ("given", "owners"),
    [
        (None, Owners()),
        (2, Owners(2)),
        ("2", Owners(2)),
        ([0, 0, 1, 1], Owners(2)),
        ("0,1,0,1", Owners(2, adjacent=False)),
        ([0, 1, 2], Owners(1)),
    ],
)
def test_owner_maps(given: Any, owners: Owners) -> None:
    assert Owners.parse(given) == owners


@pytest.mark.parametrize("given", [0, "two", [0, 1, 1], [1, 0]])
def test_owner_maps_that_are_none(given: Any) -> None:
    with pytest.raises(BadLabels):
        Owners.parse(given)


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return x + y, x.mean()


def test_inputs_with_batch_sizes_of_their_own_are_tied() -> None:
    found = audited(Two(), (X, torch.randn(4, 1)), internal=("mean",))
    assert found.verdict == "isolated"
    assert [one.name for one in found.outputs] == ["add"]


def test_names_that_are_not_there_are_named() -> None:
    with pytest.raises(BadLabels, match=r"no input named 'z'; it has x, y"):
        audited(Two(), (X, X), shared=("z",))
    with pytest.raises(BadLabels, match=r"no output named 'z'"):
        audited(Two(), (X, X), internal=("z",))


def test_an_input_without_a_batch_axis_leaves_the_verdict_open() -> None:
    found = audited(Two(), (X, torch.tensor(2.0)), internal=("mean",))
    assert found.verdict == "unproven"
    assert "--shared y" in found.findings[0].fix
    shared = audited(Two(), (X, torch.tensor(2.0)), internal=("mean",), shared=("y",))
    assert shared.verdict == "isolated"


class TwoLeaks(nn.Module):
    def forward(self, x: Tensor) -> Any:
        scale = x.abs().amax() / 127
        return ((x / scale).round() * scale).flip(0)


def test_a_second_leak_behind_a_first_is_found() -> None:
    found = audited(TwoLeaks())
    assert {finding.operator for finding in found.findings} == {
        "aten.amax.default",
        "aten.flip.default",
    }
    path = [place.operator for place in found.findings[0].path]
    assert path[0] == "input"
    assert path[-1] == "output"
    assert "aten.amax.default" in path
