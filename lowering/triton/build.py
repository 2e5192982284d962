"""From source text to functions of Triton, and whether they would be interpreted.

Nothing is executed but what the generators of this version wrote in this process.
"""

from __future__ import annotations

import importlib.util
import linecache
import os
from functools import cache
from typing import Any

from planish.ir.errors import PlanishError
from planish.lowering.triton.generators import Spec, generate
from planish.lowering.triton.text import Source


class NoTriton(PlanishError):
    """Triton is not installed."""


def installed() -> bool:
    """Whether Triton can be imported."""
    try:
        return importlib.util.find_spec("triton") is not None
    except ValueError:  # as Python says of a module that was put aside
        return False


def require_triton() -> None:
    """Make sure that Triton is there.

    Raises:
        NoTriton: if it is not.
    """
    if not installed():
        raise NoTriton(
            "Triton is not installed, so there is nothing to run generated kernels with. Install "
            "planish[gpu] on Linux."
        )


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: if TRITON_INTERPRET is set."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on", "yes", "y"}


@cache
def source_of(spec: Spec) -> Source:
    """The source of a specification, generated once."""
    return generate(spec)


@cache
def function_of(spec: Spec) -> Any:
    """The kernel of a specification, as a function of Triton.

    Raises:
        NoTriton: if Triton is not installed.
    """
    require_triton()
    source = source_of(spec)
    name = f"<planish {source.function} {source.sha256[:12]}>"
    # Triton reads a function's source by its file name, and this is where Python looks it up.
    linecache.cache[name] = (len(source.text), None, source.text.splitlines(keepends=True), name)
    namespace: dict[str, Any] = {"__name__": f"planish_{source.function}"}
    exec(compile(source.text, name, "exec"), namespace)
    return namespace[source.function]
