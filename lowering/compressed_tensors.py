"""The formats of compressed-tensors: which one a layer needs, what it stores, what a config says.

transformers and vLLM load them (github.com/vllm-project/compressed-tensors, `quant_config.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from planish.ir.activations import INT8, ActivationScheme, fake_quantize
from planish.ir.errors import PlanishError
from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor, QuantScheme, dequantize

ASYMMETRIC = (
    "zero points are packed as the compressed-tensors format asks, but transformers cannot load "
    "them beside a second scheme: with compressed-tensors 0.20 it expects their unpacked shape. "
    "Symmetric schemes load, and so does one asymmetric scheme alone."
)

IN_BFLOAT16 = (
    "transformers multiplies MXFP4 of experts, and beside a second scheme, out in bfloat16 (with "
    "compressed-tensors 0.20), which layers of another dtype do not take, and experts compute in: "
    "cast the model to bfloat16. Layers in MXFP4 alone load in any dtype."
)

WRITTEN_BITS = {
    1: (
        2,
        "weights of 1 bit, -1 or 1, are written in 2 bits each: compressed-tensors reads a "
        "single bit as -1 or 0.",
    ),
    7: (8, "weights of 7 bits are written in 8 bits each, which loaders have kernels for."),
}
"""Bits that the files give more room: how many, and what the user should know."""

aten = torch.ops.aten


class NotExpressible(PlanishError):
    """A Hugging Face checkpoint cannot hold this program."""


@dataclass(frozen=True)
class Form:
    """How a linear layer is quantized.

    Attributes:
        weight: how its weight is rounded.
        inputs: how what it reads is rounded; None if it is not.
    """

    weight: QuantScheme
    inputs: ActivationScheme | None = None

    @property
    def format(self) -> str:
        """The format's name: weights alone are packed, those whose inputs are rounded are not."""
        if self.weight.microscaled:
            return "mxfp4-pack-quantized"
        if self.weight.floating:
            return "naive-quantized" if self.inputs is None else "float-quantized"
        return "pack-quantized" if self.inputs is None else "int-quantized"


def forms_of(program: Program, original: Program) -> dict[str, Form]:
    """How each quantized layer is quantized, by its weight's name.

    Raises:
        NotExpressible: if a weight, other than a stack of experts, is read by anything but a linear
            layer, or was stored transposed, since only modules of class Linear are decompressed on
            loading; or if the formats have no words for how inputs are rounded.
    """
    plain = {
        str(node.target)
        for node in original.graph.find_nodes(op="get_attr")
        if {reader.target for reader in node.users} == {aten.linear.default}
    }
    forms = {}
    for node in program.nodes(dequantize):
        name, tensor = QuantizedTensor.read_by(node, program.tensors)
        if len(tensor.shape) > 2:  # a stack, of which the layout of files tells more
            forms[name] = Form(tensor.scheme)
            continue
        if name not in plain or not name.endswith(".weight"):
            raise NotExpressible(
                f"{name} is quantized, and not (only) the weight of a module of class Linear; the "
                "compressed-tensors format is for these."
            )
        forms[name] = Form(tensor.scheme, _inputs(name, tensor.scheme, node.users))
    for node in program.nodes(fake_quantize):
        for reader in node.users:
            if not _reads_quantized_weight(reader):
                raise NotExpressible(
                    f"what {reader.name} reads is rounded; the compressed-tensors formats are for "
                    "linear layers with quantized weights, and transformers loads experts of which "
                    "weights alone are quantized."
                )
    return forms


def _inputs(name: str, weight: QuantScheme, readers: Iterable[fx.Node]) -> ActivationScheme | None:
    """How what the readers of a weight read is rounded."""
    found = {(_rounding(reader.args[0]), _stored_scale(reader.args[0])) for reader in readers}
    if len(found) > 1:
        raise NotExpressible(f"{name} is read by layers whose inputs are rounded differently.")
    ((inputs, _),) = found
    fits = inputs is None or weight.floating != (inputs.dtype == INT8)
    if inputs is not None and (weight.microscaled or not fits):
        raise NotExpressible(
            f"{name} is {weight} and its input {inputs}; the compressed-tensors formats have "
            "integers on both sides, or 8-bit floats."
        )
    return inputs


def _rounding(value: Any) -> ActivationScheme | None:
    return ActivationScheme.read_by(value) if value.target is fake_quantize else None


def _stored_scale(value: Any) -> str | None:
    """The name of the tensor with the static scale of a rounded value."""
    if value.target is not fake_quantize or value.args[1] is None:
        return None
    return str(value.args[1].target)


def _reads_quantized_weight(reader: fx.Node) -> bool:
    weight: Any = reader.args[1] if reader.target is aten.linear.default else reader
    return bool(weight.target is dequantize)


def read_by_quantized(program: Program) -> set[str]:
    """The names of the tensors that stand for quantized weights and scales of inputs."""
    return {
        str(part.target)
        for node in program.nodes(dequantize, fake_quantize)
        for part in node.all_input_nodes
        if part.op == "get_attr"
    }


def parts_of(tensor: QuantizedTensor, form: Form, scale: Tensor | None) -> dict[str, Tensor]:
    """What a module of class Linear stores of its weight and of the scale of what it reads."""
    parts = _weight(tensor, form.format)
    # Layers that read one value share its scale; files hold one tensor for each.
    return parts if scale is None else parts | {"input_scale": scale.reshape(1).clone()}


def input_scale(weight: fx.Node, program: Program) -> Tensor | None:
    """The static scale of what the readers of a quantized weight read beside it, if it has one."""
    reader, *_ = weight.users
    stored = _stored_scale(reader.args[0])
    return None if stored is None else program.tensors[stored]


def _weight(tensor: QuantizedTensor, form: str) -> dict[str, Tensor]:
    if tensor.scheme.bits in WRITTEN_BITS:
        tensor = tensor.widened(WRITTEN_BITS[tensor.scheme.bits][0])
    packed = {f"weight{suffix}": part for suffix, part in tensor.tensors.items()}
    if form == "mxfp4-pack-quantized":
        return packed
    if form == "pack-quantized":
        return packed | {"weight_shape": torch.tensor(tensor.shape)}
    plain = {"weight": tensor.codes, "weight_scale": tensor.scale}
    return plain if tensor.zeros is None else plain | {"weight_zero_point": tensor.zeros}


def notes(forms: Mapping[str, Form], dtype: str) -> tuple[str, ...]:
    """What the user should know about loading these, in a model of a dtype."""
    kinds = set(forms.values())
    packed = [form for form in kinds if form.format == "pack-quantized"]
    mixed = len(kinds) > 1 and not all(form.weight.symmetric for form in packed)
    widened = sorted({form.weight.bits for form in kinds} & set(WRITTEN_BITS))
    experts = not all(name.endswith(".weight") for name in forms)
    small = any(form.weight.microscaled for form in kinds) and dtype != "bfloat16"
    narrow = small and (experts or len(kinds) > 1)
    return (
        (ASYMMETRIC,) * mixed
        + (IN_BFLOAT16,) * narrow
        + tuple(WRITTEN_BITS[bits][1] for bits in widened)
    )


def config_of(forms: Mapping[str, Form], dense: list[str]) -> dict[str, Any]:
    """What tells a loader which layers are quantized, and how: `quantization_config`.

    Args:
        forms: by what names the modules: a name, or a pattern for those of experts.
        dense: what names modules with weights that stay as they are.
    """
    groups: dict[Form, list[str]] = {}
    for name, form in forms.items():
        groups.setdefault(form, []).append(name)
    # With one scheme, the class is the target and the rest is ignored, which is how vLLM finds
    # the parts of fused layers; with several, each layer is named.
    alone = len(groups) == 1
    formats = {form.format for form in groups}
    # Where transformers keeps layers packed, it expects unpacked zero points, which the format does
    # not have, and models that look at a layer's weight fail. Multiplied out on loading, all is
    # well; but that path takes all layers for those of one scheme, and forgets rounded inputs.
    loading = {"dequantize": True} if alone and all(form.inputs is None for form in groups) else {}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": {
                "targets": ["Linear"] if alone else sorted(names),
                "weights": _weight_arguments(form.weight),
                "input_activations": _input_arguments(form.inputs),
                "output_activations": None,
                "format": form.format,
            }
            for number, (form, names) in enumerate(groups.items())
        },
        "ignore": dense,
        "kv_cache_scheme": None,
        **loading,
    }


def _weight_arguments(scheme: QuantScheme) -> dict[str, Any]:
    exponents = {"scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
    return {
        "num_bits": WRITTEN_BITS.get(scheme.bits, (scheme.bits,))[0],
        "type": "float" if scheme.floating else "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if scheme.group_size is None else "group",
        "group_size": scheme.group_size,
        "dynamic": False,
        **(exponents if scheme.microscaled else {}),
    }


def _input_arguments(scheme: ActivationScheme | None) -> dict[str, Any] | None:
    if scheme is None:
        return None
    return {
        "num_bits": 8,
        "type": "int" if scheme.dtype == INT8 else "float",
        "symmetric": True,
        "strategy": "token" if scheme.per_token else "tensor",
        "dynamic": scheme.dynamic,
    }
