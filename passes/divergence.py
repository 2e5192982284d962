"""How far a model's answers move when some of its weights change, by running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from planish.ir.program import Program, Sample
from planish.passes.fisher import LOGITS, answers
from planish.passes.sequential import Run

_ROWS = 128
"""Rows of logits that are compared at once."""


def divergence(outputs: Mapping[str, Any], others: Mapping[str, Any]) -> tuple[float, int]:
    """How far other outputs are, and of how many rows: what `fisher.slopes` estimates.

    KL(outputs ‖ others) of the softmax of logits in nats, or without logits half the squared change
    of a row as a share of the mean square of the output's rows; summed over rows.
    """
    mine, theirs = answers(outputs), answers(others)
    total = 0.0
    for name, value in mine.items():
        size = value.square().sum(-1).mean().clamp_min(1e-30)
        for one, other in zip(value.split(_ROWS), theirs[name].split(_ROWS), strict=True):
            if name == LOGITS:
                before, after = one.log_softmax(-1), other.log_softmax(-1)
                total += float((before.exp() * (before - after)).sum())
            else:
                total += float((one - other).square().sum() / size / 2)
    return total, max(map(len, mine.values()), default=0)


class Rerun:
    """Runs of a program with other weights, which share what comes before these.

    They come in the order of the graph: each goes on from where the last one began.
    """

    def __init__(self, program: Program, samples: Sequence[Sample]) -> None:
        """Run the program as it is, and keep what it answers.

        Args:
            program: stays as it is.
            samples: at least one.
        """
        outputs = dict(zip(program.outputs, program.output_nodes, strict=True))
        self._outputs = {LOGITS: outputs[LOGITS]} if LOGITS in outputs else outputs
        self._end = program.graph.output_node()
        self._run = Run(program, samples, kept=self._outputs.values())
        self._expected = self._answers({})

    def loss(self, weights: Mapping[fx.Node, Tensor], reader: fx.Node) -> float:
        """How far answers are with other weights (`divergence`), the mean over rows.

        Args:
            weights: to read instead of nodes of the graph.
            reader: the first node that reads one of them.
        """
        self._run.until(reader)
        found = [
            divergence(before, after)
            for before, after in zip(self._expected, self._answers(weights), strict=True)
        ]
        return sum(lost for lost, _ in found) / max(sum(rows for _, rows in found), 1)

    def _answers(self, weights: Mapping[fx.Node, Tensor]) -> list[dict[str, Tensor]]:
        """The outputs that count, for each sample."""
        run = self._run.fork(weights)
        run.until(self._end)
        read = {name: run.read(node) for name, node in self._outputs.items()}
        return [dict(zip(read, values, strict=True)) for values in zip(*read.values(), strict=True)]
