"""Sparse weights: zeros anywhere, or in so many of every few."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from planish.ir.program import Program
from planish.passes import sparsity
from planish.passes.compensation import Curvature, output_size
from planish.passes.contract import OPTIONS, Contract, LongPass, NotApplicable
from planish.passes.inputs import samples_of
from planish.passes.layers import Layer, Patterns, noted
from planish.passes.selection import selected
from planish.passes.sequential import second_moments, walk
from planish.passes.sparsity import Sparsity
from planish.passes.work import UNSEEN, Work, as_text, from_text

LEFT = "whose weights stay dense"
"""What is said of the weights of experts."""

_CALLED = "sparsify"

_TINY = 1e-30


class Made(NamedTuple):
    """A matrix [N, K] with zeros, and what the report says of it."""

    matrix: Tensor
    note: str


@dataclass(frozen=True, config=OPTIONS)
class Sparsify(LongPass):
    """Set the weights of linear layers to zero that matter least (SparseGPT, Wanda, magnitude).

    Zeros are stored like any numbers: the model is neither smaller nor faster by it here, since the
    kernels of its targets multiply by them, too. It is for runtimes that have kernels for zeros
    (2:4 on NVIDIA GPUs), for compression of the files, and for training on. Layers are taken in the
    order of the model; each sees what the ones before it give by then. `quantize_weights` with
    symmetric codes keeps zeros; `gptq` does not know of them.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    sparsity: Annotated[float, Field(gt=0, lt=1)] | Literal["2:4", "4:8"] = 0.5
    """The share of zeros, or how many of every few neighbours along the inputs stay."""

    method: Literal["magnitude", "wanda", "sparsegpt"] = "sparsegpt"
    """By what: the size of weights; that times the size of their inputs, within each row; or the
    error that is left once the others make up for it. The last two take samples of text like the
    text to be served."""

    dampening: float = Field(default=0.01, gt=0, le=1)
    """For `sparsegpt`: what is added to the diagonal of the second moments, as a share of its
    mean."""

    targets: Patterns = ("Linear",)
    """Which layers, as for `quantize_weights`."""

    ignore: Patterns = ()
    """Which of these to leave alone."""

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Make every chosen weight sparse.

        Raises:
            NotApplicable: if there is no linear layer, a pattern matches nothing, nothing is left
                to change, a width is no multiple of the period, or samples are missing.
        """
        with program.edit() as edit:
            layers = selected(_CALLED, edit.graph, program, self.targets, self.ignore, {})
            self._check(layers)
            found = self._found(program, work)
            for layer in layers:
                made = found[layer.name]
                edit.tensors[layer.name] = layer.stored(layer.as_read(made.matrix))
                edit.record(layer.first_reader, f"{layer.name}: {made.note}")
        return noted(edit.program, program, self.targets, self.ignore, LEFT)

    def _check(self, layers: list[Layer]) -> None:
        period = Sparsity.of(self.sparsity).period
        for layer in layers:
            if period is not None and layer.width % period:
                raise NotApplicable(
                    f"{_CALLED}: {layer.names[0]} has {layer.width} inputs, no multiple of "
                    f"{period}; give a share instead, or name the layer under ignore."
                )

    def _found(self, program: Program, work: Work) -> Mapping[str, Made]:
        """What becomes of each layer's weight, by its name."""
        layers = selected(_CALLED, program.graph, program, self.targets, self.ignore, {})
        matrices = {layer.name: layer.matrix(program.tensors) for layer in layers}
        if not program.has_data:
            return {name: Made(matrix, f"{self.sparsity}") for name, matrix in matrices.items()}
        found = {}
        if self.method == "magnitude":
            for done, (name, matrix) in enumerate(matrices.items(), start=1):
                made = sparsity.by_size(matrix, Sparsity.of(self.sparsity))
                found[name] = Made(made, _told(made, matrix, self.method))
                work.tell(done, len(layers))
            return found
        read_by = {layer.first_reader: layer for layer in layers}
        for visit in walk(program, samples_of(program, _CALLED), list(read_by), tell=work.tell):
            together = [read_by[node] for node in visit.layers]
            made_now = self._kept(work, together, matrices)
            if made_now is None:
                made_now = self._solved([matrices[one.name] for one in together], visit.inputs)
                _keep(work, together, made_now)
            for layer, one in zip(together, made_now, strict=True):
                found[layer.name] = one._replace(note=one.note + layer.by_first)
                visit.weights[layer.node] = one.matrix
        return found

    def _solved(self, matrices: list[Tensor], inputs: list[Tensor]) -> list[Made]:
        """Layers that read one value, each with its zeros."""
        moments, rows = second_moments(inputs)
        wanted = Sparsity.of(self.sparsity)
        curvature, note = None, ""
        if self.method == "sparsegpt":
            curvature = Curvature.of(moments, self.dampening, by_size=False)
            few = f"; only {rows} calibration tokens for {len(moments)} inputs"
            note = few if rows < len(moments) else ""
            if curvature is None:
                note = "; its inputs' second moments are singular: by wanda"
        found = []
        for matrix in matrices:
            wide = matrix.float()
            if curvature is None:
                made = sparsity.by_inputs(wide, wanted, moments.diagonal())
            else:
                made = sparsity.compensated(wide, wanted, curvature)
            made = made.to(matrix.dtype)
            found.append(Made(made, _told(made, matrix, self.method, moments) + note))
        return found

    def _kept(
        self, work: Work, layers: list[Layer], matrices: Mapping[str, Tensor]
    ) -> list[Made] | None:
        """What an interrupted run had found for these layers."""
        kept = work.journal.load(layers[0].name) if work.journal else None
        if kept is None:
            return None
        return [
            Made(
                kept[layer.name].to(matrices[layer.name].dtype),
                as_text(kept[f"{layer.name}_note"]),
            )
            for layer in layers
        ]


def _keep(work: Work, layers: list[Layer], made: list[Made]) -> None:
    if work.journal is None:
        return
    tensors: dict[str, Tensor] = {}
    for layer, one in zip(layers, made, strict=True):
        tensors[layer.name] = one.matrix
        tensors[f"{layer.name}_note"] = from_text(one.note)
    work.journal.keep(layers[0].name, tensors)


def _told(made: Tensor, matrix: Tensor, method: str, moments: Tensor | None = None) -> str:
    """How many zeros there are, and how far off that is."""
    zeros = float((made == 0).double().mean())
    wide, wrong = matrix.float(), made.float() - matrix.float()
    error = float(wrong.norm() / wide.norm().clamp_min(_TINY))
    told = f"{zeros:.1%} zeros by {method}; relative error {error:.4f}"
    if moments is None:
        return told
    output = output_size(wrong, moments) / max(output_size(wide, moments), _TINY)
    return f"{told}; of its output {output:.4f}"
