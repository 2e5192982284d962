"""Weight-only quantization: round to nearest, with a search for the scale of each group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, fx

from planish.ir.edit import Edit
from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor, QuantScheme
from planish.passes.contract import OPTIONS, Contract, LongPass
from planish.passes.inputs import Inputs, observed
from planish.passes.layers import EMBEDDING, HEAD, Layer, Patterns
from planish.passes.rounding import round_to_nearest
from planish.passes.selection import Special, check_widths, selected
from planish.passes.work import UNSEEN, Work


class Rounded(NamedTuple):
    """A weight that was rounded: what is stored, ‖Ŵ - W‖ / ‖W‖, and what else the report says."""

    tensor: QuantizedTensor
    error: float
    note: str = ""


@dataclass(frozen=True, config=OPTIONS)
class QuantizeWeights(LongPass):
    """Store the weights of linear layers in 2, 3, 4 or 8 bits, each group with its own scale.

    Codes are the nearest ones; the scale of each group is searched for (see
    `planish.passes.rounding`). No calibration samples are needed. The products stay in floating
    point: a weight is multiplied out where it is read, or inside a kernel made for that.

    The projection that makes the logits, the embeddings and the routers of mixtures of experts
    are left alone: they are sensitive, and the last are small.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    called: ClassVar[str] = "quantize_weights"

    # Descriptions are not docstrings here, since passes that inherit options keep only these.
    bits: Annotated[
        Literal[8, 4, 3, 2],
        Field(description="Bits of a stored number."),
    ]
    group_size: Annotated[
        Literal[32, 64, 128] | None,
        Field(
            description="How many neighbouring input features share a scale; it must divide the "
            "number of input features. null: one scale for each output feature "
            "(per-channel)."
        ),
    ]
    symmetric: Annotated[
        bool,
        Field(
            description="Whether zero is always the middle of the range. Otherwise each group also "
            "stores a zero point, which follows skewed weights better."
        ),
    ] = True
    type: Annotated[
        Literal["int", "float"],
        Field(
            description="Whether codes are integers or floating-point numbers: 8 bits and "
            "symmetric, as E4M3 (FP8)."
        ),
    ] = "int"
    targets: Annotated[
        Patterns,
        Field(
            description='Which layers: "Linear" for all linear layers; a name, with or without '
            '".weight"; a glob such as "model.layers.0.*"; or a regular expression after '
            '"re:", matched from the start.'
        ),
    ] = ("Linear",)
    ignore: Annotated[
        Patterns,
        Field(description='Which of these to leave alone: names, globs or "re:" patterns.'),
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

    @field_validator("type")
    @classmethod
    def _has_such_floats(cls, value: str, info: ValidationInfo) -> str:
        given = info.data
        if value == "float" and (given.get("bits") != 8 or not given.get("symmetric")):
            raise ValueError("floating-point codes have 8 bits and are symmetric (FP8, E4M3).")
        return value

    @property
    def scheme(self) -> QuantScheme:
        """How each weight is rounded."""
        return QuantScheme(self.bits, self.group_size, self.symmetric, self.type == "float")

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
                wrong = _wrong(layer, found.tensor, program.tensors) if seen else None
                done = [_corrected(edit, one, wrong, seen) for one in layer.node.users]
                note = f"{found.note}; bias corrected" if any(done) else found.note
                made = found.tensor.insert(edit, layer.name, before=layer.first_reader)
                what = f"{layer.name}: {self.scheme}; relative error {found.error:.4f}{note}"
                edit.replace(layer.node, made, what)
        return edit.program

    def _chosen(self, graph: fx.Graph, program: Program) -> list[Layer]:
        special = {
            EMBEDDING: Special("embeddings", self.embeddings),
            HEAD: Special("lm_head", self.lm_head),
        }
        layers = selected(self.called, graph, program, self.targets, self.ignore, special)
        check_widths(self.called, self.group_size, layers)
        return layers

    def _rounded(self, program: Program, layers: list[Layer], work: Work) -> Mapping[str, Rounded]:
        """What becomes of each layer's weight, by its name."""
        seen = self._observed(program, layers, work) if self.clip_search == "inputs" else {}
        found = {}
        for done, layer in enumerate(layers, start=1):
            matrix = layer.matrix(program.tensors)
            squares = [seen[node.name].square for node in layer.node.users if node.name in seen]
            rounded = round_to_nearest(
                matrix,
                self.scheme,
                search=bool(self.clip_search),
                squares=torch.stack(squares).sum(0) if squares else None,
            )
            found[layer.name] = Rounded(*rounded)
            work.tell(done, len(layers))
        return found

    def _observed(self, program: Program, layers: list[Layer], work: Work) -> dict[str, Inputs]:
        """What the layers read, by the reader; nothing on tensors without data."""
        if any(tensor.is_meta for tensor in program.tensors.values()):
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
