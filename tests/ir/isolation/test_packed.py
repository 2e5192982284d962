"""Packed batches: proven where attention keeps to segments, and run with other requests changed."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planish
from planish.ir.flow.fx import read_exported
from planish.ir.isolation.cases import analyse
from planish.ir.isolation.labels import BadLabels, Labels, Owners
from planish.ir.isolation.segments import FINITE
from planish.ir.isolation.verdict import Analysis
from planish.runtime.runnable import CannotRun
from support.corpus_packed import ISOLATED, LEAKS, WIDTH, Case, Packed, by_bounds, reference

AUTO = torch.export.Dim.AUTO
CU, IDS = torch.tensor([0, 3, 4, 7], dtype=torch.int32), torch.tensor([0, 0, 0, 1, 2, 2, 2])
SAID = Labels(cu_seqlens=("cu",), segment_ids=("ids",))


@cache
def exported(case: Case) -> Any:
    torch.manual_seed(0)
    given = (torch.randn(7, WIDTH), CU, IDS)
    sizes = ({0: AUTO},) * 3
    made = torch.export.export(Packed(case).eval(), given, dynamic_shapes=sizes)
    return made.run_decompositions({})


def audited(case: Case, labels: Labels = SAID) -> Analysis:
    program = exported(case)
    return analyse(lambda ties: read_exported(program, ties), labels)


class Run(torch.fx.Interpreter):
    """Runs a graph, the kernel, which needs a GPU, as one request after another."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.ops.torch_attn._varlen_attn.default:
            q, k, v, cu, _, _, _, causal = args
            return reference(q, k, v, cu, causal), None, None
        return super().call_function(target, args, kwargs)


@torch.no_grad()
def moves(case: Case) -> bool:
    """Whether a request is given something else when another request's rows change."""
    program = exported(case)
    run = Run(program.graph_module)
    state = [
        {**program.state_dict, **program.constants}[str(spec.target)]
        for spec in program.graph_signature.input_specs
        if spec.target is not None
    ]
    x = torch.randn(7, WIDTH)
    (before,) = run.run(*state, x, CU, IDS)
    found = False
    for request in range(3):
        own = IDS.eq(request)
        changed = torch.where(own[:, None], torch.randn(7, WIDTH) * 9, x)
        (after,) = run.run(*state, changed, CU, IDS)
        found = found or not torch.equal(after[~own], before[~own])
        assert not torch.equal(after[own], before[own])
    return found


@pytest.mark.parametrize("name", ISOLATED)
def test_isolated(name: str) -> None:
    found = audited(ISOLATED[name])
    assert found.verdict == "isolated", found.findings
    assert (FINITE in found.assumptions) == ("block" in name)
    assert any("cu is the same for all requests" in one for one in found.assumptions)
    assert not moves(ISOLATED[name])


QUICK = ("T06 attention without bounds", "blocks or causal", "shifted keys")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LEAKS],
)
def test_leaks(name: str) -> None:
    found = audited(LEAKS[name])
    assert found.verdict == "leaks", found
    assert moves(LEAKS[name])


def test_what_is_not_declared_divides_nothing() -> None:
    assert audited(by_bounds, Labels(shared=("cu", "ids"))).verdict == "leaks"
    assert audited(by_bounds, Labels(segment_ids=("ids",), shared=("cu",))).verdict == "leaks"
    blocks = ISOLATED["attention by a mask of blocks"]
    assert audited(blocks, Labels(cu_seqlens=("cu",), shared=("ids",))).verdict == "leaks"
    assert audited(blocks, Labels(cu_seqlens=("cu",))).verdict == "leaks"


def test_a_number_that_is_not_finite_goes_through_a_mask() -> None:
    """The assumption is there for a reason."""
    model = Packed(ISOLATED["attention by a mask of blocks"])
    x = torch.randn(7, WIDTH)
    x[0, 0] = float("nan")
    assert model(x, CU, IDS)[4].isnan().any()


def test_packed_rows_along_another_axis_by_the_api(tmp_path: Any) -> None:
    class Row(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Packed(by_bounds)

        def forward(self, x: Tensor, cu: Tensor) -> Tensor:
            result: Tensor = self.inner(x[0], cu, cu)[None]
            return result

    given: Any = (torch.randn(1, 7, WIDTH), CU)
    report = planish.audit(Row(), inputs=given, batch_axes={"x": 1}, cu_seqlens=["cu"])
    axes: Any = {"batch_axes": {"x": 1}, "output_axes": {report.outputs[0].name: 1}}
    report = planish.audit(Row(), inputs=given, cu_seqlens=["cu"], **axes)
    assert report.verdict == "isolated", report.findings
    spec = tmp_path / "audit.yaml"
    spec.write_text("cu_seqlens: [cu]\n")
    assert planish.audit(Row(), inputs=given, spec=spec, **axes).verdict == "isolated"
    with pytest.raises(CannotRun, match="packed batch is not run"):
        planish.audit(Row(), inputs=given, cu_seqlens=["cu"], witness=True, **axes)


def test_labels_that_contradict_each_other() -> None:
    with pytest.raises(BadLabels, match="has no input named 'lengths'"):
        audited(by_bounds, Labels(cu_seqlens=("lengths",)))
    with pytest.raises(BadLabels, match="an owner map both say"):
        audited(by_bounds, Labels(owners=Owners(2), cu_seqlens=("cu",)))
