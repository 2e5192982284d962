"""The tokenizer of a checkpoint as GGUF's fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf

from planish.ir.program import Source
from planish.lowering.compressed_tensors import NotExpressible

PREFIX = "tokenizer."

_SPLITS = (
    ("\\p{N}{1,3}", "llama-bpe"),
    ("\\p{N}|", "qwen2"),
    ('"Digits"', "smollm"),
    ('"ByteLevel"', "gpt-2"),
)
"""What in a tokenizer's splitting of text tells which of llama.cpp's names it has; the first that
is found."""

_SPECIAL = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "pad"}


def write_tokenizer(writer: gguf.GGUFWriter, source: Source) -> None:
    """Write the tokenizer that lies beside a model's weights.

    That of a GGUF file is carried over; of a `tokenizer.json`, byte-level BPE is known.

    Raises:
        NotExpressible: if there is none, or one of another kind.
    """
    if source.folder is None:
        raise NotExpressible(f"{source.name} has no tokenizer; GGUF files carry one.")
    if source.gguf is not None:
        _carry_over(writer, source.folder / source.gguf)
        return
    path = source.folder / "tokenizer.json"
    if not path.is_file():
        raise NotExpressible(
            f"{source.folder} has no tokenizer.json; GGUF files carry a tokenizer."
        )
    found = json.loads(path.read_text(encoding="utf-8"))
    splitting = json.dumps(found.get("pre_tokenizer"), ensure_ascii=False)
    pre = next((name for mark, name in _SPLITS if mark in splitting.replace("\\\\", "\\")), None)
    if found["model"]["type"] != "BPE" or pre is None:
        raise NotExpressible(
            f"{path}: only byte-level BPE tokenizers are written into GGUF files, so far."
        )
    _write_bpe(writer, found, pre, int(source.config["vocab_size"]))
    for key, name in _SPECIAL.items():
        given = source.config.get(key)
        if given is not None:
            number = given[0] if isinstance(given, list) else given
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", int(number))
    template = source.folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))


def _write_bpe(writer: gguf.GGUFWriter, found: dict[str, Any], pre: str, size: int) -> None:
    tokens = {number: token for token, number in found["model"]["vocab"].items()}
    added = {token["id"]: token for token in found.get("added_tokens", [])}
    tokens |= {number: token["content"] for number, token in added.items()}
    kinds = []
    for number in range(size):
        token = added.get(number)
        if token is not None:
            kinds.append(
                gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
            )
        else:
            kinds.append(gguf.TokenType.NORMAL if number in tokens else gguf.TokenType.UNUSED)
    merges = found["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([tokens.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types(kinds)
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    )


def _carry_over(writer: gguf.GGUFWriter, path: Path) -> None:
    reader = gguf.GGUFReader(path)
    for name, field in reader.fields.items():
        if not name.startswith(PREFIX):
            continue
        kind, *rest = field.types
        writer.add_key_value(name, field.contents(), kind, rest[-1] if rest else None)
