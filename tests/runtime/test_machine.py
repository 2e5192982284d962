"""What is said of the machine, and asked of its C library."""

import platform
import subprocess
import sys

import pytest

from planish.runtime import machine


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed blocks")
def test_freed_blocks_go_back_to_the_system() -> None:
    """Every other one of many 16 MB blocks is freed: none may stay behind in the process."""
    code = """if True:
        import ctypes, os
        from planish.runtime.machine import return_freed_memory

        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        size = 16 << 20

        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        def touched(size):
            block = libc.malloc(ctypes.c_size_t(size))
            ctypes.memset(block, 1, size)
            return block

        assert return_freed_memory()
        libc.free(ctypes.c_void_p(touched(size)))  # glibc would keep the next ones on its heap
        start = resident()
        blocks = [touched(size) for _ in range(16)]
        for block in blocks[::2]:
            libc.free(ctypes.c_void_p(block))
        assert resident() - start < 9 * size, (resident() - start) / size
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_c_libraries_need_no_telling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _name: object())
    assert not machine.return_freed_memory()
