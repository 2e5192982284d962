"""Reading texts and questions from files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from planish.ir.errors import PlanishError

BETWEEN = "\n\n"
"""What joins the rows of a file to one text."""


class BadFile(PlanishError):
    """A file of texts or questions cannot be read."""


def read_text(file: Path | str) -> str:
    """One text: a `.txt` file, or the column `text` of a `.jsonl` or `.parquet` file.

    Rows are joined by blank lines.

    Raises:
        BadFile: if the file cannot be read, or has no such column.
    """
    file = Path(file)
    if file.suffix == ".jsonl":
        return BETWEEN.join(_text(row, f"{file}:{line}") for line, row in read_rows(file))
    if file.suffix == ".parquet":
        return BETWEEN.join(_parquet_texts(file))
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadFile(f"{file} cannot be read as UTF-8 text: {error}") from error


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a `.jsonl` file with the numbers of their lines; blank lines are skipped.

    Raises:
        BadFile: if the file cannot be read, or a line holds no object.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise BadFile(f"{file} cannot be read as UTF-8 text: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadFile(f"{file}:{number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise BadFile(f"{file}:{number} holds no JSON object; each line must be one.")
        yield number, row


def _text(row: dict[str, Any], where: str) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise BadFile(
            f"{where} has no string 'text', which is where texts are read from; it has "
            f"{', '.join(row) or 'nothing'}."
        )
    return text


def _parquet_texts(file: Path) -> list[str]:
    import pyarrow  # noqa: PLC0415  (only this format needs it)
    import pyarrow.parquet  # noqa: PLC0415

    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise BadFile(f"{file} cannot be read as parquet: {error}") from error
    if "text" not in table.column_names:
        raise BadFile(
            f"{file} has no column 'text', which is where texts are read from; it has "
            f"{', '.join(table.column_names) or 'nothing'}."
        )
    return [str(text) for text in table["text"].to_pylist() if text is not None]
