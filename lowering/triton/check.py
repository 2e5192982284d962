"""Whether kernels compute what they say on the device at hand: each against plain torch.

Compilers and devices differ; a wrong kernel is replaced by the reference it was compared with.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from planish.ir.activations import INT8
from planish.ir.quant import FP8
from planish.lowering.triton import layout, reference
from planish.lowering.triton.build import source_of
from planish.lowering.triton.float_specs import Floating
from planish.lowering.triton.generators import Spec
from planish.lowering.triton.launch import run, run_routed, run_rows
from planish.lowering.triton.layout import offset
from planish.lowering.triton.routed_specs import Routed
from planish.lowering.triton.row_specs import RowWise
from planish.lowering.triton.specs import GroupScaled, Scaled, WeightOnly

BEYOND = 3
"""Rows of the random input beyond a whole tile, if there are tiles."""

LIMIT = {"bfloat16": 2e-2, "float16": 4e-3, "float32": 1e-4}
"""The largest error beyond what rounding allows, relative to the root mean square of the result,
for sums in another order and weights that are rounded once more. A wrong kernel errs by about 1."""

FAST = 2e-2
"""The same for FP8, whose sums keep about 14 bits inside the tensor cores."""

ROUNDINGS = 2
"""To the dtype: the reference rounds after every operator, a fused kernel once."""


class WrongKernel(UserWarning):
    """A kernel does not compute on this device what it should, and is not used."""


Wrong = Callable[[Spec, torch.device], str]
"""Why a kernel is wrong on a device; empty if it is right."""


def wrong(spec: Spec, device: torch.device) -> str:
    """Why a kernel is wrong on a device: its error, or that it fails; empty if it is right."""
    try:
        worst = _excess(*results(spec, device))
    except Exception as error:  # a compiler's and a driver's failures have no base in common
        return f"it fails: {type(error).__name__}: {error}".strip()[:300]
    kind = spec.product if isinstance(spec, Routed) else spec
    floating = isinstance(kind, Scaled | RowWise) and kind.codes == "float8_e4m3fn"
    limit = max(LIMIT[spec.dtype], FAST if floating else 0.0)
    return "" if worst <= limit else f"its error is {worst:.2g}, and {limit:.2g} is allowed"


def _excess(found: Tensor, wanted: Tensor, allowed: Tensor) -> float:
    """The largest error beyond what is allowed, in root mean squares; infinite for a NaN."""
    size = wanted.double().square().mean().sqrt().clamp_min(1e-30)
    beyond = (found.double() - wanted.double()).abs() - allowed.double()
    worst = float((beyond / size).max())
    return float("inf") if math.isnan(worst) else worst


def results(spec: Spec, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What a kernel gives for a random input, what plain torch gives, and what rounding allows."""
    rows = BEYOND if isinstance(spec, RowWise) else spec.tiling.rows + BEYOND
    with torch.random.fork_rng(["cuda"] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        given = operands(spec, rows)
    if isinstance(spec, RowWise):
        found, wanted = run_rows(spec, given), reference.row_wise(spec, given)
        if spec.codes is not None:
            return _restored(spec, found, wanted)
        y = wanted[0]
        return found[0], y, _rounding(y)
    x = given.pop("x")
    if isinstance(spec, Routed):
        chosen = given.pop("chosen")
        y = reference.routed(spec, x, chosen, given)
        return run_routed(spec, x, chosen, given), y, _rounding(y)
    y = reference.alone(spec, x, given)
    return run(spec, x, given), y, _rounding(y)


def _rounding(y: Tensor) -> Tensor:
    return ROUNDINGS * torch.finfo(y.dtype).eps * y.abs().float()


def _restored(
    spec: RowWise, found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes times their scales, where a last bit before may give the neighbouring code."""
    mine, theirs = (codes.float() * scale[:, None] for codes, scale in (found, wanted))
    step = wanted[1][:, None].expand_as(theirs)
    if spec.codes != "int8":
        step = torch.maximum(theirs.abs() / 8, step / 512)
    return mine, theirs, 1.01 * step + _rounding(theirs)


def operands(spec: Spec, rows: int) -> dict[str, Tensor]:
    """Random tensors, on the default device, for everything that a kernel reads."""
    dtype = getattr(torch, spec.dtype)
    if isinstance(spec, RowWise):
        shape = (rows, spec.width)
        given = {"x": torch.randn(shape).to(dtype)}
        given |= {"up": torch.randn(shape).to(dtype)} if spec.activation else {}
        vectors = [name for name in ("weight", "bias") if name in spec.operands]
        return given | {name: torch.rand(spec.width).to(dtype) for name in vectors}
    if isinstance(spec, Routed):
        return _routed(spec, rows)
    more = {
        name: torch.randn((spec.n,) if name == "bias" else (rows, spec.n)).to(dtype)
        for name in spec.epilogue.operands
    }
    if isinstance(spec, WeightOnly):
        return {**_packed(spec, rows), **more}
    if isinstance(spec, Floating):
        return {
            "x": torch.randn(rows, spec.k).to(dtype),
            "weight": torch.randn(spec.n, spec.k).mul(spec.k**-0.5).to(dtype),
            **more,
        }
    weight = _coded(spec) if isinstance(spec, Scaled) else _nibbles(spec)
    kind = INT8 if spec.codes == "int8" else FP8
    x = torch.randn(rows, spec.k).mul(40).clamp(-127, 127).to(kind)
    return {"x": x, "row_scales": torch.rand(rows) + 0.5, **weight, **more}


def _routed(spec: Routed, rows: int) -> dict[str, Tensor]:
    """Of tokens so many that each expert has `rows` rows, on average."""
    tokens = -(-rows * spec.experts // spec.chosen)
    stack = [operands(spec.product, 1) for _ in range(spec.experts)]
    own = {*spec.stored, "bias"} & stack[0].keys()
    each = operands(spec.product, tokens * (1 if spec.shared else spec.chosen))
    made = operands(spec.product, tokens * spec.chosen)
    found = {name: torch.stack([one[name] for one in stack]) for name in own}
    found |= {name: each[name] for name in ("row_scales",) if name in each}
    found["x"] = each["x"].reshape(tokens, *([] if spec.shared else [spec.chosen]), spec.k)
    found |= {name: made[name] for name in ("multiply", "residual") if name in made}
    return {**found, "chosen": torch.randint(spec.experts, (tokens, spec.chosen))}


def _nibbles(spec: GroupScaled) -> dict[str, Tensor]:
    scales = (torch.rand(spec.groups, spec.n) + 0.5) * spec.k**-0.5 / 160
    return {
        "nibbles": layout.pack_nibbles(torch.randint(-8, 8, (spec.n, spec.k)), spec),
        "scales": scales.to(getattr(torch, spec.scale_dtype)),
    }


def _coded(spec: Scaled) -> dict[str, Tensor]:
    kind = INT8 if spec.codes == "int8" else FP8
    return {
        "codes": torch.randn(spec.n, spec.k).mul(40).clamp(-127, 127).to(kind),
        "scales": (torch.rand(spec.n) + 0.5) * spec.k**-0.5 / 1600,
    }


def _packed(spec: WeightOnly, rows: int) -> dict[str, Tensor]:
    scales, half = getattr(torch, spec.scale_dtype), offset(spec.bits)
    shape = (spec.groups, spec.n)
    codes = torch.randint(-half, half, (spec.n, spec.k))
    found = {
        "x": torch.randn(rows, spec.k).to(getattr(torch, spec.dtype)),
        "words": layout.pack(codes, spec),
        "scales": ((torch.rand(shape) + 0.5) * spec.k**-0.5 / half).to(scales),
    }
    if spec.zeros:
        found["zeros"] = torch.randint(0, 2 * half, shape).to(scales)
    return found


@dataclass(frozen=True)
class Record:
    """Which kernels passed their check on a device: a JSON file of sources' hashes.

    Attributes:
        path: of the file, which holds those of other devices too.
        device: its name.
        version: of Triton: another compiler makes another kernel of the same source.
    """

    path: Path
    device: str
    version: str

    @property
    def _key(self) -> str:
        return f"{self.device}, triton {self.version}"

    def _all(self) -> dict[str, list[str]]:
        try:
            found: dict[str, list[str]] = json.loads(self.path.read_text(encoding="utf-8"))
            return {str(name): [str(each) for each in hashes] for name, hashes in found.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}  # a check too many does no harm

    def passed(self) -> frozenset[str]:
        """The hashes of sources that passed."""
        return frozenset(self._all().get(self._key, ()))

    def add(self, hashes: Iterable[str]) -> None:
        """Remember that these passed too."""
        known = self._all()
        known[self._key] = sorted({*known.get(self._key, ()), *hashes})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".new")
        aside.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        aside.replace(self.path)


def wrong_ones(
    specs: Iterable[Spec],
    device: torch.device,
    judge: Wrong = wrong,
    record: Record | None = None,
) -> frozenset[Spec]:
    """Those of several kernels that are wrong on a device, each told by a warning.

    Args:
        specs: of the kernels.
        device: to check them on.
        judge: says why one is wrong.
        record: of those that passed before and need no check.
    """
    found, passed = set(), record.passed() if record else frozenset()
    right = set()
    for spec in specs:
        source = source_of(spec).sha256
        if source in passed:
            continue
        if why := judge(spec, device):
            warnings.warn(
                f"the kernel {spec.name} is not used on {device}: {why}. Plain torch computes it "
                "instead, which is right and slow.",
                WrongKernel,
                stacklevel=2,
            )
            found.add(spec)
        else:
            right.add(source)
    if record and right:
        record.add(right)
    return frozenset(found)
