"""The tokenizer of a checkpoint as GGUF's fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf

from planish.ir.program import Source
from planish.lowering.compressed_tensors import NotExpressible

PREFIX = "tokenizer."

LEAVE_OUT = "Leave out --gguf, or convert the checkpoint with llama.cpp's own script."

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
"""The expression by which Llama 3 and Qwen 2 split text, but for numbers, which stand between."""

_BYTES, _CUT_BYTES = ("ByteLevel", False), ("ByteLevel", True)

_SPLITS = {
    (_CUT_BYTES,): "gpt-2",
    (("Digits", True), _CUT_BYTES): "smollm",
    (("Split", r"\p{N}{1,3}".join(_WORDS)), _BYTES): "llama-bpe",
    (("Split", r"\p{N}".join(_WORDS)), _BYTES): "qwen2",
}
"""What llama.cpp calls the ways to split text before byte pairs are merged."""

_SPECIAL = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "pad"}


def check_tokenizer(source: Source) -> None:
    """Refuse a model whose tokenizer cannot be written.

    Raises:
        NotExpressible: if there is none, or one of another kind than `write_tokenizer` knows.
    """
    if source.folder is None:
        raise NotExpressible(f"{source.name} has no tokenizer; GGUF files carry one. {LEAVE_OUT}")
    if source.gguf is not None:
        return
    path = source.folder / "tokenizer.json"
    if not path.is_file():
        raise NotExpressible(
            f"{source.folder} has no tokenizer.json; GGUF files carry a tokenizer. {LEAVE_OUT}"
        )
    found = _read(path)
    if found["model"]["type"] != "BPE" or _splitting(found) not in _SPLITS:
        raise NotExpressible(
            f"{path} splits text in a way that is none of {', '.join(_SPLITS.values())}, which are "
            f"those written into GGUF files so far. {LEAVE_OUT}"
        )


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _splitting(found: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """How a tokenizer splits text: each step, with the option that tells it from others."""
    whole = found.get("pre_tokenizer") or {}
    steps = []
    for step in whole.get("pretokenizers", [whole]):
        told = {
            "Digits": step.get("individual_digits"),
            "Split": step.get("pattern", {}).get("Regex"),
            "ByteLevel": step.get("use_regex", True),
        }
        prefixed = step.get("type") == "ByteLevel" and step.get("add_prefix_space")
        kind = step.get("type", "")
        steps.append((kind, "prefix" if prefixed else told.get(kind)))
    return tuple(steps)


def write_tokenizer(writer: gguf.GGUFWriter, source: Source) -> None:
    """Write the tokenizer that lies beside a model's weights.

    That of a GGUF file is carried over; of a `tokenizer.json`, byte-level BPE is known.

    Args:
        writer: of the file.
        source: one that `check_tokenizer` does not refuse.
    """
    assert source.folder is not None
    if source.gguf is not None:
        _carry_over(writer, source.folder / source.gguf)
        return
    found = _read(source.folder / "tokenizer.json")
    _write_bpe(writer, found, _SPLITS[_splitting(found)], int(source.config["vocab_size"]))
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
