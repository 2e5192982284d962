"""Generation: the same tokens as transformers, alone and in a batch, and text that holds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from planish.ir.capture.huggingface import capture_model
from planish.lowering.onnx.lower import lower
from planish.runtime.detokenize import TextStream
from planish.runtime.eager import EagerModel
from planish.runtime.generate import BadPrompt, collect, stream
from planish.runtime.sampling import BadOption, Options, choices, probabilities
from planish.runtime.session import Session
from planish.runtime.tokenizer import NoTokenizer, Tokenizer
from support.models import tiny

PROMPTS = [[3, 4, 5], [7, 8, 9, 10, 11, 12], [1], [9, 9, 9, 9]]


def expected(llama: Any, prompt: list[int], **options: Any) -> list[int]:
    """What transformers generates."""
    found = llama.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        pad_token_id=0,
        do_sample=False,
        **options,
    )
    return list(found[0, len(prompt) :].tolist())


def test_tokens_equal_those_of_transformers(
    session: Session, llama: transformers.LlamaForCausalLM
) -> None:
    together = session.generate(PROMPTS, max_new_tokens=20)
    for prompt, found in zip(PROMPTS, together, strict=True):
        assert list(found.tokens) == expected(llama, prompt, max_new_tokens=20)
        assert session.generate(prompt, max_new_tokens=20) == found
        assert found.prompt_tokens == len(prompt)


def test_a_text_ends_without_its_neighbours(session: Session) -> None:
    free = session.generate(PROMPTS, max_new_tokens=12)
    ends = frozenset([free[1].tokens[2]])
    pieces = stream(session, PROMPTS, Options(max_new_tokens=12), ends=ends)
    for found, unended in zip(collect(pieces, PROMPTS), free, strict=True):
        at = next((n for n, token in enumerate(unended.tokens) if token in ends), None)
        assert found.finish == ("length" if at is None else "end")
        assert found.tokens == unended.tokens[: None if at is None else at + 1]


def test_the_context_limits_generation(session: Session) -> None:
    found = session.generate([5] * 60, max_new_tokens=20)
    assert (len(found.tokens), found.finish) == (4, "length")
    with pytest.raises(BadPrompt, match="64 tokens; the model reads 64"):
        session.generate([5] * 64)


def test_samples_do_not_depend_on_neighbours(session: Session) -> None:
    options: dict[str, Any] = {"do_sample": True, "seed": 3, "max_new_tokens": 8}
    together = session.generate([*PROMPTS, PROMPTS[0]], **options)
    assert [session.generate(prompt, **options) for prompt in PROMPTS] == together[:-1]
    assert together[-1].tokens != together[0].tokens  # the same prompt again draws anew
    assert session.generate(PROMPTS[0], **{**options, "seed": 4}) != together[0]


def test_batches_of_onnx_models(recurrent: Path) -> None:
    session = Session.open(recurrent)
    together = session.generate(PROMPTS, max_new_tokens=10)
    assert together == [session.generate(prompt, max_new_tokens=10) for prompt in PROMPTS]
    assert len({found.tokens for found in together}) > 1
    assert together[0].text == ""
    with pytest.raises(NoTokenizer, match="holds no tokenizer"):
        session.generate("text")
    with pytest.raises(BadOption, match="stop needs a tokenizer"):
        session.generate([1], stop="x")


@pytest.mark.parametrize("family", ["mamba", "gemma3"])
def test_batches_of_other_architectures(family: str, tmp_path: Path) -> None:
    model, _ = tiny(family)  # a state of fixed size; an attention window shorter than the prompts
    lower(capture_model(model), tmp_path / "onnx")
    together = Session.open(tmp_path).generate(PROMPTS, max_new_tokens=10)
    for prompt, found in zip(PROMPTS, together, strict=True):
        assert list(found.tokens) == expected(model, prompt, max_new_tokens=10, eos_token_id=None)


def test_prompts_of_equal_length_where_padding_is_not_taken(
    llama: transformers.LlamaForCausalLM,
) -> None:
    model = EagerModel(llama)
    padded = collect(stream(model, PROMPTS, Options(max_new_tokens=5)), PROMPTS)
    model.takes_padding = False
    assert collect(stream(model, PROMPTS, Options(max_new_tokens=5)), PROMPTS) == padded


def test_text_prompts_chat_and_stop(session: Session) -> None:
    found = session.generate("héllo", max_new_tokens=16)
    assert found.prompt_tokens == 6
    assert found.text == session.tokenizer.decode(list(found.tokens))
    assert session.tokenizer.encode_chat("hi") == session.tokenizer.encode("<user>hi<assistant>")
    assert session.generate(["hi"], chat=True, max_new_tokens=3) == [
        session.generate("<user>hi<assistant>", max_new_tokens=3)
    ]
    stop = found.text[4:6]
    stopped = session.generate("héllo", max_new_tokens=16, stop=stop)
    assert stopped.finish == "stop"
    assert stopped.text == found.text[: found.text.index(stop)]


def test_streams_what_generate_returns(session: Session) -> None:
    prompts = ["one", "another one", "x"]
    pieces = list(session.stream(prompts, max_new_tokens=9))
    assert [piece.row for piece in pieces[:3]] == [0, 1, 2]
    for row, found in enumerate(session.generate(prompts, max_new_tokens=9)):
        own = [piece for piece in pieces if piece.row == row]
        assert "".join(piece.text for piece in own) == found.text
        assert [piece.finish for piece in own] == [None] * (len(own) - 1) + [found.finish]


def test_pieces_never_change_what_was_shown(session: Session) -> None:
    tokenizer = session.tokenizer
    text = "Grüße, 世界! 👩‍👩‍👧 fin"
    shown = TextStream(tokenizer.decode)
    pieces = [shown.push(token) for token in tokenizer.encode(text)]
    assert all("\ufffd" not in piece for piece in pieces)
    assert pieces.count("") > 10
    assert "".join([*pieces, shown.finish()]) == text == shown.text
    cut = TextStream(tokenizer.decode)
    half = [cut.push(token) for token in tokenizer.encode("a世")[:-1]]
    assert "".join([*half, cut.finish()]) == "a\ufffd"


@pytest.mark.parametrize(
    ("stop", "left"),
    [(["na b"], "a bana"), (["nd", "a ban"], ""), (["zz", "and!"], "a banana band"), ([" b"], "a")],
)
def test_stop_strings_across_tokens(session: Session, stop: list[str], left: str) -> None:
    shown = TextStream(session.tokenizer.decode, stop)
    pieces = []
    for token in session.tokenizer.encode("a banana band"):
        pieces.append(shown.push(token))
        if shown.stopped:
            break
    assert "".join([*pieces, shown.finish()]) == left == shown.text


def test_probabilities_follow_the_options() -> None:
    logits = np.log(np.array([0.5, 0.2, 0.2, 0.1], np.float32))
    np.testing.assert_allclose(probabilities(logits, Options()), [0.5, 0.2, 0.2, 0.1], rtol=1e-6)
    np.testing.assert_allclose(
        probabilities(logits, Options(temperature=0.5)),
        np.array([0.25, 0.04, 0.04, 0.01]) / 0.34,
        rtol=1e-6,
    )
    assert probabilities(logits, Options(top_k=1)).tolist() == [1, 0, 0, 0]
    np.testing.assert_allclose(  # ties at the edge stay
        probabilities(logits, Options(top_k=2)), np.array([5, 2, 2, 0]) / 9, rtol=1e-6
    )
    np.testing.assert_allclose(
        probabilities(logits, Options(top_p=0.6)), np.array([5, 2, 0, 0]) / 7, rtol=1e-6
    )
    assert probabilities(logits, Options(top_p=0.01)).tolist() == [1, 0, 0, 0]


def test_samples_are_distributed_as_asked() -> None:
    logits = np.log(np.array([0.5, 0.2, 0.2, 0.1], np.float32))
    (choose,) = choices(Options(do_sample=True, top_p=0.95), [[1, 2]])
    counts = np.bincount([choose(logits) for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(counts / 4000, [0.5, 0.2, 0.2, 0.1], atol=0.03)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"temperature": 0},
        {"top_k": -1},
        {"top_p": 0},
        {"seed": -1},
        {"stop": ["a", ""]},
        {"beams": 4},
    ],
)
def test_refuses_options_out_of_range(session: Session, options: dict[str, Any]) -> None:
    with pytest.raises(BadOption, match=next(iter(options))):
        session.generate([1], **options)


def test_refuses_empty_prompts(session: Session) -> None:
    none: list[str] = []
    assert session.generate(none) == []
    with pytest.raises(BadPrompt, match="Prompt 1 is empty"):
        session.generate(["a", ""])


def test_refuses_chat_without_a_template(
    tokenizer: transformers.PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    plain = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    plain.save_pretrained(tmp_path)
    with pytest.raises(NoTokenizer, match="no chat template"):
        Tokenizer(tmp_path).encode_chat("hi")
