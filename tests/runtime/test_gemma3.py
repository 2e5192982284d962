"""Gemma 3 270M: sliding windows, normed queries and keys, tied embeddings of 262,144 tokens."""

from pathlib import Path

import pytest
import torch
import transformers

from planish import api, assets
from planish.runtime.tokenizer import Tokenizer
from planish.samples import as_samples

pytestmark = pytest.mark.slow

LONG = 700
"""Tokens: more than the sliding window of 512."""


@pytest.mark.parametrize("length", [64, LONG])
def test_captured_it_says_what_transformers_says(gemma3: Path, length: int) -> None:
    tokens = torch.tensor([Tokenizer(gemma3).encode(assets.wikitext2("test"))[:length]])
    program = api.capture(gemma3)
    (sample,) = as_samples([{"input_ids": tokens}], program)
    model = transformers.AutoModelForCausalLM.from_pretrained(gemma3).eval()
    with torch.no_grad():
        expected = model(tokens).logits
    torch.testing.assert_close(program.run(**sample)["logits"], expected, rtol=1e-4, atol=1e-4)
    assert program.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
