"""Two forms of one language model: one reads prompts, one single tokens, and they share a cache.

Passes may make weights coarser in one form than in the other, and rotate or prune both alike. What
may not differ is what a cache holds, since each form reads what the other wrote.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from planish.ir.carried import TOKENS, pairs
from planish.ir.errors import PlanishError
from planish.ir.program import Program
from planish.passes.pipeline import relative_error

MOST = 0.5
"""The relative error of a token's keys and values from which on they count as something else. What
weights of 4 bits make of them is off by a tenth or two; another basis by 1.4."""


class NotOneModel(PlanishError):
    """A second form for single tokens cannot be, or does not fit the first."""


def check_decodes(program: Program) -> None:
    """Make sure, before any work, that a program can have a second form for single tokens.

    Raises:
        NotOneModel: if it does not read tokens and keep a cache.
    """
    names = [spec.name for spec in program.inputs]
    if TOKENS not in names or not pairs(names, program.outputs):
        raise NotOneModel(
            f"decode: {program.source.name} does not generate with a cache, so no tokens are read "
            "one at a time; leave the key decode out of the recipe."
        )


def check_pair(prompts: Program, tokens: Program) -> None:
    """Make sure that each form reads what the other keeps.

    Args:
        prompts: reads any number of new tokens.
        tokens: reads one.

    Raises:
        NotOneModel: if their inputs or outputs differ, or new keys and values do on a sample.
    """
    for what, one, other in (
        ("inputs", prompts.inputs, tokens.inputs),
        ("outputs", prompts.outputs, tokens.outputs),
    ):
        if one != other:
            raise NotOneModel(
                f"decode: the {what} of the two forms differ, {list(one)} and {list(other)}. "
                "Passes that change them, such as those that remove blocks or heads, belong into "
                "both lists, with the same options."
            )
    for sample in prompts.samples[:1]:
        _check_cache(prompts, tokens, sample)


def _check_cache(prompts: Program, tokens: Program, sample: Mapping[str, Tensor]) -> None:
    """The last token of a sample, read by both forms from the cache of the first."""
    states = pairs([spec.name for spec in prompts.inputs], prompts.outputs)
    if sample[TOKENS].shape[1] < 2:
        return
    before = {name: one if name in states else one[:, :-1] for name, one in sample.items()}
    kept = prompts.run(**before)
    last = {name: one[:, -1:] for name, one in sample.items()}
    if "attention_mask" in sample:
        last["attention_mask"] = sample["attention_mask"]
    last |= {past: kept[present] for past, present in states.items()}
    expected, got = prompts.run(**last), tokens.run(**last)
    for past, present in states.items():
        new = (_new(one[present], last[past]) for one in (got, expected))
        error = relative_error(*new)
        if error >= MOST:
            raise NotOneModel(
                f"decode: {present} of a token is {error:.2f} of its size off what the first form "
                "keeps: one form would misread the other's cache. Passes that rotate or scale what "
                "a cache holds, such as rotate, slice, smooth_quant and awq, belong into both "
                "lists, with the same options; weights of 2 bits may be too coarse for one of two."
            )


def _new(after: Tensor, before: Tensor) -> Tensor:
    """What a token added to a state: its last position, or all of one that does not grow."""
    grown = [axis for axis in range(after.dim()) if after.shape[axis] != before.shape[axis]]
    return after.select(grown[0], -1).contiguous() if grown else after


def stored(*programs: Program) -> int:
    """Bytes of all tensors of several programs; one that several hold counts once."""
    found: dict[int, Tensor] = {}
    for program in programs:
        found |= {id(tensor): tensor for tensor in program.tensors.values()}
    return sum(tensor.nbytes for tensor in found.values())
