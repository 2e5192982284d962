"""`Session`: an artifact, opened to be run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from planish.lowering.artifact import MANIFEST, model_file, read_manifest
from planish.runtime import generate
from planish.runtime.backend import Backend, Provider
from planish.runtime.causal import (
    Cache,
    NotCausal,
    Tokens,
    extended_mask,
    feeds,
    state_names,
)
from planish.runtime.config import read_json, setting
from planish.runtime.generate import Completion, Piece
from planish.runtime.opening import backend_of
from planish.runtime.sampling import Options
from planish.runtime.tokenizer import NoTokenizer, Tokenizer, end_tokens
from planish.runtime.values import Array, Value, as_array, checked

Prompt = str | Sequence[int]
"""A text, or its tokens."""


def runnable(folder: Path) -> bool:
    """Whether a folder holds something that `Session.open` can run."""
    return model_file(folder) is not None


class Session:
    """A model that was optimized before, loaded and ready to run. Not meant for several threads.

    Attributes:
        folder: the artifact.
        threads: how many it uses on the CPU; None for as many as there are cores.
        manifest: what `planish.json` says; empty if there is none.
        config: the model's `config.json`; empty if there is none.
    """

    def __init__(self, folder: Path, backend: Backend, threads: int | None = None) -> None:
        self.folder = folder
        self.threads = threads
        manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
        self.manifest: Mapping[str, Any] = manifest
        self.config: Mapping[str, Any] = read_json(folder / "config.json")
        self._backend = backend

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        provider: Provider = "auto",
        threads: int | None = None,
        memory: int | None = None,
        compile: bool = False,  # noqa: A002  (as torch calls it)
    ) -> Session:
        """Load an artifact. No code in the folder is run, and nothing is fetched.

        Args:
            folder: what `planish convert` or `planish.optimize` wrote.
            provider: the device; `"auto"` prefers CUDA where the artifact can use it.
            threads: how many threads of the CPU to use; by default as many as there are cores.
            memory: bytes that the model's tensors may take, for an artifact of target torch that
                `bitstack` made: as many of its blocks are kept as fit, those that gain most. By
                default all.
            compile: whether artifacts of target torch or triton are compiled by `torch.compile`
                at the first run, which takes minutes and needs a C++ compiler on the CPU.

        Raises:
            CannotOpen: if the folder holds nothing that can be run, the device is not there, or the
                model has no blocks to leave out, or does not fit into `memory`.
            planish.lowering.artifact.BadArtifact: if its manifest is damaged.
        """
        folder = Path(folder)
        return cls(folder, backend_of(folder, provider, threads, memory, compile), threads)

    @property
    def inputs(self) -> tuple[Value, ...]:
        """What the model takes."""
        return self._backend.inputs

    @property
    def outputs(self) -> tuple[Value, ...]:
        """What the model gives."""
        return self._backend.outputs

    @property
    def provider(self) -> Literal["cpu", "cuda"]:
        """Where the model runs."""
        return self._backend.provider

    @property
    def label(self) -> str:
        """What it is, for people."""
        return self.folder.name

    @cached_property
    def is_causal(self) -> bool:
        """Whether it is a language model that generates, with a cache."""
        names = {value.name for value in self.inputs}
        return "input_ids" in names and any(name.startswith("past_") for name in names)

    def check_causal(self) -> None:
        """Make sure that it is a language model that generates.

        Raises:
            NotCausal: if it is not.
        """
        if not self.is_causal:
            raise NotCausal(
                f"{self.folder} does not generate, nor can its perplexity or choices be measured: "
                "only decoder-only language models that were captured with their cache do. Call "
                f"run with its inputs instead: {'; '.join(map(str, self.inputs))}."
            )

    @property
    def takes_padding(self) -> bool:
        """Whether the texts of a batch may differ in length."""
        return any(value.name == "attention_mask" for value in self.inputs)

    @property
    def context(self) -> int | None:
        """The most tokens of a text that the model can read, if its config says so."""
        return setting(self.config, "max_position_embeddings", "n_positions")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the folder.

        Raises:
            NoTokenizer: if there is none.
        """
        return Tokenizer(self.folder)

    def run(self, **inputs: Any) -> dict[str, Array]:
        """Evaluate the model once.

        For a language model `attention_mask`, `position_ids` and the cache may be left out; the
        text then starts here, without padding.

        Args:
            **inputs: arrays, PyTorch tensors or nested lists by name, as `inputs` describes them.

        Returns:
            All outputs by name; bfloat16 as float32.

        Raises:
            BadInput: if a name, dtype, rank or extent does not fit.
            planish.runtime.backend.RunFailed: if the model fails on the values.
        """
        fresh = self.is_causal and not any(name.startswith("past_") for name in inputs)
        if fresh and "input_ids" in inputs:
            tokens = as_array(inputs["input_ids"])
            given = inputs.get("attention_mask")
            mask = extended_mask(tokens, None if given is None else as_array(given), None)
            inputs = {**feeds(self.inputs, tokens, mask, {}), **inputs}
        return self._backend.run(checked(self.inputs, inputs))

    def extend(
        self, input_ids: Tokens, mask: Tokens | None = None, cache: Cache | None = None
    ) -> tuple[Array, Cache]:
        """Read more tokens; see `planish.runtime.causal.LanguageModel.extend`.

        The cache stays on the device and is not copied.

        Raises:
            NotCausal: if the model is no language model with a cache.
            BadInput: if the shapes or dtypes do not fit.
            planish.runtime.backend.RunFailed: if the model fails on the values.
        """
        whole = extended_mask(input_ids, mask, cache)
        states = cache.states if cache else {}
        results = self._backend.run(
            feeds(self.inputs, input_ids, whole, states), self._state_names.values()
        )
        states = {past: results[present] for past, present in self._state_names.items()}
        return results["logits"], Cache(whole, states)

    @overload
    def generate(self, prompts: Prompt, **options: Any) -> Completion: ...

    @overload
    def generate(
        self, prompts: list[str] | Sequence[Sequence[int]], **options: Any
    ) -> list[Completion]: ...

    def generate(
        self, prompts: Any, *, chat: bool = False, **options: Any
    ) -> Completion | list[Completion]:
        """Continue one prompt or several of any lengths.

        The tokens of a prompt do not depend on the others in the batch.

        Args:
            prompts: a text or its tokens, or a list of texts or of tokens.
            chat: take each prompt as the user's message in a conversation.
            **options: `max_new_tokens`, `do_sample`, `temperature`, `top_k`, `top_p`, `seed` and
                `stop`; see `planish.runtime.sampling.Options`.

        Returns:
            A completion; a list of them for a list of prompts.

        Raises:
            planish.runtime.sampling.BadOption: if an option is unknown or out of range.
            planish.runtime.generate.BadPrompt: if a prompt is empty or too long.
            NoTokenizer: if text is given and the folder has no tokenizer or chat template.
            NotCausal: if the model does not generate.
        """
        single, tokens = self._encode(prompts, chat)
        found = generate.collect(self._stream(tokens, options), tokens)
        return found[0] if single else found

    def stream(self, prompts: Any, *, chat: bool = False, **options: Any) -> Iterator[Piece]:
        """Like `generate`, but give each token, and the text it completes, as soon as it is known.

        With several prompts their pieces alternate; `Piece.row` tells them apart.
        """
        return self._stream(self._encode(prompts, chat)[1], options)

    @cached_property
    def _state_names(self) -> dict[str, str]:
        self.check_causal()
        given, gives = ([value.name for value in side] for side in (self.inputs, self.outputs))
        return state_names(given, gives)

    @cached_property
    def _ends(self) -> frozenset[int]:
        ends = end_tokens(self.folder)
        if not ends and self._text is not None and self._text.end is not None:
            return frozenset([self._text.end])
        return ends

    @cached_property
    def _text(self) -> Tokenizer | None:
        try:
            return self.tokenizer
        except NoTokenizer:
            return None

    def _stream(self, prompts: list[list[int]], options: Mapping[str, Any]) -> Iterator[Piece]:
        return generate.stream(
            self,
            prompts,
            Options.of(options),
            tokenizer=self._text,
            ends=self._ends,
            context=self.context,
        )

    def _encode(self, prompts: Any, chat: bool) -> tuple[bool, list[list[int]]]:
        """Whether one prompt was given, and the tokens of each."""
        if hasattr(prompts, "tolist"):  # an array or a tensor
            prompts = prompts.tolist()
        single = isinstance(prompts, str) or (
            bool(prompts) and isinstance(prompts[0], int | np.integer)
        )
        return single, [self._tokens(prompt, chat) for prompt in ([prompts] if single else prompts)]

    def _tokens(self, prompt: Prompt, chat: bool) -> list[int]:
        self.check_causal()  # rather than to complain of a tokenizer that it has no use for
        if not isinstance(prompt, str):
            return [int(token) for token in prompt]
        return self.tokenizer.encode_chat(prompt) if chat else self.tokenizer.encode(prompt)


def load(folder: Path | str, **options: Any) -> Session:
    """Open an artifact to run it; `planish.load`. Nothing in it is executed as code.

    Args:
        folder: what `planish convert` or `planish.optimize` wrote.
        options: those of `Session.open`, such as `provider="cpu"`.

    Raises:
        CannotOpen: if the folder holds nothing that can be run, or the device is not there.
    """
    return Session.open(folder, **options)
