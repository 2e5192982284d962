"""A model that compares requests on purpose, of which the rest is proven (T26)."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from planish.ir.capture.functional import functional
from planish.ir.flow.fx import read_exported
from planish.ir.isolation.cases import analyse
from planish.ir.isolation.labels import Labels

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_dim": 8,
}
TEXT = {
    "vocab_size": 64,
    "max_position_embeddings": 16,
    "bos_token_id": 62,
    "eos_token_id": 63,
    "pad_token_id": 0,
}


@pytest.mark.filterwarnings("ignore")
def test_the_logits_of_clip_leak_and_its_embeddings_do_not() -> None:
    vision = TOWER | {"image_size": 16, "patch_size": 8}
    model = CLIPModel(
        CLIPConfig(text_config=TOWER | TEXT, vision_config=vision, projection_dim=8)
    ).eval()
    auto = torch.export.Dim.AUTO
    words = torch.ones(3, 7, dtype=torch.int64)
    inputs = {
        "input_ids": words,
        "pixel_values": torch.randn(3, 3, 16, 16),
        "attention_mask": words,
    }
    shapes = {name: {0: auto} | ({1: auto} if one is words else {}) for name, one in inputs.items()}
    with torch.no_grad():
        exported = torch.export.export(model, (), inputs, dynamic_shapes=shapes)
    program = functional(exported)

    found = analyse(lambda ties: read_exported(program, ties), Labels())

    assert not found.unknown_operators
    logits, others = found.outputs[:2], found.outputs[2:]
    assert [one.verdict for one in logits] == ["leaks", "leaks"]
    assert [one.requests for one in logits] == ["(i0 mod B), (i1 mod B)"] * 2
    assert len(others) == 6
    assert {one.verdict for one in others} == {"isolated"}
    assert {out for one in found.findings for out in one.outputs} == {one.name for one in logits}
