"""torch.compile on programs: the same values, for prompts and for single tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import planish
from planish import api
from planish.ir.program import Program
from planish.runtime.backend import CannotOpen, RunFailed
from planish.runtime.compiled import Compiled


@pytest.fixture(scope="module")
def program(llama: transformers.LlamaForCausalLM) -> Program:
    return api.capture(llama)


def given(program: Program, batch: int, length: int, past: int) -> dict[str, torch.Tensor]:
    """Inputs of the language model."""
    inputs = {
        "input_ids": torch.randint(0, 250, (batch, length)),
        "attention_mask": torch.ones(batch, past + length, dtype=torch.int64),
        "position_ids": torch.arange(past, past + length).expand(batch, length).contiguous(),
    }
    caches = [spec.name for spec in program.inputs if spec.name not in inputs]
    return inputs | {name: torch.randn(batch, 2, past, 8) for name in caches}


def test_prompts_and_single_tokens(program: Program) -> None:
    """Traced and run by torch as it is, which needs no C++ compiler."""
    compiled = Compiled(program, compiler="eager")
    shapes = [(2, 5, 0), (1, 7, 0), (3, 1, 5), (1, 1, 9)]
    for batch, length, past in shapes:
        inputs = given(program, batch, length, past)
        wanted, found = program.run(**inputs), compiled.run(**inputs)
        assert list(found) == list(wanted)
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor)


def test_the_program_stays_as_it_is(program: Program) -> None:
    before = str(program)
    Compiled(program, compiler="eager")
    assert str(program) == before


def test_a_graph_that_cannot_be_compiled_is_an_error(program: Program) -> None:
    def refuse(*_: object) -> Any:
        raise RuntimeError("no such thing")

    compiled = Compiled(program, compiler=refuse)
    with pytest.raises(RunFailed, match=r"no such thing.*without compile=True"):
        compiled.run(**given(program, 2, 3, 0))


def test_onnx_models_are_not_compiled_by_torch(
    llama: transformers.LlamaForCausalLM, tmp_path: Path
) -> None:
    planish.optimize(llama, [], output=tmp_path / "out")
    with pytest.raises(CannotOpen, match="leave compile=True out"):
        planish.load(tmp_path / "out", compile=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of inductor's own imports
@pytest.mark.parametrize("target", ["torch", "triton"])
def test_an_artifact_by_inductor(tmp_path: Path, target: api.Target) -> None:
    config = transformers.LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    passes = {"passes": [{"quantize_weights": {"bits": 4, "group_size": 32}}]}
    planish.optimize(model, passes, output=tmp_path / "out", target=target)
    plain = planish.load(tmp_path / "out", provider="cpu")
    compiled = planish.load(tmp_path / "out", provider="cpu", compile=True)
    tokens = torch.randint(0, 250, (2, 9)).numpy()
    wanted, found = plain.run(input_ids=tokens), compiled.run(input_ids=tokens)
    torch.testing.assert_close(
        torch.from_numpy(found["logits"]), torch.from_numpy(wanted["logits"]), rtol=1e-3, atol=1e-4
    )
    first, second = (one.generate(tokens.tolist(), max_new_tokens=6) for one in (plain, compiled))
    assert [one.tokens for one in first] == [one.tokens for one in second]
