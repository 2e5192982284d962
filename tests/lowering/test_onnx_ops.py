"""Every operator of the table of emitters against eager, at several sizes."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, fx

from planish.ir import ops
from planish.ir.activations import fake_quantize
from planish.ir.program import Input, Program
from planish.ir.quant import dequantize
from planish.ir.shapes import propagate, well_formed
from planish.ir.sizes import Extent, Size, SymbolicShapes, evaluate
from planish.ir.stack import sign_stack
from planish.lowering.onnx.lower import MODEL_FILE, lower
from planish.lowering.onnx.model import UnsupportedOperator, build
from planish.lowering.onnx.table import EMITTERS
from planish.lowering.onnx.target import CPU

aten = torch.ops.aten

SIZES = ({"B": 2, "T": 5}, {"B": 1, "T": 1}, {"B": 3, "T": 4})


@dataclass(frozen=True)
class Of:
    """A tensor argument, which becomes an input with random contents."""

    shape: tuple[Extent, ...]
    dtype: torch.dtype = torch.float32
    low: float = -3
    high: float = 4

    def make(self, sizes: dict[str, int], generator: torch.Generator) -> Tensor:
        shape = [evaluate(extent, sizes) for extent in self.shape]
        if self.dtype.is_floating_point:
            unit = torch.rand(shape, generator=generator)
            return (self.low + (self.high - self.low) * unit).to(self.dtype)
        low, high = (0, 2) if self.dtype == torch.bool else (int(self.low), int(self.high))
        return torch.randint(low, high, shape, generator=generator).to(self.dtype)


def f(*shape: Extent, low: float = -3, high: float = 4) -> Of:
    return Of(shape, low=low, high=high)


def i(*shape: Extent, low: int = -3, high: int = 4) -> Of:
    return Of(shape, torch.int64, low, high)


def index(*shape: Extent, below: int) -> Of:
    return Of(shape, torch.int64, 0, below)


def flag(*shape: Extent) -> Of:
    return Of(shape, torch.bool)


@dataclass(frozen=True)
class Case:
    """One call of an operator: tensors are `Of`, sizes are `"B"`, `"T"` and `"-T"`.

    Of an operator that gives a list, `outputs` says which parts are compared.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[int, ...] = ()

    def program(self) -> Program:
        inputs = [Input(f"x{place}", of.dtype, of.shape) for place, of in enumerate(self.tensors())]
        graph = fx.Graph()
        tensors = iter([graph.placeholder(spec.name) for spec in inputs])
        sized = next(tensors)

        def placed(argument: Any) -> Any:
            match argument:
                case Of():
                    return next(tensors)
                case "B" | "T":
                    return graph.call_function(aten.sym_size.int, (sized, "BT".index(argument)))
                case "-T":
                    return graph.call_function(operator.neg, (placed("T"),))
                case list() | tuple():
                    return [placed(part) for part in argument]
            return argument

        call = graph.call_function(
            self.target,
            tuple(map(placed, self.args)),
            {name: placed(value) for name, value in self.kwargs.items()},
        )
        parts = [graph.call_function(operator.getitem, (call, place)) for place in self.outputs]
        graph.output(tuple(parts or [call]))
        names = tuple(f"y{place}" for place in range(len(parts) or 1))
        shapes = SymbolicShapes((Size("B", 5), Size("T", 7)))
        program = Program(graph, {}, tuple(inputs), names, shapes)
        propagate(program)
        well_formed(program)
        return program

    def tensors(self) -> Iterator[Of]:
        """The inputs: first one that the sizes are read off, then the arguments."""
        yield f("B", "T")
        yield from _tensors([*self.args, *self.kwargs.values()])


def _tensors(arguments: Any) -> Iterator[Of]:
    for argument in arguments:
        if isinstance(argument, Of):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _tensors(argument)


def case(target: Any, *args: Any, outputs: tuple[int, ...] = (), **kwargs: Any) -> Case:
    return Case(target, args, kwargs, outputs)


X = f("B", "T", 4)
POSITIVE = f("B", "T", low=0.1)
PIXELS = f("B", 4, 8, 6)
WHOLE = i("B", "T", low=1, high=9)

UNARY = {
    X: "abs neg sign floor ceil round exp expm1 sin cos tan atan tanh erf sigmoid relu relu6 silu "
    "mish hardswish hardsigmoid hardtanh isnan isinf alias detach clone contiguous lift_fresh_copy "
    "zeros_like ones_like logical_not sqrt",
    POSITIVE: "rsqrt reciprocal log log1p log2 sqrt",
    i("B", "T"): "neg abs sign relu cos sigmoid sqrt exp logical_not bitwise_not isnan",
    flag("B", "T"): "bitwise_not logical_not sigmoid",
}
BINARY = (
    "add.Tensor sub.Tensor mul.Tensor div.Tensor maximum minimum max.other min.other eq.Tensor "
    "ne.Tensor lt.Tensor le.Tensor gt.Tensor ge.Tensor remainder.Tensor fmod.Tensor floor_divide"
)
SCALAR = (
    "add.Scalar sub.Scalar mul.Scalar div.Scalar eq.Scalar ne.Scalar lt.Scalar le.Scalar "
    "gt.Scalar ge.Scalar remainder.Scalar fmod.Scalar rsub.Scalar pow.Tensor_Scalar"
)
BITS = "__and__ __or__ __xor__ bitwise_and bitwise_or bitwise_xor"
PROMOTIONS = (
    (X, f("T", 4)),
    (X, i(4, low=1)),
    (i("B", 1, low=-9, high=9), i("T", low=1, high=5)),
    (i("B", "T", low=-9), Of(("T",), torch.int32, 1, 5)),
    (f("B", "T"), Of((), torch.float64, 1, 2)),
)


def overload(name: str) -> Any:
    packet, _, variant = name.partition(".")
    return getattr(getattr(aten, packet), variant or "default")


def elementwise() -> Iterator[Case]:
    for of, names in UNARY.items():
        yield from (case(overload(name), of) for name in names.split())
    for name in BINARY.split():
        for x, y in PROMOTIONS:
            yield case(overload(name), x, y)
    for name in SCALAR.split():
        yield from (case(overload(name), of, 2) for of in (f("B", "T", low=0.1), i("B", "T")))
        yield case(overload(name), i("B", "T"), 1.5)
    for name in BITS.split():
        yield case(overload(f"{name}.Tensor"), flag("B", "T"), flag("T"))
        yield case(overload(f"{name}.Tensor"), i("B", "T"), i("T"))
        if f"{name}.Scalar" in {str(op)[5:] for op in EMITTERS}:
            yield case(overload(f"{name}.Scalar"), i("B", "T"), 3)
    for name in ("and", "or", "xor"):
        yield case(overload(f"logical_{name}"), X, flag("T", 1))


ELEMENTWISE = [
    *elementwise(),
    case(aten.add.Tensor, X, f(4), alpha=0.5),
    case(aten.add.Tensor, i("T"), "T"),
    case(aten.mul.Tensor, f("T"), "B"),
    case(aten.eq.Tensor, flag("B", "T"), flag("T")),
    case(aten.lt.Tensor, flag("B", "T"), flag("T")),
    case(aten.rsub.Tensor, X, f(4), alpha=2),
    case(aten.div.Tensor_mode, X, f(4, low=1), rounding_mode="floor"),
    case(aten.div.Tensor_mode, X, f(4, low=1), rounding_mode="trunc"),
    case(aten.div.Tensor_mode, i("B", "T", low=-9), i("T", low=1), rounding_mode="floor"),
    case(aten.div.Tensor_mode, i("B", "T", low=-9), i("T", low=1), rounding_mode="trunc"),
    case(aten.div.Tensor_mode, X, f(4, low=1), rounding_mode=None),
    case(aten.pow.Tensor_Scalar, X, 3),
    case(aten.pow.Tensor_Scalar, POSITIVE, 0.5),
    case(aten.pow.Tensor_Tensor, POSITIVE, f("T")),
    case(aten.pow.Scalar, 2.0, X),
    case(aten.gelu.default, X),
    case(aten.gelu.default, X, approximate="tanh"),
    case(aten.leaky_relu.default, X, 0.2),
    case(aten.elu.default, X, 0.7, 1.2),
    case(aten.softplus.default, X, 2.0, 3.0),
    case(aten.softplus.default, X),
    case(aten.hardtanh.default, X, -0.5, 2.0),
    case(aten.softmax.int, X, -1),
    case(aten.softmax.int, Of(("B", 3), torch.float16), 1, dtype=torch.float32),
    case(aten._softmax.default, X, 1, False),
    case(aten.log_softmax.int, X, 2),
    case(aten._log_softmax.default, X, -1, False),
    case(aten.where.self, flag("B", "T"), f("T"), i("B", 1)),
    case(aten.where.ScalarSelf, flag("B", "T"), 1.5, f("T")),
    case(aten.where.ScalarOther, flag("B", "T"), f("T"), float("-inf")),
    case(aten.where.Scalar, flag("B", "T"), 0.0, -1.0),
    case(aten.masked_fill.Scalar, X, flag("B", "T", 1), -5.0),
    case(aten.masked_fill.Tensor, X, flag("T", 1), f()),
    case(aten.clamp.default, X, -0.5, 1),
    case(aten.clamp.default, i("T"), None, 1),
    case(aten.clamp.Tensor, X, f(4, high=0), f(4, low=0)),
    case(aten.clamp_min.default, X, 0.5),
    case(aten.clamp_min.Tensor, X, f(4)),
    case(aten.clamp_max.default, X, 0.5),
    case(aten.clamp_max.Tensor, X, f(4)),
    case(aten._to_copy.default, X, dtype=torch.int64),
    case(aten._to_copy.default, i("B", "T"), dtype=torch.bool),
    case(aten._to_copy.default, flag("T"), dtype=torch.float16),
    case(aten.to.dtype, X, torch.float64),
    case(aten.type_as.default, X, i("T")),
]

CREATION = [
    case(aten.arange.default, "T"),
    case(aten.arange.default, 5, dtype=torch.float32),
    case(aten.arange.start, 1, "T"),
    case(aten.arange.start_step, 0, "T", 2),
    case(aten.arange.start_step, 0.0, 2.0, 0.5),
    case(aten.full.default, ["B", 3], 2.5),
    case(aten.full.default, [], 2),
    case(aten.full_like.default, X, 3.0),
    case(aten.new_full.default, X, ["T"], 7),
    case(aten.fill.Scalar, X, 2),
    case(aten.zeros.default, ["B", "T"]),
    case(aten.new_zeros.default, X, [2, "T"], dtype=torch.bool),
    case(aten.ones.default, ["T", 1], dtype=torch.int64),
    case(aten.new_ones.default, X, []),
    case(aten.scalar_tensor.default, 1.5),
    case(aten.tril.default, f("B", "T", "T")),
    case(aten.triu.default, f("T", "T"), 1),
    case(aten.triu.default, flag("T", "T"), -1),
    case(aten.eye.default, "T"),
    case(aten.eye.m, 3, "T"),
]

MOVEMENT = [
    case(aten.reshape.default, X, ["B", -1]),
    case(aten.reshape.default, X, [-1, 2, 2]),
    case(aten.reshape.default, X, ["T", "B", 4]),
    case(aten.view.default, X, ["B", "T", 2, 2]),
    case(aten._unsafe_view.default, X, ["B", "T", 4, 1]),
    case(aten.flatten.using_ints, X, 0, 1),
    case(aten.unflatten.int, X, -1, [2, 2]),
    case(aten.expand.default, f("B", 1, 4), ["B", "T", -1]),
    case(aten.expand_as.default, f(1, 4), X),
    case(aten.broadcast_to.default, f(4), ["T", 4]),
    case(aten.unsqueeze.default, X, -1),
    case(aten.squeeze.default, f(5, 1, 4, 1)),
    case(aten.squeeze.dim, f("B", 1, 4), 1),
    case(aten.squeeze.dim, X, 2),
    case(aten.squeeze.dims, f(1, "B", 1), [0, -1]),
    case(aten.transpose.int, X, -1, 0),
    case(aten.t.default, f("B", 4)),
    case(aten.numpy_T.default, X),
    case(aten.permute.default, X, [2, 0, -2]),
    case(aten.movedim.int, X, 0, -1),
    case(aten.movedim.intlist, X, [0, 2], [1, 0]),
    case(aten.repeat.default, f("B", 4), ["T", 1, 2]),
    case(aten.repeat_interleave.self_int, X, 3, 1),
    case(aten.repeat_interleave.self_int, X, 2),
    case(aten.cat.default, [X, f("B", 2, 4), X], 1),
    case(aten.cat.default, [i("T"), f("T")]),
    case(aten.stack.default, [f("B", "T"), f("B", "T")], -1),
    case(aten.slice.Tensor, X, 1, "-T", 9223372036854775807),
    case(aten.slice.Tensor, X, 2, 1, -1),
    case(aten.slice.Tensor, X, 2, 0, 4, 2),
    case(aten.slice.Tensor, f(9), 0, None, "T"),
    case(aten.narrow.default, X, 2, 1, 2),
    case(aten.select.int, X, 1, -1),
    case(aten.split.Tensor, X, 3, 2, outputs=(0, 1)),
    case(aten.split.sizes, X, [1, 3], 2, outputs=(0, 1)),
    case(aten.split_with_sizes.default, X, [1, 3], -1, outputs=(1,)),
    case(aten.chunk.default, X, 2, -1, outputs=(0, 1)),
    case(aten.unbind.int, X, -1, outputs=(0, 3)),
    case(aten.flip.default, X, [1, 2]),
    case(aten.roll.default, f("B", 5, 6), [-2, 1], [1, 2]),
    case(aten.roll.default, f("B", 5), [2], [1]),
    case(aten.pad.default, X, [1, 2, 0, 3]),
    case(aten.pad.default, PIXELS, [1, 2, 3, 0], "reflect"),
    case(aten.pad.default, PIXELS, [1, 2, 3, 0], "replicate"),
    case(aten.constant_pad_nd.default, X, [1, -1], 2.5),
    case(aten.pixel_shuffle.default, PIXELS, 2),
]

INDEXING = [
    case(aten.embedding.default, f(7, 4), index("B", "T", below=7)),
    case(aten.index_select.default, X, 2, index(3, below=4)),
    case(aten.gather.default, X, 2, index("B", "T", 2, below=4)),
    case(aten.index.Tensor, f(6, 4), [index("B", "T", below=6)]),
    case(aten.index.Tensor, f("B", 6, 4), [None, index("T", below=6)]),
    case(aten.index.Tensor, f(5, 6, 4), [index("B", 1, below=5), index("T", below=6)]),
    case(aten.index.Tensor, f(3, 5, 6), [None, index("B", 1, below=5), index("T", below=6)]),
    case(aten.index.Tensor, f(5, 3, 6), [index("T", below=5), None, index("T", below=6)]),
    case(aten.index_put.default, f(5, 6, 2), [index("T", below=5), index(1, below=6)], f(2)),
    case(aten.index_put.default, f(5, 2), [index("T", below=5)], f("T", 2), True),
    case(aten.index_put.default, f("B", "T"), [flag("B", "T")], f()),
    case(aten.scatter.src, f(6, 4), 0, index(3, 4, below=1), f(6, 4)),
    case(aten.scatter.value, X, 2, index("B", "T", 1, below=4), 9.0),
    case(aten.scatter_add.default, X, 2, index("B", "T", 3, below=4), X),
    case(aten.index_add.default, f(6, 4), 0, index("T", below=6), f("T", 4), alpha=2),
    case(aten.topk.default, f("B", 6), 3, outputs=(0, 1)),
    case(aten.topk.default, f("B", 6), 2, -1, False, outputs=(0, 1)),
    case(aten.sort.default, X, 2, outputs=(0, 1)),
    case(aten.sort.stable, X, stable=True, dim=1, descending=True, outputs=(0,)),
    case(aten.argsort.default, X, -1, True),
    case(aten.one_hot.default, index("B", "T", below=4), 4),
]

REDUCTION = [
    *(
        case(overload(f"{name}.default"), X)
        for name in ["sum", "mean", "amax", "amin", "max", "min"]
    ),
    *(case(overload(name), X, [1, -1]) for name in ("sum.dim_IntList", "mean.dim", "amax")),
    *(case(overload(name), X, [2], True) for name in ("sum.dim_IntList", "mean.dim", "amin")),
    case(aten.sum.dim_IntList, i("B", "T"), None),
    case(aten.sum.default, flag("B", "T")),
    case(aten.mean.dim, i("B", "T"), [1], dtype=torch.float32),
    case(aten.prod.dim_int, X, 2, True),
    case(aten.logsumexp.default, X, [2]),
    case(aten.any.default, flag("B", "T")),
    case(aten.any.dim, flag("B", "T"), 1),
    case(aten.any.dims, f("B", "T"), [0, 1], True),
    case(aten.all.default, flag("B", "T")),
    case(aten.all.dim, flag("B", "T"), 0),
    case(aten.argmax.default, X, -1),
    case(aten.argmax.default, X),
    case(aten.argmin.default, X, 1, True),
    case(aten.max.dim, X, 2, outputs=(0, 1)),
    case(aten.min.dim, X, 1, True, outputs=(0, 1)),
    case(aten.var.correction, X, [2], correction=1),
    case(aten.var.correction, X, [1, 2], correction=0, keepdim=True),
    case(aten.std.correction, X, [-1], correction=1),
    case(aten.cumsum.default, X, 1),
    case(aten.cumsum.default, flag("B", "T"), -1),
    case(aten.linalg_vector_norm.default, X, 2, [1, 2]),
    case(aten.linalg_vector_norm.default, X, 1, [2], True),
]

PRODUCTS = [
    case(aten.linear.default, X, f(3, 4)),
    case(aten.linear.default, X, f(3, 4), f(3)),
    case(aten.linear.default, f("B", 4), f(3, 4), f(3)),
    case(aten.matmul.default, X, f("B", 4, 3)),
    case(aten.matmul.default, X, f(4)),
    case(aten.mm.default, f("B", 4), f(4, "T")),
    case(aten.bmm.default, X, f("B", 4, "T")),
    case(aten.mv.default, f("T", 4), f(4)),
    case(aten.dot.default, f("T"), f("T")),
    case(aten.addmm.default, f(3), f("B", 4), f(4, 3)),
    case(aten.baddbmm.default, f(1, "T"), X, f("B", 4, "T"), beta=0.5, alpha=2),
    case(aten.einsum.default, "btc,bsc->bts", [X, f("B", 3, 4)]),
]

CONV = ([2, 1], [1, 2], [1, 1], 2)
WINDOWS = [
    case(aten.conv1d.default, f("B", 4, "T"), f(6, 4, 3), f(6), [1], [1]),
    case(aten.conv2d.default, PIXELS, f(6, 2, 3, 3), None, *CONV),
    case(aten.conv3d.default, f("B", 2, 4, 4, 4), f(3, 2, 2, 2, 2)),
    case(aten.conv1d.padding, f("B", 4, "T"), f(6, 4, 3), None, [1], "same"),
    case(aten.conv2d.padding, PIXELS, f(6, 4, 3, 3), f(6), [1, 1], "same", [2, 1]),
    case(aten.conv3d.padding, f("B", 2, 4, 4, 4), f(3, 2, 2, 2, 2), None, [1, 1, 1], "valid"),
    case(aten.conv_transpose1d.default, f("B", 4, "T"), f(4, 3, 2), f(3), [2]),
    case(aten.conv_transpose2d.input, PIXELS, f(4, 3, 3, 3), None, [2, 2], [1, 1], [1, 0], 2),
    case(aten.conv_transpose3d.input, f("B", 2, 3, 3, 3), f(2, 3, 2, 2, 2)),
    case(aten.convolution.default, PIXELS, f(6, 2, 3, 3), f(6), *CONV[:3], False, [0, 0], 2),
    case(aten.convolution.default, PIXELS, f(4, 3, 3, 3), None, *CONV[:3], True, [0, 0], 1),
    case(aten.max_pool1d.default, f("B", 4, 8), [2]),
    case(aten.max_pool2d.default, PIXELS, [3, 2], [2, 2], [1, 0], [1, 1], True),
    case(aten.max_pool2d_with_indices.default, PIXELS, [2, 2], outputs=(0,)),
    case(aten.max_pool3d.default, f("B", 2, 4, 4, 4), [2]),
    case(aten.avg_pool1d.default, f("B", 4, 8), [3], [2], [1]),
    case(aten.avg_pool2d.default, PIXELS, [3, 3], [2, 2], [1, 1], False, False),
    case(aten.avg_pool3d.default, f("B", 2, 4, 4, 4), [2]),
    case(aten.adaptive_avg_pool1d.default, f("B", 4, "T"), [1]),
    case(aten.adaptive_avg_pool2d.default, PIXELS, [4, 3]),
    case(aten._adaptive_avg_pool2d.default, PIXELS, [1, 1]),
    case(aten.adaptive_avg_pool3d.default, f("B", 2, 4, 4, 4), [2, 2, 2]),
    case(aten.upsample_nearest1d.vec, f("B", 4, 6), None, [2.0]),
    case(aten.upsample_nearest2d.vec, PIXELS, None, [2.0, 3.0]),
    case(aten.upsample_nearest2d.default, PIXELS, [11, 5]),
    case(aten.upsample_linear1d.vec, f("B", 4, 6), [9], False, None),
    case(aten.upsample_bilinear2d.vec, PIXELS, [12, 5], False, None),
    case(aten.upsample_bilinear2d.default, PIXELS, [12, 9], True),
    case(aten.upsample_bicubic2d.vec, PIXELS, [12, 9], False, None),
    case(aten.upsample_bicubic2d.default, PIXELS, [12, 9], True),
    case(
        aten._native_batch_norm_legit_no_training.default,
        *(PIXELS, f(4), f(4), f(4), f(4, low=0.5), 0.1, 1e-3),
        outputs=(0,),
    ),
    case(aten.batch_norm.default, X, *[f("T")] * 3, f("T", low=1), False, 0.1, 1e-3, False),
    case(aten.batch_norm.default, PIXELS, None, None, f(4), f(4, low=1), False, 0.1, 1e-3, False),
    case(aten.layer_norm.default, X, [4], f(4), f(4)),
    case(aten.layer_norm.default, PIXELS, [8, 6]),
    case(aten.native_layer_norm.default, X, [4], f(4), None, 1e-3, outputs=(0,)),
    case(aten.group_norm.default, PIXELS, 2, f(4), f(4)),
    case(aten.group_norm.default, PIXELS, 4),
]

HEADS, GROUPS, SEEN = f("B", 4, "T", 8), f("B", 2, "T+3", 8), f("B", 2, "T+3", 6)
TABLE = f("B", 1, "T", 8)
SCAN = (f("B", "T", 4, 3), f("B", "T", 4, low=0.1, high=1))
COMPOSITES = [
    case(ops.rms_norm, X, f(4), 1e-5),
    case(fake_quantize, X, None, torch.int8, True),
    case(fake_quantize, X, None, torch.float8_e4m3fn, True),
    case(fake_quantize, X, None, torch.int8, False),
    case(fake_quantize, X, Of((), low=0.01), torch.int8, False),
    case(sign_stack, Of((2, 4, 3), torch.uint8), f(2, 4, 5), f(2, 5, 20), f(2)),
    case(ops.rms_norm, X, None, 1e-5),
    case(ops.rms_norm, Of(("B", 8), torch.float16), f(8), 1e-5),
    *(case(ops.gated, X, X, name) for name in ("silu", "gelu", "gelu_tanh", "relu")),
    case(ops.rotary, HEADS, TABLE, TABLE),
    case(ops.rotary, HEADS, f(1, 1, "T", 6), f(1, 1, "T", 6)),
    case(ops.rotary, HEADS, f("T", 6), f("T", 6), True),
    case(ops.attention, HEADS, GROUPS, SEEN, None, False, 0.3),
    case(ops.attention, HEADS, GROUPS, SEEN, flag(1, 1, 1, "T+3"), False, 0.3),
    case(ops.attention, HEADS, GROUPS, SEEN, f("T", "T+3"), False, 0.3),
    case(ops.attention, HEADS, GROUPS, SEEN, f("B", 4, "T", "T+3"), False, 0.3, 2.0),
    case(ops.attention, HEADS, HEADS, HEADS, None, True, 0.5),
    case(ops.attention, HEADS, GROUPS, SEEN, None, True, 0.5),
    case(
        ops.selective_scan,
        *SCAN,
        *(f(4, 5, high=0), f("B", "T", 2, 5), f("B", "T", 2, 5), f(4), f("B", 4, 3, 5)),
        outputs=(0, 1),
    ),
    case(
        ops.selective_scan,
        *SCAN,
        *(f(4, 1, high=0), f("B", "T", 2, 5), f("B", "T", 2, 5), None, f("B", 4, 3, 5)),
        outputs=(0, 1),
    ),
]

CASES = [
    *ELEMENTWISE,
    *CREATION,
    *MOVEMENT,
    *INDEXING,
    *REDUCTION,
    *PRODUCTS,
    *WINDOWS,
    *COMPOSITES,
]

UNDEFINED = {aten.empty.memory_format, aten.new_empty.default}
"""Operators whose result means nothing."""

ELSEWHERE = {dequantize}
"""Operators that need stored tensors, tested in test_onnx_quantized.py."""


def test_every_entry_of_the_table_is_tested() -> None:
    tested = {one.target for one in CASES} | UNDEFINED | ELSEWHERE
    assert set(EMITTERS) == tested


def _name(one: Case) -> str:
    return str(one.target).removesuffix(".default")


@pytest.mark.parametrize("one", CASES, ids=_name)
def test_operator_gives_what_eager_gives(one: Case, tmp_path: Path) -> None:
    program = one.program()
    lower(program, tmp_path)
    session = _session(tmp_path)
    for sizes in SIZES:
        generator = torch.Generator().manual_seed(sizes["B"])
        given = zip(program.inputs, one.tensors(), strict=True)
        feeds = {spec.name: of.make(sizes, generator) for spec, of in given}
        _compare(session, feeds, program.run(**feeds))


def _session(folder: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(folder / MODEL_FILE, options)


def _compare(session: Any, feeds: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    given = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
    for array, want in zip(given, wanted.values(), strict=True):
        got = torch.from_numpy(np.asarray(array))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_an_operator_without_an_entry_is_named() -> None:
    program = case(aten.cummax.default, X, 1, outputs=(0,)).program()
    with pytest.raises(UnsupportedOperator, match=r"%cummax_default: aten.cummax"):
        build(program, CPU)


def test_a_form_of_an_operator_that_cannot_be_lowered_is_named() -> None:
    program = case(aten.adaptive_avg_pool1d.default, f("B", 4, 7), [3]).program()
    with pytest.raises(UnsupportedOperator, match=r"adaptive_avg_pool1d.*unequal sizes"):
        build(program, CPU)


def test_arithmetic_on_sizes(tmp_path: Path) -> None:
    """Floor and ceiling division, remainders, and the greater of two sizes."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    batch, length = (graph.call_function(aten.sym_size.int, (x, axis)) for axis in (0, 1))
    less = graph.call_function(operator.neg, (length,))
    sizes = [
        graph.call_function(operator.floordiv, (length, 2)),
        graph.call_function(operator.neg, (graph.call_function(operator.floordiv, (less, 2)),)),
        graph.call_function(operator.mod, (length, 3)),
        graph.call_function(torch.sym_max, (batch, length)),
        graph.call_function(operator.mul, (batch, length)),
        graph.call_function(operator.mul, (batch, batch)),
    ]
    graph.output((graph.call_function(aten.zeros.default, (sizes,)),))
    shapes = SymbolicShapes((Size("B", 5), Size("T", 7)))
    inputs = (Input("x", torch.float32, ("B", "T")),)
    program = Program(graph, {}, inputs, ("y",), shapes)
    propagate(program)
    lower(program, tmp_path)
    session = _session(tmp_path)
    for rows, columns in ((2, 5), (4, 3), (1, 8)):
        feeds = {"x": torch.zeros(rows, columns)}
        _compare(session, feeds, program.run(**feeds))
