"""Results of measurements as tables for people."""

from __future__ import annotations

from planish import console
from planish.runtime.bench import Benchmark, Spread
from planish.runtime.choices import Accuracy, Choices
from planish.runtime.evaluate import Evaluation


def show_evaluation(found: Evaluation) -> None:
    """Perplexity of both sides and the recovery."""
    sides = [found.perplexity, *([found.baseline] if found.baseline else [])]
    console.table(
        f"perplexity on {found.text} (window {found.window}, stride {found.stride})",
        ["model", "perplexity", "loss (nats)", "tokens"],
        [
            [
                side.label,
                f"{side.value:.3f}",
                f"{side.loss:.4f} ± {side.error:.4f}",
                f"{side.tokens}",
            ]
            for side in sides
        ],
    )
    if found.recovery is not None:
        console.out.print(f"recovery {found.recovery:.1f}%")


def show_choices(found: Choices) -> None:
    """Accuracy of both sides and the recovery."""

    def row(side: Accuracy) -> list[str]:
        plain = f"{100 * side.plain:.1f}% ± {100 * side.error:.1f}"
        return [side.label, plain, f"{100 * side.normalized:.1f}%", str(side.questions)]

    console.table(
        f"multiple choice on {found.file} (guessing: {100 * found.guessing:.1f}%)",
        ["model", "accuracy", "length-normalized", "questions"],
        [row(side) for side in (found.accuracy, found.baseline) if side],
    )
    if found.recovery is not None:
        console.out.print(f"recovery {found.recovery:.1f}%")


def show_benchmark(found: Benchmark) -> None:
    """Speeds and ratios, and in words where the artifact is slower."""
    other = found.against or ""
    columns = ["phase", "batch", found.label, *([other, "ratio"] if other else []), "unit"]
    rows = []
    for row in found.rows:
        cells = [row.phase, str(row.batch), _spread(row.speed, ".1f")]
        if row.against and row.ratio:
            cells += [_spread(row.against, ".1f"), _spread(row.ratio, ".2f")]
        rows.append([*cells, row.unit])
    console.table(
        f"medians of {found.rounds} rounds (lowest to highest), prompts of {found.prompt} tokens",
        columns,
        rows,
    )
    for verdict in found.verdicts:
        console.out.print(verdict, markup=False, soft_wrap=True)


def _spread(spread: Spread, form: str) -> str:
    return f"{spread.median:{form}} ({spread.low:{form}}-{spread.high:{form}})"
