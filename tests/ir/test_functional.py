"""The quick way to a functional graph gives what tracing a second time gives."""

import re

import pytest
import torch

from planish.ir.capture import export
from planish.ir.capture.huggingface import capture_model
from planish.ir.program import Program
from support.models import tiny


def _text(program: Program) -> str:
    """The text with nodes numbered in order, since the two ways name them differently."""
    names: dict[str, str] = {}
    return re.sub(
        r"%[A-Za-z_]\w*", lambda found: names.setdefault(found[0], f"%{len(names)}"), str(program)
    )


@pytest.mark.parametrize(
    "family",
    ["llama", "bert", *(pytest.param(one, marks=pytest.mark.slow) for one in ("phi3", "vit"))],
)
def test_both_ways_give_one_program(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny(family)
    retrace = torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", _never)
    quick = capture_model(model)
    monkeypatch.setattr(export, "functional", lambda exported: retrace(exported, {}))
    assert _text(quick) == _text(capture_model(model))


def _never(*_: object) -> None:
    raise AssertionError("the graph was traced a second time")
