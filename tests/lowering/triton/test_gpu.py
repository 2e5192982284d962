"""On a CUDA device: kernels beside plain torch, rows in other batches, graphs, whole programs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from planish.lowering.triton.check import operands, wrong
from planish.lowering.triton.generators import spec_of
from planish.lowering.triton.lower import lower
from planish.lowering.triton.operators import compute, compute_routed
from planish.lowering.triton.plans import modelled
from planish.lowering.triton.routed_specs import Alone, Routed
from planish.lowering.triton.specs import GroupScaled, Scaled, WeightOnly
from planish.passes import name_of
from planish.passes.pipeline import apply
from planish.passes.quantize_weights import QuantizeWeights
from planish.runtime.backend import Provider
from planish.runtime.session import Session
from support.captured import captured

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

CUDA = torch.device("cuda")
PLACES: tuple[Provider, ...] = ("cpu", "cuda")
TABLE = Path(__file__).parents[3] / "benchmarks" / "results" / "kernels.json"
ROWS: list[dict[str, Any]] = json.loads(TABLE.read_text())["kernels"]
PRODUCTS: tuple[Alone, ...] = (
    WeightOnly(4096, 4096),
    WeightOnly(1536, 576, group=64, lanes=32),
    Scaled(1024, 4096),
    Scaled(1024, 4000, codes="float8_e4m3fn"),
    GroupScaled(1024, 4096),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{ROWS.index(row)}")
def test_kernels_are_right(row: dict[str, Any]) -> None:
    assert wrong(spec_of(row["spec"]), CUDA) == ""


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda product: product.name)
def test_a_row_has_the_same_bits_in_any_batch(product: Alone) -> None:
    plan = modelled(product, bitwise=True)
    with CUDA:
        given = operands(product, 257)
    x = given.pop("x")

    def first(rows: int) -> torch.Tensor:
        cut = {name: t[:rows] if name == "row_scales" else t for name, t in given.items()}
        return compute(product, plan.choice(rows), x[:rows], cut)

    whole = first(257)
    assert [rows for rows in range(1, 258) if not torch.equal(first(rows), whole[:rows])] == []


def test_a_token_has_the_same_bits_in_any_batch() -> None:
    product = Routed(WeightOnly(1024, 4096), 8, 2, shared=True)
    plan = modelled(product, bitwise=True)
    with CUDA:
        given = operands(product, 65)
    x, chosen = given.pop("x"), given.pop("chosen")

    def first(rows: int) -> torch.Tensor:
        choice = plan.choice(-(-2 * rows // 8))
        return compute_routed(product, choice, x[:rows], chosen[:rows], given)

    whole = first(257)
    assert [rows for rows in range(1, 257) if not torch.equal(first(rows), whole[:rows])] == []


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda product: product.name)
def test_graphs_replay_the_same_bits(product: Alone) -> None:
    """The counters of parallel parts are zero again after each launch."""
    choice = modelled(product, bitwise=False).choice(4)
    with CUDA:
        given = operands(product, 4)
    x = given.pop("x")
    wanted = compute(product, choice, x, given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = compute(product, choice, x, given)
    for _ in range(3):
        found.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(found, wanted)


def test_a_session_on_the_device_gives_what_the_cpu_gives(tmp_path: Path) -> None:
    passes = (QuantizeWeights(bits=4, group_size=32),)
    program, _ = apply(captured("llama", 1)[1], passes, names=name_of)
    lower(program, tmp_path / "triton")
    given = {name: tensor.numpy() for name, tensor in program.samples[0].items()}
    wanted, found = (Session.open(tmp_path, provider=where) for where in PLACES)
    assert found.provider == "cuda"
    torch.testing.assert_close(
        torch.from_numpy(found.run(**given)["logits"]),
        torch.from_numpy(wanted.run(**given)["logits"]),
        rtol=1e-3,
        atol=1e-3,
    )
