"""Residual blocks: found in every family, cut into layers, and left out one by one."""

import pytest
import torch
from torch import Tensor, nn

from planish.ir.capture.export import from_module
from planish.passes.blocks import find_blocks
from planish.passes.depth import without
from support.captured import captured
from support.families import SOME

FOUND = {
    "resnet": (2, (1,)),  # of two blocks a stage, the first changes the width
    "convnext": (4, (1,)),
    "mobilenet_v2": (10, (1,)),
    "swin": (4, (2,)),
    "t5": (4, (2, 3)),  # the decoder also attends to the encoder
    "mamba": (2, (1,)),
    "mamba2": (2, (1,)),
}
"""How many blocks a family has, and how many branches there are in one; two and two elsewhere."""


@pytest.mark.parametrize("family", SOME)
def test_every_block_and_branch_of_a_family_can_be_left_out(family: str) -> None:
    _, program = captured(family)
    blocks = find_blocks(program)
    count, branches = FOUND.get(family, (2, (2,)))
    assert len(blocks) == count
    assert {len(block.branches) for block in blocks} == set(branches)
    for block in (blocks[-1], blocks[0].branches[0], blocks[-1].branches[-1]):
        after = without(program, [block])
        assert after.parameters == program.parameters - block.parameters(program)
        assert set(after.tensors) == set(program.tensors) - set(block.tensors)
        for sample in after.samples:
            outputs = after.run(**sample)
            assert all(torch.isfinite(one).all() for one in outputs.values())


@pytest.mark.parametrize("family", ["llama", "phi", "gemma3", "mamba2", "bert"])
def test_without_a_block_the_model_gives_what_transformers_gives_without_the_layer(
    family: str,
) -> None:
    model, program = captured(family, 3)
    _, middle, _ = find_blocks(program)
    after = without(program, [middle])
    other, _ = captured(family, 3)
    layers: nn.ModuleList = next(
        module
        for module in other.modules()
        if isinstance(module, nn.ModuleList) and len(module) == 3
    )
    sample = {
        name: value for name, value in after.samples[0].items() if not name.startswith("past_")
    }
    forward = layers[1].forward
    layers[1].forward = lambda hidden, *_args, **_options: hidden
    try:
        with torch.no_grad():
            expected = model(**sample, use_cache=False).logits
    finally:
        layers[1].forward = forward
    torch.testing.assert_close(after.run(**after.samples[0])["logits"], expected)


def test_states_of_what_is_left_are_counted_anew() -> None:
    _, program = captured("llama", 3)
    first, second, _ = find_blocks(program)
    after = without(program, [first])
    assert [spec.name for spec in after.inputs if spec.name.startswith("past_")] == [
        f"past_key_values.{layer}.{what}" for layer in (0, 1) for what in ("key", "value")
    ]
    assert after.outputs[1:] == (
        "present.0.key",
        "present.0.value",
        "present.1.key",
        "present.1.value",
    )
    for sample, old in zip(after.samples, program.samples, strict=True):
        assert sample["past_key_values.0.key"] is old["past_key_values.1.key"]
    # Without its MLP alone a layer keeps its state; without its attention it has none.
    assert without(program, [second.branches[1]]).outputs == program.outputs
    assert len(without(program, [second.branches[0]]).outputs) == len(program.outputs) - 2


def test_a_cache_works_without_layers() -> None:
    _, program = captured("llama", 3)
    after = without(program, [find_blocks(program)[1]])
    ids = torch.randint(3, 90, (2, 6))

    def run(part: slice, states: dict[str, Tensor]) -> dict[str, Tensor]:
        empty = {
            spec.name: torch.zeros(2, 2, 0, 16)
            for spec in after.inputs
            if spec.name.startswith("past_")
        }
        positions = torch.arange(6).expand(2, 6)[:, part].contiguous()
        mask = torch.ones(2, part.stop, dtype=torch.int64)
        given = {"input_ids": ids[:, part], "position_ids": positions, "attention_mask": mask}
        return after.run(**given, **(states or empty))

    whole = run(slice(0, 6), {})
    begun = run(slice(0, 4), {})
    states = {
        f"past_key_values.{name.removeprefix('present.')}": value
        for name, value in begun.items()
        if name != "logits"
    }
    rest = run(slice(4, 6), states)
    torch.testing.assert_close(rest["logits"], whole["logits"][:, 4:])


class Reused(nn.Module):
    """The second branch reads what was computed in the first."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.one(x))
        x = x + inner
        x = x + self.two(torch.relu(x) * inner)
        y: Tensor = x + self.three(torch.relu(x))
        return y


def test_what_others_read_is_held() -> None:
    program = from_module(Reused().eval(), {"x": torch.randn(2, 3, 8)})
    blocks = find_blocks(program)
    held = [branch for block in blocks for branch in block.branches if branch.held]
    assert [branch.name for branch in held] == ["one"]
    assert "which is computed in it, is read by" in str(held[0].held)
    with pytest.raises(Exception, match="cannot be left out"):
        without(program, [held[0]])


class Plain(nn.Module):
    """A long way round, and sums that are no residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one(x) + self.two(x)  # neither is computed from the other
        return y + y.square()  # which has no weights


def test_sums_of_branches_without_a_stream_are_no_blocks() -> None:
    assert find_blocks(from_module(Plain().eval(), {"x": torch.randn(2, 3, 8)})) == ()
