"""The table of ATen: what each operator reads, by its name with the overload."""

from planish.ir.flow.call import Learn, Rule
from planish.ir.rules.aten import creation, indexing, movement, pointwise, product, reduction

RULES: dict[str, Rule] = {
    **pointwise.RULES,
    **creation.RULES,
    **movement.RULES,
    **reduction.RULES,
    **product.RULES,
    **indexing.RULES,
}
"""By operator, e.g. `aten.softmax.int`."""

LEARN: dict[str, Learn] = {**pointwise.LEARN, **creation.LEARN}
"""What is known of results, for operators that compute small integers."""
