"""Rounding what linear layers read: each token to a scale of its own, or all to a stored one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, fx

from planish.ir.activations import INT8, ActivationScheme, fake_quantize, reach
from planish.ir.program import Program
from planish.ir.quant import FP8
from planish.passes.contract import OPTIONS, Contract, LongPass, NotApplicable
from planish.passes.inputs import samples_of
from planish.passes.layers import (
    EMBEDDING,
    EXPERTS,
    HEAD,
    LINEAR,
    PRODUCTS,
    Layer,
    Patterns,
    layers_of,
    noted,
    unmatched,
)
from planish.passes.sequential import walk
from planish.passes.work import UNSEEN, Work

LEFT = "whose inputs are not rounded"
"""What is said of the weights of experts."""


@dataclass(frozen=True, config=OPTIONS)
class QuantizeActivations(LongPass):
    """Round what linear layers read to 8 bits, so that integer or FP8 kernels can multiply it.

    Meant for layers whose weights have been quantized, per channel where the target's kernels
    are to be used. Scales are symmetric. By default each token has its own, found in every run:
    no calibration is needed, and requests in one batch stay apart.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="may break")

    type: Literal["int", "float"] = "int"
    """Whether codes are integers (int8) or floating-point numbers (FP8, E4M3)."""

    dynamic: bool = True
    """Whether scales are found in every run. Otherwise calibration samples fix one scale for each
    value, and what is larger than all of them is clipped."""

    granularity: Literal["token", "tensor"] = "token"
    """What shares a scale: the values of one token, or the whole tensor. Dynamic scales of whole
    tensors let requests in one batch change each other's answers, which `isolation: enforce`
    refuses. Static scales are always of the whole tensor."""

    targets: Patterns = ("Linear",)
    """Which layers: "Linear" for all linear layers, names, globs, or patterns after "re:"."""

    ignore: Patterns = ()
    """Which of these to leave alone."""

    lm_head: bool = False
    """Whether to round what the projection that makes the logits reads, too."""

    experts: bool = False
    """Whether to round what experts read, too. No Hugging Face checkpoint can hold that."""

    @property
    def scheme(self) -> ActivationScheme:
        """How each value is rounded."""
        dtype = INT8 if self.type == "int" else FP8
        return ActivationScheme(dtype, self.dynamic, self.dynamic and self.granularity == "token")

    @property
    def learns(self) -> bool:
        """Only static scales come of samples."""
        return not self.dynamic

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Round what each chosen layer reads; layers that read one value read one rounding of it.

        Raises:
            NotApplicable: if there is no linear layer, a pattern matches nothing, what a layer
                reads is rounded already, or static scales are asked for without samples.
        """
        with program.edit() as edit:
            read_by = self._chosen(layers_of(edit.graph, program, packed=True), program)
            stored = {} if self.dynamic else self._calibrated(program, read_by, work)
            groups: dict[Any, list[fx.Node]] = {}
            for reader in filter(read_by.__contains__, edit.graph.nodes):
                groups.setdefault(reader.args[0], []).append(reader)
            for source, readers in groups.items():
                names = [read_by[reader].names[0] for reader in readers]
                # A weight that several layers share has several inputs, each with its own scale.
                own = f"{names[0]}.input_scale"
                own = f"{own}.{readers[0].name}" if own in edit.tensors else own
                scale = edit.read(own, stored[str(source)], before=readers[0]) if stored else None
                given = scale, self.scheme.dtype, self.scheme.per_token
                rounded = edit.call(fake_quantize, source, *given, before=readers[0])
                for reader in readers:
                    reader.update_arg(0, rounded)
                edit.record(source, f"{', '.join(names)}: {self.scheme}")
        if self.experts:
            return edit.program
        return noted(edit.program, program, self.targets, self.ignore, LEFT, packed=True)

    def _chosen(self, layers: Sequence[Layer], program: Program) -> dict[fx.Node, Layer]:
        """The products of the chosen layers."""
        called = "quantize_activations"
        if not any(layer.roles & {LINEAR, EXPERTS} for layer in layers):
            raise NotApplicable(f"{called}: {program.source.name} has no linear layer.")
        if problem := unmatched((*self.targets, *self.ignore), layers):
            raise NotApplicable(f"{called}: {problem}")
        asked = {LINEAR, *[HEAD] * self.lm_head, *[EXPERTS] * self.experts}
        chosen = {
            reader: layer
            for layer in layers
            if layer.roles & asked
            and layer.roles <= asked | {EMBEDDING}
            and layer.matches(self.targets)
            and not layer.matches(self.ignore)
            for reader in layer.node.users
            if reader.target in {torch.ops.aten.linear.default, *PRODUCTS}
        }
        if not chosen:
            raise NotApplicable(
                f"{called}: targets and ignore leave no linear layer of {program.source.name}; "
                "routers and embeddings are not for this pass, language-model heads only with "
                "lm_head: true, and experts only with experts: true."
            )
        for reader, layer in chosen.items():
            if reader.args[0].target is fake_quantize:  # type: ignore[union-attr]
                raise NotApplicable(
                    f"{called}: what {layer.names[0]} reads is rounded already; name it under "
                    "ignore."
                )
        return chosen

    def _calibrated(
        self, program: Program, read_by: Mapping[fx.Node, Layer], work: Work
    ) -> dict[str, Tensor]:
        """The scale of what each product reads, by that value's name."""
        if not program.has_data:
            return {str(reader.args[0]): torch.empty((), device="meta") for reader in read_by}
        names = {reader.name for reader in read_by}
        samples = samples_of(program, "quantize_activations")
        products = [node for node in program.graph.nodes if node.name in names]
        found: dict[str, Tensor] = {}

        for visit in walk(program, samples, products, tell=work.tell):
            source = str(visit.layers[0].args[0])
            largest = torch.stack([x.abs().amax() for x in visit.inputs]).amax().float()
            if not bool(torch.isfinite(largest)):
                raise NotApplicable(
                    f"quantize_activations: {source} is not finite on the calibration samples, "
                    "so it has no static scale; leave dynamic at true or mend the samples."
                )
            scale = largest / reach(self.scheme.dtype)
            found[source] = scale if scale > 0 else torch.ones(())
        return found
