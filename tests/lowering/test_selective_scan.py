"""Both ONNX forms of the selective scan against the operator itself, in ONNX Runtime."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from planish.ir.ops import selective_scan
from planish.lowering.onnx.selective_scan import linear_attention, standard_scan
from support.scan import SCANS, Scan

Lowering = Callable[..., tuple[ir.Value, ir.Value]]

LOWERINGS = [(standard_scan, name) for name in SCANS] + [
    (linear_attention, name) for name, scan in SCANS.items() if scan.decays == 1
]


class _Nodes(list[ir.Node]):
    """Nodes and integer constants as they are emitted."""

    def __init__(self) -> None:
        super().__init__()
        self.constants: dict[str, ir.Value] = {}

    def __call__(
        self, outputs: int, kind: str, *inputs: ir.Value | list[int], **attributes: Any
    ) -> tuple[ir.Value, ...]:
        domain, _, name = kind.rpartition(".")
        values = [self._constant(given) if isinstance(given, list) else given for given in inputs]
        made = ir.convenience.convert_attributes(attributes)
        node = ir.Node(domain, name, values, made, num_outputs=outputs, name=f"node{len(self)}")
        for place, output in enumerate(node.outputs):
            output.name = f"{node.name}:{place}"
        self.append(node)
        return tuple(node.outputs)

    def _constant(self, numbers: list[int]) -> ir.Value:
        name = str(numbers)
        if name not in self.constants:
            contents = ir.tensor(np.array(numbers, np.int64), name=name)
            self.constants[name] = ir.Value(
                name=name,
                shape=ir.Shape([len(numbers)]),
                type=ir.TensorType(contents.dtype),
                const_value=contents,
            )
        return self.constants[name]


def _model(lowering: Lowering, scan: Scan, skip: bool) -> onnx.ModelProto:
    float32 = ir.TensorType(ir.DataType.FLOAT)
    inputs = {
        name: ir.Value(name=name, shape=ir.Shape(shape), type=float32)
        for name, shape in scan.shapes().items()
    }
    if not skip:
        del inputs["d"]
    nodes = _Nodes()
    y, state = lowering(
        nodes,
        **{"d": None, **inputs},
        heads=scan.heads,
        width=scan.width,
        groups=scan.groups,
    )
    for output, name, like in ((y, "y", "x"), (state, "final_state", "state")):
        output.name, output.type, output.shape = name, float32, inputs[like].shape
    graph = ir.Graph(
        list(inputs.values()),
        [y, state],
        nodes=nodes,
        initializers=list(nodes.constants.values()),
        opset_imports={"": 23, "com.microsoft": 1},
        name="scan",
    )
    model: onnx.ModelProto = ir.to_proto(ir.Model(graph, ir_version=11))
    return model


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize(("lowering", "name"), LOWERINGS)
def test_lowering_equals_the_operator(lowering: Lowering, name: str) -> None:
    """One model serves every batch and length, from any state."""
    scan = SCANS[name]
    session = _session(_model(lowering, scan, skip=True))
    for batch, length in ((1, 1), (2, 9), (3, 1), (1, 17)):
        arguments = scan.arguments(batch, length)
        expected = selective_scan(*arguments.values())
        got = session.run(None, {name: value.numpy() for name, value in arguments.items()})
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("lowering", [standard_scan, linear_attention])
def test_skip_is_optional(lowering: Lowering) -> None:
    """Without d nothing of x is added to y."""
    scan = SCANS["mamba2-groups"]
    arguments = scan.arguments(2, 5) | {"d": None}
    fed = {name: value.numpy() for name, value in arguments.items() if value is not None}
    got = _session(_model(lowering, scan, skip=False)).run(None, fed)
    expected = selective_scan(*arguments.values())[0]
    torch.testing.assert_close(torch.from_numpy(got[0]), expected, rtol=1e-5, atol=2e-6)


def test_standard_scan_needs_no_other_domain() -> None:
    """It is what `--opset-only` asks for, body included."""
    model = _model(standard_scan, SCANS["mamba"], skip=True)
    (scan,) = (node for node in model.graph.node if node.op_type == "Scan")
    body = scan.attribute[[attribute.name for attribute in scan.attribute].index("body")].g
    assert not {node.domain for node in [*model.graph.node, *body.node]} - {""}
