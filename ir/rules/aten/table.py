"""How a part of the table of ATen is written down."""

from planish.ir.flow.call import Rule


def named(rule: Rule, operators: str) -> dict[str, Rule]:
    """A part of the table: one rule for several operators, by their names with the overload."""
    return {f"aten.{name}": rule for name in operators.split()}
