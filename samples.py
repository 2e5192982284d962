"""Calibration samples: from a text of ours, a file of text, or batches that the caller has."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planish.ir.errors import PlanishError
from planish.ir.program import Program, Sample
from planish.ir.sizes import evaluate
from planish.runtime import datasets
from planish.runtime.causal import state_names
from planish.runtime.texts import BETWEEN, read_text
from planish.runtime.tokenizer import NoTokenizer, Tokenizer

LENGTH = 256
"""Tokens a sample, when samples are cut from a text."""

CHECKED = 4
"""Rows on which passes are checked: the model runs on each, before and after every pass, and what
it gives is held for all of them (200 MB for 4 rows of 256 tokens and a vocabulary of 50,000)."""


CALIBRATION = (128, 512)
"""Calibration samples cut from a text: how many at most, and tokens of each. Each runs by itself,
so that activations stay in caches: four together take up to twice as long."""

DEFAULT_TEXT = Path(__file__).parent / "samples.txt"
"""What samples are made of where the caller gives none: paragraphs of plain English, our own."""

DEFAULT_LENGTH, DEFAULT_MORE = 48, 4
"""Tokens of each paragraph in the default sample, and in the sample that continues it."""


class BadSamples(PlanishError):
    """Samples that do not fit the model."""


class Text:
    """A file or dataset of text that samples are cut from; text and tokenizer are read once."""

    def __init__(self, file: str | Path, program: Program) -> None:
        """Read both.

        Raises:
            BadSamples: if the program reads no tokens, or has no folder with a tokenizer.
            planish.runtime.texts.BadFile: if the text cannot be read, or fetched.
        """
        folder = program.source.folder
        if folder is None or all(spec.name != "input_ids" for spec in program.inputs):
            raise BadSamples(
                f"{file}: a text serves as samples only for a language model or encoder that was "
                f"captured from a checkpoint with a tokenizer; {program.source.name} is not one. "
                "Pass batches of inputs through the Python API instead."
            )
        self._file = file
        self._tokenizer = Tokenizer(folder)
        self._text = read_text(datasets.fetch(str(file)) if datasets.is_dataset(file) else file)

    def rows(self, count: int, length: int) -> Tensor:
        """The first tokens, [up to `count`, up to `length`].

        Raises:
            BadSamples: if they are fewer than one sample takes.
        """
        tokens = self._tokenizer.first(self._text, max(count * length, LENGTH))
        least = min(length, LENGTH)
        if len(tokens) < least:
            raise BadSamples(
                f"{self._file}: {len(tokens)} tokens are too few; one sample takes {least}."
            )
        return torch.tensor(self._tokenizer.rows(tokens, count, min(length, len(tokens))))


def with_samples(program: Program, given: Iterable[Mapping[str, Tensor]] | str | Path) -> Program:
    """A program with samples of the caller's: all to learn from, the first few rows to check on.

    Args:
        program: as captured.
        given: as for `as_samples`.

    Raises:
        BadSamples: as `as_samples`.
    """
    batches = Text(given, program) if isinstance(given, (str, Path)) else tuple(given)
    checks = tuple(_first_rows(program, as_samples(batches, program)))
    return dataclasses.replace(
        program, samples=checks, calibration=as_calibration(batches, program)
    )


def _first_rows(program: Program, samples: Iterable[Sample]) -> Iterator[Sample]:
    """The first batches, cut so that they have `CHECKED` rows, or one more, together."""
    axes = {one.name: one.batch_axis for one in program.inputs if one.batch_axis is not None}
    room = CHECKED
    for sample in samples:
        sizes = {sample[name].shape[axis] for name, axis in axes.items()}
        count = max(sizes, default=1)
        kept = min(count, max(room, 2))  # programs may hold for two rows or more
        cut = len(sizes) == 1 and kept < count
        yield {
            name: tensor.narrow(axes[name], 0, kept) if cut and name in axes else tensor
            for name, tensor in sample.items()
        }
        room -= kept if cut else count
        if room <= 0:
            return


def as_samples(
    given: Iterable[Mapping[str, Tensor]] | str | Path | Text, program: Program
) -> tuple[Sample, ...]:
    """Samples for a program.

    Args:
        given: batches of inputs by name, or a file of text, or the name of a dataset on the hub
            (`planish.runtime.datasets`): the first tokens of a text are cut into `CHECKED` samples
            of `LENGTH`. Inputs that come beside `input_ids` are filled in where they are missing:
            all tokens attended, no cache.
        program: decides which inputs there are; a text needs the tokenizer of its folder.

    Raises:
        BadSamples: if the text is too short, the model has no tokenizer, or a batch is empty or no
            mapping.
        planish.ir.program.BadInput: if a batch does not fit the program's inputs.
    """
    if isinstance(given, (str, Path)):
        given = Text(given, program)
    if not isinstance(given, Text):
        return tuple(_completed(program, sample) for sample in given)
    rows = given.rows(CHECKED, min([LENGTH, *_bounds(program)]))
    return tuple(_inputs(program, row) for row in rows.split(1))


def as_calibration(
    given: Iterable[Mapping[str, Tensor]] | str | Path | Text, program: Program
) -> tuple[Sample, ...]:
    """What passes learn from: of a text as many tokens as `CALIBRATION` asks for, or all batches.

    Args:
        given: as for `as_samples`.
        program: as for `as_samples`.

    Raises:
        BadSamples: as `as_samples`.
    """
    count, length = CALIBRATION
    if isinstance(given, (str, Path)):
        given = Text(given, program)
    if not isinstance(given, Text):
        return tuple(_completed(program, sample) for sample in given)
    rows = given.rows(count, min([length, *_bounds(program)]))
    return tuple(_inputs(program, row) for row in rows.split(1))


def _completed(program: Program, sample: Mapping[str, Tensor]) -> Sample:
    """A batch with what its tokens do not say filled in."""
    if not isinstance(sample, Mapping):
        raise BadSamples(
            f"Samples are batches of inputs by name, such as {{'input_ids': tokens}}; one that was "
            f"given is a {type(sample).__name__}. A file of text is given by its path."
        )
    for name, value in sample.items():
        if not isinstance(value, Tensor):
            raise BadSamples(
                f"Samples are batches of tensors; {name} is a {type(value).__name__}. "
                "torch.as_tensor makes one of an array or list."
            )
    tokens = sample.get("input_ids")
    if tokens is not None and not tokens.numel():
        raise BadSamples("A batch of samples holds no tokens: its input_ids are empty.")
    missing = {spec.name for spec in program.inputs} - set(sample)
    if tokens is not None and missing:
        sample = {**_inputs(program, tokens), **sample}
    program.check_inputs(sample)
    axes = {one.name: one.batch_axis for one in program.inputs if one.batch_axis is not None}
    if empty := [name for name, axis in axes.items() if not sample[name].shape[axis]]:
        raise BadSamples(f"A batch of samples holds no rows: {empty[0]} is empty.")
    return dict(sample)


def default_samples(program: Program) -> tuple[Sample, ...]:
    """Samples of plain English for a program that was captured with a tokenizer.

    Random tokens are nothing that a language model has learned anything about, so errors measured
    on them say little. A model with a cache has a second sample, which continues the first over
    the state that it left.

    Args:
        program: as captured.

    Returns:
        The program's own samples where no tokenizer fits it.
    """
    folder = program.source.folder
    if folder is None or not program.samples or "input_ids" not in program.samples[0]:
        return program.samples
    try:
        tokenizer = Tokenizer(folder)
    except NoTokenizer:
        return program.samples
    texts = read_text(DEFAULT_TEXT).strip().split(BETWEEN)
    rows = [tokenizer.encode(text) for text in texts]
    longest = min([DEFAULT_LENGTH + DEFAULT_MORE, *map(len, rows), *_bounds(program)])
    tokens = torch.tensor([row[:longest] for row in rows])
    if longest <= DEFAULT_MORE or int(tokens.max()) >= _vocabulary(program):
        return program.samples
    states = state_names((spec.name for spec in program.inputs), program.outputs)
    if not states:
        return (_inputs(program, tokens),)
    first = _inputs(program, tokens[:, :-DEFAULT_MORE])
    left = program.run(**first)
    more = _inputs(program, tokens[:, -DEFAULT_MORE:], past=longest - DEFAULT_MORE)
    return first, {**more, **{past: left[present] for past, present in states.items()}}


def _bounds(program: Program) -> list[int]:
    """The most tokens that the model reads, where there is a bound."""
    return [size.max for size in program.sizes if size.name in {"T", "S"} and size.max is not None]


def _vocabulary(program: Program) -> float:
    """How many tokens the model knows; a folder may hold the tokenizer of another."""
    for node in program.nodes(torch.ops.aten.embedding.default):
        table: Any = node.args[0]
        tokens: Any = node.args[1]
        if tokens.op == "placeholder" and tokens.target == "input_ids":
            return int(table.meta["val"].shape[0])
    return math.inf


def _inputs(program: Program, tokens: Tensor, past: int = 0) -> Sample:
    """All inputs of a program for rows of tokens without padding, over a state of zeros."""
    batch, length = tokens.shape
    values = {"B": batch, "T": length, "P": past, "S": length}
    filled: dict[str, Tensor] = {}
    for spec in program.inputs:
        shape = [evaluate(extent, values) for extent in spec.shape]
        if spec.name.endswith("input_ids"):
            filled[spec.name] = tokens
        elif spec.name == "position_ids":
            filled[spec.name] = (torch.arange(length) + past).expand(shape).contiguous()
        elif spec.name == "attention_mask":
            filled[spec.name] = torch.ones(shape, dtype=spec.dtype)
        else:
            filled[spec.name] = torch.zeros(shape, dtype=spec.dtype)
    return filled
