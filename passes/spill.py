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

    The file has no name any more and goes when the tensor does. Its pages come into memory as they
    are read, and leave it when others are needed.

    Args:
        tensor: of any shape and dtype, on the CPU, with one number or more.

    Raises:
        OSError: if the folder for temporary files is full.
    """
    with tempfile.NamedTemporaryFile(prefix="planish-") as file:
        # Written rather than copied into the mapping, which would hold the pages, and which ends
        # the process where the disk is full.
        file.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        file.flush()
        mapped = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    return mapped.view(tensor.shape)


def is_spilled(tensor: Tensor) -> bool:
    """Whether a tensor lies in such a file."""
    return tensor.untyped_storage().filename is not None
