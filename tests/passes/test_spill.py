"""What is asked of the C library, and of the system, about memory."""

import platform
import subprocess
import sys

import pytest
import torch

from planish.passes import spill
from planish.passes.spill import is_spilled, put_back, spilled

BLOCKS = """if True:
    import ctypes, os
    from planish.passes.spill import return_freed

    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    size = 16 << 20

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def touched():
        block = libc.malloc(ctypes.c_size_t(size))
        ctypes.memset(block, 1, size)
        return block

    libc.free(ctypes.c_void_p(touched()))  # glibc keeps the next ones on its heap
    start = resident()
    blocks = [touched() for _ in range(16)]
    for block in blocks[::2]:
        libc.free(ctypes.c_void_p(block))
    assert resident() - start > 15 * size, (resident() - start) / size
    assert return_freed()
    assert resident() - start < 9 * size, (resident() - start) / size
"""

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="pages are counted as Linux does")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed blocks")
def test_freed_blocks_go_back_to_the_system() -> None:
    """Every other one of many blocks is freed: those stay on the heap until they are asked for."""
    subprocess.run([sys.executable, "-c", BLOCKS], check=True)


def test_other_c_libraries_need_no_telling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _name: object())
    assert not spill.return_freed()


def pages(tensor: torch.Tensor) -> int:
    """Kilobytes of the mapping that holds a tensor which are in memory."""
    begins, found = False, 0
    with open("/proc/self/smaps", encoding="ascii") as file:
        for line in file:
            first = line.split()[0]
            if "-" in first and ":" not in first:
                low, high = (int(end, 16) for end in first.split("-"))
                begins = low <= tensor.data_ptr() < high
            elif begins and first == "Rss:":
                found += int(line.split()[1])
    return found


@LINUX
def test_pages_of_a_spilled_tensor_leave_memory_and_come_back() -> None:
    numbers = torch.arange(1 << 20, dtype=torch.float32)
    held = spilled(numbers)
    assert is_spilled(held)
    assert torch.equal(held, numbers)
    assert pages(held) >= 4096
    put_back(held)
    assert pages(held) < 100
    assert torch.equal(held, numbers)


def test_a_tensor_in_memory_stays() -> None:
    numbers = torch.arange(1 << 16, dtype=torch.float32)
    put_back(numbers)
    assert torch.equal(numbers, torch.arange(1 << 16, dtype=torch.float32))
