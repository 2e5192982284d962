"""Language models: one graph for prefill and decode, with the state as inputs and outputs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from planish.ir.capture.experts import dense_experts
from planish.ir.capture.export import Signature, export_program
from planish.ir.capture.mamba import functional_mixers
from planish.ir.capture.states import State, run_with_states, states_of
from planish.ir.program import Input, Program, Sample, Source
from planish.ir.sizes import Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = Size("B", 5, long="batch_size")
LENGTH = Size("T", 13, long="sequence_length")
PAST = Size("P", 18, min=0, long="past_sequence_length")


def capture_causal(model: PreTrainedModel, source: Source) -> Program:
    """Capture a decoder-only model of transformers.

    Inputs are `input_ids` and `position_ids` i64[B, T], `attention_mask` i64[B, P+T] and for each
    layer what it keeps from call to call (`planish.ir.capture.states`): an attention layer
    `past_key_values.N.key` and `.value` [B, K, P, D], a Mamba layer `past_conv.N` [B, D, K-1] and
    `past_ssm.N`, all zeros at the start. Outputs are `logits` [B, T, V] and the next values,
    `present.N.key` and so on. With P = 0 the same graph prefills. In a model without attention
    there is no P, and `attention_mask` [B, T] tells padding in the new tokens only.

    Raises:
        planish.ir.capture.export.CaptureFailed: if the model cannot be exported.
    """
    with functional_mixers(model), dense_experts(model):
        states = states_of(model)
        signature = _signature(model, states)
        vocabulary: Any = model.get_input_embeddings().num_embeddings
        plain = [spec.name for spec in signature.inputs[: -len(states)]]
        program = export_program(
            _WithStates(model, plain, states),
            list(example_inputs(signature, vocabulary).values()),
            signature,
            source,
            prefix="model.",
        )
    if isinstance(next(model.parameters()), FakeTensor):
        return program  # nothing can be computed
    return dataclasses.replace(program, samples=_samples(program, vocabulary, states))


def _samples(program: Program, vocabulary: int, states: Sequence[State]) -> tuple[Sample, ...]:
    """Random tokens without a past, and more tokens over the state that those left.

    A random state would not do: a model takes far larger steps from one than from its own, and
    errors measured there say nothing.
    """
    signature = Signature(program.inputs, program.outputs, program.sizes)
    first = example_inputs(signature, vocabulary, {"B": 2, "T": 9, "P": 0})
    for state in states:
        first[state.input.name].zero_()
    left = program.run(**first)
    more = example_inputs(signature, vocabulary, {"B": 2, "T": 3, "P": 9}, seed=1)
    return first, more | {state.input.name: left[state.output] for state in states}


def _signature(model: PreTrainedModel, states: Sequence[State]) -> Signature:
    grows = any(state.kind.grows is not None for state in states)
    inputs = [
        Input("input_ids", torch.int64, ("B", "T")),
        Input("attention_mask", torch.int64, ("B", "P+T" if grows else "T")),
        Input("position_ids", torch.int64, ("B", "T")),
    ]
    if "position_ids" not in inspect.signature(model.forward).parameters:
        inputs.pop()
    return Signature(
        (*inputs, *(state.input for state in states)),
        ("logits", *(state.output for state in states)),
        (BATCH, LENGTH, PAST) if grows else (BATCH, LENGTH),
    )


def example_inputs(
    signature: Signature, vocabulary: int, sizes: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Random tokens over a random state, the first row left-padded by one position."""
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
            positions = torch.arange(values["T"]) + values.get("P", 0)
            made[spec.name] = positions.expand(shape).contiguous()
        else:
            made[spec.name] = torch.randn(shape, generator=generator).to(spec.dtype) / 2
    return made


class _WithStates(nn.Module):
    """A language model whose state is flat tensors, in and out."""

    def __init__(self, model: PreTrainedModel, plain: list[str], states: Sequence[State]) -> None:
        super().__init__()
        self.model = model
        self._plain = plain
        self._states = states

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        plain = dict(zip(self._plain, tensors, strict=False))
        given = zip(self._states, tensors[len(plain) :], strict=True)
        logits, layers = run_with_states(self.model, plain, given)
        kept = (getattr(layers[state.layer], state.kind.attribute) for state in self._states)
        return (logits, *kept)
