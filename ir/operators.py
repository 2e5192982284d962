"""What torch's operators say of themselves.

torch has no public names for this; the private ones are used here and nowhere else.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch

OpOverload = type(torch.ops.aten.add.Tensor)
"""The class of operators such as `aten.add.Tensor`."""

HigherOrderOperator: Any = type(torch.ops.higher_order.cond).__base__
"""The class of operators that take graphs, such as `cond`."""


def is_operator(target: Any) -> TypeGuard[Any]:
    """Whether a node's target is an operator of torch, of any namespace."""
    return isinstance(target, OpOverload)


def schema(target: Any) -> Any:
    """An operator's schema: name, arguments, returns, and what it mutates or aliases."""
    return target._schema


def decomposes_implicitly(target: Any) -> bool:
    """Whether an operator is defined by others for every device and for autograd."""
    torch_c: Any = torch._C  # pyright: ignore[reportPrivateUsage]
    has_kernel = torch_c._dispatch_has_kernel_for_dispatch_key
    return bool(has_kernel(target.name(), "CompositeImplicitAutograd"))
