"""Least squares for layers that are about to lose inputs: the others make up for them.

With M = Σ x̂ x̂ᵀ of what a layer W reads, and K what is kept, the weights that give most nearly W x̂
are W M_K (M_KK + λ)⁻¹, where a ridge λ holds them to W_K. Layers are fitted in the order of the
graph, each to what it reads once those before it are. With drift, losses of earlier layers are made
up for too: what the layer gave in the unchanged model is aimed at. Sources: He et al., "Channel
Pruning for Accelerating Very Deep Neural Networks" (2017), section 3.1; for the inputs of the
unchanged model, Li et al., "GPTAQ" (2025), section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from planish.ir.axes.axes import Axes, order
from planish.ir.axes.terms import Leaf
from planish.ir.program import Program, Sample
from planish.passes.readers import Reader
from planish.passes.refit import (
    Fit,
    as_stored,
    error,
    keep,
    kept_fit,
    overrides,
    solved,
    whole_matrix,
    whole_rows,
)
from planish.passes.sequential import Run, second_moments
from planish.passes.work import UNSEEN, Work


def columns(axes: Axes, reader: Reader, kept: Mapping[Leaf, Tensor]) -> Tensor:
    """Which columns of a layer's matrix are kept when atoms lose indices, ascending."""
    terms = axes.terms[reader.weight]
    channels = order(terms[0] if reader.read.op != "get_attr" else terms[1], kept)
    width = reader.kernel()
    return (channels[:, None] * width + torch.arange(width)).flatten()


def mended(
    program: Program,
    axes: Axes,
    layers: Sequence[Reader],
    kept: Mapping[Leaf, Tensor],
    samples: Sequence[Sample],
    ridge: float,
    drift: float,
    work: Work = UNSEEN,
) -> Iterator[Fit]:
    """Weights for layers before they are cut, with 0 where they are about to be, one by one.

    Args:
        program: before the cut; stays as it is.
        axes: of the program.
        layers: in the order of the graph.
        kept: which indices of each atom stay.
        samples: at least one.
        ridge: what is added to the diagonal of the second moments, as a share of its mean.
        drift: from 0, to give what the layer would give as it was for what it reads now, up to 1,
            what it gave in the unchanged model, which costs a second run.
        work: told how many layers are done; keeps what is found of each.
    """
    now = Run(program, samples)
    exact = Run(program, samples) if drift else None
    for done, reader in enumerate(layers):
        now.until(reader.node)
        if exact is not None:
            exact.until(reader.node)
        fit = kept_fit(reader, work)
        if fit is None:
            fit = _fitted(program, reader, columns(axes, reader, kept), now, exact, ridge, drift)
            keep(fit, work)
        now.weights.update(overrides(fit))
        yield fit
        work.tell(done + 1, len(layers))


def _fitted(
    program: Program,
    reader: Reader,
    at: Tensor,
    now: Run,
    exact: Run | None,
    ridge: float,
    drift: float,
) -> Fit:
    matrix = whole_matrix(reader, program)
    if reader.bias is not None:
        at = torch.cat([at, torch.tensor([matrix.shape[1] - 1])])
    width = matrix.shape[1]
    moments, added = torch.zeros(width, width), torch.zeros(width, width)
    count = 0
    unchanged = exact.read(reader.source) if exact is not None else None
    for place, value in enumerate(now.read(reader.source)):
        rows = whole_rows(reader, value)
        moments += second_moments([rows])[0]
        if unchanged is not None:
            was = whole_rows(reader, unchanged[place])
            added.addmm_((was - rows).T, rows)
        count += len(rows)
    cross = matrix @ (moments + drift * added)
    energy = float(((matrix.double() @ moments.double()) * matrix.double()).sum())
    inner = moments[at][:, at]
    fitted = solved(matrix[:, at], inner, cross[:, at], ridge)
    before, after = (error(one, inner, cross[:, at], energy) for one in (matrix[:, at], fitted))
    whole = torch.zeros_like(matrix).index_copy_(1, at, fitted)
    return Fit(reader, as_stored(reader, program, whole), before, after, count, len(at))
