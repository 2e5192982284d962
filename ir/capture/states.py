"""What the layers of a language model keep from call to call, as named tensors in and out.

An attention layer keeps keys and values, which grow with every position. A selective-scan layer
keeps the last inputs of its convolution and the state of its recurrence, whose sizes are fixed. A
model may have layers of both kinds. Names are the ones that ONNX exports of such models use:
`past_key_values.N.key`, `past_conv.N`, `past_ssm.N` in, `present.N.key`, `present_conv.N`,
`present_ssm.N` out, so that a runtime feeds back `present*` as `past*`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from planish.ir.capture.export import CaptureFailed
from planish.ir.capture.mamba import mixers_of
from planish.ir.program import Input
from planish.ir.sizes import Extent

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Kind:
    """One kind of tensor that a layer keeps.

    Attributes:
        attribute: of the cache's layer, which holds the tensor.
        past: the name of the input for layer N, with `{}` for N.
        present: the name of the output.
        grows: the dimension that counts positions, if the tensor grows.
    """

    attribute: str
    past: str
    present: str
    grows: int | None = None


KINDS = (
    Kind("keys", "past_key_values.{}.key", "present.{}.key", grows=2),
    Kind("values", "past_key_values.{}.value", "present.{}.value", grows=2),
    Kind("conv", "past_conv.{}", "present_conv.{}"),
    Kind("ssm", "past_ssm.{}", "present_ssm.{}"),
)


@dataclass(frozen=True)
class State:
    """One tensor that one layer keeps: what kind, which layer, and the input it comes in as."""

    kind: Kind
    layer: int
    input: Input

    @property
    def output(self) -> str:
        """The name under which its next value goes out."""
        return self.kind.present.format(self.layer)


def states_of(model: PreTrainedModel) -> list[State]:
    """What every layer keeps, layer by layer, seen in one run over two tokens.

    Raises:
        CaptureFailed: if a layer keeps a state of a kind that is not in `KINDS`.
    """
    _refuse_unknown_states(model)
    with torch.no_grad():
        _, layers = run_with_states(model, {"input_ids": torch.zeros(1, 2, dtype=torch.int64)})
    return [
        State(kind, number, _input(kind, number, tensor))
        for number, layer in enumerate(layers)
        for kind in KINDS
        if (tensor := getattr(layer, kind.attribute, None)) is not None
    ]


def _input(kind: Kind, layer: int, tensor: Tensor) -> Input:
    shape: list[Extent] = ["B", *tensor.shape[1:]]
    if kind.grows is not None:
        shape[kind.grows] = "P"
    return Input(kind.past.format(layer), tensor.dtype, tuple(shape))


def run_with_states(
    model: PreTrainedModel, inputs: dict[str, Any], states: Iterable[tuple[State, Tensor]] = ()
) -> tuple[Tensor, Sequence[Any]]:
    """The logits of a call that begins with `states`, and the cache's layers after it."""
    cache = _cache(model)
    for state, tensor in states:
        while len(cache.layers) <= state.layer:
            cache.layers.append(cache.layer_class_to_replicate())
        layer = cache.layers[state.layer]
        setattr(layer, state.kind.attribute, tensor)
        layer.is_initialized = True
    result = model(**inputs, **{_cache_argument(model): cache}, use_cache=True)
    return result.logits, cache.layers


def _cache_argument(model: PreTrainedModel) -> str:
    takes = inspect.signature(model.forward).parameters
    for name in ("past_key_values", "cache_params"):
        if name in takes:
            return name
    raise CaptureFailed(
        f"{type(model).__name__} takes neither past_key_values nor cache_params, so its state "
        "cannot be given from outside. Planish captures decoders that keep their state in "
        "transformers' DynamicCache."
    )


def _cache(model: PreTrainedModel) -> Any:
    """An empty cache in which every attention layer keeps all positions.

    A selective-scan layer gets transformers' class for layers without a length; what it keeps is
    put on it as the attributes that `KINDS` names.
    """
    from transformers.cache_utils import (  # noqa: PLC0415  (slow to import)
        DynamicCache,
        DynamicLayer,
        LinearAttentionLayer,
    )

    cache = DynamicCache()
    recurrent = mixers_of(model)
    for number in range(max(recurrent, default=-1) + 1):
        cache.layers.append(LinearAttentionLayer() if number in recurrent else DynamicLayer())
    return cache


def _refuse_unknown_states(model: PreTrainedModel) -> None:
    from transformers.cache_utils import DynamicCache, LinearAttentionLayer  # noqa: PLC0415

    known = mixers_of(model)
    for number, layer in enumerate(DynamicCache(config=model.config).layers):
        if number not in known and isinstance(layer, LinearAttentionLayer):
            raise CaptureFailed(
                f"layer {number} of {type(model).__name__} keeps a recurrent state of a kind that "
                "Planish does not know; known are keys and values of attention, and the mixers "
                "of Mamba and Mamba-2."
            )
