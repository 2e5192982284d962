"""Costs against torch's own counter, and against the formulas of the literature."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from planish.ir.capture.export import from_module
from planish.ir.capture.huggingface import capture_model
from planish.ir.cost import Cost, costs, layers, parameters, total
from planish.ir.ops import attention, selective_scan
from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor, QuantScheme
from support.models import tiny

aten = torch.ops.aten


class Contractions(nn.Module):
    """One of each operator that contracts, but for attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 8, (3, 5), stride=2, padding=1, groups=2)
        self.same = nn.Conv2d(8, 4, 3, padding="same", bias=False)
        self.up = nn.ConvTranspose2d(4, 6, 3, groups=2)
        self.line = nn.Conv1d(6, 5, 3, dilation=2)
        self.linear = nn.Linear(20, 7)
        self.table = nn.Parameter(torch.randn(7, 11))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.same(self.conv(x)))  # [B, 6, H, W]
        x = self.line(x.flatten(2))[..., :20]  # [B, 5, 20]
        x = torch.relu(self.linear(x)) @ self.table  # [B, 5, 11]
        return torch.bmm(x, x.transpose(1, 2))


def test_flops_are_those_that_torch_counts() -> None:
    torch.manual_seed(0)
    module = Contractions().eval()
    program = from_module(module, torch.randn(2, 6, 12, 12))
    for batch in (1, 3):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(torch.randn(batch, 6, 12, 12))
        assert total(costs(program, {"B": batch}).values()).flops == counter.get_total_flops()


@pytest.fixture(scope="module")
def llama() -> Program:
    return capture_model(tiny("llama", layers=1)[0])


def test_a_decoder_takes_two_operations_a_weight_and_token(llama: Program) -> None:
    found = costs(llama, {"B": 3, "T": 4, "P": 5})
    linear = total(found[node] for node in llama.nodes(aten.linear.default))
    stored = {str(node.args[1].target) for node in llama.nodes(aten.linear.default)}  # type: ignore[union-attr]
    weights = sum(llama.tensors[name].numel() for name in stored)
    assert linear.flops == 2 * weights * 3 * 4
    attended = total(found[node] for node in llama.nodes(attention))
    assert attended.flops == 4 * (3 * 4 * 9) * 64  # QKᵀ and PV: 2·B·T·S·width each
    assert linear.flops + attended.flops == total(found.values()).flops


def test_decoding_a_token_reads_every_weight_once(llama: Program) -> None:
    found = costs(llama, {"B": 1, "T": 1, "P": 0})
    for node in llama.nodes(aten.linear.default):
        x, weight = node.all_input_nodes
        widths = weight.meta["val"].shape
        assert found[node].nbytes == 4 * (widths[0] * widths[1] + widths[0] + widths[1])
        assert x not in found or found[x].nbytes > 0


def test_an_embedding_reads_only_its_rows(llama: Program) -> None:
    (node,) = llama.nodes(aten.embedding.default)
    cost = costs(llama, {"B": 2, "T": 3, "P": 0})[node]
    assert cost == Cost(0, 2 * 3 * (8 + 2 * 64 * 4))  # ids, rows in, rows out


def test_views_and_sizes_are_free(llama: Program) -> None:
    working = {node.target for node in costs(llama, {"B": 1, "T": 1, "P": 1})}
    assert aten.reshape.default not in working
    assert aten.transpose.int not in working
    assert aten.sym_size.int not in working
    assert aten.cat.default in working


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.linear(x))


def quantized(program: Program, name: str, scheme: QuantScheme) -> Program:
    """The program with one weight rounded to the nearest code."""
    weight = program.tensors[name]
    grouped = scheme.grouped(weight)
    scale = grouped.abs().amax(-1) / scheme.high
    codes = scheme.nearest(grouped, scale).flatten(-2).to(torch.int8)
    stored = QuantizedTensor.from_codes(scheme, weight.dtype, codes, scale)
    with program.edit() as edit:
        for node in edit.nodes():
            if node.op == "get_attr" and node.target == name:
                edit.replace(node, stored.insert(edit, name, before=next(iter(node.users))), "")
    return edit.program


def test_a_quantized_weight_is_read_packed_and_counts_as_before() -> None:
    torch.manual_seed(0)
    before = from_module(Linear().eval(), torch.randn(2, 64))
    after = quantized(before, "linear.weight", QuantScheme(4, 32))
    (old,), (new,) = layers(before), layers(after)
    assert (old.parameters, old.nbytes, old.form) == (2080, 8320, "float32")
    packed, scales, bias = 32 * 64 // 2, 4 * 32 * 2, 4 * 32
    assert (new.parameters, new.nbytes) == (2080, packed + scales + bias)
    assert new.form == "int4 symmetric, groups of 32"
    assert parameters(after) == parameters(before) == 2080
    (node,) = after.nodes(aten.linear.default)
    cost = costs(after, {"B": 1})[node]
    assert cost == Cost(2 * 32 * 64, packed + scales + bias + 4 * (64 + 32))


def test_a_scan_costs_by_steps_and_state() -> None:
    class Scan(nn.Module):
        def forward(self, x: Tensor, a: Tensor, b: Tensor, state: Tensor) -> Tensor:
            result: Tensor = selective_scan(x, x[..., 0], a, b, b, None, state)[0]
            return result

    inputs = [torch.randn(2, 5, 4, 3), torch.randn(4, 8), torch.randn(2, 5, 1, 8)]
    program = from_module(Scan().eval(), [*inputs, torch.randn(2, 4, 3, 8)], batch_axis=None)
    (node,) = program.nodes(selective_scan)
    assert costs(program, {})[node].flops == 6 * (2 * 5) * (4 * 3 * 8)
