"""Mixtures of experts as kernels: of each token only what its own experts make is computed.

A mixture is written anew from its end to its beginning. What had a row for every expert and token,
[E, M, N], has one for every token and each of its choices, [M, C, N]: products become products of
chosen weights, and what works on each row by itself stays what it was.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from planish.ir import ops
from planish.ir.activations import ActivationScheme, fake_quantize
from planish.ir.edit import Edit
from planish.ir.quant import QuantizedTensor, dequantize
from planish.lowering.triton import operators
from planish.lowering.triton.fields import Dtype, Epilogue, NoKernel
from planish.lowering.triton.float_specs import Floating
from planish.lowering.triton.nodes import activation_of, alike, dtype_of, node_of
from planish.lowering.triton.plans import modelled, text
from planish.lowering.triton.routed_specs import Alone, Routed
from planish.lowering.triton.routings import Mixture, mixtures
from planish.lowering.triton.row_regions import as_they_are, codes_of
from planish.lowering.triton.specs import CodesProduct
from planish.lowering.triton.weights import kept, of_codes, packed

aten = torch.ops.aten

PRODUCTS = (aten.matmul.default, aten.bmm.default)
STACKED = 3
"""Dimensions of what has a row for every expert and token."""

EVERY = slice(None)
"""All output features."""


class Mixtures:
    """Rewrites those of a graph.

    Attributes:
        notes: why some stay with torch.
    """

    def __init__(self, edit: Edit, *, bitwise: bool) -> None:
        self.notes: list[str] = []
        self._edit = edit
        self._bitwise = bitwise

    def replace(self) -> None:
        """Replace all that can be."""
        taken: set[fx.Node] = set()
        for mixture in mixtures(self._edit.graph, self._edit.tensors):
            rows = _Rows(self._edit, mixture, bitwise=self._bitwise)
            try:
                rows.replace()
                taken |= rows.stacks
            except NoKernel as error:
                name = mixture.total.name
                self.notes.append(f"{name}, a mixture of experts, is torch's: {error}")
        for node in self._edit.nodes(dequantize):
            if node.meta["val"].dim() == STACKED and node not in taken:
                name = QuantizedTensor.read_by(node, self._edit.tensors)[0]
                self.notes.append(f"{name}, a stack of matrices, is multiplied by torch.")


class _Rows:
    """Writes one mixture anew.

    Attributes:
        stacks: the nodes that read the experts' weights.
    """

    def __init__(self, edit: Edit, mixture: Mixture, *, bitwise: bool) -> None:
        self.stacks: set[fx.Node] = set()
        self._edit = edit
        self._mixture = mixture
        self._bitwise = bitwise
        self._lead = _sizes(mixture.mixed)[:2]
        self._made: dict[fx.Node, fx.Node] = {}
        self._coded: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}

    def replace(self) -> None:
        """Put rows of choices in place of rows of experts.

        Raises:
            NoKernel: if something in between has none, or does not work on each row by itself.
        """
        total = self._mixture.total
        rows = self._of(self._mixture.mixed)
        weights, dtype = self._mixture.weights, self._mixture.dtype
        if weights.meta["val"].dtype != dtype:
            weights = self._call(aten._to_copy.default, weights, dtype=dtype)
        spread = self._call(aten.unsqueeze.default, weights, -1)
        weighed = self._call(aten.mul.Tensor, rows, spread)
        summed = self._call(total.target, weighed, [1], *total.args[2:], **total.kwargs)
        self._edit.replace(total, summed, f"only chosen experts work, for {total.name}")

    def _call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self._edit.call(target, *args, before=self._mixture.total, **kwargs)

    def _of(self, node: fx.Node) -> fx.Node:
        """The rows of a token's choices, [M, C, ...], of what was [E, M, ...]."""
        if node not in self._made:
            self._made[node] = self._product(node) or self._alike(node)
        return self._made[node]

    def _alike(self, node: fx.Node) -> fx.Node:
        """The same operator on other rows, if it works on each by itself."""
        if not _by_row(node) or any(isinstance(one, fx.Node) for one in node.kwargs.values()):
            raise NoKernel(f"{node} is not known to treat each row by itself.")
        args: Any = fx.map_arg(node.args, lambda one: self._operand(node, one))
        return self._call(node.target, *args, **node.kwargs)

    def _operand(self, node: fx.Node, one: fx.Node) -> fx.Node:
        value = one.meta["val"]
        if not isinstance(value, Tensor) or value.dim() <= 1:
            return one
        if value.dim() == STACKED and _sizes(one)[:2] == self._lead:
            return self._of(one)
        vectors = _of_experts(one)
        if vectors is None or _sizes(vectors)[:1] != self._lead[:1]:
            raise NoKernel(f"{node} reads {one}, which has no row for each expert and token.")
        return self._call(aten.embedding.default, vectors, self._mixture.chosen)

    def _product(self, node: fx.Node) -> fx.Node | None:
        """A product with what follows it; None for anything else."""
        if node.target is ops.gated:
            gate, up, activation = node.args
            part, epilogue = _Part.of(gate), Epilogue(activation=str(activation), multiply=True)
            if part and alike(node_of(gate), node_of(up)):
                return self._multiplied(part, epilogue, self._of(node_of(up)))
            return None
        name = activation_of(node)
        part = _Part.of(node.args[0] if name else node)
        return part and self._multiplied(part, Epilogue(activation=name))

    def _multiplied(self, part: _Part, epilogue: Epilogue, *operands: fx.Node) -> fx.Node:
        x, stack = (node_of(each) for each in part.product.args[:2])
        dtype = dtype_of(part.product)
        shared = x.meta["val"].dim() == STACKED - 1
        stacked = stack.meta["val"].dim() == STACKED
        if not stacked or _sizes(x)[:-1] != (self._lead[1:] if shared else self._lead):
            raise NoKernel(f"{part.product} is no product of a mixture's rows with a stack.")
        given: list[fx.Node] = [*operands]
        if part.bias is not None:
            epilogue, given = replace(epilogue, bias=True), [self._features(part), *operands]
        alone, reads = self._weight(stack, part.features, dtype, _rounding(x))
        rows = (
            self._codes(x, shared=shared)
            if isinstance(alone, CodesProduct)
            else (x if shared else self._of(x), None)
        )
        product = Routed(
            replace(alone, epilogue=epilogue),
            experts=self._mixture.experts,
            chosen=int(self._mixture.chosen.meta["val"].shape[1]),
            shared=shared,
        )
        plan = modelled(product, bitwise=self._bitwise)
        return self._call(
            operators.routed_product,
            *rows,
            self._mixture.chosen,
            reads,
            given,
            text(product),
            text(plan),
        )

    def _codes(self, x: fx.Node, *, shared: bool) -> tuple[fx.Node, fx.Node]:
        """The codes and scales that a rounding of each row gives."""
        if x not in self._coded:
            source = node_of(x.args[0])
            rows = source if shared else self._of(source)
            spec = text(as_they_are(rows, codes_of(x)))
            pair = self._call(operators.row_codes, rows, [], spec, operators.KERNEL)
            codes, scales = (self._call(operator.getitem, pair, place) for place in (0, 1))
            self._coded[x] = codes, scales
        return self._coded[x]

    def _features(self, part: _Part) -> fx.Node:
        """A part's biases, [E, N]."""
        assert part.bias is not None
        cut = part.features
        if cut == EVERY:
            return part.bias
        return self._call(aten.slice.Tensor, part.bias, 1, cut.start, cut.stop, cut.step)

    def _weight(
        self, turned: fx.Node, features: slice, dtype: Dtype, inputs: ActivationScheme | None
    ) -> tuple[Alone, list[fx.Node]]:
        """The product with some rows of a stack [E, N, K] that is read transposed, as stored."""
        source = _untransposed(turned)
        if source is not None and source.target is dequantize:
            return self._packed(source, features, dtype, inputs)
        read = turned if source is None else source
        if read.op != "get_attr":
            raise NoKernel(f"{turned} is computed, and no stack of weights that is stored.")
        name = str(read.target)
        matrix = self._edit.tensors[name] if source is not None else self._edit.tensors[name].mT
        weight = matrix[:, features].contiguous()
        _, n, k = weight.shape
        return Floating(n, k, dtype), self._stored(name, features, {"weight": weight})

    def _packed(
        self, source: fx.Node, features: slice, dtype: Dtype, inputs: ActivationScheme | None
    ) -> tuple[Alone, list[fx.Node]]:
        self.stacks.add(source)
        name, weight = QuantizedTensor.read_by(source, self._edit.tensors)
        weight = weight if features == EVERY else weight.rows(features)
        product = None if inputs is None else of_codes(weight, inputs, dtype)
        if product is not None:
            return product, self._stored(name, features, kept(weight, product))
        weight, wide = packed(weight, dtype)
        return wide, self._stored(name, features, kept(weight, wide))

    def _stored(self, name: str, features: slice, tensors: dict[str, Tensor]) -> list[fx.Node]:
        bounds = (features.start, features.stop, features.step)
        cut = "".join(f"_{bound}" for bound in bounds if bound is not None)
        before = self._mixture.total
        return [
            self._edit.read(f"{name}{cut}_{part}", tensor, before=before)
            for part, tensor in tensors.items()
        ]


class _Part(NamedTuple):
    """Some features of a product with a stack of weights, after its bias.

    Attributes:
        product: the node that multiplies.
        features: those of the result that are kept.
        bias: [E, N], or None.
    """

    product: fx.Node
    features: slice = EVERY
    bias: fx.Node | None = None

    @staticmethod
    def of(node: Any) -> _Part | None:
        """What a node is; None if it is anything else."""
        if not isinstance(node, fx.Node):
            return None
        if node.target in PRODUCTS:
            return _Part(node)
        if node.target is aten.slice.Tensor:
            return _cut(*node.args)
        if node.target is aten.add.Tensor and not node.kwargs:
            for one, other in (node.args, node.args[::-1]):
                part, bias = _Part.of(one), _of_experts(other)
                if part and bias and part == _Part(part.product):
                    return part._replace(bias=bias)
        return None


def _cut(value: Any, dim: Any = 0, *bounds: Any) -> _Part | None:
    """A slice of a product's features."""
    part = _Part.of(value) if dim in (-1, STACKED - 1) else None
    if part is None or part.features != EVERY or not all(map(_fixed, bounds)):
        return None
    return part._replace(features=slice(*(*bounds, None, None, None)[:3]))


def _rounding(x: fx.Node) -> ActivationScheme | None:
    """How each row of a value was rounded by a scale of its own; None if it was not."""
    scheme = ActivationScheme.read_by(x) if x.target is fake_quantize else None
    return scheme if scheme and scheme.dynamic and scheme.per_token else None


def _sizes(node: fx.Node) -> tuple[str, ...]:
    """A shape, symbols and all, to be compared without asking whether symbols are equal."""
    return tuple(map(str, node.meta["val"].shape))


def _fixed(bound: object) -> bool:
    return bound is None or isinstance(bound, int)


def _of_experts(node: Any) -> fx.Node | None:
    """Vectors [E, N] of which a value [E, 1, N] is made."""
    if not isinstance(node, fx.Node) or node.target is not aten.unsqueeze.default:
        return None
    source, dim = node.args
    vectors = node_of(source)
    return vectors if vectors.meta["val"].dim() == STACKED - 1 and dim in (1, -2) else None


def _untransposed(node: fx.Node) -> fx.Node | None:
    """What a stack of matrices is the transposition of."""
    if node.target is not aten.transpose.int:
        return None
    source, *dims = tuple[Any, ...](node.args)
    return node_of(source) if sorted(dims) in ([1, 2], [-2, -1], [-1, 1], [-2, 2]) else None


def _by_row(node: fx.Node) -> bool:
    """Whether an operator works on each row [..., N] by itself."""
    target, args = node.target, (*node.args, None)
    if target is aten.slice.Tensor:
        return args[1] in (-1, STACKED - 1)
    if target is aten.layer_norm.default:
        return isinstance(args[1], list) and len(args[1]) == 1
    if target in {ops.gated, ops.rms_norm, aten._to_copy.default}:
        return True
    if target is fake_quantize:
        scheme = ActivationScheme.read_by(node)
        return scheme.per_token or not scheme.dynamic
    return torch.Tag.pointwise in getattr(target, "tags", ())
