"""Mixed precision: for each layer the format that costs the model least, under a budget."""

from __future__ import annotations

import dataclasses
import glob
import math
import warnings
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass
from torch.nn import functional

from planish.ir.program import Change, Program, Sample
from planish.ir.progress import Progress, silent
from planish.passes.choice import Candidate, Choice, Target, Trades
from planish.passes.contract import OPTIONS, Contract, LongPass, NotApplicable
from planish.passes.fisher import LOGITS
from planish.passes.gptq import Gptq
from planish.passes.inputs import samples_of
from planish.passes.layers import Patterns
from planish.passes.quantize_weights import QuantizeWeights
from planish.passes.sensitivity import TOKENS, Sensitivity, sensitivities, spread
from planish.passes.smoothing import chosen, noted
from planish.passes.work import UNSEEN, Work

CALLED = "mixed_precision"

CANDIDATES = (
    Candidate(bits=8, group_size=None),
    Candidate(bits=4, group_size=64),
    Candidate(bits=4, group_size=None),
    Candidate(bits=3, group_size=64),
    Candidate(bits=2, group_size=64),
)

LEFT = "whose loss is not measured; as it is unless quantize_weights rounds it"
"""What is said of the weights of experts."""

TINY, UNSCORED = 1e-12, -100

TRIES = 5
"""How many choices are measured at most for a target of recovery."""

CLOSE = 0.9
"""A choice that meets a target of recovery is small enough if it uses up so much of what the
target allows to lose."""


def _at_least_one(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    if not candidates:
        raise ValueError("there must be at least one candidate.")
    return candidates


Candidates = Annotated[tuple[Candidate, ...], AfterValidator(_at_least_one)]


class GoalMissed(UserWarning):
    """No choice on offer gives what was asked for; the nearest was taken."""


@dataclass(frozen=True, config=OPTIONS)
class MixedPrecision(LongPass):
    """Give each linear layer, of all formats on offer, the one that costs the model least.

    What rounding a layer costs is estimated from gradients and from the second moments of what it
    reads (`planish.passes.sensitivity`); losses add up. Of all ways to choose, the one of least
    loss within the target is taken, or the smallest of a loss within it; where there is none, the
    nearest, and that is said. The layers are then rounded as by `quantize_weights` or `gptq`.
    Needs samples of text like the text to be served: `samples`. The language-model head,
    embeddings, experts and routers stay as they are.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    target: Target
    """What is asked for, one of bits, size, speed, loss and recovery: `{bits: 4.5}` (bits a weight
    of these layers, scales included), `{size: 0.3}` (share of the bytes of all tensors), `{speed:
    2.0}` (of decoding, modelled by bytes read), `{loss: 0.05}` (nats a token, estimated),
    `{recovery: 0.99}` (of perplexity, measured on the samples). Bytes are those that a checkpoint
    stores; ONNX keeps 3-bit numbers in 4 bits."""

    candidates: Candidates = CANDIDATES
    """The formats on offer."""

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
        trades = self.trades(program, self.measured(program, lambda _, *far: work.tell(*far)))
        planned = any(tensor.is_meta for tensor in program.tensors.values())
        if self.target.kind == "recovery" and not planned:
            after, choice, said = self._recovered(program, trades, work)
        else:
            choice = trades.choose()
            after, said = self._rounded(program, choice, work), str(choice)
        if not (choice.met or planned):
            warnings.warn(f"{CALLED}: {said}", GoalMissed, stacklevel=2)
        told = [_told(change, choice) for change in after.changes[len(program.changes) :]]
        changes = (*program.changes, Change("output", said), *told)
        after = dataclasses.replace(after, changes=changes)
        return noted(after, program, self.targets, self.ignore, LEFT)

    def measured(self, program: Program, progress: Progress = silent) -> list[Sensitivity]:
        """What each format on offer would cost each layer.

        Raises:
            NotApplicable: as for a call.
        """
        scored = LOGITS in program.outputs and any(
            spec.name == "input_ids" for spec in program.inputs
        )
        if self.target.kind == "recovery" and not scored:
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
        """The passes that round as chosen, one a format."""
        kind = Gptq if self.algorithm == "gptq" else QuantizeWeights
        return [
            kind(
                bits=scheme.bits,  # type: ignore[arg-type]
                group_size=scheme.group_size,  # type: ignore[arg-type]
                symmetric=scheme.symmetric,
                type="float" if scheme.floating else "int",
                targets=tuple(glob.escape(name.removesuffix(".weight")) for name in names),
                clip_search=self.clip_search,
            )
            for scheme, names in choice.by_scheme().items()
        ]

    def _rounded(self, program: Program, choice: Choice, work: Work) -> Program:
        """Rounded as chosen; scales are searched for with the samples that were measured on."""
        learned = program.calibration
        if self.algorithm == "nearest":
            program = dataclasses.replace(program, calibration=tuple(spread(learned, TOKENS)))
        for one in self.passes(choice):
            program = one(program, work.part(str(one)))
        return dataclasses.replace(program, calibration=learned)

    def _recovered(
        self, program: Program, trades: Trades, work: Work
    ) -> tuple[Program, Choice, str]:
        """The smallest choice tried whose perplexity, measured, is within the target.

        What is lost is roughly a constant times what is estimated, so that each try tells what the
        next may lose by the estimate; it lies between what is known to do and what is not.
        """
        samples = spread(samples_of(program, CALLED), TOKENS)
        before = surprise(program, samples)
        allowed = -math.log(self.target.value)
        tried: list[_Try] = []
        limit, does, does_not = allowed, 0.0, math.inf
        for _ in range(TRIES):
            choice = trades.choose(limit)
            if any(choice.options == one.choice.options for one in tried):
                break
            after = self._rounded(program, choice, work)
            lost = surprise(after, samples) - before
            tried.append(_Try(choice, after, lost))
            if CLOSE * allowed <= lost <= allowed or (lost > allowed and not choice.met):
                break
            if lost <= allowed:
                does = limit
            else:
                does_not = limit
            guess = choice.figures.loss * allowed / max(lost, TINY)
            middle = (does + does_not) / 2 if does_not < math.inf else 2 * does
            limit = guess if does < guess < does_not else middle
        within = [one for one in tried if one.lost <= allowed]
        best = (
            min(within, key=lambda one: one.choice.figures.size)
            if within
            else min(tried, key=lambda one: one.lost)
        )
        choice = dataclasses.replace(best.choice, met=bool(within))
        recovered = (
            f"recovery {math.exp(-best.lost):.4f}, measured on the samples, of {len(tried)} tried"
        )
        return best.program, choice, f"{choice}; {recovered}"


class _Try(NamedTuple):
    """A choice, the program rounded so, and the nats a token that it lost on the samples."""

    choice: Choice
    program: Program
    lost: float


def surprise(program: Program, samples: Sequence[Sample]) -> float:
    """The mean loss, nats a token, of a language model's next tokens in samples."""
    total, count = 0.0, 0
    for sample in samples:
        tokens = sample["input_ids"]
        labels = tokens[:, 1:]
        if "attention_mask" in sample:
            attended = sample["attention_mask"][:, -tokens.shape[1] :][:, 1:]
            labels = labels.masked_fill(attended == 0, UNSCORED)
        logits = program.run(**sample)[LOGITS][:, :-1].flatten(0, 1).float()
        total += float(
            functional.cross_entropy(
                logits, labels.flatten(), ignore_index=UNSCORED, reduction="sum"
            )
        )
        count += int((labels != UNSCORED).sum())
    return total / max(count, 1)


def _told(change: Change, choice: Choice) -> Change:
    """What was done to a layer, and what it is estimated to cost."""
    option = choice.options.get(change.what.partition(":")[0])
    if option is None:
        return change
    return dataclasses.replace(change, what=f"{change.what}; estimated loss {option.loss:.2e}")
