"""Arguments for `planish::selective_scan` in the shapes that models give it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from planish.ir.sizes import Extent, evaluate


@dataclass(frozen=True)
class Scan:
    """The sizes H, P, G, N of the operator, and how many columns its argument a has."""

    heads: int
    width: int
    groups: int
    columns: int
    decays: int

    def shapes(self) -> dict[str, list[Extent]]:
        """The shape of each argument, over the batch B and the length T."""
        return {
            "x": ["B", "T", self.heads, self.width],
            "dt": ["B", "T", self.heads],
            "a": [self.heads, self.decays],
            "b": ["B", "T", self.groups, self.columns],
            "c": ["B", "T", self.groups, self.columns],
            "d": [self.heads],
            "state": ["B", self.heads, self.width, self.columns],
        }

    def arguments(self, batch: int, length: int) -> dict[str, Tensor]:
        """Random arguments; dt is positive and a negative, as models make them."""
        torch.manual_seed(0)
        sizes = {"B": batch, "T": length}
        made = {
            name: torch.randn([evaluate(extent, sizes) for extent in shape])
            for name, shape in self.shapes().items()
        }
        return made | {"dt": made["dt"].abs(), "a": -made["a"].abs()}


SCANS = {
    "mamba": Scan(heads=12, width=1, groups=1, columns=8, decays=8),
    "mamba2": Scan(heads=6, width=4, groups=1, columns=5, decays=1),
    "mamba2-groups": Scan(heads=6, width=4, groups=3, columns=5, decays=1),
    "heads-decay-by-column": Scan(heads=4, width=3, groups=2, columns=5, decays=5),
}
