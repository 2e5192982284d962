"""Damaged ONNX files: each is refused with a clear error, or judged; none ends the program.

What is asserted: reading raises nothing but planish's own errors. And if an output of a damaged
model is called isolated, and ONNX Runtime or onnx's own evaluator still runs the file, then no row
of it moves when the other requests are replaced. A file that neither runs reaches nobody, whatever
it is called; what readers understand in several ways is refused (tests/ir/flow/test_lint.py).
"""

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
import pytest

from planish.ir.errors import PlanishError
from planish.ir.isolation.programs import analyse_onnx
from support.fuzz import NotRun, flows_seen
from support.onnx_mutations import damaged
from support.random_onnx_programs import RandomModel, programs


@dataclass
class Damage:
    """What became of damaged files."""

    refused: int = 0
    judged: int = 0
    isolated: int = 0
    run: int = 0
    wrong: list[str] = field(default_factory=list)

    def judge(self, name: str, made: RandomModel, content: bytes, path: Path) -> None:
        path.write_bytes(content)
        try:
            analysis = analyse_onnx(path, made.labels)
        except PlanishError:
            self.refused += 1
            return
        self.judged += 1
        isolated = {one.name for one in analysis.outputs if one.verdict == "isolated"}
        results = tuple(one for one in made.results if one.name in isolated)
        if not results:
            return
        self.isolated += 1
        model = onnx.ModelProto.FromString(content)
        kept = [one for one in model.graph.output if one.name in isolated]
        del model.graph.output[:]
        model.graph.output.extend(kept)
        order = {one.name: one for one in results}
        again = replace(made, model=model, results=tuple(order[one.name] for one in kept))
        try:
            seen = flows_seen(again)
        except NotRun:
            return
        self.run += 1
        pairs = zip(again.results, seen, strict=True)
        self.wrong += [f"{name}: {one.name}: {flow}\n{again}" for one, flow in pairs if flow]


def damage(number: int, folder: Path) -> Damage:
    """Three damaged files of each random model."""
    found = Damage()
    for name, made in programs(0):
        for way in range(3):
            called = f"{name}, damage {way}"
            content = damaged(made.model, random.Random(called))
            found.judge(called, made, content, folder / "m.onnx")
        if found.refused + found.judged >= number:
            return found
    raise AssertionError


def test_damaged_files(tmp_path: Path) -> None:
    found = damage(450, tmp_path)

    assert not found.wrong, found.wrong[0]
    assert found.refused >= 200
    assert found.run >= 30, found


@pytest.mark.slow
def test_many_damaged_files(tmp_path: Path) -> None:
    found = damage(6000, tmp_path)

    assert not found.wrong, found.wrong[0]
    assert found.run >= 400, found
