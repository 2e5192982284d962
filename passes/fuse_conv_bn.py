"""Fold batch norms into the convolution or linear layer before them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Any, ClassVar

import torch
from pydantic import field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, fx

from planish.ir.edit import Edit
from planish.ir.program import Program
from planish.ir.quant import dequantize
from planish.ir.shapes import describe
from planish.ir.text import target_text
from planish.passes.contract import OPTIONS, Contract, NotApplicable, Pass
from planish.passes.layers import check_pattern, matches

aten = torch.ops.aten

_NORMS = (
    aten.batch_norm.default,
    aten._native_batch_norm_legit_no_training.default,
    aten._native_batch_norm_legit.no_stats,
)
_TRANSPOSED = (
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
)
_LAYERS = (
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
    *_TRANSPOSED,
    aten.convolution.default,
    aten.linear.default,
)


@dataclass(frozen=True, config=OPTIONS)
class FuseConvBn(Pass):
    """Fold each batch norm into the convolution or linear layer whose output it normalizes.

    In evaluation mode a batch norm maps each channel y to scale * (y - mean) + beta, where
    scale = gamma / sqrt(variance + eps). A layer y = W x + b before it takes that map into its
    own tensors: W becomes scale * W, and b becomes scale * (b - mean) + beta, with one scale for
    each output channel (Jacob et al., 2018, arXiv:1712.05877, section 3.2). Computed in float64
    and rounded once.

    Convolutions of one to three dimensions, transposed ones and linear layers, with or without
    groups and biases. A layer without a bias gets one beside its weight. A pair that cannot be
    folded is refused, and so is a program without any.
    """

    contract: ClassVar[Contract] = Contract(numerics="exact", isolation="kept")

    ignore: tuple[str, ...] = ()
    """Which layers to leave with their batch norms: names such as "features.0", globs, or regular
    expressions after "re:", matched from the start."""

    @field_validator("ignore")
    @classmethod
    def _valid_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            check_pattern(pattern)
        return patterns

    def __call__(self, program: Program) -> Program:
        """Fold every pair that `ignore` does not name.

        Raises:
            NotApplicable: if no batch norm follows a layer directly, or a pair cannot be folded
                because something else reads its weight, its bias or its output, because one of
                these or the statistics are computed, or because the channels do not match.
        """
        pairs = list(_pairs(program.graph))
        if not pairs:
            raise NotApplicable(f"fuse_conv_bn: {_why_none(program)}")
        self._check_ignore(pairs)
        readers = _readers(program.graph)
        for pair in self._chosen(pairs):
            if found := _obstacle(pair, readers):
                raise NotApplicable(
                    f"fuse_conv_bn: {describe(pair.layer)}: {found} name {pair.name!r} under "
                    "ignore."
                )
        with program.edit() as edit:
            for pair in self._chosen(_pairs(edit.graph)):
                _fold(edit, pair)
        return edit.program

    def _chosen(self, pairs: Iterable[_Pair]) -> list[_Pair]:
        return [pair for pair in pairs if not any(map(pair.matches, self.ignore))]

    def _check_ignore(self, pairs: Sequence[_Pair]) -> None:
        for pattern in self.ignore:
            if not any(pair.matches(pattern) for pair in pairs):
                raise NotApplicable(
                    f"fuse_conv_bn: {pattern!r} under ignore matches none of the {len(pairs)} "
                    f"layers that a batch norm follows; they have names like {pairs[0].name!r}."
                )
        if not self._chosen(pairs):
            raise NotApplicable(
                f"fuse_conv_bn: ignore names all {len(pairs)} layers that a batch norm follows, "
                "so there is nothing to fold; leave this pass out."
            )


@plain_dataclass(frozen=True)
class _Pair:
    """A layer, the batch norm that reads it, and the node that is the norm's result."""

    layer: fx.Node
    norm: fx.Node
    result: fx.Node

    @property
    def name(self) -> str:
        """The layer as users name it: its module, or its node where it has none."""
        return str(self.layer.meta.get("module") or self.layer.name)

    def matches(self, pattern: str) -> bool:
        """Whether a pattern names the layer or its weight."""
        weight = str(_arguments(self.layer)["weight"].target)
        return any(matches(pattern, one) for one in (self.name, weight))


def _pairs(graph: fx.Graph) -> Iterator[_Pair]:
    for norm in _norms(graph):
        layer = _arguments(norm)["input"]
        if layer.target in _LAYERS:
            yield _Pair(layer, norm, _result(norm))


def _result(norm: fx.Node) -> fx.Node:
    """The normalized tensor: some forms also return the statistics, which inference never reads."""
    if isinstance(norm.meta["val"], Tensor):
        return norm
    return next(user for user in norm.users if user.args[1] == 0)


def _norms(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target in _NORMS]


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operator by the names of its schema, however they were given."""
    schema = node.target._schema  # type: ignore[union-attr]
    defaults = {
        spec.name: spec.default_value for spec in schema.arguments if spec.has_default_value()
    }
    names = (spec.name for spec in schema.arguments)
    return {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}


def _readers(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """For each tensor, the nodes that take it as an argument."""
    readers: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            readers.setdefault(str(node.target), []).extend(node.users)
    return readers


def _why_none(program: Program) -> str:
    norms = _norms(program.graph)
    if not norms:
        return "the program has no batch norm, so there is nothing to fold; leave this pass out."
    before = _arguments(norms[0])["input"]
    source = "an input" if before.op == "placeholder" else target_text(before.target)
    return (
        "no batch norm follows a convolution or linear layer directly; "
        f"{describe(norms[0])} normalizes %{before.name} ({source}). Past anything but such a "
        "layer, folding would change the function; leave this pass out."
    )


def _obstacle(pair: _Pair, readers: Mapping[str, list[fx.Node]]) -> str | None:
    """Why a pair cannot be folded, and what would help besides `ignore`; None if it can."""
    layer, norm = _arguments(pair.layer), _arguments(pair.norm)
    if norm.get("training", False) or "running_mean" not in norm:
        return (
            f"its batch norm {describe(pair.norm)} takes its statistics from the batch at hand, "
            "so there is nothing constant to fold; give it running statistics "
            "(track_running_stats=True) and capture again, or"
        )
    for key in ("weight", "bias"):
        if isinstance(layer[key], fx.Node) and (found := _not_its_own(key, pair, layer, readers)):
            return found
    others = [user for user in pair.layer.users if user is not pair.norm]
    if others:
        named = ", ".join(_reader(user) for user in others)
        return f"its output is also read by {named}, which would see the folded values;"
    for key in ("weight", "bias", "running_mean", "running_var"):
        if norm[key] is not None and norm[key].op != "get_attr":
            return f"the {key} of its batch norm {describe(pair.norm)} is computed, not stored;"
    if pair.layer.meta["val"].dim() != layer["weight"].meta["val"].dim():
        return (
            f"its batch norm {describe(pair.norm)} normalizes dimension 1 of its output, "
            "which is not the dimension of the layer's channels;"
        )
    return None


def _not_its_own(
    key: str, pair: _Pair, layer: Mapping[str, Any], readers: Mapping[str, list[fx.Node]]
) -> str | None:
    node = layer[key]
    if node.target is dequantize:
        return f"its {key} is quantized; run fuse_conv_bn before quantize_weights, or"
    if node.op != "get_attr":
        return (
            f"its {key} is computed by {describe(node)}, not stored; remove the "
            "parametrization from the module (torch.nn.utils.parametrize."
            "remove_parametrizations) and capture again, or"
        )
    others = [user for user in readers[node.target] if user is not pair.layer]
    if others:
        named = ", ".join(_reader(user) for user in others)
        return f"its {key} is also read by {named}; give each its own copy and capture again, or"
    return None


def _reader(node: fx.Node) -> str:
    return "the program's caller" if node.op == "output" else describe(node)


def _fold(edit: Edit, pair: _Pair) -> None:
    layer, norm = _arguments(pair.layer), _arguments(pair.norm)
    name = str(layer["weight"].target)
    weight = edit.tensors[name]
    scale, shift = _affine(edit, norm)
    edit.tensors[name] = _scaled(weight.double(), scale, pair.layer, layer).to(weight.dtype)
    bias = (_value(edit, layer["bias"], 0.0) * scale + shift).to(weight.dtype)
    if layer["bias"] is None:
        read = edit.read(_bias_name(edit, name), bias, before=pair.layer)
        _set(pair.layer, "bias", read)
    else:
        edit.tensors[str(layer["bias"].target)] = bias
    what = f"folded {describe(pair.norm)} into {describe(pair.layer)}"
    edit.replace(pair.result, pair.layer, what)


def _affine(edit: Edit, norm: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The batch norm as y to scale * y + shift, one value for each channel, in float64."""
    variance = _value(edit, norm["running_var"], 1.0)
    scale = _value(edit, norm["weight"], 1.0) * torch.rsqrt(variance + norm["eps"])
    shift = _value(edit, norm["bias"], 0.0) - _value(edit, norm["running_mean"], 0.0) * scale
    return scale, shift


def _value(edit: Edit, node: fx.Node | None, missing: float) -> Tensor:
    """A stored tensor in float64, or the number that stands for one that is not there."""
    if node is None:
        return torch.tensor(missing, dtype=torch.float64)
    return edit.tensors[str(node.target)].double()


def _scaled(weight: Tensor, scale: Tensor, node: fx.Node, layer: Mapping[str, Any]) -> Tensor:
    """The weight with each output channel multiplied by its entry of `scale` [O].

    Convolutions and linear layers are [O, I/groups, ...]; transposed convolutions are
    [I, O/groups, ...], where each block of I/groups rows belongs to one group.
    """
    if node.target not in _TRANSPOSED and not layer.get("transposed", False):
        return weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    groups = layer["groups"]
    blocks = weight.unflatten(0, (groups, -1))  # [groups, I/groups, O/groups, ...]
    factors = scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
    scaled: Tensor = (blocks * factors).flatten(0, 1)
    return scaled


def _bias_name(edit: Edit, weight: str) -> str:
    """`X.bias` for `X.weight`, or the nearest name that is free."""
    stem = weight.removesuffix("weight") + "bias" if weight.endswith("weight") else f"{weight}_bias"
    taken = edit.tensors.keys() | edit.aliases.keys()
    numbered = (f"{stem}_{number}" for number in range(1, len(taken) + 2))
    return next(name for name in (stem, *numbered) if name not in taken)


def _set(node: fx.Node, key: str, value: fx.Node) -> None:
    """Set an argument of an operator that may be given by position or by keyword."""
    place = [spec.name for spec in node.target._schema.arguments].index(key)  # type: ignore[union-attr]
    if key not in node.kwargs and place <= len(node.args):
        node.args = (*node.args[:place], value, *node.args[place + 1 :])
    else:
        node.update_kwarg(key, value)
