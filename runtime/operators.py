"""Single operators, taken out of a model and run by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from planish.ir.flow.call import Call
from planish.ir.flow.lint import load
from planish.ir.flow.vocabulary import Shape, Value
from planish.ir.rules.onnx.call import OnnxCall
from planish.runtime.batches import LENGTHS, number
from planish.runtime.runnable import CannotRun
from planish.runtime.values import Array, as_array

Spec = tuple[tuple[int, ...], str]
"""The shape and the dtype of an input, as numpy names it."""

Inputs = Sequence[Array | None]
Run = Callable[[Inputs], Sequence[Array]]


@dataclass(frozen=True)
class Operator:
    """One call of an operator, to be run by itself.

    Attributes:
        run: gives the outputs.
        inputs: shape and dtype of each; None for one that is left out.
        fixed: inputs whose values the model stores.
    """

    run: Run
    inputs: tuple[Spec | None, ...]
    fixed: Mapping[int, Array]


def numbers(shape: Shape) -> tuple[int, ...]:
    """A shape with numbers for all sizes."""
    return tuple(number(size, LENGTHS[0]) for size in shape)


def _specs(call: Call, named: Callable[[Any], str]) -> tuple[Spec | None, ...]:
    """Numbers for the shapes of a call's operands, and their dtypes; float32 if not known."""
    return tuple(
        None
        if one is None
        else (
            numbers(one.shape),
            named(dtype) if (dtype := getattr(one, "dtype", None)) is not None else "float32",
        )
        for one in call.operands()
    )


def _torch_dtype(dtype: Any) -> str:
    """bfloat16, which numpy does not have, goes in and out as float32."""
    return str(dtype).removeprefix("torch.").replace("bfloat16", "float32")


def _onnx_dtype(name: str) -> str:
    return str(helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(name)))


def of_torch(call: Any) -> Operator:
    """A call in an exported graph: the operator as it is registered in this process.

    Raises:
        CannotRun: if it takes a size that is not a number.
    """
    import torch  # noqa: PLC0415
    from torch import fx  # noqa: PLC0415

    node: fx.Node = call.node
    target: Any = node.target

    def run(inputs: Inputs) -> list[Array]:
        tensors: Iterator[Any] = iter([one for one in inputs if one is not None])

        def argument(given: fx.Node) -> Any:
            value = given.meta.get("val")
            if not isinstance(value, torch.Tensor):
                raise CannotRun(f"{target} takes the size {given}")
            return torch.from_numpy(np.array(next(tensors))).to(value.dtype)

        args = fx.map_arg(node.args, argument)
        kwargs = fx.map_arg(node.kwargs, argument)
        with torch.no_grad():
            result = target(*args, **kwargs)
        several = result if isinstance(result, list | tuple) else (result,)
        return [as_array(one) for one in several]

    return Operator(run, _specs(call, _torch_dtype), {})


def of_onnx(call: Any, path: Path, libraries: Sequence[str]) -> Operator:
    """A call in an ONNX model: by the body of a function of the model, or a library's.

    Raises:
        CannotRun: if ONNX Runtime does not know the operator.
    """
    import onnxruntime  # noqa: PLC0415

    assert isinstance(call, OnnxCall)
    model = load(path)
    shapes = _specs(call, _onnx_dtype)
    operands = call.operands()
    stored = {one.name: one for one in model.graph.initializer}
    fixed = {
        place: np.asarray(onnx.numpy_helper.to_array(stored[one.name]))
        for place, one in enumerate(operands)
        if isinstance(one, Value) and one.name in stored and not stored[one.name].external_data
    }
    names = ["" if one is None else f"x{place}" for place, one in enumerate(shapes)]
    outputs = [f"y{place}" for place in range(len(call.outputs))]
    domain = call.operator.partition("::")[0]
    node = helper.make_node(call.name, names, outputs, domain=domain, **dict(call.attributes))
    given = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(np.dtype(one[1])), one[0]
        )
        for name, one in zip(names, shapes, strict=True)
        if one is not None
    ]
    graph = helper.make_graph([node], "one", given, [onnx.ValueInfoProto(name=y) for y in outputs])
    alone = helper.make_model(
        graph,
        opset_imports=model.opset_import,
        functions=model.functions,
        ir_version=model.ir_version,
    )
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    try:
        for library in libraries:
            settings.register_custom_ops_library(library)
        session = onnxruntime.InferenceSession(
            alone.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises many kinds
        reason = str(error).strip().partition("\n")[0]
        raise CannotRun(f"ONNX Runtime cannot run it: {reason}") from error

    def run(inputs: Inputs) -> list[Array]:
        feeds = {n: one for n, one in zip(names, inputs, strict=True) if one is not None}
        try:
            return [as_array(one) for one in session.run(None, feeds)]
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise CannotRun(f"it does not run on random inputs: {reason}") from error

    return Operator(run, shapes, fixed)
