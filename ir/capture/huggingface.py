"""Models of transformers: what each kind is called with, and which names its tensors have."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from planish.ir.capture.checkpoint import load_model, quiet, stored_names
from planish.ir.capture.export import Picking, Signature, export_program, output_names
from planish.ir.capture.language import BATCH, LENGTH, capture_causal, example_inputs
from planish.ir.program import Input, Program, Source
from planish.ir.sizes import Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SOURCE_LENGTH = Size("S", 11, long="encoder_sequence_length")
DEFAULT_IMAGE_SIZE = 224


def from_checkpoint(checkpoint: str | Path) -> Program:
    """Capture a Hugging Face checkpoint: a folder, a `.gguf` file, or a name on the hub.

    Raises:
        planish.ir.capture.checkpoint.BadCheckpoint: if it cannot be loaded.
        planish.ir.capture.export.CaptureFailed: if it cannot be exported.
    """
    return capture_model(load_model(checkpoint), Path(checkpoint))


def capture_model(model: PreTrainedModel, location: Path | None = None) -> Program:
    """Capture a model of transformers, with symbolic batch and, for text, symbolic length.

    Args:
        model: put into evaluation mode by the caller.
        location: its folder or file, where its tokenizer and the names of its tensors are read.

    Raises:
        planish.ir.capture.export.CaptureFailed: if it cannot be exported.
    """
    task = task_of(model)
    source = _source(model, task, location)
    with quiet():
        return _CAPTURES[task](model, source)


def task_of(model: PreTrainedModel) -> str:
    """What kind of model it is: `causal-lm`, `seq2seq-lm`, `image` or `encoder`."""
    from transformers.models.auto import modeling_auto  # noqa: PLC0415  (slow to import)

    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    if model.config.is_encoder_decoder:
        return "seq2seq-lm"
    if type(model).__name__ in {*causal}:
        return "causal-lm"
    return "image" if model.main_input_name == "pixel_values" else "encoder"


def _source(model: PreTrainedModel, task: str, location: Path | None) -> Source:
    folder = location.parent if location is not None and location.is_file() else location
    if folder is not None and not folder.is_dir():
        folder = None
    names = list(model.state_dict())
    stored = set(stored_names(folder)) if folder is not None else set()
    prefix = f"{model.base_model_prefix}."
    return Source(
        kind="huggingface",
        name=type(model).__name__,
        task=task,
        folder=folder,
        gguf=location.name if location is not None and location.suffix == ".gguf" else None,
        config=json.loads(model.config.to_json_string(use_diff=True)),
        stored_names={name: _stored_name(name, stored, prefix) for name in names},
    )


def _stored_name(name: str, stored: set[str], prefix: str) -> str:
    """How the files spell a tensor: heads add or drop the base model's prefix on loading."""
    candidates = (name, prefix + name, name.removeprefix(prefix))
    return next((candidate for candidate in candidates if candidate in stored), name)


def _encoder_inputs(model: PreTrainedModel) -> Signature:
    inputs = [
        Input("input_ids", torch.int64, ("B", "T")),
        Input("attention_mask", torch.int64, ("B", "T")),
    ]
    takes = inspect.signature(model.forward).parameters
    if "token_type_ids" in takes and getattr(model.config, "type_vocab_size", 1) > 1:
        inputs.append(Input("token_type_ids", torch.int64, ("B", "T")))
    return Signature(tuple(inputs), (), (BATCH, LENGTH))


def _image_inputs(model: PreTrainedModel) -> Signature:
    size = getattr(model.config, "image_size", None) or DEFAULT_IMAGE_SIZE
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    shape = ("B", model.config.num_channels, height, width)
    return Signature((Input("pixel_values", model.dtype, shape),), (), (BATCH,))


def _seq2seq_inputs(model: PreTrainedModel) -> Signature:  # noqa: ARG001
    inputs = (
        Input("input_ids", torch.int64, ("B", "S")),
        Input("attention_mask", torch.int64, ("B", "S")),
        Input("decoder_input_ids", torch.int64, ("B", "T")),
    )
    return Signature(inputs, (), (BATCH, SOURCE_LENGTH, LENGTH))


def _capture_plain(
    inputs_of: Callable[[PreTrainedModel], Signature], fixed: Mapping[str, Any]
) -> Callable[[PreTrainedModel, Source], Program]:
    """A capture for models that are called once: tensors in, the tensors of a ModelOutput out."""

    def capture(model: PreTrainedModel, source: Source) -> Program:
        signature = inputs_of(model)
        vocabulary = getattr(model.config, "vocab_size", 2)
        example = example_inputs(signature, vocabulary)
        small = {size.name: 2 + place for place, size in enumerate(signature.sizes)}
        sample = example_inputs(signature, vocabulary, small)
        with torch.no_grad():
            names, pick = output_names(model(**sample, **fixed))
        return export_program(
            Picking(model, tuple(example), pick, fixed),
            list(example.values()),
            Signature(signature.inputs, names, signature.sizes),
            source,
            prefix="inner.",
            samples=[sample],
        )

    return capture


_CAPTURES: dict[str, Callable[[Any, Source], Program]] = {
    "causal-lm": capture_causal,
    "seq2seq-lm": _capture_plain(_seq2seq_inputs, {"use_cache": False}),
    "image": _capture_plain(_image_inputs, {}),
    "encoder": _capture_plain(_encoder_inputs, {}),
}
