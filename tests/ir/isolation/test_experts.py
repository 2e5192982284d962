"""A mixture of experts of transformers, exported as its users export it."""

from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from planish.ir.flow.fx import read_exported
from planish.ir.isolation.arranged import COUNTS
from planish.ir.isolation.cases import analyse
from planish.ir.isolation.labels import Labels
from planish.ir.isolation.verdict import Analysis

AUTO = torch.export.Dim.AUTO


def audited(experts: str) -> Analysis:
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        use_cache=False,
    )
    model: Any = MixtralForCausalLM(config).eval()
    model.set_experts_implementation(experts)
    inputs = {name: torch.ones(3, 5, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    shapes = {name: {0: AUTO, 1: AUTO} for name in inputs}
    with torch.no_grad():
        exported = torch.export.export(model, (), inputs, dynamic_shapes=shapes)
    decomposed = exported.run_decompositions({})
    return analyse(lambda ties: read_exported(decomposed, ties), Labels())


@pytest.mark.slow
@pytest.mark.parametrize("experts", ["grouped_mm", "batched_mm"])
def test_mixtral_is_isolated(experts: str) -> None:
    found = audited(experts)
    assert found.verdict == "isolated", found.findings
    assert not found.unknown_operators
    grouped = experts == "grouped_mm"
    assert (COUNTS in found.assumptions) == grouped
    assert [one.kind for one in found.findings] == ["numerics"] * grouped
