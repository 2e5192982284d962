"""The roofline of a 4-bit product on an H200, and on it what was measured, if anything was.

    python benchmarks/roofline.py

Floors are computed: bytes over 4.3 TB/s, or operations over 790 TFLOP/s, whichever takes longer.
Points come from `benchmarks/results/gpu.json`, which `benchmarks/gpu.py` writes. The picture is
`docs/kernels.png`.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "kernels.png"
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
BANDWIDTH, BFLOAT16 = 4.3e12, 790e12
N, K, GROUP = 8192, 28672, 128
ROWS = [round(2 ** (step / 4)) for step in range(0, 49)]
NAME = f"w4a16_n{N}_k{K}_g{GROUP}"


def floor(rows: int, weight: float) -> float:
    """Microseconds that a product takes at least, whose weight has so many bytes a number."""
    moved = N * K * weight + 2 * rows * (N + K)
    return max(moved / BANDWIDTH, 2 * rows * N * K / BFLOAT16) * 1e6


def main() -> None:
    """Draw the floors and the points."""
    four = 0.5 + 2 / GROUP
    figure, (times, ratio) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    bf16, w4 = ([floor(rows, size) for rows in ROWS] for size in (2.0, four))
    times.loglog(ROWS, bf16, color="#777", label="bfloat16: least possible")
    times.loglog(ROWS, w4, color="#0a6", label="4 bits, groups of 128: least possible")
    ratio.semilogx(ROWS, [a / b for a, b in zip(bf16, w4, strict=True)], color="#0a6")
    ratio.axhline(1, color="#777", linewidth=1)
    measured = points()
    if measured:
        rows = [one["rows"] for one in measured]
        times.loglog(rows, [one["enforce"]["us"] for one in measured], "o", color="#0a6")
        best = [min(one["linear"]["us"], one["mm"]["us"]) for one in measured]
        times.loglog(rows, best, "o", color="#777")
        ratio.semilogx(rows, [one["speedup"] for one in measured], "o", color="#0a6")
    said = "points: measured" if measured else "not measured: no GPU could be had"
    times.set(title=f"N {N}, K {K} ({said})", ylabel="microseconds")
    ratio.set(title="Most that 4 bits can gain over bfloat16", ylabel="times faster", ylim=(0, 4.2))
    times.legend(frameon=False)
    for each in (times, ratio):
        each.set_xlabel("rows of x (tokens at once)")
        each.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, dpi=110)


def points() -> list[dict[str, Any]]:
    """What was measured of this product, by rows."""
    if not RESULTS.is_file():
        return []
    found = json.loads(RESULTS.read_text(encoding="utf-8"))["products"]
    return [one for one in found if one["product"].startswith(NAME)]


if __name__ == "__main__":
    main()
