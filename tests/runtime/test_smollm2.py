"""A real language model: its float32 export says what transformers says."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from planish import assets
from planish.ir.capture.huggingface import from_checkpoint
from planish.lowering.onnx.lower import lower
from planish.runtime.evaluate import evaluate
from planish.runtime.session import Session

pytestmark = pytest.mark.slow

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):",
    "In the beginning, there was nothing but darkness, and then",
    "Grüße aus",
]


@pytest.fixture(scope="module")
def session(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("smollm2")
    for file in smollm2.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    lower(from_checkpoint(smollm2), folder / "onnx")
    return Session.open(folder)


def test_generates_the_same_tokens_alone_and_in_a_batch(session: Session, smollm2: Path) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(smollm2)
    together = session.generate(PROMPTS, max_new_tokens=24)
    for prompt, found in zip(PROMPTS, together, strict=True):
        tokens = torch.tensor([session.tokenizer.encode(prompt)])
        with torch.no_grad():
            expected = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=24, do_sample=False
            )
        assert list(found.tokens) == expected[0, tokens.shape[1] :].tolist()
        assert session.generate(prompt, max_new_tokens=24) == found


def test_has_the_perplexity_of_transformers(session: Session, smollm2: Path) -> None:
    text = assets.fetch("wikitext2") / "test.parquet"
    found = evaluate(session, text, window=512, against=smollm2, max_tokens=2048)
    assert found.recovery == pytest.approx(100, abs=0.01)
    assert 25 < found.perplexity.value < 50


def test_answers_in_a_conversation(session: Session) -> None:
    found = session.generate("What is the capital of France?", chat=True, max_new_tokens=32)
    assert "Paris" in found.text
    assert found.finish == "end"
