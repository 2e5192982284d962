"""Perplexity, recovery and multiple choice: the arithmetic, against transformers and by hand."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers

from planish.ir.capture.checkpoint import BadCheckpoint
from planish.runtime.choices import Question, choice_likelihoods, choose, read_questions
from planish.runtime.eager import EagerModel, opponent
from planish.runtime.evaluate import BadWindow, evaluate, perplexity, windows
from planish.runtime.scoring import CHUNK, NotANumber, log_likelihoods
from planish.runtime.session import Session
from planish.runtime.texts import BadFile, read_text

TEXT = "The quick brown fox jumps over the lazy dog; nobody knows why. " * 3


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


def test_log_likelihoods_are_log_softmax() -> None:
    logits = 30 * torch.randn(2 * CHUNK + 3, 50, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(len(logits)) % 50
    expected = logits.double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    before = logits.clone()
    found = log_likelihoods(logits.numpy(), targets.numpy())
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=1e-6)
    assert torch.equal(logits, before)


def test_perplexity_equals_the_loss_of_transformers(
    session: Session, llama: transformers.LlamaForCausalLM, text_file: Path
) -> None:
    calls: list[tuple[str, int, int]] = []
    found = evaluate(session, text_file, window=64, progress=lambda *call: calls.append(call))
    tokens = torch.tensor([session.tokenizer.encode_plain(TEXT)])
    losses, weights = [], []
    for begin in range(0, tokens.shape[1], 64):
        window = tokens[:, begin : begin + 64]
        with torch.no_grad():
            losses.append(float(llama(window, labels=window).loss))
        weights.append(window.shape[1] - 1)
    assert found.perplexity.tokens == sum(weights)
    assert found.perplexity.loss == pytest.approx(np.average(losses, weights=weights), rel=1e-5)
    assert found.perplexity.value == pytest.approx(math.exp(found.perplexity.loss))
    assert found.baseline is None
    assert found.recovery is None
    assert calls[-1] == (f"Perplexity of {session.label}", 3, 3)


@pytest.mark.parametrize(
    ("length", "window", "stride", "expected"),
    [
        (10, 4, 4, [(0, 0, 4), (4, 4, 8), (8, 8, 10)]),
        (9, 4, 4, [(0, 0, 4), (4, 4, 8)]),
        (10, 6, 2, [(0, 0, 6), (2, 6, 8), (4, 8, 10)]),
        (3, 8, 4, [(0, 0, 3)]),
    ],
)
def test_windows(
    length: int, window: int, stride: int, expected: list[tuple[int, int, int]]
) -> None:
    assert list(windows(length, window, stride)) == expected


def test_overlapping_windows_score_each_token_once(session: Session) -> None:
    tokens = np.array(session.tokenizer.encode_plain(TEXT)[:50], np.int64)
    found = perplexity(session, tokens, 20, 5)
    losses = -log_likelihoods(session.extend(tokens[None, :20])[0][0, :-1], tokens[1:20])
    for end in range(25, 55, 5):
        logits = session.extend(tokens[None, end - 20 : end])[0][0]
        fresh = slice(end - 5, end)
        losses = np.append(losses, -log_likelihoods(logits[14:-1], tokens[fresh]))
    assert found.tokens == 49
    assert found.loss == pytest.approx(losses.mean(), rel=1e-6)


def test_windows_begin_as_the_tokenizer_begins_texts(session: Session) -> None:
    tokens = np.array(session.tokenizer.encode_plain(TEXT)[:40], np.int64)
    found = perplexity(session, tokens, 21, 20, prefix=[257])
    assert found.tokens == 40
    whole = np.concatenate([[257], tokens[:20]])
    first = -log_likelihoods(session.extend(whole[None])[0][0, :-1], whole[1:])
    again = perplexity(session, tokens[:20], 21, 20, prefix=[257])
    assert again.loss == pytest.approx(first.mean())


def test_recovery_against_itself_and_a_worse_model(
    session: Session, llama: transformers.LlamaForCausalLM, text_file: Path
) -> None:
    same = evaluate(session, text_file, window=32, against=llama, max_tokens=64)
    assert same.recovery == pytest.approx(100, abs=1e-3)
    assert same.baseline is not None
    assert same.baseline.label == "LlamaForCausalLM (float32, PyTorch eager)"
    loud = transformers.LlamaForCausalLM(llama.config)
    loud.load_state_dict({name: 3 * value for name, value in llama.state_dict().items()})
    found = evaluate(session, text_file, window=32, against=loud, max_tokens=64)
    assert found.baseline is not None
    assert found.recovery == pytest.approx(100 * found.baseline.value / found.perplexity.value)
    assert json.loads(json.dumps(found.to_json()))["perplexity"]["tokens"] == 62


def test_opponents(session: Session, tmp_path: Path) -> None:
    assert opponent(session) is session
    assert isinstance(opponent(session.folder), Session)
    with pytest.raises(BadCheckpoint, match="no such folder"):
        opponent(tmp_path / "missing")


def test_checkpoints_are_opponents(llama: transformers.LlamaForCausalLM, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)
    loaded = opponent(tmp_path)
    assert isinstance(loaded, EagerModel)
    tokens = np.array([[1, 2, 3]])
    logits, cache = loaded.extend(tokens[:, :2])
    more, cache = loaded.extend(tokens[:, 2:], cache=cache)
    with torch.no_grad():
        expected = llama(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(np.concatenate([logits, more], axis=1), expected, atol=1e-5)
    np.testing.assert_allclose(loaded.run(input_ids=tokens)["logits"], expected, atol=1e-5)


def test_modules_of_any_kind_are_opponents() -> None:
    given = np.array([[-1.0, 2.0]], np.float32)
    (found,) = EagerModel(torch.nn.ReLU()).run(input=given).values()
    assert found.tolist() == [[0, 2]]
    pair = EagerModel(torch.nn.LSTM(2, 3)).run(input=given)
    assert [array.shape for array in pair.values()] == [(1, 3)]


@pytest.mark.parametrize(
    ("window", "stride", "reason"),
    [
        (1, None, "at least 2 tokens"),
        (8, 9, "stride be from 1 to 8"),
        (8, 0, "stride of 0"),
        (65, None, "reads 64"),
    ],
)
def test_refuses_windows(
    session: Session, text_file: Path, window: int, stride: int | None, reason: str
) -> None:
    with pytest.raises(BadWindow, match=reason):
        evaluate(session, text_file, window=window, stride=stride)


def test_refuses_short_texts_and_nan(
    session: Session, llama: transformers.LlamaForCausalLM, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(BadWindow, match="1 tokens"):
        evaluate(session, tmp_path / "a.txt", window=8)
    broken = transformers.LlamaForCausalLM(llama.config)
    with torch.no_grad():
        broken.lm_head.weight.fill_(torch.nan)
    with pytest.raises(NotANumber, match="LlamaForCausalLM"):
        perplexity(EagerModel(broken), np.arange(9), 9, 9)


def test_texts_from_rows(tmp_path: Path) -> None:
    rows = ["one", "", "twö"]
    lines = [json.dumps({"text": row}) for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join([lines[0], "", *lines[1:]]) + "\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("one\n\n\n\ntwö")
    for suffix in ("txt", "jsonl", "parquet"):
        assert read_text(tmp_path / f"a.{suffix}") == "one\n\n\n\ntwö"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", None, r"a\.txt cannot be read"),
        ("a.txt", b"\xff\xfe\xfa", "UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{', r"a\.jsonl:2 is no JSON"),
        ("a.jsonl", b"[1]", "holds no JSON object"),
        ("a.jsonl", b'{"body": "a"}', "it has body"),
        ("a.parquet", b"no parquet", "cannot be read as parquet"),
        ("a.parquet", None, "cannot be read as parquet"),
    ],
)
def test_refuses_files(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFile, match=reason):
        read_text(tmp_path / name)


def test_refuses_tables_without_text(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(BadFile, match="it has body"):
        read_text(tmp_path / "a.parquet")


def test_choices_are_scored_as_one_by_one(
    session: Session, llama: transformers.LlamaForCausalLM
) -> None:
    question = Question("Which? ", ("a", "longer one", "b c"), 0)
    found = choice_likelihoods(session, session.tokenizer, question)
    for choice, likelihood in zip(question.choices, found, strict=True):
        context = session.tokenizer.encode("Which?")
        text = torch.tensor([session.tokenizer.encode(f"Which? {choice}")])
        with torch.no_grad():
            scores = llama(text).logits.log_softmax(-1)[0, len(context) - 1 : -1]
        expected = scores.gather(1, text[0, len(context) :, None]).sum()
        assert likelihood == pytest.approx(float(expected), abs=1e-4)


def test_accuracy_counts_right_answers(session: Session, tmp_path: Path) -> None:
    contexts = ["Up or", "Yes or", "One or two or"]
    choices = ["down", "no, never at all", "x"]
    questions = [Question(context, tuple(choices), 0) for context in contexts]
    likelihoods = [choice_likelihoods(session, session.tokenizer, q) for q in questions]
    best = [int(np.argmax(row)) for row in likelihoods]
    best_normalized = [int(np.argmax(np.array(row) / [4, 16, 1])) for row in likelihoods]
    rows: list[dict[str, Any]] = [
        {"context": contexts[0], "choices": choices, "answer": best[0]},
        {"context": contexts[1], "choices": choices, "answer": "ABC"[best[1]]},
        {"context": contexts[2], "choices": choices, "answer": choices[(best[2] + 1) % 3]},
    ]
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    answers = [best[0], best[1], (best[2] + 1) % 3]
    found = choose(session, file, against=session)
    assert found.accuracy.plain == pytest.approx(2 / 3)
    right = [a == b for a, b in zip(best_normalized, answers, strict=True)]
    assert found.accuracy.normalized == pytest.approx(np.mean(right))
    assert found.accuracy.error == pytest.approx(math.sqrt(2 / 9 / 3))
    assert found.recovery == pytest.approx(100)
    assert found.guessing == pytest.approx(1 / 3)
    assert choose(session, file, max_questions=1).accuracy.questions == 1


def test_reads_questions(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question": "Why?", "choices": ["a", "b"], "answer": "B"}))
    assert read_questions(file) == [Question("Question: Why?\nAnswer:", ("a", "b"), 1)]
    for row, reason in (
        ({"question": "Why?", "choices": ["a"], "answer": 0}, "'choices'"),
        ({"choices": ["a", "b"], "answer": 0}, "'question' or 'context'"),
        ({"question": "Why?", "choices": ["a", "b"], "answer": 2}, "'answer' is 2"),
        ({"question": "Why?", "choices": ["a", "b"], "answer": "C"}, "'answer' is 'C'"),
    ):
        file.write_text(json.dumps(row))
        with pytest.raises(BadFile, match=f"q.jsonl:1.*{reason}"):
            read_questions(file)
    file.write_text("\n")
    with pytest.raises(BadFile, match="no question"):
        read_questions(file)
