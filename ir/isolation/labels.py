"""Which rows belong to whom: what the auditor is told, never what the model file says.

Unless told otherwise every input carries the batch along its first dimension, every row is a
request of its own, and nothing is shared. Each of these is printed as an assumption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from planish.ir.errors import PlanishError
from planish.ir.flow.polynomial import Count, Polynomial, quotient
from planish.ir.flow.vocabulary import Shape, Value
from planish.ir.isolation.dependence import NOTHING, Cause, Dependence
from planish.ir.isolation.digits import Digit, Map, make


class BadLabels(PlanishError):
    """What the auditor was told about inputs or outputs does not fit the model."""


@dataclass(frozen=True)
class Owners:
    """Which rows of a batch belong to one request.

    Attributes:
        rows: how many rows a request has.
        adjacent: whether they lie next to each other (beams), or one block of rows after another
            has one row of each request (classifier-free guidance by concatenation).
    """

    rows: int = 1
    adjacent: bool = True

    @staticmethod
    def parse(given: int | Sequence[int] | str | None) -> Owners:
        """Owners from a number of rows a request, or from the owner of each row of an example.

        `2` and `[0, 0, 1, 1]` say that two neighbours belong together; `[0, 1, 0, 1]` says that
        rows half a batch apart do. A string is read as either.

        Raises:
            BadLabels: for any other pattern.
        """
        if given is None:
            return Owners()
        try:
            if isinstance(given, str):
                parts = [int(part) for part in given.split(",")]
                given = parts[0] if len(parts) == 1 else parts
            owners = [given] if isinstance(given, int) else list(given)
        except ValueError:
            raise BadLabels(
                f"the owner map {given!r} is neither a number of rows a request, such as 2, nor "
                "the owner of each row, such as 0,0,1,1."
            ) from None
        if len(owners) == 1 and isinstance(given, int):
            if given < 1:
                raise BadLabels(f"a request has at least one row; the owner map says {given}.")
            return Owners(given)
        requests = max(owners, default=0) + 1
        rows, rest = divmod(len(owners), requests)
        if not rest and owners == [row // rows for row in range(len(owners))]:
            return Owners(rows)
        if not rest and owners == [row % requests for row in range(len(owners))]:
            return Owners(rows, adjacent=False)
        raise BadLabels(
            f"the owner map {','.join(map(str, owners))} is neither blocks of neighbours, such as "
            "0,0,1,1, nor one whole round of requests after another, such as 0,1,0,1."
        )

    def of_row(self, row: int, rows: int) -> int:
        """The request of one of so many rows."""
        return row // self.rows if self.adjacent else row % (rows // self.rows)

    def map(self, axis: int, rows: Count) -> Map | None:
        """The request of each row of a tensor with `rows` rows along `axis`; None if uneven."""
        requests = quotient(rows, self.rows)
        if requests is None:
            return None
        return make(0, [Digit(axis, self.rows if self.adjacent else 1, requests)])


@dataclass(frozen=True)
class Labels:
    """What the auditor is told.

    Attributes:
        batch_axes: for inputs whose batch is not on axis 0; None for one that has no axis of the
            batch and belongs whole to its one request.
        output_axes: for outputs whose batch is not on axis 0.
        shared: inputs that are the same for all requests, such as a temperature.
        internal: outputs that no request is given.
        owners: which rows belong together.
        cu_seqlens: inputs that divide the rows of a packed batch: where each request begins, and
            where the last one ends. They are the same for all requests.
        segment_ids: inputs that hold for each row of a packed batch whose it is, along the batch
            axis. They are the same for all requests, too.
        disjoint: inputs each of whose rows names pages that no other row names.
        pages: inputs that hold pages of all requests, along the batch axis.
    """

    batch_axes: Mapping[str, int | None] = field(default_factory=dict)
    output_axes: Mapping[str, int] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    internal: tuple[str, ...] = ()
    owners: Owners = Owners()
    cu_seqlens: tuple[str, ...] = ()
    segment_ids: tuple[str, ...] = ()
    disjoint: tuple[str, ...] = ()
    pages: tuple[str, ...] = ()

    @property
    def packed(self) -> bool:
        """Whether rows lie one request after another, as inputs say."""
        return bool(self.cu_seqlens or self.segment_ids)

    def is_shared(self, name: str) -> bool:
        """Whether an input is the same for all requests."""
        return name in (*self.shared, *self.cu_seqlens, *self.segment_ids)

    def is_apart(self, name: str) -> bool:
        """Whether an input has no rows of the batch: it is the same for all, or holds pages."""
        return self.is_shared(name) or name in self.pages

    def page_dims(self, inputs: Sequence[Value]) -> dict[str, int]:
        """The dimension of the pages of each input that holds some."""
        return {
            value.name: axis
            for value in inputs
            if value.name in self.pages and (axis := self.axis(value.name, value.shape)) is not None
        }

    def segment_dims(self, inputs: Sequence[Value]) -> dict[str, int]:
        """The dimension of the rows of each input that says whose they are."""
        found = {}
        for value in inputs:
            axis = self.axis(value.name, value.shape)
            if value.name in self.segment_ids and axis is not None:
                found[value.name] = axis
        return found

    def check(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Every name that is used exists.

        Raises:
            BadLabels: naming what does not, and what there is.
        """
        if self.packed and self.owners.rows > 1:
            raise BadLabels(
                "a packed batch and an owner map both say which rows belong to one request: give "
                "one of them."
            )
        if bool(self.disjoint) != bool(self.pages):
            raise BadLabels(
                "tables with disjoint rows and the inputs that hold their pages are declared "
                "together: --disjoint block_table --pages key_cache."
            )
        for names, there, what in (
            (
                (
                    *(*self.batch_axes, *self.shared, *self.cu_seqlens, *self.segment_ids),
                    *(*self.disjoint, *self.pages),
                ),
                inputs,
                "input",
            ),
            ((*self.output_axes, *self.internal), outputs, "output"),
        ):
            for name in names:
                if name not in there:
                    known = ", ".join(there) or "none"
                    raise BadLabels(f"the model has no {what} named {name!r}; it has {known}.")

    def ties(self, inputs: Mapping[str, Shape]) -> dict[str, Count]:
        """What ties the sizes of the batch together: by symbol, the common size.

        Exporters may give each input a batch size of its own. That they are equal is an
        assumption, which whoever serves the model has to keep.
        """
        sizes: list[Count] = []
        for name, shape in inputs.items():
            axis = self.axis(name, shape)
            public = name in self.shared or name in self.cu_seqlens or name in self.pages
            if not public and axis is not None:
                sizes.append(shape[axis])
        symbols = [size for size in sizes if isinstance(size, Polynomial)]
        names = sorted({str(size) for size in symbols if size.symbols == {str(size)}})
        numbers = {size for size in sizes if isinstance(size, int) and size != 1}
        if not names:
            return {}
        if len(numbers) == 1:
            return dict.fromkeys(names, numbers.pop())
        others = {
            symbol
            for shape in inputs.values()
            for size in shape
            if isinstance(size, Polynomial)
            for symbol in size.symbols
        }.difference(names)
        name = "B"
        while name in others:  # a file may call another size so
            name += "_"
        return dict.fromkeys(names, Polynomial.symbol(name) * self.owners.rows)

    def axis(self, name: str, shape: Shape) -> int | None:
        """The batch axis of an input; None if it has none, or too few dimensions."""
        return _checked(self.batch_axes.get(name, 0), shape, name)

    def output_axis(self, name: str, shape: Shape) -> int | None:
        """The batch axis of an output; None if it has too few dimensions."""
        return _checked(self.output_axes.get(name, 0), shape, name)

    def of_input(self, value: Value, batch: Count | None) -> Dependence:
        """What an input depends on: in each row on its own request.

        Args:
            value: the input.
            batch: the number of rows that the inputs have in common.
        """
        if self.is_shared(value.name):
            return NOTHING
        if value.name in self.pages:
            why = f"pages of {value.name} are read otherwise than by numbers out of one's own row"
            return Dependence(frozenset(), frozenset({Cause("value", value.name, "input", why)}))
        axis = self.axis(value.name, value.shape)
        rows = None if axis is None else value.shape[axis]
        own = None
        if axis is not None and rows is not None and rows == batch:
            own = self.owners.map(axis, rows)
        if self.whole(value.name) and batch == 1:
            own = make(0, [])
        if own is not None:
            return Dependence(frozenset({own}))
        if self.whole(value.name):
            why = f"the input {value.name} is to be one request's, but a batch has {batch} rows"
            return Dependence(frozenset(), frozenset({Cause("unknown", value.name, "input", why)}))
        found = "no dimensions" if axis is None else f"{rows} rows along axis {axis}, not {batch}"
        why = (
            f"the input {value.name} has {found}, so whose it is is not known: say --shared "
            f"{value.name} if all requests share it, or --batch-axis {value.name}=N"
        )
        return Dependence(frozenset(), frozenset({Cause("unknown", value.name, "input", why)}))

    def whole(self, name: str) -> bool:
        """Whether an input is declared to belong whole to one request."""
        return name in self.batch_axes and self.batch_axes[name] is None

    def batch(self, inputs: Sequence[Value]) -> Count | None:
        """The number of rows that most inputs have along their batch axes.

        One row counts only if no input has more, or leaves their number open: what has one row
        then is rather the same for all than the batch is one request.
        """
        sizes: list[Count] = []
        for value in inputs:
            axis = self.axis(value.name, value.shape)
            if not self.is_apart(value.name) and axis is not None:
                sizes.append(value.shape[axis])
        several = [size for size in sizes if size != 1] or sizes
        return max(several, key=lambda size: (several.count(size), str(size)), default=None)


def _checked(axis: int | None, shape: Shape, name: str) -> int | None:
    if axis is None or not shape:
        return None
    if not -len(shape) <= axis < len(shape):
        raise BadLabels(f"{name} has {len(shape)} dimensions, so {axis} cannot be its batch axis.")
    return axis % len(shape)
