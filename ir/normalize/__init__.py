"""Normalization: from the graph an exporter leaves to composite operators.

Runs once, right after capture. `cleanup` drops what has no meaning; the other files recover one
composite operator each, by patterns over the graph (`match`), never by a model's name.
"""

from __future__ import annotations

from planish.ir.normalize import (
    activation,
    attention,
    gated,
    layer_norm,
    linear,
    mask,
    parts,
    rms_norm,
    rotary,
)
from planish.ir.normalize.cleanup import cleanup
from planish.ir.normalize.match import rewrite
from planish.ir.program import Program

RULES = (
    *parts.RULES,
    *linear.RULES,
    *layer_norm.RULES,
    *rms_norm.RULES,
    *rotary.RULES,
    *activation.RULES,
    *gated.RULES,
    *attention.RULES,
    *mask.RULES,
)
"""Every rewrite; one walk over the graph tries all of them at each node, in this order.

Layer norms come before RMS norms, since the first is the second of centered values.
"""


def normalize(program: Program) -> Program:
    """The program in normal form: cleaned up, with composite operators put together again."""
    return rewrite(cleanup(program), RULES)
