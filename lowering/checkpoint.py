"""A program as a Hugging Face checkpoint, wherever such a folder can hold what passes made.

Quantized weights are written in the compressed-tensors format `pack-quantized`, which
transformers and vLLM load (github.com/vllm-project/compressed-tensors, `quant_config.py`).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from planish.ir.capture.checkpoint import INDEX, quiet, read_stored, revert_names, stored_names
from planish.ir.errors import PlanishError
from planish.ir.program import Program, Source
from planish.ir.quant import QuantizedTensor, QuantScheme, dequantize

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

PARTS = ("_packed", "_scale", "_zero_point")
"""What is added to the name of a quantized weight to name what is stored of it."""

ASYMMETRIC = (
    "zero points are packed as the compressed-tensors format asks, but transformers cannot load "
    "them beside a second scheme: with compressed-tensors 0.20 it expects their unpacked shape. "
    "Symmetric schemes load, and so does one asymmetric scheme alone."
)

aten = torch.ops.aten


class NotExpressible(PlanishError):
    """A Hugging Face checkpoint cannot hold this program."""


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
    quantized = _quantized(program, original)
    _check_same_model(program, original, quantized)
    tensors = _stored(program, original, packed=bool(quantized))
    written = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard)
    for name, members in written.filename_to_tensors.items():
        shard = {member: tensors[member].contiguous() for member in members}
        save_file(shard, folder / name, metadata={"format": "pt"})
    if written.is_sharded:
        index = {"metadata": written.metadata, "weight_map": written.tensor_to_filename}
        _write_json(folder / INDEX, index)
    _write_json(folder / "config.json", _config(program, quantized))
    _copy_companions(original.source, folder)
    paths = tuple(folder / name for name in written.filename_to_tensors)
    nbytes = sum(path.stat().st_size for path in paths)
    return CheckpointFiles(paths, nbytes, _notes(quantized))


def _quantized(program: Program, original: Program) -> dict[str, QuantScheme]:
    """The scheme of each quantized weight, by the weight's name.

    Raises:
        NotExpressible: if one is read by anything but a linear layer, or was stored transposed:
            only modules of class Linear are decompressed on loading.
    """
    plain = {
        str(node.target)
        for node in original.graph.find_nodes(op="get_attr")
        if {reader.target for reader in node.users} == {aten.linear.default}
    }
    schemes = {}
    for node in program.nodes(dequantize):
        name, tensor = QuantizedTensor.read_by(node, program.tensors)
        if name not in plain or not name.endswith(".weight"):
            raise NotExpressible(
                f"{name} is quantized, and not (only) the weight of a module of class Linear; the "
                "compressed-tensors format is for these."
            )
        schemes[name] = tensor.scheme
    return schemes


def _check_same_model(
    program: Program, original: Program, quantized: Mapping[str, QuantScheme]
) -> None:
    """Make sure that each tensor of the original is there, in its shape, and no others.

    Raises:
        NotExpressible: naming the first few that are not.
    """
    parts = tuple(
        f"{name}_{part}" for name in quantized for part in ("packed", "scale", "zero_point")
    )
    kept = {name for name in program.tensors if name not in parts} | set(quantized)
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


def _stored(program: Program, original: Program, *, packed: bool) -> dict[str, Tensor]:
    """What goes into the files, by the names there.

    Beside packed layers, experts keep the stacked form that transformers gives them: it takes
    experts stored one by one for packed ones.
    """
    names = original.source.stored_names
    in_graph = {*original.tensors, *original.aliases}
    tensors: dict[str, Tensor] = {}
    for name, tensor in program.tensors.items():
        base = next((known for known in _bases(name) if known in names), None)
        if base is not None:
            tensors[names[base] + name.removeprefix(base)] = tensor
        if base is not None and name.endswith(".weight_packed"):
            rows, columns = original.tensors[base].shape
            tensors[names[base] + "_shape"] = torch.tensor([rows, columns])
    folder = original.source.folder
    if folder is not None:
        unused = {stored for name, stored in names.items() if name not in in_graph}
        tensors |= read_stored(folder, unused)
        if not packed and not set(tensors) <= set(stored_names(folder)):
            tensors = revert_names(original.source.config, tensors)
    return dict(sorted(tensors.items()))


def _bases(name: str) -> tuple[str, ...]:
    """The names of which a tensor may be a part."""
    return (name, *(name.removesuffix(suffix) for suffix in PARTS))


def _config(program: Program, quantized: Mapping[str, QuantScheme]) -> dict[str, Any]:
    """The source's config, with what it lacks where the model never was in a folder."""
    config: dict[str, Any] = {"architectures": [program.source.name], "dtype": _dtype(program)}
    config |= program.source.config
    config.pop("quantization_config", None)  # of a GGUF file, which is multiplied out by now
    if quantized:
        config["quantization_config"] = _quantization_config(program, quantized)
    return config


def _dtype(program: Program) -> str:
    """The floating-point dtype that most of a program's bytes are in, as configs name it."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in program.tensors.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] += tensor.nbytes
    return str(max(sizes, key=sizes.__getitem__)).removeprefix("torch.")


def _notes(quantized: Mapping[str, QuantScheme]) -> tuple[str, ...]:
    schemes = set(quantized.values())
    mixed = len(schemes) > 1 and not all(scheme.symmetric for scheme in schemes)
    return (ASYMMETRIC,) if mixed else ()


def _quantization_config(program: Program, quantized: Mapping[str, QuantScheme]) -> dict[str, Any]:
    """What tells a loader which layers are packed, and how."""
    groups: dict[QuantScheme, list[str]] = {}
    for name, scheme in quantized.items():
        groups.setdefault(scheme, []).append(name.removesuffix(".weight"))
    # With one scheme, the class is the target and the rest is ignored, which is how vLLM finds
    # the parts of fused layers; with several, each layer is named.
    alone = len(groups) == 1
    # Where transformers keeps layers packed, it expects unpacked zero points, which the format does
    # not have, and models that look at a layer's weight fail. Multiplied out on loading, all is
    # well; but that path takes all layers for those of one scheme.
    loading = {"dequantize": True} if alone else {}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": {
                "targets": ["Linear"] if alone else sorted(names),
                "weights": _arguments(scheme),
                "input_activations": None,
                "output_activations": None,
            }
            for number, (scheme, names) in enumerate(groups.items())
        },
        "ignore": _dense_layers(program, quantized),
        "kv_cache_scheme": None,
        **loading,
    }


def _arguments(scheme: QuantScheme) -> dict[str, Any]:
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if scheme.group_size is None else "group",
        "group_size": scheme.group_size,
        "dynamic": False,
    }


def _dense_layers(program: Program, quantized: Mapping[str, QuantScheme]) -> list[str]:
    """The modules whose weights are matrices and stay as they are; embeddings do no harm."""
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
    return sorted(name.removesuffix(".weight") for name in matrices - flat - embeddings)


def _copy_companions(source: Source, folder: Path) -> None:
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
