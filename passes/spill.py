"""Tensors in files: what calibration keeps of large models need not fit into memory."""

from __future__ import annotations

import os
import tempfile

import torch
from torch import Tensor


def memory_size() -> int:
    """Bytes of memory that the machine has; without end where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62


def spilled(tensor: Tensor) -> Tensor:
    """The same numbers in a temporary file that is mapped into memory.

    The file has no name any more and goes when the tensor does. Its pages leave memory when
    others are needed.

    Args:
        tensor: of any shape and dtype, on the CPU.
    """
    with tempfile.NamedTemporaryFile(prefix="planish-") as file:
        mapped = torch.from_file(
            file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype
        ).view(tensor.shape)
    return mapped.copy_(tensor)


def is_spilled(tensor: Tensor) -> bool:
    """Whether a tensor lies in such a file."""
    return tensor.untyped_storage().filename is not None
