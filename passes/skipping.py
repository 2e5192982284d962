"""What leaving out blocks would cost, found by running a program without them.

All candidates share one run over each sample: it goes up to a candidate, a copy of it goes on
without that block to the end, and the run itself goes on with it. So a candidate costs what is
behind it, half a run on average, and nothing is kept but what later nodes read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.nn import functional

from planish.ir.program import Program, Sample
from planish.passes.blocks import Block
from planish.passes.fisher import LOGITS
from planish.passes.work import UNSEEN

_ROWS = 1024
"""Rows of logits whose loss is computed at once."""


class Losses:
    """A program's loss over samples, without some of its blocks.

    The loss is the mean negative log-likelihood of the next token, in nats; for what is not a
    causal language model it is ‖y - y₀‖² / ‖y₀‖² over all outputs y that are returned and no
    states, where y₀ is what the program gives with all its blocks.
    """

    def __init__(
        self,
        program: Program,
        samples: Sequence[Sample],
        tell: Callable[[int, int], None] = UNSEEN.tell,
    ) -> None:
        """Prepare runs.

        Args:
            program: stays as it is.
            samples: at least one.
            tell: called after each sample of each run.
        """
        self.program = program
        self._samples = samples
        self._tell = tell
        self._causal = program.source.task == "causal-lm" and LOGITS in program.outputs
        returned = dict(zip(program.outputs, program.output_nodes, strict=True))
        self.outputs = [
            node
            for name, node in returned.items()
            if (name == LOGITS if self._causal else _is_float(node) and "present" not in name)
        ]
        needed = _needed(self.outputs)
        self.nodes = [node for node in program.graph.nodes if node in needed]
        self.place = {node: place for place, node in enumerate(self.nodes)}
        self.last = {
            node: max((self.place[user] for user in node.users if user in needed), default=0)
            for node in self.nodes
        }
        for node in self.outputs:
            self.last[node] = len(self.nodes)
        self._expected: list[list[Tensor]] | None = None

    def __call__(
        self, removed: Sequence[Block], candidates: Sequence[Block] = ()
    ) -> tuple[float, list[float]]:
        """The loss without the removed blocks, and without each candidate besides.

        Args:
            removed: blocks of the program that are left out throughout.
            candidates: others, each tried by itself.
        """
        if not self._causal and self._expected is None:
            self._expected = [self._outputs_of(sample) for sample in self._samples]
        base = [0.0, 0.0]
        found = [[0.0, 0.0] for _ in candidates]
        order = sorted(range(len(candidates)), key=lambda one: self._start(candidates[one]))
        for number, sample in enumerate(self._samples):
            run = _Run(self, sample, removed)
            for one in order:
                run.until(self._start(candidates[one]))
                other = run.fork(candidates[one])
                _add(found[one], self._loss(other.outputs(), number))
            _add(base, self._loss(run.outputs(), number))
            self._tell(number + 1, len(self._samples))
        return _mean(base), [_mean(one) for one in found]

    def influences(self, blocks: Sequence[Block]) -> list[float]:
        """1 - cos(stream in, stream out) of each block, the mean over samples and tokens.

        Block influence, of Men et al., "ShortGPT" (2024), section 3. Streams of images are compared
        whole.
        """
        found = [[0.0, 0.0] for _ in blocks]
        ends = {place: block.term or block.after for place, block in enumerate(blocks)}
        seen = {*ends.values(), *(block.before for block in blocks)}
        for number, sample in enumerate(self._samples):
            run = _Run(self, sample, ())
            values: dict[fx.Node, Tensor] = {}
            for node in sorted(seen, key=self.place.__getitem__):
                values[node] = run.value(node)
                for place in [one for one, end in ends.items() if end is node]:
                    before = values[blocks[place].before]
                    alone = blocks[place].term is not None
                    after = before + values[node] if alone else values[node]
                    _add(found[place], _apart(before, after))
            self._tell(number + 1, len(self._samples))
        return [_mean(one) for one in found]

    def _start(self, block: Block) -> int:
        """The place of the first node that is computed from what a block reads."""
        return min(self.place.get(node, len(self.nodes)) for node in block.region)

    def _outputs_of(self, sample: Sample) -> list[Tensor]:
        return _Run(self, sample, ()).outputs()

    def _loss(self, outputs: Sequence[Tensor], number: int) -> tuple[float, float]:
        """A sum of losses, and of how many (or relative to what) it is the sum."""
        sample = self._samples[number]
        if self._causal:
            return next_token_loss(outputs[0], sample)
        assert self._expected is not None
        expected = self._expected[number]
        wrong = sum(
            float((y - y0).double().square().sum()) for y, y0 in zip(outputs, expected, strict=True)
        )
        return wrong, sum(float(y0.double().square().sum()) for y0 in expected)


class _Run:
    """A run over one sample, on its way."""

    def __init__(self, losses: Losses, sample: Sample, removed: Iterable[Block]) -> None:
        self._of = losses
        self._sample = sample
        self._removed = list(removed)
        self._values: dict[fx.Node, Any] = {}
        self._at = 0

    def fork(self, block: Block) -> _Run:
        """A copy of the run that goes on without one more block."""
        other = _Run(self._of, self._sample, [*self._removed, block])
        other._values = dict(self._values)
        other._at = self._at
        return other

    def value(self, node: fx.Node) -> Tensor:
        """Go on to a node, and give what it is."""
        self.until(self._of.place[node] + 1)
        found: Tensor = self._values[node]
        return found

    def outputs(self) -> list[Tensor]:
        """Go on to the end."""
        self.until(len(self._of.nodes))
        return [self._values[node] for node in self._of.outputs]

    @torch.no_grad()
    def until(self, stop: int) -> None:
        """Compute the nodes before a place, and forget what none from there on reads."""
        dead = {node for block in self._removed for node in block.nodes}
        passed = {one.after: one.before for one in self._removed if one.term is None}
        zeros = {one.term: one.before for one in self._removed if one.term is not None}
        values, tensors = self._values, self._of.program.tensors
        for place in range(self._at, stop):
            node = self._of.nodes[place]
            if node in passed:
                values[node] = values[passed[node]]
            elif node in zeros:
                values[node] = torch.zeros_like(values[zeros[node]])
            elif node.op == "placeholder":
                values[node] = self._sample[str(node.target)]
            elif node.op == "get_attr":
                values[node] = tensors[str(node.target)]
            elif node not in dead:
                arguments, options = map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*arguments, **options)
            for one in node.all_input_nodes:
                if self._of.last[one] <= place and one not in passed.values():
                    values.pop(one, None)
        self._at = max(self._at, stop)


def next_token_loss(logits: Tensor, sample: Mapping[str, Tensor]) -> tuple[float, float]:
    """The negative log-likelihood of each token but the first of each row, summed, and how many.

    Args:
        logits: [B, T, V].
        sample: with `input_ids` [B, T], and perhaps an `attention_mask` [B, ≥ T] that is 0 where
            there is padding.
    """
    ids = sample["input_ids"]
    targets = ids[:, 1:].clone()
    mask = sample.get("attention_mask")
    if mask is not None:
        targets[mask[:, -ids.shape[1] :][:, 1:] == 0] = -100
    rows, wanted = logits[:, :-1].flatten(0, 1), targets.flatten()
    total = sum(
        float(functional.cross_entropy(part.float(), want, reduction="sum"))
        for part, want in zip(rows.split(_ROWS), wanted.split(_ROWS), strict=True)
    )
    return total, float((wanted != -100).sum())


def _apart(before: Tensor, after: Tensor) -> tuple[float, float]:
    """The sum of 1 - cosine over the vectors of two streams, and how many there are."""
    rows = [one.flatten(0, -2) if one.dim() < 4 else one.flatten(1) for one in (before, after)]
    cosines = functional.cosine_similarity(rows[0].double(), rows[1].double(), dim=-1)
    return float((1 - cosines).sum()), float(len(cosines))


def _needed(outputs: Iterable[fx.Node]) -> set[fx.Node]:
    """What values are computed from, themselves included."""
    found: set[fx.Node] = set()
    queue = list(outputs)
    while queue:
        node = queue.pop()
        if node not in found:
            found.add(node)
            queue += node.all_input_nodes
    return found


def _is_float(node: fx.Node) -> bool:
    value: Any = node.meta["val"]
    return isinstance(value, Tensor) and value.is_floating_point()


def _add(total: list[float], part: tuple[float, float]) -> None:
    total[0] += part[0]
    total[1] += part[1]


def _mean(total: Sequence[float]) -> float:
    return total[0] / total[1] if total[1] else math.nan
