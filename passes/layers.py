"""Which weights a graph multiplies by, what each is for, and how a user names them."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import torch
from pydantic import AfterValidator
from torch import Tensor, fx

from planish.ir.edit import Edit
from planish.ir.program import Change, Program
from planish.ir.quant import QuantizedTensor, dequantize

aten = torch.ops.aten

LINEAR = "linear layer"
EMBEDDING = "embedding"
HEAD = "language-model head"
ROUTER = "router"
EXPERTS = "experts"

CLASSES = {
    LINEAR: "Linear",
    HEAD: "Linear",
    ROUTER: "Linear",
    EXPERTS: "Linear",
    EMBEDDING: "Embedding",
}
"""The class of module that a role belongs to, which a pattern may name."""

TURNS = (aten.permute.default, aten.transpose.int, aten.t.default)
"""How a weight may be turned before it is read."""

PRODUCTS = (aten.matmul.default, aten.bmm.default)
"""What multiplies by a stack of matrices, one for each expert."""


@dataclass(frozen=True)
class Layer:
    """A weight that linear layers, experts or embeddings read, and nothing else does.

    Attributes:
        name: of the tensor.
        names: what a pattern may match: the tensor, its module, its class, and the same of every
            tensor tied to it.
        node: what the readers read, [N, K], of experts [E, K, N]: the tensor, or a transposition
            of it.
        roles: what the readers are.
    """

    name: str
    names: tuple[str, ...]
    node: fx.Node
    roles: frozenset[str]

    @property
    def width(self) -> int:
        """K: the input features of a linear layer or of an expert, the width of an embedding."""
        return int(self.node.meta["val"].shape[-2 if self._across else -1])

    @property
    def _across(self) -> bool:
        """Whether the readers multiply by columns, as products do, not by rows as layers do."""
        return EXPERTS in self.roles

    @property
    def called(self) -> str:
        """What the readers are, in words."""
        return " and ".join(sorted(self.roles))

    @property
    def first_reader(self) -> fx.Node:
        """The reader that comes first in the graph."""
        node = self.node.next
        while node not in self.node.users:
            node = node.next
        return node

    @property
    def by_first(self) -> str:
        """What a note says of a weight with several readers, where only the first is looked at."""
        count = len(self.node.users)
        return f"; by what the first of {count} layers reads" if count > 1 else ""

    def matrix(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """What the readers read, with the input features last: [N, K], of experts [E, N, K]."""
        read = tensors[self.name]
        if self.node.op != "get_attr":
            read = self.node.target(read, *self.node.args[1:])  # type: ignore[operator]
        return read.mT if self._across else read

    def as_read(self, matrix: Tensor) -> Tensor:
        """A matrix [N, K], of experts [E, N, K], as the readers read it."""
        return matrix.mT.contiguous() if self._across else matrix

    def stored(self, read: Tensor) -> Tensor:
        """What the readers read as it is stored: transposed back, where they read it turned."""
        if self.node.op == "get_attr":
            return read
        arguments: Any = self.node.args[1:]
        if self.node.target is aten.permute.default:
            arguments = (torch.tensor(arguments[0]).argsort().tolist(),)
        turned: Tensor = self.node.target(read, *arguments)  # type: ignore[operator]
        return turned.contiguous()

    def insert(self, edit: Edit, tensor: QuantizedTensor) -> fx.Node:
        """Store this weight's `matrix` in packed form; a node that the readers may read instead."""
        whole = tensor.insert(edit, self.name, before=self.first_reader)
        if not self._across:
            return whole
        return edit.call(aten.transpose.int, whole, 1, 2, before=self.first_reader)

    def matches(self, patterns: Iterable[str]) -> bool:
        """Whether one of the patterns names this layer."""
        return any(matches(pattern, name) for pattern in patterns for name in self.names)


def layers_of(graph: fx.Graph, program: Program, *, packed: bool = False) -> list[Layer]:
    """The layers of a program, or of an edited copy of its graph, in the order of the graph.

    Args:
        graph: of the program, or a copy.
        program: whose layers they are.
        packed: whether to list layers whose weights are quantized too.
    """
    roles = _special_roles(graph, program.outputs)
    tied: dict[str, list[str]] = {}
    for other, name in program.aliases.items():
        tied.setdefault(name, []).append(other)
    layers = []
    for name, node in _weights(graph, packed):
        found = [_role(user, node, roles) for user in node.users]
        if found and None not in found:
            called = frozenset(role for role in found if role is not None)
            names = _names([name, *tied.get(name, [])], called)
            layers.append(Layer(name, names, node, called))
    return layers


def _weights(graph: fx.Graph, packed: bool) -> Iterator[tuple[str, fx.Node]]:
    """What may be a weight, by name: tensors, turned or not, and if asked for quantized ones."""
    for node in graph.nodes:
        if node.op == "get_attr":
            yield str(node.target), _turned(node)
        elif packed and node.target is dequantize:
            yield str(node.args[0].target).removesuffix("_packed"), _turned(node)


def _turned(node: fx.Node) -> fx.Node:
    """The transposition of a node, where nothing else reads it; else the node."""
    turned = [user for user in node.users if user.target in TURNS]
    return turned[0] if len(node.users) == len(turned) == 1 else node


def _role(user: fx.Node, weight: fx.Node, special: Mapping[fx.Node, str]) -> str | None:
    """What a reader of a weight is; None if it does more with it than multiply or look up."""
    places = [place for place, argument in enumerate(user.args) if argument is weight]
    if user.target is aten.linear.default and places == [1]:
        return special.get(user, LINEAR)
    if user.target in PRODUCTS and places == [1] and weight.meta["val"].dim() == 3:
        return EXPERTS
    return EMBEDDING if user.target is aten.embedding.default and places == [0] else None


def _special_roles(graph: fx.Graph, outputs: Sequence[str]) -> dict[fx.Node, str]:
    """The linear layers whose result is the logits, or decides which experts work."""
    (returned,) = graph.find_nodes(op="output")
    values = dict(zip(outputs, returned.args[0], strict=True))
    roles = {
        _origin(topk.args[0]): ROUTER
        for topk in graph.find_nodes(op="call_function", target=aten.topk.default)
    }
    if "logits" in values:
        roles[_origin(values["logits"])] = HEAD
    return roles


def _origin(node: fx.Node) -> fx.Node:
    """The linear layer a value comes from by steps that take no other computed value."""
    while node.target is not aten.linear.default:
        computed = [
            argument
            for argument in node.all_input_nodes
            if argument.op == "call_function" and isinstance(argument.meta["val"], Tensor)
        ]
        if len(computed) != 1:
            break
        (node,) = computed
    return node


def _names(tensors: Sequence[str], roles: Iterable[str]) -> tuple[str, ...]:
    """The first is what messages call the layer: its module, or of experts, which share it, a part.

    A module of experts has several weights, none of which is called `weight`.
    """
    layers = [name.removesuffix(".weight") for name in tensors]
    modules = [name.rpartition(".")[0] for name in tensors if EXPERTS in roles and "." in name]
    classes = sorted({CLASSES[role] for role in roles})
    return tuple(dict.fromkeys([*layers, *tensors, *modules, *classes]))


def noted(
    after: Program,
    before: Program,
    targets: Iterable[str],
    ignore: Iterable[str],
    why: str,
    *,
    packed: bool = False,
) -> Program:
    """The program after a pass, with a record of the experts that it was asked for and left.

    Args:
        after: what the pass made.
        before: what it was given.
        targets: which layers it was asked for.
        ignore: which of these not.
        why: what became of the experts instead.
        packed: whether the pass takes layers whose weights are quantized, too.
    """
    left = (
        Change(layer.first_reader.name, f"{layer.name}: of {EXPERTS}, {why}")
        for layer in layers_of(before.graph, before, packed=packed)
        if EXPERTS in layer.roles and layer.matches(targets) and not layer.matches(ignore)
    )
    return dataclasses.replace(after, changes=(*after.changes, *left))


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern is the name, a glob of it, or after `re:` a regular expression.

    As in compressed-tensors, an expression is matched from the start and need not reach the end.
    """
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), name) is not None
    return fnmatch.fnmatchcase(name, pattern)


def check_pattern(pattern: str) -> None:
    """Refuse a regular expression that is none.

    Raises:
        ValueError: saying where it goes wrong.
    """
    try:
        re.compile(pattern.removeprefix("re:") if pattern.startswith("re:") else "")
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None


def _checked(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        check_pattern(pattern)
    return patterns


Patterns = Annotated[tuple[str, ...], AfterValidator(_checked)]
"""An option that names layers: each a name, a glob, or a regular expression after `re:`."""


class Named(Protocol):
    """What patterns may name, such as a layer."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name it goes by."""
        ...

    def matches(self, patterns: Iterable[str]) -> bool:
        """Whether one of the patterns names it."""
        ...


def unmatched(
    patterns: Iterable[str], layers: Sequence[Named], called: str = "layers with weights"
) -> str | None:
    """What is wrong if a pattern matches no layer, with the closest name there is."""
    for pattern in patterns:
        if any(layer.matches([pattern]) for layer in layers):
            continue
        names = dict.fromkeys(name for layer in layers for name in layer.names)
        close = difflib.get_close_matches(pattern, [*names], n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"names look like {next(iter(names))!r}."
        return f"{pattern!r} matches none of the {len(layers)} {called}; {hint}"
    return None
