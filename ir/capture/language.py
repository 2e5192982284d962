"""Language models: one graph for prefill and decode, with the KV cache as inputs and outputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from planish.ir.capture.export import Signature, export_program
from planish.ir.program import Input, Program, Source
from planish.ir.sizes import Size

BATCH = Size("B", 5, long="batch_size")
LENGTH = Size("T", 13, long="sequence_length")
PAST = Size("P", 18, min=0, long="past_sequence_length")


def capture_causal(model: nn.Module, source: Source) -> Program:
    """Capture a decoder-only model of transformers.

    Inputs are `input_ids` and `position_ids` i64[B, T], `attention_mask` i64[B, P+T] and for each
    layer `past_key_values.N.key` and `.value` [B, K, P, D]; outputs are `logits` [B, T, V] and
    the extended `present.N.key` and `.value`. With P = 0 the same graph prefills.

    Raises:
        planish.ir.capture.export.CaptureFailed: if the model cannot be exported.
    """
    caches = _cache_shapes(model)
    inputs = [
        Input("input_ids", torch.int64, ("B", "T")),
        Input("attention_mask", torch.int64, ("B", "P+T")),
        Input("position_ids", torch.int64, ("B", "T")),
    ]
    if "position_ids" not in inspect.signature(model.forward).parameters:
        inputs.pop()
    for layer, pair in enumerate(caches):
        for kind, (heads, width, dtype) in zip(("key", "value"), pair, strict=True):
            name = f"past_key_values.{layer}.{kind}"
            inputs.append(Input(name, dtype, ("B", heads, "P", width)))
    outputs = [
        name.name.replace("past_key_values", "present")
        for name in inputs[len(inputs) - 2 * len(caches) :]
    ]
    signature = Signature(tuple(inputs), ("logits", *outputs), (BATCH, LENGTH, PAST))
    vocabulary = model.get_input_embeddings().num_embeddings
    return export_program(
        _WithCache(model, [spec.name for spec in inputs]),
        list(example_inputs(signature, vocabulary).values()),
        signature,
        source,
        prefix="model.",
        samples=[example_inputs(signature, vocabulary, {"B": 2, "T": 7, "P": 3})],
    )


def _cache_shapes(model: nn.Module) -> list[list[tuple[int, int, torch.dtype]]]:
    """For each layer, heads, width and dtype of its keys and of its values, seen in one run."""
    from transformers import DynamicCache  # noqa: PLC0415  (slow to import)

    tokens = torch.zeros(1, 2, dtype=torch.int64)
    with torch.no_grad():
        cache = model(input_ids=tokens, past_key_values=DynamicCache(), use_cache=True)
    return [
        [(kept.shape[1], kept.shape[3], kept.dtype) for kept in (layer.keys, layer.values)]
        for layer in cache.past_key_values.layers
    ]


def example_inputs(
    signature: Signature, vocabulary: int, sizes: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Random tokens over a random cache, the first row left-padded by one position."""
    from planish.ir.sizes import evaluate  # noqa: PLC0415

    values = dict(sizes or {size.name: size.example for size in signature.sizes})
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for spec in signature.inputs:
        shape = [evaluate(extent, values) for extent in spec.shape]
        if spec.name.endswith("input_ids"):
            made[spec.name] = torch.randint(vocabulary, shape, generator=generator)
        elif spec.name == "attention_mask":
            made[spec.name] = torch.ones(shape, dtype=spec.dtype)
            made[spec.name][0, 0] = 0
        elif spec.name == "token_type_ids":
            made[spec.name] = torch.randint(2, shape, generator=generator)
        elif spec.name == "position_ids":
            positions = torch.arange(values["P"], values["P"] + values["T"])
            made[spec.name] = positions.expand(shape).contiguous()
        else:
            made[spec.name] = torch.randn(shape, generator=generator).to(spec.dtype) / 2
    return made


class _WithCache(nn.Module):
    """A language model whose cache is flat tensors, in and out."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self._plain = [name for name in names if not name.startswith("past_key_values")]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        from transformers import DynamicCache  # noqa: PLC0415

        plain: dict[str, Any] = dict(zip(self._plain, tensors, strict=False))
        flat = tensors[len(self._plain) :]
        cache = DynamicCache()
        for layer in range(len(flat) // 2):
            cache.update(flat[2 * layer], flat[2 * layer + 1], layer)
        result = self.model(**plain, past_key_values=cache, use_cache=True)
        kept = [part for layer in cache.layers for part in (layer.keys, layer.values)]
        return (result.logits, *kept)
