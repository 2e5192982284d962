"""Mixed precision: for each layer the format that costs the model least, under a budget."""

from __future__ import annotations

import dataclasses
import functools
import glob
import warnings
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from planish.ir.program import Change, Program
from planish.ir.progress import Progress, silent
from planish.passes.choice import Choice, Target, Trades
from planish.passes.contract import OPTIONS, Contract, LongPass, NotApplicable
from planish.passes.format import Format, Override
from planish.passes.gptq import Gptq
from planish.passes.inputs import samples_of, spread
from planish.passes.layers import Patterns, noted
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.sensitivity import TOKENS, Sensitivity, sensitivities
from planish.passes.smoothing import chosen
from planish.passes.trials import Decision, is_scored, least_lost, smallest_within
from planish.passes.work import UNSEEN, Work

CALLED = "mixed_precision"

CANDIDATES = (
    Format(bits=8, group_size=None),
    Format(bits=4, group_size=64),
    Format(bits=4, group_size=None),
    Format(bits=3, group_size=64),
    Format(bits=3, group_size=None),
    Format(bits=2, group_size=64),
)

LEFT = "whose loss is not measured; as it is unless quantize_weights rounds it"
"""What is said of the weights of experts."""


def _at_least_one(candidates: tuple[Format, ...]) -> tuple[Format, ...]:
    if not candidates:
        raise ValueError("there must be at least one candidate.")
    return candidates


Candidates = Annotated[tuple[Format, ...], AfterValidator(_at_least_one)]


class GoalMissed(UserWarning):
    """No choice on offer gives what was asked for; the nearest was taken."""


@dataclass(frozen=True, config=OPTIONS)
class MixedPrecision(LongPass):
    """Give each linear layer, of all formats on offer, the one that costs the model least.

    What rounding a layer costs is estimated from gradients and from the second moments of what it
    reads (`planish.passes.sensitivity`); losses add up. Of all ways to choose, the one of least
    loss within the target is taken, or the smallest of a loss within it; where there is none, the
    nearest, and that is said. Estimates make light of the coarsest formats, whose errors meet: of a
    language model the choices that do without them are tried too, and the one is taken that loses
    least on samples that it was not made with. The layers are then rounded as by
    `quantize_weights` or `gptq`. Needs samples of text like the text to be served: `samples`. The
    language-model head, embeddings, experts and routers stay as they are.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    target: Target
    """What is asked for, one of bits, size, speed, loss and recovery: `{bits: 4.5}` (bits a weight
    of these layers, scales included), `{size: 0.3}` (share of the bytes of all tensors), `{speed:
    2.0}` (of decoding, modelled by bytes read), `{loss: 0.05}` (nats a token, estimated),
    `{recovery: 0.99}` (of perplexity, measured on the samples). Bytes are those that a checkpoint
    stores; ONNX keeps 3-bit numbers in 4 bits."""

    candidates: Candidates = CANDIDATES
    """The formats on offer. One whose group size does not divide a layer's width is none for that
    layer."""

    dense: bool = False
    """Whether layers may stay as they are, too."""

    together: bool = True
    """Whether layers that read the same value take the same format, so that kernels may compute
    them as one, as vLLM does."""

    algorithm: Literal["nearest", "gptq"] = "nearest"
    """How the layers are rounded in the end: as by `quantize_weights` or by `gptq`. What formats
    cost is measured by rounding to nearest."""

    clip_search: Literal[True, False, "inputs"] = "inputs"
    """How the scale of each group is searched for, as for `quantize_weights`."""

    targets: Patterns = ("Linear",)
    """Which layers, as for `quantize_weights`."""

    ignore: Patterns = ()
    """Which of these to leave alone."""

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Choose, and round every layer as chosen.

        On tensors without data what formats cost is a guess (see `sensitivities`): the bytes are
        those of a choice within the target, if it is one of bytes.

        Raises:
            NotApplicable: if there is no such layer, a pattern matches nothing, no candidate fits
                a layer, there are no samples, no gradient reaches a layer, or recovery is asked
                for of what is no language model.
        """
        layers = self.measured(program, lambda _, *far: work.tell(*far))
        planned = not program.has_data
        found = self._estimated(program, layers) if planned else self.decide(program, layers, work)
        after = found.program or self._rounded(program, found.choice, work)
        if not (found.choice.met or planned):
            warnings.warn(f"{CALLED}: {found.said}", GoalMissed, stacklevel=2)
        told = [_told(change, found.choice) for change in after.changes[len(program.changes) :]]
        changes = (*program.changes, Change("output", found.said), *told)
        after = dataclasses.replace(after, changes=changes)
        return noted(after, program, self.targets, self.ignore, LEFT)

    def decide(
        self, program: Program, layers: Sequence[Sensitivity], work: Work = UNSEEN
    ) -> Decision:
        """The choice for layers that were measured; of language models several are tried."""
        if not is_scored(program):
            return self._estimated(program, layers)
        samples = samples_of(program, CALLED)
        if self.target.kind == "recovery":
            kept = functools.partial(self._rounded, work=work)
            trades = self.trades(program, layers)
            return smallest_within(program, trades, self.target.value, samples, kept)
        # Tries learn from other samples than the last run, so nothing of them is to be kept.
        tried = functools.partial(self._rounded, work=UNSEEN)
        return least_lost(program, self._choices(program, layers), samples, tried, work.tell)

    def _estimated(self, program: Program, layers: Sequence[Sensitivity]) -> Decision:
        choice = self.trades(program, layers).choose()
        return Decision(choice, str(choice))

    def measured(self, program: Program, progress: Progress = silent) -> list[Sensitivity]:
        """What each format on offer would cost each layer.

        Raises:
            NotApplicable: as for a call.
        """
        if self.target.kind == "recovery" and not is_scored(program):
            raise NotApplicable(
                f"{CALLED}: recovery is a ratio of perplexities, and {program.source.name} is no "
                "language model; ask for a loss instead (target: {loss: 0.01})."
            )
        return sensitivities(
            program,
            chosen(program, CALLED, self.targets, self.ignore),
            tuple(dict.fromkeys(one.scheme for one in self.candidates)),
            CALLED,
            search=self.clip_search,
            dense=self.dense,
            progress=progress,
        )

    def trades(self, program: Program, layers: Sequence[Sensitivity]) -> Trades:
        """What may be chosen of what was measured."""
        return Trades(program, layers, self.target, together=self.together)

    def passes(self, choice: Choice) -> list[QuantizeWeights]:
        """The pass that rounds as chosen; none if all layers stay as they are.

        The format of the most layers is the pass's, the others are its overrides.
        """
        named = {
            scheme: tuple(glob.escape(name.removesuffix(".weight")) for name in names)
            for scheme, names in choice.by_scheme().items()
        }
        if not named:
            return []
        common = max(named, key=lambda scheme: len(named[scheme]))
        formats = {one.scheme: dataclasses.asdict(one) for one in self.candidates}
        kind = Gptq if self.algorithm == "gptq" else QuantizeWeights
        return [
            kind(
                **formats[common],
                targets=tuple(name for names in named.values() for name in names),
                overrides=tuple(
                    Override(**formats[scheme], targets=names)
                    for scheme, names in named.items()
                    if scheme != common
                ),
                clip_search=self.clip_search,
            )
        ]

    def _rounded(self, program: Program, choice: Choice, work: Work) -> Program:
        """Rounded as chosen; scales are searched for with the samples that were measured on."""
        learned = program.calibration
        if self.algorithm == "nearest":
            program = dataclasses.replace(program, calibration=tuple(spread(learned, TOKENS)))
        for one in self.passes(choice):
            program = one(program, work.part(str(one)))
        return dataclasses.replace(program, calibration=learned)

    def _choices(self, program: Program, layers: Sequence[Sensitivity]) -> list[Choice]:
        """The choice by the estimate, and those with ever more of the coarsest formats left out."""
        found = [self.trades(program, layers).choose()]
        for floor in sorted({one.bits for one in self.candidates})[1:]:
            finer = [_without_coarse(layer, floor) for layer in layers]
            if all(layer.options for layer in finer):
                choice = self.trades(program, finer).choose()
                known = any(choice.options == other.options for other in found)
                found += [choice] if choice.met and not known else []
        return found


def _without_coarse(layer: Sensitivity, floor: int) -> Sensitivity:
    """A layer whose options have so many bits at least, or are to stay as it is."""
    fine = [one for one in layer.options if one.scheme is None or one.scheme.bits >= floor]
    return dataclasses.replace(layer, options=tuple(fine))


def _told(change: Change, choice: Choice) -> Change:
    """What was done to a layer, and what it is estimated to cost."""
    option = choice.options.get(change.what.partition(":")[0])
    if option is None:
        return change
    return dataclasses.replace(change, what=f"{change.what}; estimated loss {option.loss:.2e}")
