"""The table of ATen: what each operator reads, by its name with the overload."""

from planish.ir.flow.call import Learn, Rule, Writes
from planish.ir.rules.aten import (
    attention,
    composite,
    creation,
    indexing,
    kernels,
    movement,
    normalization,
    pointwise,
    product,
    reduction,
    selection,
    slicing,
)

RULES: dict[str, Rule] = {
    **pointwise.RULES,
    **creation.RULES,
    **movement.RULES,
    **slicing.RULES,
    **reduction.RULES,
    **normalization.RULES,
    **product.RULES,
    **attention.RULES,
    **composite.RULES,
    **kernels.RULES,
    **indexing.RULES,
    **selection.RULES,
}
"""By operator, e.g. `aten.softmax.int`."""

LEARN: dict[str, Learn] = {**pointwise.LEARN, **creation.LEARN}
"""What is known of results, for operators that compute small integers."""

WRITES: dict[str, Writes] = normalization.WRITES
"""What operators leave in arguments that they write in place."""

TRUSTED: dict[str, str] = dict.fromkeys(kernels.RULES, kernels.TRUSTED)
"""By operator, what its rule takes on trust."""
