"""Calibration samples: from a file of text, or from batches that the caller has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from planish.ir.errors import PlanishError
from planish.ir.program import Program, Sample
from planish.ir.sizes import evaluate
from planish.runtime.texts import read_text
from planish.runtime.tokenizer import Tokenizer

LENGTH = 256
"""Tokens a sample, when samples are cut from a text."""

COUNT = 4
"""Samples cut from a text. Checks run the model on each, before and after every pass."""


class BadSamples(PlanishError):
    """Samples that do not fit the model."""


def as_samples(
    given: Iterable[Mapping[str, Tensor]] | str | Path, program: Program
) -> tuple[Sample, ...]:
    """Samples for a program.

    Args:
        given: batches of inputs by name, or a file of text: its first tokens are cut into `COUNT`
            samples of `LENGTH` (model inputs other than text are filled in: all tokens attended,
            no cache).
        program: decides which inputs there are; a text needs the tokenizer of its folder.

    Raises:
        BadSamples: if the text is too short, or the model has no tokenizer.
    """
    if not isinstance(given, (str, Path)):
        return tuple(dict(sample) for sample in given)
    folder = program.source.folder
    if folder is None or all(spec.name != "input_ids" for spec in program.inputs):
        raise BadSamples(
            f"{given}: a text serves as samples only for a language model or encoder that was "
            f"captured from a checkpoint with a tokenizer; {program.source.name} is not one. "
            "Pass batches of inputs through the Python API instead."
        )
    tokens = Tokenizer(folder).encode(read_text(Path(given)))
    if len(tokens) < LENGTH:
        raise BadSamples(f"{given}: {len(tokens)} tokens are too few; one sample takes {LENGTH}.")
    count = min(COUNT, len(tokens) // LENGTH)
    rows = torch.tensor(tokens[: count * LENGTH]).reshape(count, 1, LENGTH)
    return tuple(_inputs(program, row) for row in rows)


def _inputs(program: Program, tokens: Tensor) -> Sample:
    """All inputs of a program for rows of tokens without padding or cache."""
    batch, length = tokens.shape
    values = {"B": batch, "T": length, "P": 0, "S": length}
    filled: dict[str, Tensor] = {}
    for spec in program.inputs:
        shape = [evaluate(extent, values) for extent in spec.shape]
        if spec.name.endswith("input_ids"):
            filled[spec.name] = tokens
        elif spec.name == "position_ids":
            filled[spec.name] = torch.arange(length).expand(shape).contiguous()
        elif spec.name == "attention_mask":
            filled[spec.name] = torch.ones(shape, dtype=spec.dtype)
        else:
            filled[spec.name] = torch.zeros(shape, dtype=spec.dtype)
    return filled
