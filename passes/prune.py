"""Structured pruning: fewer channels, heads, experts or coordinates; what stays is dense.

What moves together is an axis of the program (`planish.ir.axes`), which axis is what follows from
what is done along it (`planish.passes.groups`); no names are looked at. Source: Fang et al.,
"DepGraph: Towards Any Structural Pruning" (2023), for pruning whatever is coupled as one group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from planish.ir.axes.axes import Axes, find
from planish.ir.axes.cut import CannotCut, cut, drop
from planish.ir.program import Change, Program
from planish.passes.contract import OPTIONS, Contract, LongPass, NotApplicable
from planish.passes.groups import KINDS, Group, Kind, groups_of
from planish.passes.importance import LEARNS, Importance, Question, scores
from planish.passes.inputs import samples_of
from planish.passes.layers import Patterns, unmatched
from planish.passes.mend import mended
from planish.passes.readers import readers_of
from planish.passes.refit import RIDGE, told
from planish.passes.work import UNSEEN, Work


@dataclass(frozen=True, config=OPTIONS)
class Prune(LongPass):
    """Options and steps that all kinds of pruning share."""

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    called: ClassVar[str] = "prune"

    kind: ClassVar[Kind] = "channels"

    # Descriptions are not docstrings here, since passes that inherit options keep only these.
    ratio: Annotated[float, Field(gt=0, lt=1, description="Which share is removed, such as 0.2.")]
    scope: Annotated[
        Literal["layer", "global"],
        Field(
            description="Whether each group loses that share, or all of them together, those "
            "indices that count least. Only with layer may the result keep the class and the "
            "loaders of the model."
        ),
    ] = "layer"
    importance: Annotated[
        Importance,
        Field(
            description="By what is chosen what stays: magnitude of the weights, activation (mean "
            "squares of what is read), wanda (weights times inputs), reconstruction (what is lost "
            "once the others make up for it), taylor (gradients times inputs), batch_norm (its "
            "scales) or random."
        ),
    ] = "wanda"
    round_to: Annotated[
        int,
        Field(
            ge=1,
            description="How many stay is a multiple of this, which kernels may like; at least as "
            "many stay.",
        ),
    ] = 1
    targets: Annotated[
        Patterns,
        Field(
            description="Groups to prune, by a tensor or a module that they occur in: a name, a "
            'glob, or after "re:" a regular expression.'
        ),
    ] = ("*",)
    ignore: Annotated[
        Patterns,
        Field(description="Groups that stay as they are, though targets names them."),
    ] = ()
    repair: Annotated[
        bool,
        Field(
            description="Whether the layers that read what was pruned are fitted by least squares, "
            "so that what stays makes up for what goes. Needs samples."
        ),
    ] = False
    ridge: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="How strongly repaired weights are held to what they were: what is added "
            "to the diagonal of their inputs' second moments, as a share of its mean.",
        ),
    ] = RIDGE
    drift: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="How far repair makes up for the losses of earlier layers, too: 1 aims at "
            "what a layer gave in the unchanged model, which little text overfits.",
        ),
    ] = 0.0
    seed: Annotated[int, Field(ge=0, description="Of random importance.")] = 0

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Choose, remove and repair.

        Raises:
            NotApplicable: if there is nothing of the kind, something forbids to remove it (the
                message names it), too little would be left, or samples are missing.
        """
        axes = find(program)
        groups, left = self._chosen(program, axes)
        self._fresh(program, groups, work.original)
        removed = self._removed(groups)
        kept = self._kept(program, axes, groups, removed, work)
        changes = [
            Change(_node(program, group), f"{group}: {group.size} -> {len(one)}")
            for group, one in kept.items()
        ]
        whole = program
        notes: list[Change] = []
        if self.repair and self.kind != "experts" and program.has_data:
            whole, notes = self._repaired(program, axes, kept, work)
        try:
            without = drop if self.kind == "experts" else cut
            after = without(axes, whole, {group.axis: one for group, one in kept.items()})
        except CannotCut as problem:
            raise NotApplicable(f"{self.called}: {problem}.") from problem
        return dataclasses.replace(after, changes=(*program.changes, *changes, *left, *notes))

    def _repaired(
        self, program: Program, axes: Axes, kept: Mapping[Group, Tensor], work: Work
    ) -> tuple[Program, list[Change]]:
        """The program before the cut, what reads the groups fitted to what will be left of it."""
        samples = samples_of(program, self.called)
        nodes = {node for group in kept for node in group.readers}
        layers = [reader for reader in readers_of(program) if reader.node in nodes]
        atoms = {group.axis.leaf: one for group, one in kept.items()}
        tensors = dict(program.tensors)
        notes = []
        for fit in mended(program, axes, layers, atoms, samples, self.ridge, self.drift, work):
            tensors.update(fit.tensors)
            notes.append(Change(fit.reader.node.name, told(fit)))
        fitted = {reader.node for reader in layers}
        notes += [
            Change(node.name, "reads what was pruned, and is no layer of its own: not repaired")
            for node in program.graph.nodes
            if node in nodes - fitted
        ]
        return dataclasses.replace(program, tensors=tensors), notes

    def _candidates(self, groups: Sequence[Group]) -> list[Group]:
        """The groups that this pass is about."""
        return [group for group in groups if group.kind == self.kind]

    def _chosen(self, program: Program, axes: Axes) -> tuple[list[Group], list[Change]]:
        """The groups to prune, and a note of each that was asked for and has to stay."""
        found = self._candidates(groups_of(program, axes))
        if not found:
            raise NotApplicable(
                f"{self.called}: {program.source.name} has no {KINDS[self.kind]}: no axis of its "
                "weights is one. `planish axes` lists them."
            )
        wrong = unmatched((*self.targets, *self.ignore), found, f"groups of {KINDS[self.kind]}")
        if wrong:
            raise NotApplicable(f"{self.called}: {wrong}")
        asked = [g for g in found if g.matches(self.targets) and not g.matches(self.ignore)]
        if not asked:
            raise NotApplicable(f"{self.called}: all groups that it is to prune are ignored.")
        free = [group for group in asked if not group.limits]
        if not free:
            raise NotApplicable(
                f"{self.called}: no {KINDS[self.kind]} of {program.source.name} can be removed. "
                f"{asked[0]} cannot: {asked[0].limits[0]}. Leave this pass out."
            )
        left = [
            Change(_node(program, group), f"{group}: left, for {group.limits[0]}")
            for group in asked
            if group.limits
        ]
        return free, left

    def _fresh(self, program: Program, groups: Sequence[Group], original: Program | None) -> None:
        """Refuse what a pass before this one has pruned."""
        if original is None:
            return
        for group in groups:
            for member in group.axis.members:
                before = original.tensors.get(member.tensor)
                now = program.tensors[member.tensor]
                if before is None or before.dim() != now.dim():
                    continue
                if before.shape[member.dim] != now.shape[member.dim]:
                    raise NotApplicable(
                        f"{self.called}: {group} was pruned by a pass before this one, from "
                        f"{before.shape[member.dim]} to {now.shape[member.dim]}. Prune it once, by "
                        "the share of both, or name it under ignore."
                    )

    def _removed(self, groups: Sequence[Group]) -> dict[Group, int]:
        """How many each group loses; with one scope for all, at most."""
        found = {}
        for group in groups:
            ratio = self.ratio if self.scope == "layer" else min(0.95, 2 * self.ratio)
            stay = round(group.size * (1 - ratio) / self.round_to) * self.round_to
            stay = max(stay, min(self.round_to, group.size))
            if stay < 1:
                raise NotApplicable(f"{self.called}: nothing would be left of {group}.")
            found[group] = max(group.size - stay, 0)
        if not any(found.values()):
            raise NotApplicable(
                f"{self.called}: a ratio of {self.ratio} removes none of the {groups[0].size} "
                f"{KINDS[self.kind]} of {groups[0]}, of which multiples of {self.round_to} stay; "
                "nor of the others. Ask for more."
            )
        return found

    def _kept(
        self,
        program: Program,
        axes: Axes,
        groups: Sequence[Group],
        removed: Mapping[Group, int],
        work: Work,
    ) -> dict[Group, Tensor]:
        """The indices that stay, ascending, of each group that loses some."""
        if not program.has_data:
            return {g: torch.arange(g.size - n) for g, n in removed.items() if n}
        learns = self.importance in LEARNS
        samples = samples_of(program, self.called) if learns else ()
        asked = Question(program, axes, groups, removed, samples, self.seed, self.called, work.tell)
        stored = work.journal.load("scores") if work.journal else None
        if stored is not None:
            found = {group: stored[str(place)] for place, group in enumerate(groups)}
        else:
            found = scores(asked, self.importance)
            if work.journal is not None:
                work.journal.keep("scores", {str(n): found[g] for n, g in enumerate(groups)})
        if self.scope == "global":
            removed = self._shared(found, removed)
        return {
            group: one.topk(group.size - removed[group]).indices.sort().values
            for group, one in found.items()
            if removed[group]
        }

    def _shared(self, found: Mapping[Group, Tensor], most: Mapping[Group, int]) -> dict[Group, int]:
        """How many each group loses, where all are compared: the same threshold everywhere.

        Scores other than those of gradients have each layer's own unit, so that they count as
        shares of what the layer has in all.
        """
        lists = []
        for group, one in found.items():
            share = one if self.importance == "taylor" else one / one.sum().clamp_min(1e-300)
            lists.append(share.sort().values[: most[group]])
        total = round(self.ratio * sum(group.size for group in found))
        flat = torch.cat(lists)
        if total < len(flat):
            threshold = flat.sort().values[total]
            counts = [int((one < threshold).sum()) for one in lists]
        else:
            counts = [len(one) for one in lists]
        return {
            group: group.size - -(-(group.size - count) // self.round_to) * self.round_to
            for group, count in zip(found, counts, strict=True)
        }


def _node(program: Program, group: Group) -> str:
    """The node that a change of a group is told of: the first that reads one of its tensors."""
    names = {member.tensor for member in group.axis.members}
    reads = (node for node in program.graph.nodes if node.op == "get_attr")
    return str(next(node.name for node in reads if node.target in names))


@dataclass(frozen=True, config=OPTIONS)
class PruneChannels(Prune):
    """Remove channels of MLPs and convolutions, with all that is coupled to them.

    Gated layers lose rows of both halves and columns of what reads them; convolutions lose filters,
    the norms along them and what reads them, through concatenations and splits. Channels that are
    added to what was computed of them, as along the stages of a residual network, are a stream, for
    `prune_embedding`.
    """

    called: ClassVar[str] = "prune_channels"

    kind: ClassVar[Kind] = "channels"


@dataclass(frozen=True, config=OPTIONS)
class PruneHeads(Prune):
    """Remove attention heads, from queries, keys, values, caches and the projection after them.

    Under grouped-query attention whole groups go, each key head with the queries that share it; or
    as many queries of every group, with `unit: queries`.
    """

    called: ClassVar[str] = "prune_heads"

    kind: ClassVar[Kind] = "heads"

    unit: Literal["groups", "queries"] = "groups"
    """Whether key heads go with their queries, which are the heads where none share a key, or
    queries of each key head."""

    def _candidates(self, groups: Sequence[Group]) -> list[Group]:
        heads = [group for group in groups if group.kind == "heads"]
        found = [group for group in heads if group.inner == (self.unit == "queries")]
        if heads and not found:
            raise NotApplicable(
                f"{self.called}: no two queries share a key head here, as of {heads[0]}; ask for "
                "unit: groups."
            )
        return found


@dataclass(frozen=True, config=OPTIONS)
class PruneExperts(Prune):
    """Remove experts, with their rows of the router: those that stay share out the tokens.

    By default those go that are chosen least. At least as many stay as a token is given to.
    """

    called: ClassVar[str] = "prune_experts"

    kind: ClassVar[Kind] = "experts"

    importance: Annotated[
        Literal["magnitude", "activation", "random"],
        Field(
            description="By what is chosen what stays: magnitude of the weights, activation (how "
            "often the router chooses them) or random."
        ),
    ] = "activation"


@dataclass(frozen=True, config=OPTIONS)
class PruneEmbedding(Prune):
    """Remove coordinates of residual streams: from the embeddings, and all that reads and writes.

    Allowed where norms have no mean; these go on dividing by the old width. Along convolutions it
    is the channels of a stage. Slicing loses less of a transformer, which mixes coordinates first.
    """

    called: ClassVar[str] = "prune_embedding"

    kind: ClassVar[Kind] = "stream"
