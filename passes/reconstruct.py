"""Repair: layers give by least squares what they gave in the unchanged model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from planish.ir.program import Change, Program
from planish.passes.contract import OPTIONS, Contract, LongPass, NotApplicable
from planish.passes.inputs import samples_of
from planish.passes.layers import Patterns, matches
from planish.passes.refit import RIDGE, pairs, refitted, told
from planish.passes.work import UNSEEN, Work

_SAME = 1e-3
"""A relative error of a layer's outputs that is no more than rounding: of sums in float32, whose
difference it is the root of."""


@dataclass(frozen=True, config=OPTIONS)
class Reconstruct(LongPass):
    """Fit layers to give what they gave before the recipe's first pass, by least squares.

    To come after passes that lose something, such as pruning. Both models run side by side over the
    samples; each linear layer or convolution whose inputs are no longer what they were gets the
    weights, and bias where it has one, that give most nearly the outputs it had. No gradients are
    needed. Layers that keep their outputs but were renamed, quantized or are shared stay.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    called: ClassVar[str] = "reconstruct"

    targets: Patterns = ("*",)
    """Layers to fit: names of weights or modules, globs, or after `re:` regular expressions."""

    ignore: Patterns = ()
    """Layers that stay as they are, though `targets` names them."""

    ridge: float = Field(default=RIDGE, gt=0, le=1)
    """How strongly weights are held to what they were: what is added to the diagonal of their
    inputs' second moments, as a share of its mean."""

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Fit what gives something else than it did.

        Raises:
            NotApplicable: if there is no earlier model, no samples, or nothing that changed.
        """
        if work.original is None:
            raise NotApplicable(
                f"{self.called}: there is no model before this pass to come close to; put it into "
                "a recipe, after the passes whose losses it is to repair."
            )

        def wanted(name: str) -> bool:
            known = (name, name.removesuffix(".weight"))
            return any(matches(one, each) for one in self.targets for each in known) and not any(
                matches(one, each) for one in self.ignore for each in known
            )

        return repaired(program, work.original, wanted, self.called, self.ridge, work)


def repaired(
    program: Program,
    original: Program,
    wanted: Callable[[str], bool],
    called: str,
    ridge: float,
    work: Work = UNSEEN,
) -> Program:
    """A program with layers fitted to the outputs that they have in another.

    Args:
        program: stays as it is.
        original: what it was made of.
        wanted: says of the name of a weight whether its layer is fitted.
        called: the name of the pass.
        ridge: as a share of the mean of the moments' diagonal.
        work: of the pass.

    Raises:
        NotApplicable: if no layer can be fitted, or none is off.
    """
    layers = [pair for pair in pairs(program, original) if wanted(pair[0].weight)]
    if not layers:
        raise NotApplicable(
            f"{called}: no layer to be fitted is a linear layer or convolution that both models "
            "have, with a weight of its own in floating point and as many outputs."
        )
    if not program.has_data:
        changes = [Change(reader.node.name, f"{reader.weight}: fitted") for reader, _ in layers]
        return dataclasses.replace(program, changes=(*program.changes, *changes))
    samples, given = samples_of(program, called), samples_of(original, called)
    tensors, changes = dict(program.tensors), []
    for fit in refitted(program, original, layers, samples, given, ridge, work):
        if fit.before <= _SAME:
            continue
        tensors.update(fit.tensors)
        changes.append(Change(fit.reader.node.name, told(fit)))
    if not changes:
        raise NotApplicable(
            f"{called}: every layer gives what it gave before the recipe's first pass."
        )
    return dataclasses.replace(program, tensors=tensors, changes=(*program.changes, *changes))
