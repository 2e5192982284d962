"""A real language model: its float32 export says what transformers says."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import planish
from planish import assets
from planish.ir.capture.huggingface import from_checkpoint
from planish.lowering.onnx.lower import lower
from planish.runtime.evaluate import evaluate
from planish.runtime.session import Session
from planish.runtime.texts import read_text

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


NEXT_TOKENS = """
import json, sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
found = []
for prompt in json.loads(sys.argv[2]):
    with torch.no_grad():
        logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
    best = logits.topk(2)
    found.append([best.indices[0].item(), (best.values[0] - best.values[1]).item()])
print(json.dumps(found))
"""
"""What transformers says comes next, and by how much it prefers it, in a process of its own."""


def test_in_4_bits_the_checkpoint_and_the_onnx_model_say_what_comes_next(
    smollm2: Path, tmp_path: Path
) -> None:
    """Up to the kernel's rounding of activations, which decides only where two tokens are close."""
    planish.optimize(smollm2, "w4a16", output=tmp_path / "out", isolation="off")
    prompts = [
        *PROMPTS,
        "Water boils at a temperature of",
        "Once upon a time",
        "1, 2, 3, 4,",
        "Dear Sir or Madam,",
        "import numpy as",
        "The opposite of hot is",
    ]
    script = [sys.executable, "-c", NEXT_TOKENS, str(tmp_path / "out"), json.dumps(prompts)]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    expected = json.loads(done.stdout.splitlines()[-1])
    session = planish.load(tmp_path / "out")
    found = [session.generate(prompt, max_new_tokens=1).tokens[0] for prompt in prompts]
    clear = [
        (one, token) for one, (token, margin) in zip(found, expected, strict=True) if margin > 0.25
    ]
    assert len(clear) >= 8
    assert all(one == token for one, token in clear)


def test_two_forms_in_one_file(smollm2: Path, tmp_path: Path) -> None:
    """The ready recipe, from little text: each form reads what the other keeps."""
    folder = assets.fetch("wikitext2")
    sample = tmp_path / "sample.txt"
    sample.write_text(read_text(folder / "validation.parquet")[:20_000])
    made = planish.optimize(
        smollm2, "prefill-decode-cpu", samples=sample, output=tmp_path / "small"
    )
    assert made.isolation == "isolated"
    assert made.nbytes < 0.5 * made.original.nbytes
    session = Session.open(tmp_path / "small")
    text = folder / "test.parquet"
    for one_by_one in (False, True):
        found = evaluate(
            session, text, 512, against=smollm2, max_tokens=1024, one_by_one=one_by_one
        )
        assert found.recovery is not None
        assert 90 < found.recovery < 102
    prompt, *_ = PROMPTS
    assert "Paris" in session.generate(prompt, max_new_tokens=8).text
