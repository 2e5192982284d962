"""Whole models of every family, in ONNX Runtime, against eager."""

from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from planish.ir.capture.export import Signature
from planish.ir.capture.language import example_inputs
from planish.ir.program import Program
from planish.ir.sizes import Extent, evaluate
from planish.lowering.onnx.lower import MODEL_FILE, lower
from planish.lowering.onnx.target import CPU, STANDARD, Target
from planish.passes.cast import Cast
from support.captured import captured
from support.models import FAMILIES, VOCABULARY

Feeds = dict[str, NDArray[Any]]

DECODERS = [name for name, family in FAMILIES.items() if family.task == "CausalLM"]
OTHERS = [name for name in FAMILIES if name not in DECODERS]
RECURRENT = {"mamba", "mamba2"}
WINDOWED = {"mistral", "gemma2", "gemma3"}

CHUNKS = (5, 3, 1)
"""A prompt, then several tokens at once, then one."""

PADS = {"none": (0, 0, 0), "left": (0, 1, 3), "right": (0, 1, 3)}
"""How many of the prompt's columns are padding, in each row of the batch."""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def start(family: str, target: Target = CPU) -> Any:
        folder = tmp_path_factory.mktemp(family)
        lower(captured(family)[1], folder, target)
        return open_session(folder)

    return start


def open_session(folder: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(folder / MODEL_FILE, options)


@pytest.mark.parametrize("family", OTHERS)
def test_a_model_that_is_called_once(family: str, session: Any) -> None:
    program = captured(family)[1]
    names = {size.name for size in program.sizes}
    for values in ({"B": 2, "T": 7, "S": 5}, {"B": 1, "T": 1, "S": 4}):
        sizes = {name: size for name, size in values.items() if name in names}
        feeds = example_inputs(_signature(program), VOCABULARY, sizes)
        given = session(family).run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
        for array, want in zip(given, program.run(**feeds).values(), strict=True):
            _close(array, want)


@pytest.mark.parametrize("padding", PADS)
@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_in_chunks(family: str, padding: str, session: Any) -> None:
    """Each row of a padded batch, a chunk at a time, gives what the row alone gives in eager."""
    if padding == "right" and family in RECURRENT:
        pytest.skip("padding on the right goes through a recurrent state")
    model, program = captured(family)
    mask = _mask(padding)
    ids = torch.randint(3, VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(1))
    logits = _in_chunks(session(family), program, ids, mask)
    for row, real in enumerate(mask.bool()):
        alone = {"input_ids": ids[row][real][None]}
        if padding == "right" and family in WINDOWED:  # a window counts padding as distance
            whole = {"input_ids": ids, "attention_mask": mask, "position_ids": _positions(mask)}
            alone = {name: tensor[row][None] for name, tensor in whole.items()}
        with torch.no_grad():
            want = model(**alone).logits[0]
        _close(logits[row][real], want[real] if len(want) == len(real) else want)


@pytest.mark.parametrize("family", DECODERS)
def test_a_second_form_reads_single_tokens(family: str, session: Any, tmp_path: Path) -> None:
    """By `If` in one file: padded chunks, then a token, give what one form gives for everything."""
    _, program = captured(family)
    lower(program, tmp_path, decode=(program, CPU))
    mask = _mask("left")
    ids = torch.randint(3, VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(1))
    want = _in_chunks(session(family), program, ids, mask)
    got = _in_chunks(open_session(tmp_path), program, ids, mask)
    real = mask.bool().numpy()
    _close(got[real], torch.from_numpy(want[real]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba2"])
def test_standard_operators_alone(family: str, session: Any) -> None:
    started = session(family, STANDARD)
    _, program = captured(family)
    mask = _mask("left")
    ids = torch.randint(3, VOCABULARY, mask.shape)
    want = _in_chunks(session(family), program, ids, mask)
    _close(_in_chunks(started, program, ids, mask)[:, 5:], torch.from_numpy(want)[:, 5:])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: Literal["float16", "bfloat16"], tmp_path: Path) -> None:
    """Float16 is computed as such; bfloat16, for which the CPU has no kernels, in float32."""
    program = Cast(dtype)(captured("llama")[1])
    files = lower(program, tmp_path)
    feeds = example_inputs(_signature(program), VOCABULARY, {"B": 2, "T": 5, "P": 3})
    half = np.float32 if dtype == "bfloat16" else np.float16
    given = {
        name: tensor.float().numpy().astype(half) if tensor.is_floating_point() else tensor.numpy()
        for name, tensor in feeds.items()
    }
    logits = open_session(tmp_path).run(["logits"], given)[0]
    assert logits.dtype == half
    assert bool(files.notes) == (dtype == "bfloat16")
    want = program.run(**feeds)["logits"].float()
    error = (torch.from_numpy(logits).float() - want).norm() / want.norm()
    assert error < (2e-3 if dtype == "float16" else 2e-2)


def _signature(program: Program) -> Signature:
    return Signature(program.inputs, program.outputs, program.sizes)


def _mask(padding: str) -> Tensor:
    """Which positions are real, [3, sum(CHUNKS)]: padding lies within the prompt."""
    mask = torch.ones(3, sum(CHUNKS), dtype=torch.int64)
    for row, count in enumerate(PADS[padding]):
        place = slice(count) if padding == "left" else slice(CHUNKS[0] - count, CHUNKS[0])
        mask[row, place] = 0
    return mask


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def _in_chunks(session: Any, program: Program, ids: Tensor, mask: Tensor) -> NDArray[Any]:
    """The logits of all positions, computed a chunk at a time over the state before."""
    positions = _positions(mask)
    plain = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
    states = [spec for spec in program.inputs if spec.name not in plain]
    kept = {spec.name: _empty(spec.shape, len(ids)) for spec in states}
    grows = any("P" in spec.shape for spec in states)
    logits, start = [], 0
    for length in CHUNKS:
        new = slice(start, start + length)
        feeds = {"input_ids": ids[:, new], "position_ids": positions[:, new]}
        feeds["attention_mask"] = mask[:, : new.stop] if grows else mask[:, new]
        plain_feeds = {
            spec.name: feeds[spec.name].numpy() for spec in program.inputs if spec.name in plain
        }
        result, *after = session.run(None, plain_feeds | kept)
        kept = {spec.name: state for spec, state in zip(states, after, strict=True)}
        logits.append(result)
        start += length
    return np.concatenate(logits, axis=1)


def _empty(shape: tuple[Extent, ...], batch: int) -> NDArray[Any]:
    return np.zeros([evaluate(extent, {"B": batch, "P": 0}) for extent in shape], np.float32)


def _close(got: NDArray[Any], want: Tensor) -> None:
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-4, atol=1e-4)
