"""Planish: compiler passes that shrink and speed up PyTorch models, with an audit of each step.

The public names load on first use, so that ``import planish`` costs nothing and running an
artifact never imports the passes.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planish.api import Result, capture, optimize
    from planish.auditing import AuditReport, audit
    from planish.ir.errors import PlanishError
    from planish.ir.program import Program
    from planish.runtime.session import load

__version__ = "0.1.0"

__all__ = [
    "AuditReport",
    "PlanishError",
    "Program",
    "Result",
    "__version__",
    "audit",
    "capture",
    "load",
    "optimize",
]

_HOMES = {
    "AuditReport": "planish.auditing",
    "PlanishError": "planish.ir.errors",
    "Program": "planish.ir.program",
    "Result": "planish.api",
    "audit": "planish.auditing",
    "capture": "planish.api",
    "load": "planish.runtime.session",
    "optimize": "planish.api",
}


def __getattr__(name: str) -> object:
    """Import a public name from the module that defines it, once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'planish' has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
