"""What generated kernels take of a Hopper GPU, read from binaries compiled without one.

    python benchmarks/compile_kernels.py

Every kernel is compiled for sm_90 with the `ptxas` that Triton brings; registers, spills and shared
memory go to `benchmarks/results/kernels.json`, with which tests compare: a kernel that starts to
spill, or whose product leaves the tensor cores' fast path, fails them. Nothing is timed here.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import triton

from planish.lowering.triton.compiled import HOPPER, compile_for, resources
from planish.lowering.triton.fields import Codes, Epilogue
from planish.lowering.triton.float_specs import Floating
from planish.lowering.triton.generators import Spec, generate, spec_json
from planish.lowering.triton.routed_specs import Routed
from planish.lowering.triton.row_specs import rowwise
from planish.lowering.triton.specs import GroupScaled, Scaled, WeightOnly, best_lanes, byte_lanes
from planish.lowering.triton.tilings import ROWS, tile, tiled, tiled_codes

CODES: tuple[Codes, ...] = ("int8", "float8_e4m3fn")
RESULTS = Path(__file__).parent / "results" / "kernels.json"


def products() -> Iterator[Spec]:
    """Weight-only products: all formats at every tile, then shapes and epilogues."""
    for bits in (4, 8, 3, 2):
        for zeros in (False, True):
            spec = WeightOnly(
                14336, 4096, bits=bits, zeros=zeros, lanes=best_lanes(4096, bits, 128)
            )
            for rows in ROWS:
                for bitwise in (False, True):
                    yield tiled(spec, rows, bitwise=bitwise)
    for n, k in ((4096, 4096), (8192, 28672)):
        yield from (tiled(WeightOnly(n, k), rows) for rows in ROWS)
    yield tiled(WeightOnly(4096, 4096, bits=8, group=4096), 1)
    yield tiled(WeightOnly(4096, 4096, "float16", "float16"), 1)
    yield tiled(WeightOnly(1536, 576, group=64, lanes=32), 1)
    gated = Epilogue(bias=True, activation="silu", multiply=True, residual=True)
    yield tiled(WeightOnly(14336, 4096, epilogue=gated), 1)


def of_codes() -> Iterator[Spec]:
    """Products of 8-bit codes at every tile."""
    for codes in CODES:
        for accurate in (False, True)[: 1 if codes == "int8" else 2]:
            for rows in ROWS:
                spec = Scaled(14336, 4096, codes=codes, accurate=accurate)
                yield tiled_codes(spec, rows)
        yield tiled_codes(Scaled(4096, 4096, codes=codes), 1)


def of_nibbles() -> Iterator[Spec]:
    """Products of 8-bit codes with weights of 4 bits."""
    for group in (32, 64, 128, 4096):
        spec = GroupScaled(14336, 4096, group=group, lanes=byte_lanes(4096, group))
        yield from (tiled_codes(spec, rows) for rows in ROWS)
    for group in (32, 64):
        spec = GroupScaled(4096, 4096, group=group, lanes=group)
        yield from (tiled_codes(spec, rows, bitwise=True) for rows in ROWS)
    yield tiled_codes(GroupScaled(1536, 576, lanes=byte_lanes(576, 64)), 1)


def of_experts() -> Iterator[Spec]:
    """Products whose rows choose their weight: of few large experts, and of many small ones."""
    gated = Epilogue(activation="silu", multiply=True)
    for bits in (4, 8):
        up = WeightOnly(14336, 4096, bits=bits, epilogue=gated)
        for rows in ROWS:
            for bitwise in (False, True):
                yield tile(Routed(up, 8, 2, shared=True), rows, bitwise=bitwise)
    down = WeightOnly(2048, 768, zeros=True)
    yield from (tile(Routed(down, 128, 8, shared=False), rows, bitwise=True) for rows in ROWS)
    dense = Floating(14336, 4096, epilogue=gated), Floating(2048, 768)
    codes = [Scaled(14336, 4096, codes=kind, epilogue=gated) for kind in CODES]
    halves = GroupScaled(14336, 4096, lanes=byte_lanes(4096, 128), epilogue=gated)
    for spec in (*dense, *codes, halves):
        yield from (tile(Routed(spec, 8, 2, shared=True), rows, bitwise=True) for rows in ROWS)


def row_wise() -> Iterator[Spec]:
    """Norms, gates and rounding."""
    for codes in (None, *CODES):
        for width in (576, 4096, 8192, 28672):
            yield rowwise(width, norm="rms", weight=True, codes=codes)
            yield rowwise(width, norm="layer", weight=True, bias=True, codes=codes)
            yield rowwise(width, activation="silu", codes=codes)
            if codes:
                yield rowwise(width, codes=codes)


def specs() -> Iterator[Spec]:
    """Every specification in the table."""
    yield from products()
    yield from of_codes()
    yield from of_nibbles()
    yield from row_wise()
    yield from of_experts()


def main() -> None:
    """Compile all, and write the table."""
    rows = []
    for spec in dict.fromkeys(specs()):
        took = resources(compile_for(spec))
        source = generate(spec).sha256
        rows.append({"spec": spec_json(spec), "source": source, **asdict(took)})
        print(f"{generate(spec).function:50} {took}", flush=True)
    table = {"triton": triton.__version__, "capability": HOPPER, "kernels": rows}
    RESULTS.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
