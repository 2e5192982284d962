"""Folders that a process holds: the system lets go of them when the process ends, however."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
"""Windows cannot lock a folder."""


@contextmanager
def hold(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a folder against every other `hold` of it, in this process and in others.

    The lock belongs to the folder itself, stays with it when it is renamed, and leaves nothing
    behind; process numbers would be reused, and mean nothing from one container to the next.

    Args:
        folder: to be held.
        wait: until whoever holds it lets go.

    Yields:
        Whether it is held: not where another holds it or it is gone, nor where folders cannot be
        locked (Windows, some network file systems).
    """
    descriptor = None if fcntl is None else _opened(folder)
    if descriptor is None:
        yield False
        return
    try:
        yield _taken(descriptor, wait=wait)
    finally:
        os.close(descriptor)


def _opened(folder: Path) -> int | None:
    try:
        return os.open(folder, os.O_RDONLY)
    except OSError:  # gone meanwhile: whoever held it has removed it
        return None


def _taken(descriptor: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
