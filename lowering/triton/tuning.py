"""Plans from times that were measured: which way is fastest for a product and so many rows.

The table is a JSON file to be read, and edited, by people:

    {"format": 1, "devices": {"NVIDIA H200": {"triton": "3.6.0", "products": {
        "w4a16_n4096_k4096_g128 bfloat16": {"16": [
            {"how": "kernel", "tiling": {...}, "scaling": "sums", "us": 4.1},
            {"how": "dequantize", "us": 30.2}]}}}}}

Nothing is measured on import or on loading a model; `benchmarks/gpu.py --tune` writes the table.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from planish.lowering.triton.fields import NoKernel, Tiling
from planish.lowering.triton.plans import Choice, Plan, Product, modelled, scaling_of
from planish.lowering.triton.routed_specs import Routed
from planish.lowering.triton.specs import WeightOnly
from planish.lowering.triton.tilings import tile

FORMAT = 1

MODEL = "model of the chip"
TABLE = "tuning table"


def default_path() -> Path:
    """Where the table of this machine's user is: in the folder where Planish keeps its assets."""
    home = os.environ.get("PLANISH_CACHE")
    cache = Path(home) if home else Path.home() / ".cache" / "planish"
    return cache / "triton" / "tuning.json"


class BadTable(UserWarning):
    """A tuning table cannot be used, and the model of the chip decides instead."""


@dataclass(frozen=True)
class Timed:
    """One way to compute a product, and the microseconds that it took."""

    choice: Choice
    us: float

    def to_json(self) -> dict[str, Any]:
        """As the table holds it."""
        made: dict[str, Any] = {"how": self.choice.how, "us": self.us}
        if self.choice.tiling is not None:
            made |= {"tiling": asdict(self.choice.tiling), "scaling": self.choice.scaling}
        return made


@dataclass(frozen=True)
class Table:
    """What was measured on one device, by product and bound on the rows."""

    products: Mapping[str, Mapping[int, tuple[Timed, ...]]] = field(default_factory=dict)


def key(product: Product) -> str:
    """What a product's times are kept under: all but its epilogue and tiling.

    The rows of a routed product's times are those of an expert.
    """
    name = product.name.rpartition("_m")[0]
    alone = product.product if isinstance(product, Routed) else product
    mode = " accurate" if getattr(alone, "accurate", False) else ""
    return f"{name} {product.dtype}{mode}"


def planned(
    product: Product, table: Table, *, bitwise: bool = False, dense: bool = False
) -> tuple[Plan, str]:
    """The fastest way for each number of rows, and what said so.

    Args:
        product: what is computed.
        table: of the device at hand; empty if nothing was measured.
        bitwise: whether the bits of a row may not depend on the number of rows: then only kernels
            that reduce in one order are eligible.
        dense: whether a floating-point copy of the weight may be kept.

    Returns:
        The plan, and `TABLE` or `MODEL`.
    """
    found = table.products.get(key(product), {})
    if not found:
        return modelled(product, bitwise=bitwise), MODEL
    choices = []
    for bound in sorted(found):
        allowed = [
            timed
            for timed in found[bound]
            if _allowed(product, timed.choice, bitwise=bitwise, dense=dense)
        ]
        if allowed:
            best = min(allowed, key=lambda timed: timed.us).choice
            choices.append(replace(best, rows=bound))
    if not choices:
        return modelled(product, bitwise=bitwise), MODEL
    return Plan((*_merged(choices[:-1]), replace(choices[-1], rows=0))), TABLE


def _allowed(product: Product, choice: Choice, *, bitwise: bool, dense: bool) -> bool:
    if choice.how != "kernel":
        kept = isinstance(product, WeightOnly) and (choice.how != "dense" or dense)
        return kept and not bitwise  # torch chooses its kernels by the number of rows
    made = choice.of(product)
    if not bitwise:
        return True
    fixed = tile(product, 1, bitwise=True)
    same = made.tiling.slices == fixed.tiling.slices
    return bool(same and scaling_of(made) == scaling_of(fixed))


def _merged(choices: list[Choice]) -> list[Choice]:
    """Neighbouring choices that are alike as one."""
    kept: list[Choice] = []
    for choice in choices:
        if kept and replace(kept[-1], rows=choice.rows) == choice:
            kept.pop()
        kept.append(choice)
    return kept


def read(path: Path, device: str, version: str) -> Table:
    """The table of a device; empty if there is none for it, its Triton, or the file.

    A file that is damaged is told of by a warning, and not used.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}, this version reads {FORMAT}")
        found = document["devices"].get(device, {"triton": version, "products": {}})
        if found["triton"] != version:
            return Table()
        products = {
            name: {int(bound): _timed(int(bound), entries) for bound, entries in bounds.items()}
            for name, bounds in found["products"].items()
        }
    except FileNotFoundError:
        return Table()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, NoKernel) as error:
        warnings.warn(
            f"{path} is no tuning table that can be read ({error}), so kernels are chosen by the "
            "model of the chip. Remove the file, or tune again with benchmarks/gpu.py --tune.",
            BadTable,
            stacklevel=2,
        )
        return Table()
    return Table(products)


def _timed(bound: int, entries: list[dict[str, Any]]) -> tuple[Timed, ...]:
    if bound < 1:
        raise ValueError(f"{bound} rows")
    return tuple(_entry(bound, **entry) for entry in entries)


def _entry(
    bound: int,
    how: Any,
    us: float,
    tiling: dict[str, Any] | None = None,
    scaling: Any = "sums",
) -> Timed:
    if not 0 < float(us) < float("inf"):
        raise ValueError(f"a time of {us} us")
    choice = Choice(bound, how, Tiling(**tiling) if tiling else None, scaling)
    return Timed(choice, float(us))


def write(path: Path, device: str, version: str, table: Table) -> None:
    """Store a device's table beside those of others in the file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        devices = dict(document["devices"]) if document["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        devices = {}
    products = {
        name: {str(bound): [each.to_json() for each in timed] for bound, timed in bounds.items()}
        for name, bounds in table.products.items()
    }
    devices[device] = {"triton": version, "products": products}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, "devices": devices}, indent=1)
    aside = path.with_suffix(".new")
    aside.write_text(text + "\n", encoding="utf-8")
    aside.replace(path)
