"""What passes did, layer by layer."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from planish.ir.capture.export import from_module
from planish.ir.compare import compare
from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor, QuantScheme, dequantize

aten = torch.ops.aten


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 32)
        self.block = nn.Linear(32, 64)
        self.turned = nn.Parameter(torch.randn(64, 32))  # [in, out]
        self.norm = nn.LayerNorm(32)
        self.scale = nn.Parameter(torch.zeros(32, 1))

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.norm(torch.relu(self.block(self.embed(ids))) @ self.turned)
        result: Tensor = hidden @ self.embed.weight.T + hidden @ self.scale
        return result


@pytest.fixture(scope="module")
def before() -> Program:
    torch.manual_seed(0)
    return from_module(Model().eval(), torch.randint(10, (2, 5)))


SCHEME = QuantScheme(8, None)


def stored(weight: Tensor) -> QuantizedTensor:
    scale = weight.abs().amax(-1, keepdim=True) / SCHEME.high
    codes = SCHEME.nearest(SCHEME.grouped(weight), scale).flatten(-2).to(torch.int8)
    return QuantizedTensor.from_codes(SCHEME, weight.dtype, codes, scale)


@pytest.fixture(scope="module")
def after(before: Program) -> Program:
    """Quantized embedding and linear layer, the other weight as a product of two, no norm."""
    with before.edit() as edit:
        for node in edit.nodes():
            if node.op != "get_attr":
                continue
            name = str(node.target)
            first = next(iter(node.users))
            if name in {"embed.weight", "block.weight"}:
                read = stored(edit.tensors[name]).insert(edit, name, before=first)
                edit.replace(node, read, f"quantized {name}")
            elif name == "turned":
                left, values, right = torch.linalg.svd(edit.tensors[name], full_matrices=False)
                one = edit.read("turned_a", left[:, :20] * values[:20], before=first)
                other = edit.read("turned_b", right[:20].contiguous(), before=first)
                product = edit.call(aten.matmul.default, one, other, before=first)
                edit.replace(node, product, "factored turned")
        (norm,) = edit.nodes(aten.layer_norm.default)
        edit.replace(norm, norm.all_input_nodes[0], "dropped the norm")
    return edit.program


def test_each_layer_has_its_error(before: Program, after: Program) -> None:
    deltas = {delta.layer: delta for delta in compare(before, after)}
    for name in ("embed", "block"):
        weight = before.tensors[f"{name}.weight"]
        expected = (stored(weight).dequantize() - weight).norm() / weight.norm()
        assert deltas[name].error == pytest.approx(float(expected), rel=1e-5)
        assert 0 < float(expected) < 0.02
        assert deltas[name].form == ("float32", "int8 symmetric, per channel")
    values = torch.linalg.svdvals(before.tensors["turned"]).double()
    dropped = float(values[20:].norm() / values.norm())  # Eckart and Young, 1936
    assert deltas["turned"].error == pytest.approx(dropped, rel=1e-4)


def test_each_layer_has_its_sizes(before: Program, after: Program) -> None:
    deltas = {delta.layer: delta for delta in compare(before, after)}
    assert deltas["embed"].parameters == (320, 320)
    assert deltas["embed"].nbytes == (4 * 320, 320 + 4 * 10)
    assert deltas["block"].nbytes == (4 * (2048 + 64), 2048 + 4 * (64 + 64))
    assert deltas["norm"].parameters == (64, 0)
    assert deltas["norm"].form == ("float32", "")
    assert deltas["norm"].error is None
    assert deltas["turned_a"].parameters == (0, 64 * 20)
    assert deltas["block"].shapes == (((64, 32),), ((64, 32),))  # as read, however stored
    assert deltas["norm"].shapes == (((32,),), ())
    assert deltas["turned_a"].shapes == ((), ((64, 20),))
    nbytes = [sum(delta.nbytes[side] for delta in deltas.values()) for side in (0, 1)]
    assert nbytes == [before.nbytes, after.nbytes]


def test_nothing_changes_nothing(before: Program) -> None:
    for delta in compare(before, before):
        assert delta.error == 0.0
        assert delta.parameters[0] == delta.parameters[1]
        assert delta.nbytes[0] == delta.nbytes[1]


def test_a_copy_has_no_error(before: Program, tmp_path: Path) -> None:
    before.save(tmp_path)
    assert {delta.error for delta in compare(before, Program.load(tmp_path))} == {0.0}


def test_an_error_relative_to_zero_is_none(before: Program) -> None:
    with before.edit() as edit:
        edit.tensors["scale"] = torch.ones(32, 1)
    (error,) = [delta.error for delta in compare(before, edit.program) if delta.layer == "scale"]
    assert error is None


def test_the_table_is_read_once_though_two_layers_use_it(after: Program) -> None:
    reads = [node for node in after.nodes(dequantize) if "embed" in str(node.args[0])]
    assert len(reads) == 1
