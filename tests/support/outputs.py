"""Running a captured program on random inputs."""

import torch
from torch import Tensor

from planish.ir.program import Program


def outputs(program: Program) -> dict[str, Tensor]:
    """Run on random inputs; caches are empty, since their axes may move too."""
    generator = torch.Generator().manual_seed(0)
    sizes = {size.name: 0 if size.name == "P" else size.example for size in program.sizes}
    feeds = {}
    for spec in program.inputs:
        shape = [eval(str(one), {}, dict(sizes)) for one in spec.shape]
        if spec.dtype.is_floating_point:
            feeds[spec.name] = torch.randn(shape, generator=generator, dtype=spec.dtype)
            if spec.name.startswith(("past", "conv", "ssm", "state")):
                feeds[spec.name].zero_()
        elif "mask" in spec.name:
            feeds[spec.name] = torch.ones(shape, dtype=spec.dtype)
        else:
            feeds[spec.name] = torch.randint(0, 2, shape, generator=generator, dtype=spec.dtype)
    found = program.run(**feeds)
    return {"logits": found["logits"]} if "logits" in found else found
