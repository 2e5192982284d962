"""Least squares for layers whose inputs have changed: giving what the unchanged model gives.

For a layer W that reads x̂ where it read x, and gave y, the weights nearest to W that give y are
W + (Σ y x̂ᵀ - W Σ x̂ x̂ᵀ) (Σ x̂ x̂ᵀ + λ)⁻¹. Both models are run side by side, once over the samples, and
each layer sees what the layers before it give once they are fitted; so what earlier ones lost is
made up for, too. Source: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks"
(2017), section 3.1, for the reconstruction from inputs of the pruned model and outputs of the
unchanged one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planish.ir.program import Program, Sample
from planish.passes.readers import Reader, readers_of
from planish.passes.sequential import Run, second_moments
from planish.passes.work import UNSEEN, Work

RIDGE = 0.01
"""The default ridge."""


@dataclass(frozen=True)
class Fit:
    """New weights of one layer.

    Attributes:
        reader: the layer, in the graph of the pruned program.
        tensors: what it stores from now on, by name.
        before: the relative error of its outputs as they were, over the samples.
        after: as they are.
        rows: of how many rows these are the least squares.
        width: how many inputs the layer has.
    """

    reader: Reader
    tensors: Mapping[str, Tensor]
    before: float
    after: float
    rows: int
    width: int


def pairs(program: Program, original: Program) -> list[tuple[Reader, Reader]]:
    """Layers of two programs whose weights have one name and as many outputs, in order."""
    known = {reader.weight: reader for reader in readers_of(original)}
    found = []
    for reader in readers_of(program):
        twin = known.get(reader.weight)
        if twin is not None and twin.node.target is reader.node.target:
            rows = reader.matrix(program.tensors).shape[0]
            if rows == twin.matrix(original.tensors).shape[0]:
                found.append((reader, twin))
    return found


def refitted(
    program: Program,
    original: Program,
    layers: Sequence[tuple[Reader, Reader]],
    samples: Sequence[Sample],
    given: Sequence[Sample],
    ridge: float,
    work: Work = UNSEEN,
) -> Iterator[Fit]:
    """New weights for layers, one after the other.

    Args:
        program: stays as it is.
        original: whose layers' outputs are aimed at.
        layers: of the two programs, in the order of the first.
        samples: at least one.
        given: the same for the original, whose states, such as caches, may be wider.
        ridge: what is added to the diagonal of the second moments, as a share of its mean, which
            holds weights to what they are.
        work: told how many layers are done; keeps what is found of each.
    """
    now, exact = Run(program, samples), Run(original, given)
    for done, (reader, twin) in enumerate(layers):
        now.until(reader.node)
        exact.until(twin.node)
        fit = kept_fit(reader, work)
        if fit is None:
            fit = _fitted(program, reader, twin, now, exact, ridge)
            keep(fit, work)
        now.weights.update(overrides(fit))
        yield fit
        work.tell(done + 1, len(layers))


def overrides(fit: Fit) -> dict[Any, Tensor]:
    """What nodes of the graph shall be read as from now on."""
    reader = fit.reader
    found = {
        node: fit.tensors[str(node.target)]
        for node in reader.node.all_input_nodes
        if node.op == "get_attr" and str(node.target) in fit.tensors
    }
    if reader.read.op != "get_attr":
        turn: Any = reader.read.target
        found[reader.read] = turn(fit.tensors[reader.weight], *reader.read.args[1:])
    return found


def _fitted(
    program: Program,
    reader: Reader,
    twin: Reader,
    now: Run,
    exact: Run,
    ridge: float,
) -> Fit:
    matrix = whole_matrix(reader, program)
    width = matrix.shape[1]
    moments, cross = torch.zeros(width, width), torch.zeros(len(matrix), width)
    energy, count = 0.0, 0
    given = exact.results(twin.node)
    for value, wanted in zip(now.read(reader.source), given, strict=True):
        rows = whole_rows(reader, value)
        aim = twin.outputs(wanted).float()
        moments += second_moments([rows])[0]
        cross.addmm_(aim.T, rows)
        energy += float(aim.double().square().sum())
        count += len(rows)
    fitted = solved(matrix, moments, cross, ridge)
    before, after = (error(one, moments, cross, energy) for one in (matrix, fitted))
    if not after < before:  # what is singular, or was the best already
        fitted, after = matrix, before
    return Fit(reader, as_stored(reader, program, fitted), before, after, count, width)


def whole_matrix(reader: Reader, program: Program) -> Tensor:
    """A layer's matrix, float32 [N, K], with its bias as one more column."""
    matrix = reader.matrix(program.tensors).float()
    if reader.bias is None:
        return matrix
    return torch.cat([matrix, program.tensors[reader.bias].float()[:, None]], dim=1)


def whole_rows(reader: Reader, value: Tensor) -> Tensor:
    """What a layer reads as rows, float32 [R, K], with a 1 for its bias."""
    rows = reader.rows(value).float()
    if reader.bias is None:
        return rows
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def as_stored(reader: Reader, program: Program, matrix: Tensor) -> dict[str, Tensor]:
    """A matrix as of `whole_matrix` as the tensors that a layer stores, by name."""
    weight = program.tensors[reader.weight]
    if reader.bias is None:
        return {reader.weight: reader.stored(matrix, weight)}
    bias = matrix[:, -1].to(program.tensors[reader.bias].dtype).contiguous()
    return {reader.weight: reader.stored(matrix[:, :-1], weight), reader.bias: bias}


def solved(matrix: Tensor, moments: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """The matrix W' [N, K] nearest to W, by least squares with a ridge, float32.

    Args:
        matrix: W, float32 [N, K].
        moments: Σ x̂ x̂ᵀ, [K, K].
        cross: Σ y x̂ᵀ, [N, K].
        ridge: as a share of the mean of the diagonal.
    """
    wide = moments.double()
    added = max(ridge * float(wide.diagonal().mean()), torch.finfo(torch.float64).tiny)
    lower, failed = torch.linalg.cholesky_ex(wide + added * torch.eye(len(wide)))
    if failed or not bool(torch.isfinite(lower).all()):
        return matrix
    missing = cross.double() - matrix.double() @ wide
    return (matrix.double() + torch.cholesky_solve(missing.T, lower).T).float()


def error(matrix: Tensor, moments: Tensor, cross: Tensor, energy: float) -> float:
    """The root of Σ (y - W x̂)² / Σ y²."""
    wide = matrix.double()
    given = float(((wide @ moments.double()) * wide).sum())
    wrong = energy - 2 * float((wide * cross).sum()) + given
    return math.sqrt(max(wrong, 0.0) / max(energy, torch.finfo(torch.float64).tiny))


def kept_fit(reader: Reader, work: Work) -> Fit | None:
    """What an interrupted run had found for a layer."""
    kept = work.journal.load(reader.weight) if work.journal else None
    if kept is None:
        return None
    before, after, rows, width = kept.pop("figures").tolist()
    return Fit(reader, kept, before, after, int(rows), int(width))


def keep(fit: Fit, work: Work) -> None:
    """Let an interrupted run find a layer again."""
    if work.journal is not None:
        figures = torch.tensor([fit.before, fit.after, fit.rows, fit.width], dtype=torch.float64)
        work.journal.keep(fit.reader.weight, {**fit.tensors, "figures": figures})


def told(fit: Fit) -> str:
    """What became of a layer, in words."""
    few = f", held by the ridge: {fit.rows} rows for {fit.width} inputs"
    return (
        f"{fit.reader.weight}: fitted, error of its outputs {fit.before:.3f} -> {fit.after:.3f}"
        f"{few if fit.rows < fit.width else ''}"
    )
