"""Every rule of ATen's table against the operator itself: what it says is not read, is not read."""

from collections.abc import Iterator
from functools import cache

import pytest
import torch
import torch.nn.attention.varlen  # registers its operator

from planish.ir import ops, quant
from planish.ir.rules.aten import RULES, creation, pointwise
from support import indexing_calls, kernel_calls, movement_calls, product_calls, reduction_calls
from support.refute import Outcome, Sample, refute, target
from support.schema_calls import generated

assert ops
assert quant  # they declare planish's operators

NOT_COMPARED = {
    "aten._efficient_attention_forward.default": "has no kernel for CPUs",
    "aten._flash_attention_forward.default": "has no kernel for CPUs",
    "aten._scaled_dot_product_efficient_attention.default": "has no kernel for CPUs",
    "torch_attn._varlen_attn.default": "has no kernel for CPUs",
    "aten.equal.default": "gives a truth value that torch computes for no symbolic shape",
    "aten.is_nonzero.default": "gives a truth value that torch computes for no symbolic shape",
    **{f"aten.{name}": "older torch cannot trace it" for name in reduction_calls.UNTRACED},
}
"""Rules that nothing is compared with, and why."""

WHOLE = """
    mean.default max.default min.default all.default any.default std.default var.default
    count_nonzero.default median.default sum.default prod.default norm.Scalar histc.default
    bincount.default pdist.default _pdist_forward.default dot.default vdot.default trace.default
"""
"""Operators that read all of their operands."""

SIZED = """
    nonzero.default where.default masked_select.default unique_consecutive.default _unique2.default
    unique_dim.default repeat_interleave.Tensor repeat_interleave.self_Tensor
    nonzero_static.default
"""
"""Operators the size or order of whose result depends on the data."""

RAW = "_grouped_mm.default empty_like.default new_empty.default new_empty_strided.default"
"""Operators that give memory as earlier requests left it."""

NEVER_APART = {f"aten.{name}" for name in (WHOLE + SIZED + RAW).split()} | {
    # Codes and signs are packed across words; what is read are weights, never requests.
    "planish.dequantize",
    "planish.sign_stack",
    # Memory is followed only where the graph itself made it (tests/ir/isolation).
    "aten.as_strided.default",
    "aten.as_strided_copy.default",
}
"""Operators that no labelling of their inputs leaves apart."""

CORE_WITHOUT_RULE = {
    "_adaptive_avg_pool2d_backward.default": "gradient",
    "avg_pool2d_backward.default": "gradient",
    "convolution_backward.default": "gradient",
    "embedding_dense_backward.default": "gradient",
    "max_pool2d_with_indices_backward.default": "gradient",
    "native_group_norm_backward.default": "gradient",
    "native_layer_norm_backward.default": "gradient",
    "atan2.out": "writes its argument",
    "resize_.default": "writes its argument",
    "sym_numel.default": "the reader of graphs answers it",
    "sym_is_contiguous.default": "the reader of graphs answers it",
    "sym_size.int": "the reader of graphs answers it",
    "sym_storage_offset.default": "the reader of graphs answers it",
    "sym_stride.int": "the reader of graphs answers it",
}
"""Operators of torch's core set that have no rule, and why."""

FAMILIES = ("creation", "indexing", "kernels", "movement", "pointwise", "product", "reduction")


def samples(family: str) -> list[Sample]:
    if family in ("creation", "pointwise"):
        table = {"creation": creation.RULES, "pointwise": pointwise.RULES}[family]
        return [sample for operator in table for sample in generated(operator)]
    return {
        "indexing": indexing_calls.SAMPLES,
        "kernels": kernel_calls.SAMPLES,
        "movement": movement_calls.SAMPLES,
        "product": product_calls.SAMPLES,
        "reduction": reduction_calls.SAMPLES,
    }[family]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are tiny; threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def outcomes(family: str) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for sample in samples(family):
        found.setdefault(sample.operator, []).append(refute(sample))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_contradicts_a_rule(family: str) -> None:
    wrong = [text for each in outcomes(family).values() for one in each for text in one.wrong]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_rule_keeps_requests_apart_somewhere(family: str) -> None:
    mixing = {
        operator
        for operator, each in outcomes(family).items()
        if any(one.labelled for one in each) and not any(one.apart for one in each)
    }
    assert mixing - NEVER_APART == set()


def test_every_rule_is_compared() -> None:
    compared = {operator for family in FAMILIES for operator in outcomes(family)}
    assert set(RULES) - compared == set(NOT_COMPARED)
    apart = {
        operator
        for family in FAMILIES
        for operator, each in outcomes(family).items()
        if any(one.apart for one in each)
    }
    assert apart & NEVER_APART == set()


def test_every_operator_of_the_table_exists() -> None:
    for operator in RULES:
        assert target(operator)


def test_every_core_operator_has_a_rule() -> None:
    aten = torch.ops.aten
    packets = [getattr(aten, name) for name in dir(aten)]
    overloads = [
        getattr(packet, name)
        for packet in packets
        if hasattr(packet, "overloads")
        for name in packet.overloads()
    ]
    core = {str(operator) for operator in overloads if torch.Tag.core in operator.tags}
    assert len(core) > 150
    assert core - set(RULES) <= {f"aten.{name}" for name in CORE_WITHOUT_RULE}
