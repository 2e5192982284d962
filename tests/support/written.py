"""Small modules written as functions, and their programs before and after normalization."""

import re
import textwrap
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor, nn

from planish.ir.capture.export import from_module
from planish.ir.normalize import normalize
from planish.ir.normalize.cleanup import cleanup
from planish.ir.program import Program


class Written(nn.Module):
    """A function of up to four tensors, with parameters to read from its first argument."""

    def __init__(self, function: Callable[..., Tensor], **parameters: Tensor) -> None:
        super().__init__()
        self._function = function
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        z: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        return self._function(self, *(given for given in (x, y, z, mask) if given is not None))


def before_and_after(
    function: Callable[..., Tensor], *inputs: Tensor, rtol: float = 1e-5, **parameters: Tensor
) -> tuple[str, str]:
    """Capture a function, normalize it, check that both programs agree, and return their text.

    The first dimension of every input is the symbolic `B`. The text is as `text` gives it.
    """
    module = Written(function, **parameters).eval()
    with patch("planish.ir.capture.export.normalize", cleanup):
        before = from_module(module, inputs)
    after = normalize(before)
    sample = before.samples[0]
    expected = module(**sample)
    assert torch.equal(before.run(**sample)["output"], expected)
    torch.testing.assert_close(after.run(**sample)["output"], expected, rtol=rtol, atol=rtol)
    return text(before), text(after)


def text(program: Program) -> str:
    """Return the calls of a program, numbered, without those that only measure sizes."""
    lines = [line.strip() for line in str(program).splitlines() if line.startswith("  %")]
    calls = [line for line in lines if "= input" not in line and "= aten.sym_size" not in line]
    names = [line.split(":")[0].removeprefix("%") for line in calls]
    numbers = {name: str(number) for number, name in enumerate(names, start=1)}
    return re.sub(r"%(\w+)", lambda name: "%" + numbers.get(name[1], name[1]), "\n".join(calls))


def written(graph: str) -> str:
    """Return the text of a graph as a test writes it: indented, between triple quotes."""
    return textwrap.dedent(graph).strip()
