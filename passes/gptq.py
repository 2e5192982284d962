"""GPTQ: rounding column by column, each error made up for by the columns that are still free.

Source: Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for
Generative Pre-trained Transformers" (2022); for targets in full precision, Li et al., "GPTAQ:
Efficient Finetuning-Free Quantization for Asymmetric Calibration" (2025), section 3, and Zhang et
al., "Qronos: Correcting the Past by Shaping the Future" (2025). The arithmetic is in
`planish.passes.compensation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, fx

from planish.ir.program import Program, Sample
from planish.ir.quant import QuantizedTensor, QuantScheme
from planish.passes.compensation import (
    Curvature,
    Rounding,
    compensated,
    drift,
    fitted,
    output_size,
    revisited,
)
from planish.passes.contract import OPTIONS, Contract
from planish.passes.inputs import samples_of, spread
from planish.passes.layers import LINEAR, Layer, layers_of
from planish.passes.quantize_weights import QuantizeWeights, Rounded
from planish.passes.rounding import factors_of, parameters, round_to_nearest
from planish.passes.sequential import cross_moments, second_moments, walk
from planish.passes.work import UNSEEN, Work, as_text, from_text

DRIFT_TOKENS = 16_384
"""On about so many tokens drift is measured: running the unchanged model beside is half the work,
and its least squares have a column's worth of unknowns, not a model's."""


@dataclass(frozen=True, config=OPTIONS)
class Gptq(QuantizeWeights):
    """Store the weights of linear layers in codes of few bits that calibration chose (GPTQ).

    Layers are rounded in the order of the model; each sees what the ones before it give once
    rounded. Within a layer, columns are rounded one by one, and what each gets wrong is made up
    for by those that follow, by the second moments of the layer's inputs. Needs samples of text
    like the text to be served: `samples`, some 60,000 tokens are plenty.

    Experts, embeddings and the language-model head are rounded to nearest, as are layers whose
    moments are singular even when dampened, and say so.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    called: ClassVar[str] = "gptq"

    dampening: float = Field(default=0.01, gt=0, le=1)
    """What is added to the diagonal of the second moments, as a share of its mean."""

    activation_order: bool = True
    """Whether columns with large inputs are rounded first, while there are others left to make up
    for them. Groups stay neighbours either way."""

    drift_correction: float = Field(default=0.5, ge=0, le=1)
    """How far layers are moved, before they are rounded, towards giving for inputs that earlier
    layers have changed what they give in the model as it was, so that errors do not add up: 1 is
    the least squares on some of the samples, which little text overfits; 0 leaves them, as do
    fewer tokens than a layer has inputs. What layers read counts as it is before
    `quantize_activations`, too, where that came first."""

    sweeps: int = Field(default=0, ge=0, le=10)
    """How often, once all columns are rounded, scales are fitted anew to the codes and each code
    is visited once more (coordinate descent, as in QuantEase). Layers then lose a few percent less
    on the samples; whether the model does on other text is to be measured."""

    @field_validator("bias_correction")
    @classmethod
    def _is_no_option(cls, asked: bool) -> bool:
        if asked:
            raise ValueError(
                "is of quantize_weights; gptq makes up for what rounding adds as it goes, and "
                "later layers have seen the biases as they are"
            )
        return asked

    @property
    def learns(self) -> bool:
        """Always."""
        return True

    def _rounded(self, program: Program, layers: list[Layer], work: Work) -> Mapping[str, Rounded]:
        if not program.has_data:
            return super()._rounded(program, layers, work)  # only sizes are asked for
        names = {layer.name for layer in layers}
        own = [layer for layer in layers_of(program.graph, program) if layer.name in names]
        products = {layer.name: _products(layer) for layer in own}
        alone = [layer for layer in own if LINEAR in layer.roles and len(products[layer.name]) == 1]
        read_by = {products[layer.name][0]: layer for layer in alone}
        others = {layer.name: _why_nearest(layer) for layer in own if layer not in alone}
        nearest = super()._rounded(program, [one for one in own if one.name in others], UNSEEN)
        found = {
            name: one._replace(note=f"{one.note}; {others[name]}: rounded to nearest")
            for name, one in nearest.items()
        }

        samples, compared = self._samples(program)
        for visit in walk(program, samples, [*read_by], tell=work.tell, compared=compared):
            together = [read_by[node] for node in visit.layers]
            matrices = [layer.matrix(program.tensors) for layer in together]
            rounded = self._kept(work, together, matrices)
            if rounded is None:
                schemes = [self.scheme_of(layer) for layer in together]
                rounded = self._solved(matrices, schemes, visit.inputs, visit.exact)
                self._keep(work, together, rounded)
            for layer, one in zip(together, rounded, strict=True):
                found[layer.name] = one
                visit.weights[layer.node] = one.tensor.dequantize()
        return found

    def _samples(self, program: Program) -> tuple[list[Sample], int]:
        """All samples, first those on which drift is measured, and how many these are."""
        samples = samples_of(program, self.called)
        first = spread(samples, DRIFT_TOKENS) if self.drift_correction else []
        taken = {id(sample) for sample in first}
        return [*first, *(one for one in samples if id(one) not in taken)], len(first)

    def _kept(
        self, work: Work, layers: list[Layer], matrices: list[Tensor]
    ) -> list[Rounded] | None:
        """What an interrupted run had found for these layers."""
        kept = work.journal.load(layers[0].name) if work.journal else None
        if kept is None:
            return None
        return [
            Rounded(
                QuantizedTensor(
                    self.scheme_of(layer),
                    tuple(matrix.shape),
                    matrix.dtype,
                    kept[f"{layer.name}_packed"],
                    kept[f"{layer.name}_scale"],
                    kept.get(f"{layer.name}_zero_point"),
                ),
                float(kept[f"{layer.name}_error"]),
                as_text(kept[f"{layer.name}_note"]),
            )
            for layer, matrix in zip(layers, matrices, strict=True)
        ]

    def _keep(self, work: Work, layers: list[Layer], rounded: list[Rounded]) -> None:
        if work.journal is None:
            return
        tensors: dict[str, Tensor] = {}
        for layer, one in zip(layers, rounded, strict=True):
            tensors |= {layer.name + part: held for part, held in one.tensor.tensors.items()}
            tensors[f"{layer.name}_error"] = torch.tensor(one.error, dtype=torch.float64)
            tensors[f"{layer.name}_note"] = from_text(one.note)
        work.journal.keep(layers[0].name, tensors)

    def _solved(
        self,
        matrices: list[Tensor],
        schemes: list[QuantScheme],
        inputs: list[Tensor],
        exact: list[Tensor],
    ) -> list[Rounded]:
        """Layers that read one value: matrices [N, K], those of a scheme rounded as one."""
        moments, rows = second_moments(inputs[len(exact) :], inputs[0].shape[-1])
        drifted = None
        if exact:
            part, more = second_moments(inputs[: len(exact)])
            if more >= len(part):  # fewer tokens than unknowns are overfitted
                drifted = drift(cross_moments(exact, inputs[: len(exact)]), part, self.dampening)
            moments, rows = moments + part, rows + more
        curvature = Curvature.of(moments, self.dampening, self.activation_order)
        if curvature is None:
            note = "; its inputs' second moments are singular: rounded to nearest"
            return [
                Rounded(*round_to_nearest(one, scheme, search=bool(self.clip_search)), note)
                for one, scheme in zip(matrices, schemes, strict=True)
            ]
        note = f"; only {rows} calibration tokens for {len(moments)} inputs"
        found: dict[int, Rounded] = {}
        for scheme in dict.fromkeys(schemes):
            places = [place for place, one in enumerate(schemes) if one == scheme]
            wide = torch.cat([matrices[place].float() for place in places])
            if drifted is not None:
                wide = wide.addmm(wide, drifted, alpha=self.drift_correction)
            dtype = matrices[0].dtype
            rounding = self._compensated(wide, scheme, moments, curvature, dtype)
            parts = [len(matrices[place]) for place in places]
            made = zip(wide.split(parts), _stored(rounding, parts, dtype), strict=True)
            for place, (matrix, one) in zip(places, made, strict=True):
                found[place] = _judged(one, matrix, moments, note if rows < len(moments) else "")
        return [found[place] for place in range(len(matrices))]

    def _compensated(
        self,
        wide: Tensor,
        scheme: QuantScheme,
        moments: Tensor,
        curvature: Curvature,
        dtype: torch.dtype,
    ) -> Rounding:
        """A matrix [N, K], rounded; scales will be stored in `dtype`."""
        weights = scheme.grouped(moments.diagonal()[None])
        factors = factors_of(scheme) if self.clip_search else (1.0,)
        start = parameters(scheme.grouped(wide), weights, scheme, factors, dtype)
        rounding = compensated(wide, curvature, scheme, *start)
        for _ in range(self.sweeps):
            rounding = revisited(fitted(rounding, curvature, dtype), curvature)
        return rounding


def _products(layer: Layer) -> list[fx.Node]:
    """The products by a layer's weight; those of a head that are tied to embeddings among them."""
    return [node for node in layer.node.users if node.target is torch.ops.aten.linear.default]


def _why_nearest(layer: Layer) -> str:
    """What keeps a layer from being rounded by what one product reads."""
    shared = LINEAR in layer.roles
    return f"read by {len(layer.node.users)} layers" if shared else layer.called


def _stored(rounding: Rounding, parts: list[int], dtype: torch.dtype) -> list[QuantizedTensor]:
    """What is stored of a rounded matrix, so many rows a tensor."""
    scheme = rounding.scheme
    codes = rounding.codes.to(scheme.dtype).split(parts)
    scales = rounding.scale.to(scheme.scale_dtype(dtype)).split(parts)
    zeros = rounding.zeros.to(torch.int8).split(parts)
    return [
        QuantizedTensor.from_codes(scheme, dtype, code, scale, None if scheme.symmetric else zero)
        for code, scale, zero in zip(codes, scales, zeros, strict=True)
    ]


def _judged(tensor: QuantizedTensor, matrix: Tensor, moments: Tensor, note: str) -> Rounded:
    """A rounded matrix, with what that does to the matrix and to the layer's output."""
    wrong = tensor.dequantize().float() - matrix
    output = output_size(wrong, moments) / max(output_size(matrix, moments), 1e-30)
    error = float(wrong.norm() / matrix.norm().clamp_min(1e-30))
    return Rounded(tensor, error, f"; of its output {output:.4f}{note}")
