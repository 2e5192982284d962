"""Tensors in files: what calibration keeps of large models need not fit into memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

PREFIX = "planish-"
"""What names of files of spilled tensors begin with."""

ENDLESS = 1 << 62
"""Bytes of memory where nobody says how many there are."""

GROUPS = Path("/proc/self/cgroup")
"""Where Linux says which control groups this process is in."""

LIMITS = Path("/sys/fs/cgroup")
"""Where it says what these allow."""


def memory_size() -> int:
    """Bytes of memory that the machine has, or that a control group allows, if that is less."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        machine = ENDLESS
    return min([machine, *map(_said_in, _limits())])


def _limits() -> Iterator[Path]:
    """Files that say how much the groups of this process may use, each group's and its parents'.

    Version 2 has one tree of groups, version 1 one for memory. In a container the paths may be
    those of the machine, which it does not see; what the root says is then what holds.
    """
    try:
        lines = GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for _, kinds, path in (line.split(":", 2) for line in lines):
        if kinds and "memory" not in kinds.split(","):
            continue
        tree, file = ("memory", "memory.limit_in_bytes") if kinds else ("", "memory.max")
        group = PurePosixPath(path)
        for one in (group, *group.parents):
            yield LIMITS / tree / one.relative_to("/") / file


def _said_in(file: Path) -> int:
    """The number in a file; without end where it says something else, such as `max`."""
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ENDLESS


def spilled(tensor: Tensor) -> Tensor:
    """The same numbers in a temporary file that is mapped into memory.

    The file has no name any more and goes when the tensor does. Its pages come into memory as they
    are read, and leave it when others are needed.

    Args:
        tensor: of any shape and dtype, on the CPU, with one number or more.

    Raises:
        OSError: if the folder for temporary files is full.
    """
    with tempfile.NamedTemporaryFile(prefix=PREFIX) as file:
        # Written rather than copied into the mapping, which would hold the pages, and which ends
        # the process where the disk is full.
        file.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        file.flush()
        mapped = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    return mapped.view(tensor.shape)


def is_spilled(tensor: Tensor) -> bool:
    """Whether a tensor lies in such a file; those of checkpoints may lie in files, too."""
    name = tensor.untyped_storage().filename
    return name is not None and Path(name).name.startswith(PREFIX)


def put_back(tensor: Tensor) -> None:
    """Let the pages of a spilled tensor leave memory until they are read again; others stay.

    They would leave in need, too; until then they count as memory of this process.
    """
    if not is_spilled(tensor) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    storage = tensor.untyped_storage()
    start, size = ctypes.c_void_p(storage.data_ptr()), ctypes.c_size_t(storage.nbytes())
    ctypes.CDLL(None).madvise(start, size, mmap.MADV_DONTNEED)


def return_freed() -> bool:
    """Give memory that is free back to the system, now.

    glibc keeps freed blocks of up to 32 MB; those of activations leave a third more memory behind
    than is in use.

    Returns:
        Whether the C library took it: others than glibc need no telling.
    """
    try:
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
    except (AttributeError, OSError, TypeError):  # macOS, Windows
        return False
    return True
