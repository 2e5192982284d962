"""Captured Mamba models against transformers."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from planish.ir import ops
from planish.ir.capture.export import CaptureFailed
from planish.ir.capture.language import capture_causal
from planish.ir.program import Program, Source
from planish.ir.sizes import evaluate
from support.models import tiny

FAMILIES = ("mamba", "mamba2")

# Relatives of both, some with attention in one layer. Their mixers differ in norms and in where
# the configuration keeps the sizes.
_TINY = {
    "vocab_size": 101,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "initializer_range": 0.125,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HYBRID = {
    **_TINY,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "mamba_d_state": 8,
}
_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_chunk_size": 4}
RELATIVES: dict[str, dict[str, Any]] = {
    "falcon_mamba": {**_TINY, "state_size": 8},
    "bamba": {**_HYBRID, **_HEADS, "attn_layer_indices": [1]},
    "granitemoehybrid": {
        **_HYBRID,
        **_HEADS,
        "layer_types": ["mamba", "attention", "mamba"],
        "num_local_experts": 0,
        "shared_intermediate_size": 96,
    },
    "jamba": {**_HYBRID, "attn_layer_period": 3, "attn_layer_offset": 1, "num_experts": 1},
}
UNKNOWN: dict[str, dict[str, Any]] = {
    "falcon_h1": {**_HYBRID, "mamba_d_ssm": 128, **_HEADS},
    "rwkv": {"vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 2},
}


def _build(model_type: str, **options: Any) -> Any:
    config = transformers.AutoConfig.for_model(model_type, **options)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _capture(model: Any) -> Program:
    return capture_causal(model, Source("huggingface", type(model).__name__, "causal-lm"))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Any, Program]:
    """A tiny model and its program."""
    model, _ = tiny(request.param)
    return model, _capture(model)


def _empty(program: Program, batch: int) -> dict[str, Tensor]:
    sizes = {"B": batch, "P": 0}
    return {
        spec.name: torch.zeros([evaluate(e, sizes) for e in spec.shape], dtype=spec.dtype)
        for spec in program.inputs
        if spec.name.startswith("past_")
    }


def _fed_back(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state for the next call: what came out as `present*` goes in as `past*`."""
    state = {
        name.replace("present_", "past_").replace("present.", "past_key_values."): value
        for name, value in outputs.items()
        if name != "logits"
    }
    return {name: value.clone() for name, value in state.items()}


def _tokens(batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch * 100 + length)
    return torch.randint(3, 101, (batch, length), generator=generator)


def _run(
    program: Program, ids: Tensor, mask: Tensor, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """One call; `mask` is of all tokens so far."""
    plain = {"input_ids": ids, "attention_mask": mask, "position_ids": _positions(ids, mask)}
    if "P" not in {size.name for size in program.sizes}:
        plain["attention_mask"] = mask[:, -ids.shape[1] :]
    names = {spec.name for spec in program.inputs}
    return program.run(**{name: plain[name] for name in plain if name in names}, **state)


def _positions(ids: Tensor, mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]


def _close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 2), (3, 5), (2, 30)])
def test_equals_eager(family: tuple[Any, Program], batch: int, length: int) -> None:
    """From an empty state, at sizes other than the example's."""
    model, program = family
    ids = _tokens(batch, length)
    got = _run(program, ids, torch.ones_like(ids), _empty(program, batch))
    with torch.no_grad():
        _close(got["logits"], model(input_ids=ids).logits)


def test_left_padding_leaves_no_trace(family: tuple[Any, Program]) -> None:
    """As in eager; and a padded row gives what it gives alone, state included."""
    model, program = family
    ids, padded = _tokens(3, 9), (0, 3, 8)
    mask = torch.ones_like(ids)
    for row, count in enumerate(padded):
        mask[row, :count] = 0
    got = _run(program, ids, mask, _empty(program, 3))
    with torch.no_grad():
        _close(got["logits"], model(input_ids=ids, attention_mask=mask).logits)
    for row, count in enumerate(padded):
        alone = ids[row : row + 1, count:]
        expected = _run(program, alone, torch.ones_like(alone), _empty(program, 1))
        _close(got["logits"][row : row + 1, count:], expected.pop("logits"))
        for name, value in expected.items():
            _close(got[name][row : row + 1], value)


def test_decoding_equals_eager_with_its_cache(family: tuple[Any, Program]) -> None:
    """Seven tokens, one, and one more; rows padded differently."""
    model, program = family
    ids = _tokens(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    state, cache = _empty(program, 2), None
    for start, stop in itertools.pairwise((0, 7, 8, 9)):
        got = _run(program, ids[:, start:stop], mask[:, :stop], state)
        with torch.no_grad():
            expected = model(
                input_ids=ids[:, start:stop],
                attention_mask=mask[:, start:stop] if cache is None else None,
                cache_params=cache,
                use_cache=True,
            )
        _close(got["logits"], expected.logits)
        state, cache = _fed_back(got), expected.cache_params
        for layer, kept in enumerate(cache.layers):
            _close(got[f"present_conv.{layer}"], kept.conv_states[0][..., 1:])
            _close(got[f"present_ssm.{layer}"], kept.recurrent_states[0])


def test_chunks_over_a_past_give_what_one_call_gives(family: tuple[Any, Program]) -> None:
    """Several new tokens at a time, which transformers' Mamba does not do from a cache."""
    model, program = family
    ids = _tokens(2, 12)
    state, logits = _empty(program, 2), []
    for start, stop in itertools.pairwise((0, 2, 7, 12)):
        got = _run(program, ids[:, start:stop], torch.ones_like(ids[:, :stop]), state)
        logits.append(got["logits"])
        state = _fed_back(got)
    with torch.no_grad():
        _close(torch.cat(logits, dim=1), model(input_ids=ids).logits)


def test_sizes_are_symbolic_and_states_are_named(family: tuple[Any, Program]) -> None:
    """One graph for every batch and length, with no past length where nothing grows."""
    model, program = family
    config, text = model.config, program.text()
    assert [size.name for size in program.sizes] == ["B", "T"]
    assert f"%selective_scan: (f32[B, T, {_heads(config)}" in text
    assert "%input_ids: i64[B, T] = input" in text
    assert "%attention_mask: i64[B, T] = input" in text
    assert [spec.name for spec in program.inputs[2:]] == [
        f"past_{kind}.{layer}"
        for layer in range(config.num_hidden_layers)
        for kind in ("conv", "ssm")
    ]
    assert program.outputs[1:] == tuple(
        spec.name.replace("past_", "present_") for spec in program.inputs[2:]
    )
    assert program.inputs[2].shape[2] == config.conv_kernel - 1


def _heads(config: Any) -> int:
    heads = config.num_heads if config.model_type == "mamba2" else config.intermediate_size
    return int(heads)


def test_composite_operators_are_as_many_as_the_config_says(
    family: tuple[Any, Program],
) -> None:
    """Mamba-2 has a second norm in each layer, over groups and after the gate."""
    model, program = family
    layers = model.config.num_hidden_layers
    norms = 2 * layers + 1 if model.config.model_type == "mamba2" else layers + 1
    assert len(list(program.nodes(ops.selective_scan))) == layers
    assert len(list(program.nodes(ops.rms_norm))) == norms
    assert len(list(program.nodes(ops.gated))) == layers


def test_saves_and_loads(family: tuple[Any, Program], tmp_path: Path) -> None:
    """Text and results are the same to the last bit."""
    _, program = family
    program.save(tmp_path)
    loaded = Program.load(tmp_path)
    assert loaded.text() == program.text()
    expected = program.run(**program.samples[0])
    for name, value in loaded.run(**program.samples[0]).items():
        assert torch.equal(value, expected[name]), name


def test_capture_leaves_the_model_as_it_was(family: tuple[Any, Program]) -> None:
    """The functional forwards are gone, whether capture succeeded or not."""
    model, _ = family
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]


def test_step_limits_hold() -> None:
    """Mamba-2's `time_step_limit`, which most checkpoints leave open."""
    options: dict[str, Any] = {
        "num_heads": 8,
        "head_dim": 16,
        "n_groups": 2,
        "chunk_size": 4,
        "state_size": 8,
    }
    options |= {"num_hidden_layers": 1, "time_step_limit": (0.02, 0.1)}
    model = _build("mamba2", **(_TINY | options))
    program = _capture(model)
    ids = _tokens(2, 6)
    got = _run(program, ids, torch.ones_like(ids), _empty(program, 2))["logits"]
    with torch.no_grad():
        _close(got, model(input_ids=ids).logits)
    assert "aten.clamp" in program.text()


def test_half_precision_keeps_the_state_wide(family: tuple[Any, Program]) -> None:
    """In bfloat16 the recurrent state stays float32, as in transformers' cache."""
    name = family[0].config.model_type
    model = tiny(name, layers=1)[0].bfloat16()
    program = _capture(model)
    dtypes = {spec.name: spec.dtype for spec in program.inputs}
    assert dtypes["past_conv.0"] == torch.bfloat16
    assert dtypes["past_ssm.0"] == torch.float32
    ids = _tokens(2, 6)
    got = _run(program, ids, torch.ones_like(ids), _empty(program, 2))["logits"]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    error = (got.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert error < 0.03  # bfloat16 has 8 bits


@pytest.mark.slow
@pytest.mark.parametrize("name", RELATIVES)
def test_relatives_equal_eager(name: str) -> None:
    """Prefill with left padding and one token more, with attention among the layers or not."""
    model = _build(name, **RELATIVES[name])
    program = _capture(model)
    hybrid = name != "falcon_mamba"
    assert len(list(program.nodes(ops.selective_scan))) == (2 if hybrid else 3)
    assert len(list(program.nodes(ops.attention))) == int(hybrid)
    ids = _tokens(3, 10)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    state, cache = _empty(program, 3), None
    for start, stop in ((0, 9), (9, 10)):
        part, seen = ids[:, start:stop], mask[:, :stop]
        got = _run(program, part, seen, state)
        given: dict[str, Any] = {"past_key_values" if hybrid else "cache_params": cache}
        if hybrid:
            given["position_ids"] = _positions(part, seen)
        with torch.no_grad():
            expected = model(
                input_ids=part,
                attention_mask=seen if hybrid or not start else None,
                use_cache=True,
                **given,
            )
        real = mask[:, start:stop].bool()
        _close(got["logits"][real], expected.logits[real])
        state = _fed_back(got)
        cache = expected.past_key_values if hybrid else expected.cache_params


@pytest.mark.parametrize(
    ("name", "says"), [("falcon_h1", "recurrent state"), ("rwkv", "past_key_values")]
)
def test_refuses_states_that_it_does_not_know(name: str, says: str) -> None:
    """Rather than to capture a graph that forgets them."""
    with pytest.raises(CaptureFailed, match=says):
        _capture(_build(name, **UNKNOWN[name]))
