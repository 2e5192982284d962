"""The tokenizer of a model's folder, its chat template, and the tokens that end a text."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from planish.ir.errors import PlanishError
from planish.runtime.config import read_json

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


_CHARACTERS = 8
"""Of a text so many are read first for each token that is wanted: English has four or five."""

_CUT = 64
"""Tokens at the end of a part that may be others in the whole text."""


class NoTokenizer(PlanishError):
    """Text was given or asked for, and there is no tokenizer, or no chat template."""


class Tokenizer:
    """Text to tokens and back, as the model's publisher set it up."""

    def __init__(self, folder: Path) -> None:
        """Read the tokenizer with transformers; code that the folder holds is not run.

        Raises:
            NoTokenizer: if there is none, or transformers cannot read it.
        """
        if not any((folder / name).is_file() for name in _FILES):
            raise NoTokenizer(
                f"{folder} holds no tokenizer. Copy the files of the model's tokenizer there, or "
                "give token numbers."
            )
        from transformers import AutoTokenizer  # noqa: PLC0415  (slow to import)

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NoTokenizer(f"The tokenizer in {folder} cannot be read: {error}") from error
        self._folder = folder

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt, with what the model expects before it."""
        return self._numbers(text, special=True)

    def encode_plain(self, text: str) -> list[int]:
        """The tokens of a text and nothing else."""
        return self._numbers(text, special=False)

    def first(self, text: str, count: int, *, plain: bool = False) -> list[int]:
        """The first tokens of a text, at most `count`; what comes far behind them is not read.

        Args:
            text: of any length.
            count: 0 or more.
            plain: leave out what the model expects before a text.
        """
        size = _CHARACTERS * (count + _CUT)
        while True:
            tokens = self._numbers(text[:size], special=not plain)
            if size >= len(text) or len(tokens) >= count + _CUT:
                return tokens[:count]
            size *= 2

    def encode_chat(self, message: str) -> list[int]:
        """The tokens of a conversation in which the user said `message` and an answer is due.

        Raises:
            NoTokenizer: if the tokenizer has no chat template.
        """
        if not self._tokenizer.chat_template:
            raise NoTokenizer(
                f"The tokenizer in {self._folder} has no chat template, so the model was not "
                "made for conversations; generate without chat."
            )
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
        )
        return self.encode_plain(text)

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, without special ones."""
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    @cached_property
    def prefix(self) -> list[int]:
        """The token that every text of this model begins with, or nothing."""
        first = self.encode("")[:1]
        return first if first == [self._tokenizer.bos_token_id] else []

    def rows(self, tokens: list[int], count: int, length: int) -> list[list[int]]:
        """The first tokens of a text, cut into at most `count` rows, each as long as `length`.

        Each row begins with `prefix`: a model that was trained to find it there computes without it
        what it never does in use (Gemma 3 270M's perplexity nearly doubles).
        """
        first = self.prefix
        room = length - len(first)
        rest = tokens[len(first) :] if tokens[: len(first)] == first else tokens
        count = min(count, len(rest) // room)
        return [first + rest[n * room : (n + 1) * room] for n in range(count)]

    @property
    def end(self) -> int | None:
        """The token that ends a text."""
        token: int | None = self._tokenizer.eos_token_id
        return token

    def _numbers(self, text: str, special: bool) -> list[int]:
        # verbose=False: a text longer than the model's context is cut into windows elsewhere
        encoded = self._tokenizer(text, add_special_tokens=special, verbose=False)
        return list(encoded["input_ids"])


def end_tokens(folder: Path) -> frozenset[int]:
    """The tokens that end a text by `generation_config.json`, else by `config.json`."""
    for name in ("generation_config.json", "config.json"):
        found = read_json(folder / name).get("eos_token_id")
        if found is not None:
            return frozenset([found] if isinstance(found, int) else found)
    return frozenset()
