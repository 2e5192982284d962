"""Normalization: from the graph an exporter leaves to composite operators.

Runs once, right after capture. `cleanup` drops what has no meaning; the other files recover one
composite operator each.
"""

from __future__ import annotations

from planish.ir.normalize.cleanup import cleanup
from planish.ir.program import Program

STEPS = (cleanup,)
"""The rewrites, in order; each takes a program and gives one."""


def normalize(program: Program) -> Program:
    """The program in normal form: cleaned up, with composite operators put together again."""
    for step in STEPS:
        program = step(program)
    return program
