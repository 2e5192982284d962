"""What the command line shows: progress on the error stream, tables, errors in one paragraph."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

# Wider than any table, in characters.
UNFOLDED = 10_000


def print_json(value: Any) -> None:
    """Write JSON for machines to standard output, without colours or wrapping."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_error(error: BaseException) -> None:
    """Write an error to standard error: one paragraph, or an indented list of several lines."""
    lines = str(error).splitlines()
    text = f"error: {error}" if len(lines) < 2 else "\n  ".join(["error:", *lines])
    err.print(text, style="bold red", markup=False, soft_wrap=True)


def size(nbytes: float) -> str:
    """Bytes as people read them: `172.9 MB` (10⁶ bytes)."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes:.0f} bytes"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column left-aligned, the others right-aligned.

    A terminal folds what is too wide for it; a file or a pipe gets every row on one line.
    """
    grid = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for place, column in enumerate(columns):
        grid.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    if out.file.isatty():
        out.print(grid)
    else:
        Console(file=out.file, width=UNFOLDED, height=len(rows), highlight=False).print(grid)


@contextmanager
def stages(total: int, *, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar over named stages: called with a name, 0 and 0 when one begins.

    Within a stage, how many of its pieces are done is shown beside the name.
    """
    with _bar(quiet=quiet) as progress:
        task = progress.add_task("", total=total)
        begun = 0

        def stage(name: str, done: int, pieces: int) -> None:
            nonlocal begun
            begun += not pieces
            shown = f"{name} {done}/{pieces}" if pieces else name
            progress.update(task, description=shown, completed=begun - 1)

        yield stage
        progress.update(task, completed=total)


@contextmanager
def counting(description: str, *, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar over equal pieces of work: called with what is done, how many are, of how many."""
    with _bar(quiet=quiet) as progress:
        task = progress.add_task(description, total=None)
        yield lambda what, done, total: progress.update(
            task, description=what, completed=done, total=total
        )


def _bar(*, quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        disable=quiet,
        transient=True,
    )


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Show our own warnings as one line each on standard error; silence the libraries'."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", module=r"planish\..*")
        warnings.filterwarnings("always", category=UserWarning, message="isolation: ")
        warnings.showwarning = _show
        yield


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    err.print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)


def figures(values: Mapping[str, Any]) -> None:
    """Print labelled values, one a line."""
    width = max(map(len, values), default=0)
    for label, value in values.items():
        out.print(f"{label:<{width}}  {value}", markup=False, soft_wrap=True)
