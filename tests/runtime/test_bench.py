"""Benchmarks: what is timed and how figures follow from it; no speed is asserted."""

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import transformers

from planish.runtime.bench import BadBenchmark, Benchmark, Row, Spread, bench
from planish.runtime.eager import EagerModel
from planish.runtime.machine import peak_memory, this_machine
from planish.runtime.session import Session
from planish.runtime.timing import in_turns, random_inputs, random_tokens
from planish.runtime.values import Value
from support.models import tiny


def test_times_both_phases_at_each_batch(
    session: Session, llama: transformers.LlamaForCausalLM
) -> None:
    calls: list[tuple[str, int, int]] = []
    found = bench(session, llama, (1, 2), 6, 3, rounds=2, progress=lambda *call: calls.append(call))
    assert [(row.phase, row.batch) for row in found.rows] == [
        ("prefill", 1),
        ("decode", 1),
        ("prefill", 2),
        ("decode", 2),
    ]
    for row in found.rows:
        assert row.unit == "tokens/s"
        assert 0 < row.speed.low <= row.speed.median <= row.speed.high
        assert row.ratio is not None
    assert calls == [("Timing", done, 6) for done in range(1, 7)]
    assert len(found.verdicts) == 4
    assert json.loads(json.dumps(found.to_json()))["machine"]["versions"]["torch"]


def test_without_another_side(session: Session) -> None:
    found = bench(session, batch_sizes=(1,), prompt=2, new_tokens=1, rounds=1)
    assert found.against is None
    assert found.rows[0].against is found.rows[0].ratio is None
    assert found.verdicts == ()


def test_sides_take_turns_and_the_first_round_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """And each begins when the threads of the one before have had time to fall asleep."""
    order: list[str] = []
    monkeypatch.setattr("planish.runtime.timing.sleep", lambda _: order.append("."))

    def side(name: str) -> Any:
        def run() -> dict[str, float]:
            order.append(name)
            return {"forward": float(len(order) / 2)}

        return run

    ticks: list[None] = []
    found = in_turns([side("a"), side("b")], 3, lambda: ticks.append(None))
    assert "".join(order) == ".a.b.b.a.a.b.b.a"
    assert found == [
        [{"forward": 4.0}, {"forward": 5.0}, {"forward": 8.0}],
        [{"forward": 3.0}, {"forward": 6.0}, {"forward": 7.0}],
    ]
    assert len(ticks) == 4


def test_speeds_and_ratios_follow_from_seconds(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(*_: object) -> list[list[dict[str, float]]]:
        first = [{"prefill": 1.0, "decode": 2.0}, {"prefill": 2.0, "decode": 4.0}]
        return [first, [{"prefill": 0.5, "decode": 8.0}, {"prefill": 0.5, "decode": 4.0}]]

    monkeypatch.setattr("planish.runtime.bench.in_turns", timed)
    prefill, decode = bench(session, session, (2,), 10, 4, rounds=2).rows
    assert prefill.speed == Spread(15, 10, 20)
    assert prefill.against == Spread(40, 40, 40)
    assert prefill.ratio == Spread(0.375, 0.25, 0.5)
    assert decode.speed == Spread(3, 2, 4)
    assert decode.ratio == Spread(2.5, 1, 4)


def test_says_where_it_is_slower() -> None:
    speed = Spread(1, 1, 1)
    found = Benchmark(
        label="ours",
        against="theirs",
        rows=(
            Row("prefill", 1, "tokens/s", speed, speed, Spread(0.7, 0.6, 0.8)),
            Row("decode", 1, "tokens/s", speed, speed, Spread(3.1, 2.9, 3.2)),
            Row("decode", 4, "tokens/s", speed, speed, Spread(1.1, 0.9, 1.2)),
        ),
        prompt=1,
        new_tokens=1,
        rounds=1,
        provider="cpu",
        threads=None,
        torch_threads=1,
        machine=this_machine(),
        load=None,
        peak_memory=peak_memory(),
    )
    assert found.verdicts == (
        "prefill at batch 1: SLOWER than theirs, 0.70x (0.60 to 0.80)",
        "decode at batch 1: FASTER than theirs, 3.10x (2.90 to 3.20)",
        "decode at batch 4: no difference from theirs beyond the spread, 1.10x (0.90 to 1.20)",
    )


def test_models_that_do_not_generate_are_timed_in_whole_calls() -> None:
    class Fixed:
        """Takes images; stands in for a session."""

        label, provider, threads, is_causal, context = "fixed", "cpu", None, False, None
        config: ClassVar[dict[str, Any]] = {}
        inputs = (Value("pixel_values", "float32", ("B", 3, 32, 32)),)

        def run(self, **inputs: Any) -> dict[str, Any]:
            return {"scores": inputs["pixel_values"].mean()}

    model, _ = tiny("resnet")
    fixed: Any = Fixed()
    found = bench(fixed, EagerModel(model), (1, 3), rounds=1)
    assert [(row.phase, row.batch, row.unit) for row in found.rows] == [
        ("forward", 1, "samples/s"),
        ("forward", 3, "samples/s"),
    ]


def test_random_inputs_fit_what_a_model_takes(session: Session) -> None:
    assert random_tokens(session, 3, 7).max() < 260
    found = random_inputs(session, 3, 7)
    assert found["input_ids"].shape == (3, 7)
    assert found["attention_mask"].min() == 1
    assert not found["position_ids"].any()
    np.testing.assert_array_equal(found["input_ids"], random_inputs(session, 3, 7)["input_ids"])


def test_refuses_what_measures_nothing(session: Session, recurrent: Path) -> None:
    with pytest.raises(BadBenchmark, match="at least 1"):
        bench(session, batch_sizes=(0,))
    with pytest.raises(BadBenchmark, match="reads 64 tokens"):
        bench(session, prompt=62, new_tokens=3)
    assert bench(Session.open(recurrent), recurrent, (1,), 2, 1, 1).against == recurrent.name


def test_peak_memory_is_more_than_what_is_held() -> None:
    held = np.ones(1 << 22)
    peak = peak_memory()
    assert peak is None or peak > held.nbytes
