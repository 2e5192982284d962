"""Low rank: each weight as a product of two smaller ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from planish.ir.edit import Edit
from planish.ir.program import Program
from planish.passes.compensation import Curvature
from planish.passes.contract import OPTIONS, Contract, LongPass, NotApplicable
from planish.passes.inputs import samples_of
from planish.passes.layers import Layer, Patterns, aten, noted
from planish.passes.levels import Seen, low_rank
from planish.passes.selection import selected
from planish.passes.sequential import second_moments, walk
from planish.passes.work import UNSEEN, Work

LEFT = "whose weights stay whole"
"""What is said of the weights of experts."""

_CALLED = "low_rank"


class Product(NamedTuple):
    """A matrix [N, K] as A [N, r] times B [r, K], and what the report says of it."""

    left: Tensor
    right: Tensor
    note: str


@dataclass(frozen=True, config=OPTIONS)
class LowRank(LongPass):
    """Replace each linear layer by two narrow ones, the nearest of that rank (SVD-LLM).

    Nearest is what the layer gives for the samples, not the weights: singular values are those of
    the weight times a root of its inputs' second moments (Wang et al., "SVD-LLM", 2024, section
    3.1; Chen et al., "DRONE", 2021). Layers are taken in the order of the model; each sees what the
    ones before it give by then. Weights of trained models have much of their size in many
    directions, so that this costs more than pruning does where channels can be left out.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    ratio: float = Field(default=0.8, gt=0, lt=1)
    """The share of each weight's parameters that its two factors have together."""

    round_to: int = Field(default=8, ge=1)
    """Ranks are multiples of this, rounded down."""

    calibration: Literal["none", "inputs"] = "inputs"
    """Whether all errors of weights count alike, or by the second moments of what layers read,
    which takes samples of text like the text to be served."""

    dampening: float = Field(default=0.01, gt=0, le=1)
    """What is added to the diagonal of the second moments, as a share of its mean."""

    targets: Patterns = ("Linear",)
    """Which layers, as for `quantize_weights`."""

    ignore: Patterns = ()
    """Which of these to leave alone."""

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Replace every chosen layer.

        Raises:
            NotApplicable: if there is no linear layer, a pattern matches nothing, nothing is left
                to replace, a rank would be 0, or samples are missing.
        """
        with program.edit() as edit:
            layers = selected(_CALLED, edit.graph, program, self.targets, self.ignore, {})
            found = self._found(program, work)
            for layer in layers:
                _insert(edit, layer, found[layer.name])
        return noted(edit.program, program, self.targets, self.ignore, LEFT)

    def rank(self, matrix: Tensor, name: str) -> int:
        """How wide the two factors of a matrix [N, K] are where they meet.

        Raises:
            NotApplicable: if nothing is left of that.
        """
        rows, columns = matrix.shape
        rank = int(self.ratio * rows * columns / (rows + columns)) // self.round_to * self.round_to
        if rank == 0:
            raise NotApplicable(
                f"{_CALLED}: {self.ratio} of {name}, {rows} x {columns}, allows no rank that is a "
                f"multiple of {self.round_to}; choose a larger ratio, a smaller round_to, or name "
                "the layer under ignore."
            )
        return rank

    def _found(self, program: Program, work: Work) -> Mapping[str, Product]:
        """What becomes of each layer's weight, by its name."""
        layers = selected(_CALLED, program.graph, program, self.targets, self.ignore, {})
        matrices = {layer.name: layer.matrix(program.tensors) for layer in layers}
        ranks = {name: self.rank(matrix, name) for name, matrix in matrices.items()}
        if not program.has_data:
            return {
                name: Product(
                    matrix.new_empty(len(matrix), ranks[name]),
                    matrix.new_empty(ranks[name], matrix.shape[1]),
                    f"rank {ranks[name]}",
                )
                for name, matrix in matrices.items()
            }
        found = {}
        if self.calibration == "none":
            for done, (name, matrix) in enumerate(matrices.items(), start=1):
                found[name] = _factors(matrix, ranks[name], None)
                work.tell(done, len(layers))
            return found
        read_by = {layer.first_reader: layer for layer in layers}
        for visit in walk(program, samples_of(program, _CALLED), list(read_by), tell=work.tell):
            moments, rows = second_moments(visit.inputs)
            curvature = Curvature.of(moments, self.dampening, by_size=False)
            seen = Seen(curvature, compensate=False) if curvature else None
            for layer in (read_by[node] for node in visit.layers):
                made = _factors(matrices[layer.name], ranks[layer.name], seen)
                if seen is None:
                    note = "; its inputs' second moments are singular: not calibrated"
                    made = made._replace(note=made.note + note)
                elif rows < len(moments):
                    note = f"; only {rows} calibration tokens for {len(moments)} inputs"
                    made = made._replace(note=made.note + note)
                found[layer.name] = made._replace(note=made.note + layer.by_first)
                visit.weights[layer.node] = made.left @ made.right
        return found


def _factors(matrix: Tensor, rank: int, seen: Seen | None) -> Product:
    wide = matrix.float()
    left, right = (part.to(matrix.dtype).contiguous() for part in low_rank(wide, rank, seen))
    wrong = left.float() @ right.float() - wide
    error = float(wrong.norm() / wide.norm().clamp_min(1e-30))
    note = f"rank {rank} of {min(matrix.shape)}; relative error {error:.4f}"
    if seen is not None:
        note += f"; of its output {seen.error(wrong) / max(seen.error(wide), 1e-30):.4f}"
    return Product(left, right, note)


def _insert(edit: Edit, layer: Layer, made: Product) -> None:
    """Let the readers of a layer's weight read one factor after the other."""
    left = edit.read(f"{layer.name}_left", made.left, before=layer.first_reader)
    right = edit.read(f"{layer.name}_right", made.right, before=layer.first_reader)
    for reader in list(layer.node.users):
        inner = edit.call(aten.linear.default, reader.args[0], right, before=reader)
        outer = edit.call(aten.linear.default, inner, left, *reader.args[2:], before=reader)
        edit.replace(reader, outer, f"{layer.name}: {made.note}")
