"""From a program to an artifact's folder: the lowered program, and its kernels to read.

    triton/program.json, triton/tensors.safetensors    the program, kernels as operators
    triton/kernels.json                                specification, file and hash of each kernel
    triton/kernels/NAME-HASH.py                        their sources

The sources are there to be read. On loading they are generated again from the specifications, and
an artifact whose sources differ is refused; nothing in it is ever executed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from planish.ir import ops
from planish.ir.program import Program
from planish.ir.text import target_text
from planish.lowering.artifact import KERNELS, BadArtifact, write_json
from planish.lowering.triton import layout, operators
from planish.lowering.triton.build import source_of
from planish.lowering.triton.fields import NoKernel
from planish.lowering.triton.generators import Spec, spec_json, spec_of
from planish.lowering.triton.plans import read_plan, read_spec
from planish.lowering.triton.regions import replaced

FORMAT = 1

PRODUCTS = (operators.weight_only, operators.scaled_product, operators.routed_product)
ROWS = (operators.row_wise, operators.row_codes)


@dataclass(frozen=True)
class Lowered:
    """What lowering wrote.

    Attributes:
        program: with kernels as operators.
        kernels: the specifications of all that it may run.
        nbytes: of the files.
        notes: what did not become a kernel.
        rest: operators that add up terms and are left to torch, with how many there are.
    """

    program: Program
    kernels: tuple[Spec, ...]
    nbytes: int
    notes: tuple[str, ...]
    rest: tuple[str, ...]


SUMS = (
    ops.attention,
    ops.selective_scan,
    *(
        getattr(torch.ops.aten, name).default
        for name in ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "convolution")
    ),
)
"""Operators for which torch chooses a kernel, and with it an order of sums, by the shapes."""


def _rest(program: Program) -> tuple[str, ...]:
    counted = Counter(target_text(node.target) for node in program.nodes(*SUMS))
    return tuple(f"{name} ({count})" for name, count in sorted(counted.items()))


def lower(program: Program, folder: Path, *, bitwise: bool = False) -> Lowered:
    """Write a program as generated kernels and what is left of it.

    Args:
        program: after its passes.
        folder: to fill; made if need be.
        bitwise: whether the bits of a row may not depend on the number of rows.
    """
    lowered, notes = replaced(program, bitwise=bitwise)
    lowered.save(folder)
    specs = kernels_of(lowered)
    (folder / "kernels").mkdir()
    entries = []
    for spec in specs:
        source = source_of(spec)
        file = f"kernels/{source.function}-{source.sha256[:12]}.py"
        (folder / file).write_text(source.text, encoding="utf-8")
        entries.append({"file": file, "sha256": source.sha256, "spec": spec_json(spec)})
    listing = {
        "format": FORMAT,
        "layout": layout.VERSION,
        "bitwise": bitwise,
        "kernels": entries,
    }
    write_json(folder / KERNELS, listing)
    nbytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Lowered(lowered, specs, nbytes, notes, _rest(lowered))


def kernels_of(program: Program) -> tuple[Spec, ...]:
    """Every kernel that a lowered program may run, in the order of the graph, each once."""
    return tuple(
        dict.fromkeys(spec for node in program.nodes(*PRODUCTS, *ROWS) for spec in _of(node))
    )


def _of(node: fx.Node) -> Iterator[Spec]:
    if node.target in ROWS:
        yield read_spec(str(node.args[-2]))
        return
    yield from read_plan(str(node.args[-1])).kernels(read_spec(str(node.args[-2])))


def check(folder: Path, program: Program) -> None:
    """Make sure that an artifact's kernels are those that its specifications generate.

    Raises:
        BadArtifact: naming the file that differs, or what the program runs besides.
    """
    listing = listing_of(folder)
    if listing.get("format") != FORMAT or listing.get("layout") != layout.VERSION:
        raise BadArtifact(
            f"{folder / KERNELS}: format {listing.get('format')} with layout "
            f"{listing.get('layout')}; this version reads {FORMAT} and {layout.VERSION}. Convert "
            "the model again."
        )
    listed = set()
    for entry in listing["kernels"]:
        listed.add(_checked(folder, entry))
    try:
        missing = [spec.name for spec in kernels_of(program) if spec not in listed]
    except (NoKernel, IndexError) as error:
        raise BadArtifact(
            f"{folder}: the program holds a node that is no kernel: {error}"
        ) from error
    if missing:
        raise BadArtifact(
            f"{folder}: the program runs {', '.join(missing)}, which {KERNELS} does not list. "
            "Convert the model again."
        )


def listing_of(folder: Path) -> dict[str, Any]:
    """What `kernels.json` says.

    Raises:
        BadArtifact: if it cannot be read.
    """
    path = folder / KERNELS
    try:
        listing: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        entries = listing["kernels"]
        assert all({"file", "sha256", "spec"} <= entry.keys() for entry in entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise BadArtifact(f"{path} cannot be read: {error}. Convert the model again.") from error
    return listing


def _checked(folder: Path, entry: dict[str, Any]) -> Spec:
    """The specification of an entry, whose source is the one that it generates."""
    file = folder / str(entry["file"])
    try:
        spec = spec_of(entry["spec"])
        text = file.read_text(encoding="utf-8")
    except (NoKernel, OSError, ValueError) as error:
        raise BadArtifact(f"{file}: no kernel that can be read: {error}") from error
    source = source_of(spec)
    if text != source.text or entry["sha256"] != source.sha256:
        raise BadArtifact(
            f"{file} is not what its specification generates: it was changed, or written by "
            "another version of Planish. Nothing in it was executed. Convert the model again."
        )
    return spec
