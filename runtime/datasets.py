"""Texts of datasets on the Hugging Face hub.

The hub keeps every dataset that it can read as parquet too, on a branch of its own, in folders
CONFIG/SPLIT (huggingface.co, "List Parquet files"); so no script of a dataset is run here. Only the
first file of a split is fetched, into the cache of `huggingface_hub`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planish.runtime.texts import BadFile

PARQUET = "refs/convert/parquet"
"""The branch."""

FIRST_SPLIT = "train"
"""What is taken where there are several splits and none is named."""

_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*){1,3}")
_SUFFIXES = {".txt", ".jsonl", ".parquet"}


def is_dataset(name: str | Path) -> bool:
    """Whether a name is meant for a dataset on the hub: no file, and like OWNER/NAME."""
    path = Path(name)
    fits = _NAME.fullmatch(str(name)) is not None and path.suffix not in _SUFFIXES
    return fits and not path.exists()


def fetch(name: str) -> Path:
    """A parquet file with texts of a dataset.

    Args:
        name: OWNER/NAME, OWNER/NAME/CONFIG or OWNER/NAME/CONFIG/SPLIT. A config has to be named
            where there are several and none is called `default`.

    Raises:
        BadFile: if there is no such dataset, config or split, or the hub cannot be reached.
    """
    owner, dataset, *rest = name.split("/")
    repo = f"{owner}/{dataset}"
    files = _asked(name, "list_repo_files", repo)
    chosen = _chosen(name, [file for file in files if file.endswith(".parquet")], rest)
    return Path(_asked(name, "hf_hub_download", repo, chosen))


def _asked(name: str, function: str, *arguments: str) -> Any:
    """What the hub's package gives for files of the branch."""
    import huggingface_hub  # noqa: PLC0415  (slow to load, and only names on the hub need it)

    try:
        ask = getattr(huggingface_hub.HfApi(), function)
        return ask(*arguments, repo_type="dataset", revision=PARQUET)
    except Exception as error:  # its own, and those of the HTTP library that its version uses
        raise BadFile(
            f"{name} is no file here, and cannot be read as a dataset of the Hugging Face hub: "
            f"{str(error).strip().splitlines()[0].rstrip('.')}. Name a .txt, .jsonl or .parquet "
            "file instead, or a dataset as OWNER/NAME/CONFIG/SPLIT."
        ) from error


def _chosen(name: str, files: Sequence[str], wanted: Sequence[str]) -> str:
    """The first file of the split that is asked for, or of the one that is taken otherwise."""
    folder = ""
    for place, preferred in enumerate(("default", FIRST_SPLIT)):
        below = sorted({file[len(folder) :].split("/")[0] for file in files})
        asked = wanted[place] if place < len(wanted) else None
        choice = asked or (below[0] if len(below) == 1 else preferred)
        if choice not in below:
            what = ("config", "split")[place]
            raise BadFile(
                f"{name} has no {what} {choice!r}: there are {', '.join(below) or 'none'}. "
                "Name one of them: OWNER/NAME/CONFIG/SPLIT."
            )
        folder += f"{choice}/"
        files = [file for file in files if file.startswith(folder)]
    return min(files)
