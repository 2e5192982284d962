"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many pieces of it are done, and of how many; 0 of 0 where it
only begins."""


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""
