"""Speed, as ratios: both sides are timed in turns in one run, so that drift hits them alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from typing import Any, Literal

import numpy as np
import torch

from planish.ir.errors import PlanishError
from planish.ir.progress import Progress
from planish.runtime.eager import Against, EagerModel, opponent
from planish.runtime.machine import Machine, peak_memory, recent_load, this_machine
from planish.runtime.session import Session
from planish.runtime.timing import (
    Phase,
    Round,
    forward_round,
    in_turns,
    language_round,
    random_inputs,
    random_tokens,
)
from planish.runtime.values import Array

Side = Session | EagerModel


class BadBenchmark(PlanishError):
    """A benchmark is asked for that measures nothing."""


@dataclass(frozen=True)
class Spread:
    """Figures of several rounds.

    Attributes:
        median: of the rounds.
        low: the lowest.
        high: the highest.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """The speed of one phase at one batch size.

    Attributes:
        phase: `"prefill"` reads the prompts, `"decode"` adds one token to each text at a time;
            `"forward"` is one call of a model that does not generate.
        batch: texts or samples a call.
        unit: of the speeds.
        speed: of the session.
        against: of the other side, if there is one.
        ratio: the session's speed over the other side's, round by round.
    """

    phase: Phase
    batch: int
    unit: Literal["tokens/s", "samples/s"]
    speed: Spread
    against: Spread | None = None
    ratio: Spread | None = None


@dataclass(frozen=True)
class Benchmark:
    """What `bench` measured.

    Attributes:
        label: the session.
        against: the other side, if there is one.
        rows: a phase at a batch size each.
        prompt: tokens in each prompt, or in each text of a model that does not generate.
        new_tokens: tokens decoded after each prompt.
        rounds: how often each side was timed.
        provider: where the session ran.
        threads: that the session was given; None for ONNX Runtime's choice, one a core.
        torch_threads: that PyTorch uses when eager.
        machine: processor, system and versions.
        load: processes that wanted a core on average of the minute before; more of them than
            cores, and the speeds are too low and the ratios not to be trusted.
        peak_memory: the most bytes that the process held, both sides together.
    """

    label: str
    against: str | None
    rows: tuple[Row, ...]
    prompt: int
    new_tokens: int
    rounds: int
    provider: str
    threads: int | None
    torch_threads: int
    machine: Machine
    load: float | None
    peak_memory: int | None

    @property
    def verdicts(self) -> tuple[str, ...]:
        """A sentence for each row that was compared: faster, slower, or no difference seen."""
        return tuple(self._verdict(row, row.ratio) for row in self.rows if row.ratio)

    def _verdict(self, row: Row, ratio: Spread) -> str:
        where = f"{row.phase} at batch {row.batch}"
        times = f"{ratio.median:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"
        if ratio.low <= 1 <= ratio.high:
            return f"{where}: no difference from {self.against} beyond the spread, {times}"
        return f"{where}: {'FASTER' if ratio.low > 1 else 'SLOWER'} than {self.against}, {times}"

    def to_json(self) -> dict[str, Any]:
        """As JSON values, with the verdicts."""
        return {**asdict(self), "verdicts": list(self.verdicts)}


def bench(
    session: Session,
    against: Against | None = None,
    batch_sizes: Sequence[int] = (1, 4, 16),
    prompt: int = 256,
    new_tokens: int = 32,
    rounds: int = 5,
    progress: Progress | None = None,
) -> Benchmark:
    """Time a session and, in turns with it, something else, on random inputs.

    A language model with a cache is timed reading prompts and decoding; any other model in whole
    calls. Each side has one round that does not count, and its threads are woken before each.

    Args:
        session: what to time.
        against: the other side; see `planish.runtime.eager.opponent`.
        batch_sizes: how many texts or samples a call.
        prompt: tokens in each prompt or text.
        new_tokens: tokens to decode after each prompt.
        rounds: how often to time each side.
        progress: called after each round.

    Raises:
        BadBenchmark: if a number is below 1, texts would be longer than the model reads, or the
            other side does not generate.
        planish.ir.capture.checkpoint.BadCheckpoint: if `against` cannot be loaded.
    """
    longest = prompt + new_tokens if session.is_causal else prompt
    _check(session, (*batch_sizes, prompt, new_tokens, rounds), longest)
    load = recent_load()
    sides: list[Side] = [session]
    if against is not None:
        sides.append(_other_side(session, against))
    rows = []
    for done, batch in enumerate(batch_sizes):
        times = in_turns(
            _rounds(session, sides, batch, prompt, new_tokens),
            rounds,
            _ticker(progress, done * (rounds + 1), len(batch_sizes) * (rounds + 1)),
        )
        tokens = {"prefill": batch * prompt, "decode": batch * new_tokens}
        rows += [
            _row(
                phase, batch, tokens.get(phase), [[turn[phase] for turn in side] for side in times]
            )
            for phase in times[0][0]
        ]
    return Benchmark(
        label=session.label,
        against=sides[1].label if len(sides) > 1 else None,
        rows=tuple(rows),
        prompt=prompt,
        new_tokens=new_tokens,
        rounds=rounds,
        provider=session.provider,
        threads=session.threads,
        torch_threads=session.threads or torch.get_num_threads(),
        machine=this_machine(),
        load=load,
        peak_memory=peak_memory(),
    )


def _check(session: Session, numbers: Sequence[int], length: int) -> None:
    if min(numbers) < 1:
        raise BadBenchmark("Batch sizes, prompt, new_tokens and rounds must each be at least 1.")
    if session.context is not None and length > session.context:
        raise BadBenchmark(
            f"{session.label} reads {session.context} tokens, but texts of {length} are asked "
            "for; give a smaller prompt."
        )


def _other_side(session: Session, against: Against) -> Side:
    side = opponent(against, session.provider, session.threads)
    if session.is_causal and isinstance(side, Session) and not side.is_causal:
        raise BadBenchmark(f"{side.label} does not generate, but {session.label} does.")
    if not session.is_causal and isinstance(side, Session):
        names, others = ([value.name for value in one.inputs] for one in (session, side))
        if sorted(names) != sorted(others):
            raise BadBenchmark(
                f"{side.label} takes {', '.join(others)}, but {session.label} takes "
                f"{', '.join(names)}: compare models that take the same inputs."
            )
    return side


def _rounds(
    session: Session, sides: Sequence[Side], batch: int, prompt: int, new_tokens: int
) -> list[Round]:
    """A round of each side, all with the same inputs."""
    if session.is_causal:
        tokens = random_tokens(session, batch, prompt + new_tokens)
        return [partial(language_round, side, tokens, prompt) for side in sides]
    inputs = random_inputs(session, batch, prompt)
    return [partial(forward_round, partial(side.run, **inputs)) for side in sides]


def _ticker(progress: Progress | None, done: int, total: int) -> Callable[[], None]:
    """Counts rounds, on from `done`."""
    counter = count(done + 1)
    return lambda: progress("Timing", next(counter), total) if progress else None


def _row(phase: Phase, batch: int, tokens: int | None, seconds: list[list[float]]) -> Row:
    """From the seconds of each round of each side; `tokens` is None where samples count."""
    speeds = (tokens or batch) / np.array(seconds)
    return Row(
        phase=phase,
        batch=batch,
        unit="tokens/s" if tokens else "samples/s",
        speed=_spread(speeds[0]),
        against=_spread(speeds[1]) if len(speeds) > 1 else None,
        ratio=_spread(speeds[0] / speeds[1]) if len(speeds) > 1 else None,
    )


def _spread(figures: Array) -> Spread:
    return Spread(float(np.median(figures)), float(figures.min()), float(figures.max()))
