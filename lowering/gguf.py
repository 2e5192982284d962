"""A program as one GGUF file, the format of llama.cpp.

Weights of linear layers that were rounded to at most 4 bits become Q4_0 (symmetric) or Q4_1, those
of 8 bits Q8_0: blocks of 32 codes with their scale in float16. A larger group's scale is written
for each of its blocks, and codes stay as they are, so nothing is rounded anew but the scales. All
other matrices and vectors are float32 (github.com/ggml-org/ggml, `docs/gguf.md`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planish.ir.program import Program, Source
from planish.ir.quant import QuantizedTensor, dequantize
from planish.lowering.checkpoint import check_same_model
from planish.lowering.compressed_tensors import Form, NotExpressible, forms_of
from planish.lowering.gguf_tokenizer import LEAVE_OUT, check_tokenizer, write_tokenizer
from planish.lowering.hf_depth import shortened
from planish.lowering.hf_folded import unfolded

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
}
"""What GGUF calls the architectures, by `model_type` of a config."""

BLOCK = 32
"""The codes of a block."""

Kind = gguf.GGMLQuantizationType

_FILE_TYPES = {
    Kind.Q4_0: gguf.LlamaFileType.MOSTLY_Q4_0,
    Kind.Q4_1: gguf.LlamaFileType.MOSTLY_Q4_1,
    Kind.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
}


def write_gguf(program: Program, original: Program, path: Path) -> int:
    """Write a program whose tensors are those of its transformers class.

    The same program gives the same bytes.

    Args:
        program: what passes made.
        original: what they were given.
        path: of the file.

    Returns:
        The bytes of the file.

    Raises:
        NotExpressible: for other models (`check_source`), tensors or roundings than the format has
            words for.
    """
    check_source(original.source)
    program, original = shortened(*unfolded(program, original))
    config = original.source.config
    architecture = ARCHITECTURES[str(config["model_type"])]
    forms = forms_of(program, original)
    check_same_model(program, original, forms)
    for name in forms:
        if original.tensors[name].shape[-1] % BLOCK:
            raise NotExpressible(
                f"{name}: blocks of {BLOCK} do not divide its {original.tensors[name].shape[-1]} "
                f"input features. {LEAVE_OUT}"
            )
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    kinds = {kind_of(name, form) for name, form in forms.items()}
    _write_config(writer, original.source.name, config, kinds)
    write_tokenizer(writer, original.source)
    names = gguf.get_tensor_name_map(architecture, int(config["num_hidden_layers"]))
    permuted = architecture == gguf.MODEL_ARCH.LLAMA
    for name, tensor in _tensors(program).items():
        called = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if called is None:
            if name.endswith("rotary_emb.inv_freq"):
                continue  # what the config says
            raise NotExpressible(f"{name}: GGUF has no name for it. {LEAVE_OUT}")
        rows = _rotary_order(name, config) if permuted else None
        _add(writer, called, tensor, rows, kind_of(name, forms[name]) if name in forms else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size


def check_source(source: Source) -> None:
    """Refuse a model of which no GGUF file can be written, before any work.

    Raises:
        NotExpressible: if its architecture, positions, attention or tokenizer is none that the
            format is written for.
    """
    config = source.config
    if str(config.get("model_type")) not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise NotExpressible(
            f"{source.name}: GGUF files are written of {known} models. {LEAVE_OUT}"
        )
    rope = {"rope_type": "default", **(config.get("rope_parameters") or {})}
    if rope["rope_type"] != "default" or config.get("rope_scaling"):
        raise NotExpressible(
            f"{source.name}: its rotary positions are scaled, which is not written yet. {LEAVE_OUT}"
        )
    if config.get("use_sliding_window", True) and config.get("sliding_window"):
        raise NotExpressible(
            f"{source.name}: its attention has a window, which GGUF's words leave out. {LEAVE_OUT}"
        )
    check_tokenizer(source)


def kind_of(name: str, form: Form) -> Kind:
    """The type of block that holds a weight's codes.

    Raises:
        NotExpressible: if none does.
    """
    scheme = form.weight
    whole = scheme.group_size is None or scheme.group_size % BLOCK == 0
    if form.inputs is not None or scheme.floating or not whole:
        raise NotExpressible(
            f"{name}: GGUF has no blocks for {scheme} with {form.inputs or 'float'} inputs. "
            f"{LEAVE_OUT}"
        )
    if scheme.bits <= 4:
        return Kind.Q4_0 if scheme.symmetric else Kind.Q4_1
    if scheme.symmetric:
        return Kind.Q8_0
    raise NotExpressible(f"{name}: GGUF has no blocks of 8 bits with zero points. {LEAVE_OUT}")


def _tensors(program: Program) -> dict[str, Tensor | QuantizedTensor]:
    """What the graph reads, by name; a quantized weight as one."""
    quantized = {}
    parts = set()
    for node in program.nodes(dequantize):
        name, tensor = QuantizedTensor.read_by(node, program.tensors)
        quantized[name] = tensor
        parts |= {name + suffix for suffix in tensor.tensors}
    plain = {name: tensor for name, tensor in program.tensors.items() if name not in parts}
    return dict(sorted((plain | quantized).items()))


def _write_config(
    writer: gguf.GGUFWriter, name: str, config: Mapping[str, Any], kinds: set[Kind]
) -> None:
    rope = config.get("rope_parameters") or {}
    heads, shared, width = _heads(config)
    writer.add_name(name)
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(shared)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 1e4))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    first = min(kinds, key=int, default=None)
    writer.add_file_type(_FILE_TYPES[first] if first else gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _heads(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Query heads, key heads, and the width of each."""
    heads = int(config["num_attention_heads"])
    shared = int(config.get("num_key_value_heads") or heads)
    return heads, shared, int(config.get("head_dim") or config["hidden_size"] // heads)


def _rotary_order(name: str, config: Mapping[str, Any]) -> Tensor | None:
    """The order of rows in which llama.cpp's rotation finds a coordinate's partner beside it.

    In transformers the partners are the halves of a head.
    """
    heads, shared, width = _heads(config)
    of = {"q_proj": heads, "k_proj": shared}
    count = next((n for part, n in of.items() if f".{part}." in name), None)
    if count is None:
        return None
    return torch.arange(count * width).view(count, 2, width // 2).mT.flatten()


def _add(
    writer: gguf.GGUFWriter,
    name: str,
    tensor: Tensor | QuantizedTensor,
    rows: Tensor | None,
    kind: Kind | None,
) -> None:
    if isinstance(tensor, Tensor):
        ordered = tensor if rows is None else tensor[rows]
        writer.add_tensor(name, ordered.float().contiguous().numpy())
        return
    assert kind is not None
    codes, scale, zeros = tensor.codes, tensor.scale.float(), tensor.zeros
    if rows is not None:
        codes, scale = codes[rows], scale[rows]
        zeros = None if zeros is None else zeros[rows]
    writer.add_tensor(name, blocks(kind, codes, scale, zeros), raw_dtype=kind)


def blocks(kind: Kind, codes: Tensor, scale: Tensor, zeros: Tensor | None) -> NDArray[np.uint8]:
    """Codes int8 [N, K] with scales [N, G] as rows of blocks, uint8 [N, K / 32 · bytes].

    A block of Q4_0 and Q4_1 has codes from 0 to 15, the first half in the low bits.
    """
    each = codes.unflatten(1, (-1, BLOCK))
    repeats = each.shape[1] // scale.shape[1]
    steps = scale.repeat_interleave(repeats, 1)
    head = [_half(steps)]
    if kind == Kind.Q8_0:
        body = each.view(torch.uint8)
    else:
        low, high = (each + 8).to(torch.uint8).chunk(2, dim=-1)
        body = low | (high << 4)
        if zeros is not None:  # (code - zero) · scale as code' · scale + least
            least = -(zeros.float() + 8).repeat_interleave(repeats, 1) * steps.half().float()
            head.append(_half(least))
    whole = torch.cat([*head, body], dim=-1).flatten(1)
    array: NDArray[np.uint8] = whole.contiguous().numpy()
    return array


def _half(values: Tensor) -> Tensor:
    """float16 numbers [N, B] as bytes [N, B, 2]."""
    return values.half().unsqueeze(-1).contiguous().view(torch.uint8)
