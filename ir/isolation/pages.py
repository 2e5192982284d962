"""Pages: memory that requests share, and tables that say which parts of it are whose.

A server keeps keys and values of all requests in pages of one pool, and gives each request a row
of a table, with the numbers of its pages. That no page is in two rows is the server's word. What is
looked up in the pool by a number out of a row of the table, just as it stands there, then belongs
to the request of that row; whatever else reads the pool may read anybody's page.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from planish.ir.flow.graph import Flow
from planish.ir.flow.laws import Looked
from planish.ir.flow.vocabulary import Concat, Expression, Operand, Reads, Reshape, Slice, Value
from planish.ir.isolation.parts import same


class Pages:
    """The pools and tables of a flow.

    Args:
        flow: to be followed.
        tables: inputs each of whose rows names pages of its request alone.
        pools: inputs that hold the pages, with the dimension along which these lie.
    """

    def __init__(self, flow: Flow, tables: Collection[str], pools: Mapping[str, int]) -> None:
        self._entries = {value for value in flow.inputs if value.name in tables}
        self._pools = {value: pools[value.name] for value in flow.inputs if value.name in pools}
        for node in flow.nodes if self._pools else ():
            for output, expression in zip(node.outputs, node.expressions, strict=True):
                if self._is_entry(expression):
                    self._entries.add(output)
                dim = self._dim(expression)
                if dim is not None:
                    self._pools[output] = dim

    def own(self, operand: Operand, reads: Reads) -> bool:
        """Whether what is read of a pool is of the request out of whose row its number comes.

        Whose row that is, the index itself says, which is read with it.
        """
        law = reads.law
        if not isinstance(law, Looked) or operand is not reads.operands[0]:
            return False
        dim = self._dim(law.value)
        index = law.indices[dim] if dim is not None and dim < len(law.indices) else None
        read = [one.value for one in reads.operands[1:]]
        return index is not None and index in read and self._is_entry(index)

    def _is_entry(self, expression: Expression) -> bool:
        """Whether all elements are numbers that stand in tables."""
        match expression:
            case Value():
                return expression in self._entries
            case Reads(kind="copy", operands=(operand,), mixed=mixed) if not mixed:
                return self._is_entry(operand.value)
            case Reshape(value=value) | Slice(value=value):
                return self._is_entry(value)
            case Concat(operands=operands):
                return all(map(self._is_entry, operands))
        return False

    def _dim(self, expression: Expression) -> int | None:
        """The dimension of a pool along which its pages lie, in their order and all of them."""
        match same(expression):
            case Value() as value:
                return self._pools.get(value)
            case Slice(value=value, dim=cut) if self._dim(value) not in (None, cut):
                return self._dim(value)
            case Reshape(value=value, shape=new) if (dim := self._dim(value)) is not None:
                old = value.shape
                ahead = [size for size in old[:dim] if size != 1]
                for place, size in enumerate(new):
                    if [one for one in new[:place] if one != 1] == ahead and size == old[dim]:
                        return place
        return None


NO_PAGES = Pages(Flow((), (), (), {}), (), {})
"""Of a graph without a pool."""
