"""`planish::selective_scan` against its definition."""

import itertools

import pytest
import torch
from torch import Tensor

from planish.ir import ops
from support.scan import SCANS


def _recurrence(arguments: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The definition, one head and position at a time, in float64."""
    x, dt, a, b, c, d, state = (value.double() for value in arguments.values())
    y, state = torch.empty_like(x), state.clone()
    batch, length, heads, _ = x.shape
    for row, t, head in itertools.product(range(batch), range(length), range(heads)):
        group = head // (heads // b.shape[2])
        drive = torch.outer(dt[row, t, head] * x[row, t, head], b[row, t, group])
        state[row, head] = torch.exp(dt[row, t, head] * a[head]) * state[row, head] + drive
        y[row, t, head] = state[row, head] @ c[row, t, group] + d[head] * x[row, t, head]
    return y, state


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"),
    [(torch.float32, 1e-5, 2e-6), (torch.float64, 1e-12, 1e-12), (torch.bfloat16, 1e-2, 1e-2)],
)
def test_scan_follows_the_recurrence(
    name: str, dtype: torch.dtype, rtol: float, atol: float
) -> None:
    """At every dtype of x; the state keeps its own."""
    arguments = SCANS[name].arguments(batch=2, length=9)
    state_dtype = torch.promote_types(dtype, torch.float32)
    arguments = {
        key: value.to(state_dtype if key == "state" else dtype) for key, value in arguments.items()
    }
    y, state = ops.selective_scan(*arguments.values())
    expected = _recurrence(arguments)
    assert (y.dtype, state.dtype) == (dtype, state_dtype)
    torch.testing.assert_close(y.double(), expected[0], rtol=rtol, atol=atol)
    torch.testing.assert_close(state.double(), expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SCANS)
def test_scan_in_two_calls_is_the_scan_in_one(name: str) -> None:
    """The final state is all that a later call needs."""
    arguments = SCANS[name].arguments(batch=2, length=9)
    whole = ops.selective_scan(*arguments.values())
    state, parts = arguments["state"], []
    for part in (slice(0, 6), slice(6, 7), slice(7, 9)):
        cut = {key: arguments[key][:, part] for key in ("x", "dt", "b", "c")}
        y, state = ops.selective_scan(*(arguments | cut | {"state": state}).values())
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole[0])
    torch.testing.assert_close(state, whole[1])


def test_scan_keeps_the_rules_of_operators() -> None:
    """Its outputs alias nothing, and its shape function agrees with it."""
    arguments = SCANS["mamba2-groups"].arguments(batch=2, length=3)
    torch.library.opcheck(
        ops.selective_scan,
        tuple(arguments.values()),
        test_utils=("test_schema", "test_faketensor"),
    )
