"""A program as a Hugging Face checkpoint, wherever such a folder can hold what passes made.

Quantized layers are written in the formats of compressed-tensors, which transformers and vLLM load
(`planish.lowering.compressed_tensors`).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from planish.ir.capture.checkpoint import INDEX, quiet, read_stored, revert_names, stored_names
from planish.ir.program import Program, Source
from planish.ir.quant import QuantizedTensor, dequantize
from planish.ir.stack import SignStack, sign_stack
from planish.lowering.compressed_tensors import (
    Form,
    NotExpressible,
    config_of,
    forms_of,
    input_scale,
    notes,
    parts_of,
    read_by_quantized,
)
from planish.lowering.hf_config import Sought, check_outputs, configs_for, with_epsilon
from planish.lowering.hf_depth import shortened
from planish.lowering.hf_experts import Layout, layout_of
from planish.lowering.hf_folded import unfolded
from planish.lowering.hf_settings import built
from planish.lowering.hf_uneven import put_together, uneven_config, uneven_layers, uneven_notes

SHARD = 5_000_000_000
"""Bytes of tensors that one file holds at most; transformers' own default."""

COPIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "preprocessor_config.json",
    "processor_config.json",
)
"""Files of the source that are carried along."""

aten = torch.ops.aten


@dataclass(frozen=True)
class CheckpointFiles:
    """What was written.

    Attributes:
        paths: the weight files.
        nbytes: of the weight files.
        notes: what the user should know.
    """

    paths: tuple[Path, ...]
    nbytes: int
    notes: tuple[str, ...] = ()


def write_checkpoint(
    program: Program, original: Program, folder: Path, *, max_shard: int = SHARD
) -> CheckpointFiles:
    """Write `model.safetensors` (or shards and an index), `config.json` and the tokenizer.

    Tensors have the names of the source's files; tied ones are stored once; what the graph does
    not use is carried over from the source. The same program gives the same bytes.

    Args:
        program: what passes made.
        original: what they were given, to know which tensors they added or dropped.
        folder: to write into.
        max_shard: bytes of tensors a file.

    Raises:
        NotExpressible: if the source is no Hugging Face model, or the program's tensors are not
            those of its class any more.
    """
    if original.source.kind != "huggingface":
        raise NotExpressible(f"{original.source.name} did not come from one.")
    _check_stacks(program)
    whole, original = unfolded(program, original)
    folded = whole is not program
    program, original = shortened(whole, original)
    quantized = forms_of(program, original)
    layout = layout_of(program, original)
    config = _sized(program, original, quantized, check=folded)
    tensors = _stored(program, original, quantized, layout)
    written = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard)
    for name, members in written.filename_to_tensors.items():
        shard = {member: tensors[member].contiguous() for member in members}
        save_file(shard, folder / name, metadata={"format": "pt"})
    if written.is_sharded:
        index = {"metadata": written.metadata, "weight_map": written.tensor_to_filename}
        _write_json(folder / INDEX, index)
    _write_json(folder / "config.json", _config(program, config, quantized, layout))
    copy_companions(original.source, folder)
    paths = tuple(folder / name for name in written.filename_to_tensors)
    nbytes = sum(path.stat().st_size for path in paths)
    said = (*notes(quantized, _dtype(program)), *layout.notes(quantized), *uneven_notes(config))
    return CheckpointFiles(paths, nbytes, said)


def _check_stacks(program: Program) -> None:
    for node in program.nodes(sign_stack):
        name, stack = SignStack.read_by(node, program.tensors)
        raise NotExpressible(
            f"{name} is stored as {stack} (bitstack), which no loader of checkpoints reads."
        )


def check_same_model(program: Program, original: Program, quantized: Mapping[str, Form]) -> None:
    """Make sure that each tensor of the original is there, in its shape, and no others.

    Raises:
        NotExpressible: naming the first few that are not.
    """
    kept = set(program.tensors) - read_by_quantized(program) | set(quantized)
    changed = kept ^ set(original.tensors)
    changed |= {
        name
        for name in kept - changed - set(quantized)
        if program.tensors[name].shape != original.tensors[name].shape
    }
    if changed:
        some = ", ".join(sorted(changed)[:3])
        raise NotExpressible(
            f"passes added, removed or reshaped {len(changed)} tensors ({some}, ...), so "
            f"{original.source.name} of transformers cannot load them."
        )


def _stored(
    program: Program, original: Program, quantized: Mapping[str, Form], layout: Layout
) -> dict[str, Tensor]:
    """What goes into the files, by the names there.

    Beside quantized layers, experts that are not keep the stacked form that transformers gives
    them: it takes experts stored one by one for packed ones.
    """
    names = layout.names
    in_graph = {*original.tensors, *original.aliases}
    tensors = {names[name]: tensor for name, tensor in program.tensors.items() if name in names}
    for node in program.nodes(dequantize):
        name, tensor = QuantizedTensor.read_by(node, program.tensors)
        scale = input_scale(node, program)
        for stored, part in layout.parts(name, tensor):
            module = stored.removesuffix("weight")
            held = parts_of(part, quantized[name], scale)
            tensors |= {module + called: one for called, one in held.items()}
    folder = original.source.folder
    if folder is not None:
        unused = {stored for name, stored in names.items() if name not in in_graph}
        tensors |= read_stored(folder, unused)
        if not quantized and not set(tensors) <= set(stored_names(folder)):
            tensors = revert_names(original.source.config, tensors)
    return dict(sorted(tensors.items()))


def _sized(
    program: Program, original: Program, quantized: Mapping[str, Form], *, check: bool
) -> Mapping[str, Any]:
    """The config of a model with the program's shapes: where none changed, the source's own.

    Args:
        program: what passes made.
        original: what they were given.
        quantized: the layers that are.
        check: whether to run transformers' model of the source's own config, too.

    Raises:
        NotExpressible: if tensors were added or are missing, or no config has these shapes.
    """
    kept = set(program.tensors) - read_by_quantized(program) | set(quantized)
    if kept != set(original.tensors):
        check_same_model(program, original, quantized)
    same = all(shape == original.tensors[name].shape for name, shape in _shapes(program).items())
    if same and not check:
        return program.source.config
    whole = _multiplied_out(program)
    tensors = {**whole, **{other: whole[name] for other, name in program.aliases.items()}}
    if same:
        check_outputs(partial(built, program.source.config), program, tensors)
        return program.source.config
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    known = frozenset(program.source.stored_names) - set(shapes)
    sought = Sought(program.source, shapes, known)
    layers = uneven_layers(shapes)
    if layers and not uneven_layers(_shapes(original)):
        config = with_epsilon(uneven_config(sought, layers), program, original)
        check_outputs(partial(put_together, config, layers), program, tensors)
        return config
    refused: NotExpressible | None = None
    for found in configs_for(sought):
        config = with_epsilon(found, program, original)
        try:
            check_outputs(partial(built, config), program, tensors)
        except NotExpressible as error:  # right in shape alone, as 4 heads of 16 for 16 heads of 4
            refused = refused or error
        else:
            return config
    assert refused is not None
    raise refused


def _shapes(program: Program) -> dict[str, tuple[int, ...]]:
    """Those of `_multiplied_out`, which would take the memory of the whole model."""
    whole, quantized = _by_form(program)
    shapes = {name: tuple(tensor.shape) for name, tensor in whole.items()}
    return shapes | {name: tuple(tensor.shape) for name, tensor in quantized.items()}


def _multiplied_out(program: Program) -> dict[str, Tensor]:
    """The tensors of a program, quantized weights in floating point."""
    whole, quantized = _by_form(program)
    return {**whole, **{name: tensor.dequantize() for name, tensor in quantized.items()}}


def _by_form(program: Program) -> tuple[dict[str, Tensor], dict[str, QuantizedTensor]]:
    """The tensors of a program that are numbers as they are, and those that are packed."""
    packed = read_by_quantized(program)
    whole = {name: one for name, one in program.tensors.items() if name not in packed}
    nodes = program.nodes(dequantize)
    return whole, dict(QuantizedTensor.read_by(node, program.tensors) for node in nodes)


def _config(
    program: Program, sized: Mapping[str, Any], quantized: Mapping[str, Form], layout: Layout
) -> dict[str, Any]:
    """A config, with what it lacks where the model never was in a folder."""
    config: dict[str, Any] = {"architectures": [program.source.name], "dtype": _dtype(program)}
    config |= sized
    config.pop("quantization_config", None)  # of a GGUF file, which is multiplied out by now
    if quantized:
        forms = {layout.target(name): form for name, form in quantized.items()}
        dense = layout.ignored(_dense_layers(program, quantized), quantized)
        config["quantization_config"] = config_of(forms, dense)
    return config


def _dtype(program: Program) -> str:
    """The floating-point dtype that most of a program's bytes are in, as configs name it.

    Numbers of 8 bits are codes, in which nothing is computed.
    """
    sizes: Counter[torch.dtype] = Counter()
    for tensor in program.tensors.values():
        if tensor.is_floating_point() and tensor.itemsize > 1:
            sizes[tensor.dtype] += tensor.nbytes
    return str(max(sizes, key=sizes.__getitem__)).removeprefix("torch.")


def _dense_layers(program: Program, quantized: Mapping[str, Form]) -> list[str]:
    """The weights of modules that are matrices and stay as they are; embeddings do no harm."""
    matrices = {
        name
        for name in {*program.source.stored_names, *program.aliases}
        if name.endswith(".weight") and name not in quantized
    }
    tensors = {**program.tensors, **{k: program.tensors[v] for k, v in program.aliases.items()}}
    flat = {name for name in matrices if name in tensors and tensors[name].dim() != 2}
    embeddings = {
        str(node.args[0].target)  # type: ignore[union-attr]
        for node in program.nodes(aten.embedding.default)
    }
    return sorted(matrices - flat - embeddings)


def copy_companions(source: Source, folder: Path) -> None:
    """Carry tokenizer and generation config along; a GGUF file has the tokenizer inside."""
    if source.folder is None:
        return
    if source.gguf is not None:
        _save_tokenizer(source.folder, source.gguf, folder)
        return
    for pattern in COPIED:
        for path in sorted(source.folder.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)


def _save_tokenizer(source: Path, gguf: str, folder: Path) -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415  (slow to import)

    with quiet():
        AutoTokenizer.from_pretrained(source, gguf_file=gguf).save_pretrained(folder)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
