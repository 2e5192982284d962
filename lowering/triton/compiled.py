"""Kernels compiled ahead of time, without a device, and what they take of it.

The numbers are read from the binary with the `cuobjdump` that Triton brings.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.lowering.triton.build import function_of, require_triton, source_of
from planish.lowering.triton.generators import Spec, pointers, warps_and_stages

HOPPER = 90
"""The compute capability of an H100 or H200, times ten."""

SHARED_LIMIT = 232_448
"""Bytes of shared memory that a program may have there (CUDA C++ Programming Guide, table of
compute capabilities)."""

OPTIONS = {"enable_fp_fusion": True}
"""Said wherever kernels are compiled, since Triton's default changes between versions, and with
it the bits."""


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes.

    Attributes:
        registers: of a thread.
        spilled: bytes of a thread's stack: registers that did not fit.
        shared: bytes of shared memory of a program.
        product: the instruction that multiplies: `wgmma`, `mma.sync`, or none.
        from_registers: whether `wgmma` reads its first operand from registers.
    """

    registers: int
    spilled: int
    shared: int
    product: str
    from_registers: bool


def compile_for(spec: Spec, capability: int = HOPPER, *, plain: bool = False) -> Any:
    """A kernel compiled for a device of some capability, as Triton's `CompiledKernel`.

    Raises:
        planish.lowering.triton.build.NoTriton: if Triton is not installed.
    """
    require_triton()
    import triton  # noqa: PLC0415
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.compiler import ASTSource  # noqa: PLC0415

    names = [f"{name}_ptr" for name in source_of(spec).tensors]
    signature = dict(zip(names, pointers(spec), strict=True))
    function = function_of(spec)
    constants = {"PLAIN": plain}
    for name, parameter in inspect.signature(function.fn).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            constants[name] = parameter.default
    scalars = [each for each in function.arg_names if each not in {*names, *constants}]
    source = ASTSource(
        function,
        signature={
            **signature,
            **dict.fromkeys(scalars, "i32"),
            **dict.fromkeys(constants, "constexpr"),
        },
        constexprs=constants,
        attrs={(place,): [["tt.divisibility", 16]] for place in range(len(names))},
    )
    options = {**warps_and_stages(spec), **OPTIONS}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(compiled: Any) -> Resources:
    """What a compiled kernel takes of a device."""
    import triton  # noqa: PLC0415

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        said = subprocess.run(
            [tool, "-res-usage", file], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found is not None, said
    ptx = compiled.asm["ptx"]
    product = next((name for name in ("wgmma", "mma.sync") if f"{name}." in ptx), "")
    if not product and "mma.sync" in ptx:
        product = "mma.sync"
    return Resources(
        registers=int(found[1]),
        spilled=int(found[2]),
        shared=compiled.metadata.shared,
        product=product,
        from_registers=_from_registers(ptx),
    )


def _from_registers(ptx: str) -> bool:
    """Whether every `wgmma` lists registers, in braces, after those of its sum."""
    products = re.findall(r"wgmma\.mma_async\S*\s+\{[^}]*\},\s*(\S)", ptx)
    return bool(products) and all(first == "{" for first in products)
