"""Weight-only quantization: round to nearest, with a search for the scale of each group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, fx

from planish.ir.edit import Edit
from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor, QuantScheme
from planish.passes.contract import OPTIONS, Contract, LongPass
from planish.passes.format import Format, Override
from planish.passes.inputs import Inputs, observed
from planish.passes.layers import EMBEDDING, EXPERTS, HEAD, Layer, Patterns
from planish.passes.rounding import round_to_nearest
from planish.passes.selection import Special, check_widths, selected
from planish.passes.work import UNSEEN, Work


class Rounded(NamedTuple):
    """A weight that was rounded: what is stored, ‖Ŵ - W‖ / ‖W‖, and what else the report says."""

    tensor: QuantizedTensor
    error: float
    note: str = ""


@dataclass(frozen=True, config=OPTIONS)
class QuantizeWeights(Format, LongPass):
    """Store the weights of linear layers in 2 to 8 bits, FP8 or MXFP4, with a scale for each group.

    Codes are the nearest ones; the scale of each group is searched for (see
    `planish.passes.rounding`). No calibration samples are needed. The products stay in floating
    point: a weight is multiplied out where it is read, or inside a kernel made for that.

    Experts count as linear layers, though one tensor holds the weights of all of them: their rows
    are rounded like any others. What they read is not looked at, neither for scales nor for biases.

    The projection that makes the logits, the embeddings and the routers of mixtures of experts
    are left alone: they are sensitive, and the last are small.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    called: ClassVar[str] = "quantize_weights"

    # Descriptions are not docstrings here, since passes that inherit options keep only these.
    targets: Annotated[
        Patterns,
        Field(
            description='Which layers: "Linear" for all linear layers, experts among them; a name, '
            'with or without ".weight"; a glob such as "model.layers.0.*"; or a regular '
            'expression after "re:", matched from the start.'
        ),
    ] = ("Linear",)
    ignore: Annotated[
        Patterns,
        Field(description='Which of these to leave alone: names, globs or "re:" patterns.'),
    ] = ()
    overrides: Annotated[
        tuple[Override, ...],
        Field(
            description="Formats of their own for some of these layers; of several that name a "
            "layer the first counts."
        ),
    ] = ()
    clip_search: Annotated[
        Literal[True, False, "inputs"],
        Field(
            description="Whether to search for the scale of each group; otherwise the largest "
            'number fixes it. "inputs": errors count by the mean square of what they are '
            "multiplied with, which takes samples of text like the text to be served."
        ),
    ] = True
    bias_correction: Annotated[
        bool,
        Field(
            description="Whether biases make up for what rounding adds to the mean of a layer's "
            "output; layers without a bias stay without. Takes samples, too."
        ),
    ] = False
    embeddings: Annotated[
        bool,
        Field(
            description="Whether to quantize embeddings too. One that is tied to the "
            "language-model head needs `lm_head` as well."
        ),
    ] = False
    lm_head: Annotated[
        bool,
        Field(description="Whether to quantize the projection that makes the logits too."),
    ] = False

    def scheme_of(self, layer: Layer) -> QuantScheme:
        """How the weight of a layer is rounded."""
        for one in self.overrides:
            if layer.matches(one.targets):
                return one.scheme
        return self.scheme

    @property
    def learns(self) -> bool:
        """Only some searches and corrections ask what layers read."""
        return self.clip_search == "inputs" or self.bias_correction

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Quantize every chosen weight.

        Raises:
            NotApplicable: if there is no linear layer, a pattern matches nothing, nothing is left
                to quantize, the group size does not divide a width, or samples are missing.
        """
        with program.edit() as edit:
            layers = self._chosen(edit.graph, program)
            rounded = self._rounded(program, layers, work)
            seen = self._observed(program, layers, work) if self.bias_correction else {}
            for layer in layers:
                found = rounded[layer.name]
                looked_at = any(node.name in seen for node in layer.node.users)
                wrong = _wrong(layer, found.tensor, program.tensors) if looked_at else None
                done = [_corrected(edit, one, wrong, seen) for one in layer.node.users]
                note = f"{found.note}; bias corrected" if any(done) else found.note
                made = layer.insert(edit, found.tensor)
                how = f"{self.scheme_of(layer)}; relative error {found.error:.4f}{note}"
                edit.replace(layer.node, made, f"{layer.name}: {how}")
        return edit.program

    def _chosen(self, graph: fx.Graph, program: Program) -> list[Layer]:
        special = {
            EMBEDDING: Special("embeddings", self.embeddings),
            HEAD: Special("lm_head", self.lm_head),
        }
        named = [pattern for one in self.overrides for pattern in one.targets]
        chosen = selected(
            self.called,
            graph,
            program,
            self.targets,
            self.ignore,
            special,
            also={EXPERTS},
            named=named,
        )
        for size in dict.fromkeys(self.scheme_of(layer).group_size for layer in chosen):
            wanting = [layer for layer in chosen if self.scheme_of(layer).group_size == size]
            fixed = any(self.scheme_of(layer).microscaled for layer in wanting)
            check_widths(self.called, size, wanting, fixed=fixed)
        return chosen

    def _rounded(self, program: Program, layers: list[Layer], work: Work) -> Mapping[str, Rounded]:
        """What becomes of each layer's weight, by its name."""
        seen = self._observed(program, layers, work) if self.clip_search == "inputs" else {}
        found = {}
        for done, layer in enumerate(layers, start=1):
            matrix = layer.matrix(program.tensors)
            squares = [seen[node.name].square for node in layer.node.users if node.name in seen]
            rounded = round_to_nearest(
                matrix,
                self.scheme_of(layer),
                search=bool(self.clip_search),
                squares=torch.stack(squares).sum(0) if squares else None,
            )
            blind = self.clip_search == "inputs" and not squares and not matrix.is_meta
            note = "; searched without what it reads" if blind else ""
            found[layer.name] = Rounded(*rounded, note)
            work.tell(done, len(layers))
        return found

    def _observed(self, program: Program, layers: list[Layer], work: Work) -> dict[str, Inputs]:
        """What the layers read, by the reader; nothing on tensors without data."""
        if not program.has_data:
            return {}
        return observed(program, [layer.name for layer in layers], self.called, work)


def _wrong(layer: Layer, rounded: QuantizedTensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """What rounding added to a layer's weight, float64 [N, K]."""
    return rounded.dequantize().double() - layer.matrix(tensors).double()


def _corrected(
    edit: Edit, reader: fx.Node, wrong: Tensor | None, seen: Mapping[str, Inputs]
) -> bool:
    """Take from a layer's bias what rounding adds to its output on average, if it has one.

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction"
    (2019), section 4.2, with the mean over samples.
    """
    bias = reader.args[2] if len(reader.args) > 2 else None
    if wrong is None or reader.name not in seen or not isinstance(bias, fx.Node):
        return False
    if bias.op != "get_attr" or len(bias.users) > 1:
        return False  # what others read too has to stay
    name = str(bias.target)
    old = edit.tensors[name]
    edit.tensors[name] = (old.double() - wrong @ seen[reader.name].mean).to(old.dtype)
    return True
