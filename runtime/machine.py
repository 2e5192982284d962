"""The machine that figures were measured on."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

INSTRUCTIONS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "bf16", "sve"),
)
"""Extensions of x86 and of ARM, as Linux names them, on which speed of matrix products depends."""

_PACKAGES = ("planish", "onnxruntime", "onnxruntime-gpu", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class Machine:
    """What speeds depend on besides the model.

    Attributes:
        processor: the CPU's name.
        instructions: which of `INSTRUCTIONS` it has; empty where the system does not tell.
        cores: how many CPUs this process may use.
        system: operating system and architecture.
        python: its version.
        versions: of the packages that run models, those that are installed.
    """

    processor: str
    instructions: tuple[str, ...]
    cores: int
    system: str
    python: str
    versions: dict[str, str]


def this_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(
        processor=_described("model name") or platform.processor() or "unknown",
        instructions=tuple(one for one in INSTRUCTIONS if one in _flags()),
        cores=usable_cores(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=_versions(),
    )


def usable_cores() -> int:
    """How many CPUs this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def recent_load() -> float | None:
    """Processes that wanted a core, on average of the last minute; None where it is not kept."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def peak_memory() -> int | None:
    """The most memory in bytes that this process held at once; None where nobody counts it."""
    try:
        import resource  # noqa: PLC0415  (Windows has none)
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # getrusage(2): kilobytes on Linux


def _flags() -> frozenset[str]:
    return frozenset((_described("flags") or _described("Features")).split())


def _described(entry: str) -> str:
    """What Linux says of the first CPU under a name; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    found = (line.partition(":")[2].strip() for line in lines if line.startswith(entry))
    return next(found, "")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
