"""Training a program's weights towards what another program gives, step by step.

Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2,
for the loss; Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), section 4, for
changes of low rank; Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2017), AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from planish.ir.carried import pairs
from planish.ir.program import Program, Sample
from planish.passes.blocks import find_blocks
from planish.passes.fisher import LOGITS, Differentiable
from planish.passes.products import multiplies_bfloat16

aten = torch.ops.aten

_ROWS = 64
"""Rows of logits that are compared at once: few enough that intermediate results stay in caches,
and that memory for them is had once and not from the system each time."""

WARM_UP, FLOOR = 0.05, 0.1
"""The share of steps in which the learning rate rises, and the share of it that is left in the
end."""


class Student:
    """Weights in training: all of each, or a change of low rank of it, in float32."""

    def __init__(
        self,
        program: Program,
        names: Sequence[str],
        rank: int | None,
        seed: int,
        temperature: float = 1.0,
        hidden: float = 0.0,
        states: Mapping[str, str] = {},
    ) -> None:
        """Begin with the weights as they are.

        Args:
            program: stays as it is.
            names: of the tensors that are trained.
            rank: of their changes; None to train all numbers.
            seed: of the first factor of each change; the other begins as zeros.
            temperature: by which logits are divided before they are compared.
            hidden: what hidden states count, beside the outputs.
            states: hidden states that are compared, by the names of the nodes that give them.
        """
        self.program = program
        self.rank = rank
        self._temperature = temperature
        self._hidden = hidden
        self._states = states
        chance = torch.Generator().manual_seed(seed)
        self.parameters: dict[str, Tensor] = {}
        for name in names:
            tensor = program.tensors[name]
            if rank is None:
                self.parameters[name] = tensor.float().clone()
            else:
                rows, columns = tensor.shape
                down = torch.randn(rank, columns, generator=chance) / math.sqrt(columns)
                self.parameters[f"{name} down"] = down
                self.parameters[f"{name} up"] = torch.zeros(rows, rank)
        self._names = list(names)
        for parameter in self.parameters.values():
            parameter.requires_grad_()

    def weights(self) -> dict[str, Tensor]:
        """The trained tensors as they are now, in the program's dtypes."""
        found = {}
        for name in self._names:
            tensor = self.program.tensors[name]
            if self.rank is None:
                found[name] = self.parameters[name].to(tensor.dtype)
            else:
                change = self.parameters[f"{name} up"] @ self.parameters[f"{name} down"]
                found[name] = (tensor.float() + change).to(tensor.dtype)
        return found

    def loss(self, sample: Sample, expected: Said) -> float:
        """How far what is said is from what is expected, a mean over rows."""
        with torch.no_grad():
            said = self._run(sample)
        return self._apart(said, expected, sample, wants_gradient=False)[0]

    def backward(self, sample: Sample, expected: Said, share: float = 1.0) -> float:
        """The same, adding so large a share of its gradients to those of the parameters."""
        with torch.enable_grad():
            said = self._run(sample)
            loss, gradients = self._apart(said, expected, sample)
            reached = [(value, slope) for value, slope in gradients if value.requires_grad]
            torch.autograd.backward(
                [value for value, _ in reached], [slope.mul_(share) for _, slope in reached]
            )
        return loss

    def _run(self, sample: Sample) -> Said:
        tensors = {**self.program.tensors, **self.weights()}
        return _said(self.program, tensors, sample, self._states)

    def _apart(
        self, said: Said, expected: Said, sample: Sample, *, wants_gradient: bool = True
    ) -> tuple[float, list[tuple[Tensor, Tensor]]]:
        """The loss, and values with its gradients with respect to them."""
        loss, slopes = apart(
            said.outputs, expected.outputs, sample, self._temperature, wants_gradient=wants_gradient
        )
        gradients = [(said.outputs[name], slope) for name, slope in slopes.items()]
        for name, state in said.hidden.items():
            far, slope = moved(state, expected.hidden[name], sample)
            loss += self._hidden / len(said.hidden) * far
            gradients.append((state, slope.mul_(self._hidden / len(said.hidden))))
        return loss, gradients


class Said(NamedTuple):
    """What a program gives for a sample.

    Attributes:
        outputs: without states such as caches.
        hidden: hidden states [..., T, K] that were asked for.
    """

    outputs: dict[str, Tensor]
    hidden: dict[str, Tensor]


def said(program: Program, sample: Sample, states: Mapping[str, str]) -> Said:
    """What a program gives for a sample, without gradients.

    Args:
        program: stays as it is.
        sample: for it.
        states: names of hidden states, by those of the nodes that give them.
    """
    with torch.no_grad():
        return _said(program, program.tensors, sample, states)


def _said(
    program: Program, tensors: Mapping[str, Tensor], sample: Sample, states: Mapping[str, str]
) -> Said:
    hidden: dict[str, Tensor] = {}
    watched = {node: partial(hidden.__setitem__, name) for node, name in states.items()}
    values = Differentiable(program.graph, tensors, watched, _linear()).run(
        *(sample[spec.name] for spec in program.inputs), enable_io_processing=False
    )
    carried = set(pairs((spec.name for spec in program.inputs), program.outputs).values())
    outputs = dict(zip(program.outputs, values, strict=True))
    return Said({name: one for name, one in outputs.items() if name not in carried}, hidden)


def _linear() -> Callable[..., Tensor]:
    """What linear layers are computed by: in bfloat16 where the processor gains from it.

    Weights, sums of products, and all between layers stay float32: Micikevicius et al., "Mixed
    Precision Training" (2018), section 3; bfloat16 has the range of float32, so no loss is scaled.
    """
    return linear_in_bfloat16 if multiplies_bfloat16() else aten.linear.default


def linear_in_bfloat16(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer whose factors are rounded, on the way back too; it gives what dtype x has."""
    result: Tensor = aten.linear.default(x.bfloat16(), weight.bfloat16()).to(x.dtype)
    return result if bias is None else result + bias


def shared_states(program: Program, original: Program) -> tuple[dict[str, str], dict[str, str]]:
    """Hidden states that two programs have in common: nodes of each, and the states' names.

    They are those of residual streams behind each block that both have, where they are of one
    width.
    """
    mine, theirs = (
        {one.name: one.after for one in find_blocks(each)} for each in (program, original)
    )
    both = [name for name, node in mine.items() if name in theirs and _like(node, theirs[name])]
    first = {mine[name].name: name for name in both}
    return first, {theirs[name].name: name for name in both}


def _like(one: fx.Node, other: fx.Node) -> bool:
    return bool(one.meta["val"].shape[-1] == other.meta["val"].shape[-1])


def moved(state: Tensor, expected: Tensor, sample: Sample) -> tuple[float, Tensor]:
    """‖h - h₀‖² / ‖h₀‖², the mean over rows that are no padding, and its gradient.

    Each row counts as a share of its own size, since single tokens are hundreds of times as large
    as the others.
    """
    counts = _counted(sample, state)
    size = expected.float().square().sum(-1).clamp_min(1e-30) * counts.sum().clamp_min(1)
    wrong = state.detach().float() - expected.float()
    shares = (counts / size)[..., None]
    loss = float((wrong.square() * shares).sum())
    return loss, (2 * wrong * shares).to(state.dtype)


def apart(
    outputs: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    sample: Sample,
    temperature: float,
    *,
    wants_gradient: bool = True,
) -> tuple[float, dict[str, Tensor]]:
    """How far outputs are from what is expected, and the gradients by their names.

    With logits, temperature² · KL(expected ‖ outputs) of the softmax at that temperature, in nats,
    the mean over rows that are no padding. Without, ‖y - y₀‖² / ‖y₀‖² over all outputs that are no
    states.
    """
    if LOGITS in outputs:
        return _divergence(outputs[LOGITS], expected[LOGITS], sample, temperature, wants_gradient)
    names = [name for name, one in expected.items() if one.is_floating_point() and name in outputs]
    size = sum(float(expected[name].double().square().sum()) for name in names) or 1.0
    differences = {name: (outputs[name].detach() - expected[name]).float() for name in names}
    loss = sum(float(one.double().square().sum()) for one in differences.values()) / size
    gradients = {
        name: (2 / size * one).to(outputs[name].dtype) for name, one in differences.items()
    }
    return loss, gradients


def _divergence(
    logits: Tensor, expected: Tensor, sample: Sample, temperature: float, wants_gradient: bool
) -> tuple[float, dict[str, Tensor]]:
    """The divergence of logits [..., V], row by row, and its gradient."""
    rows, wanted = logits.detach().flatten(0, -2), expected.flatten(0, -2)
    counts = _counted(sample, logits).flatten()
    number = float(counts.sum()) or 1.0
    gradient = torch.zeros_like(rows) if wants_gradient else None
    loss = 0.0
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        mine = (rows[part].float() / temperature).log_softmax(-1)
        theirs = (wanted[part].float() / temperature).log_softmax(-1)
        each = (theirs.exp() * (theirs - mine)).sum(-1) * counts[part]
        loss += temperature**2 * float(each.double().sum()) / number
        if gradient is not None:
            slope = (mine.exp() - theirs.exp()) * counts[part, None]
            gradient[part] = (slope * (temperature / number)).to(rows.dtype)
    return loss, {} if gradient is None else {LOGITS: gradient.view_as(logits)}


def _counted(sample: Sample, logits: Tensor) -> Tensor:
    """1 for each row of logits that is no padding, float32."""
    shape = logits.shape[:-1]
    mask = sample.get("attention_mask")
    if mask is None or "input_ids" not in sample or sample["input_ids"].shape != shape:
        return torch.ones(shape)
    return mask[:, -shape[-1] :].float()


def rate(done: float) -> float:
    """The share of the learning rate at a share of the steps: a rise, then a cosine's fall."""
    if done < WARM_UP:
        return (done + 0.01) / (WARM_UP + 0.01)
    fallen = (done - WARM_UP) / (1 - WARM_UP)
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * min(fallen, 1.0))) / 2


def states_of(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """What an optimizer remembers of each parameter, flat, to be kept in a file."""
    return {
        f"{key} of {name}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }


def restore(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], kept: Mapping[str, Tensor]
) -> None:
    """Put back parameters and what `states_of` gave."""
    for name, parameter in parameters.items():
        parameter.data.copy_(kept[name])
        keys = {one.removesuffix(f" of {name}") for one in kept if one.endswith(f" of {name}")}
        optimizer.state[parameter] = {key: kept[f"{key} of {name}"].clone() for key in keys}


def trainable(program: Program, fixed: Iterable[str], *, matrices: bool) -> list[str]:
    """The tensors that may be trained: of floating point and two or more dimensions.

    Args:
        program: whose they are.
        fixed: names of tensors that stay, such as embeddings.
        matrices: whether to leave out those of three and more.
    """
    left = set(fixed)
    return [
        name
        for name, tensor in program.tensors.items()
        if tensor.is_floating_point()
        and name not in left
        and (tensor.dim() == 2 if matrices else tensor.dim() > 1)
    ]
