"""Every family of transformers: the same numbers as eager, and all composites recovered."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from transformers import PreTrainedModel

from planish.ir import ops
from planish.ir.capture.huggingface import capture_model
from planish.ir.isolation.programs import analyse_program
from planish.ir.program import Program
from support.captured import captured
from support.models import FAMILIES, tiny

aten = torch.ops.aten

COUNTED = {
    "rms": ops.rms_norm,
    "ln": aten.layer_norm.default,
    "rotary": ops.rotary,
    "attention": ops.attention,
    "gated": ops.gated,
    "linear": aten.linear.default,
}

TAKEN_APART = {
    aten.rsqrt.default,
    aten.erf.default,
    aten.addmm.default,
    aten.mm.default,
    aten.scaled_dot_product_attention.default,
    aten.split.Tensor,
    aten.unbind.int,
    aten.type_as.default,
}
"""What composites and canonical forms are made of, and what is left of none of them."""

Counts = dict[str, int]


def _llama(c: Any, *, norms: int = 2, linears: int = 7, gated: int = 1) -> Counts:
    layers = c.num_hidden_layers
    return {
        "rms": norms * layers + 1,
        "rotary": 2 * layers,
        "attention": layers,
        "gated": gated * layers,
        "linear": linears * layers + 1,
    }


def _layer_normed(
    c: Any, *, norms: int = 2, more: int = 1, linears: int = 6, heads: int = 1, rotary: int = 0
) -> Counts:
    layers = c.num_hidden_layers
    return {
        "ln": norms * layers + more,
        "rotary": rotary * layers,
        "attention": layers,
        "linear": linears * layers + heads,
    }


def _modernbert(c: Any) -> Counts:
    # The first layer has no norm of its own; the embeddings, the end and the head have one each.
    counts = _layer_normed(c, more=2, linears=4, heads=2, rotary=2)
    return counts | {"gated": c.num_hidden_layers}


def _t5(c: Any) -> Counts:
    layers = c.num_layers
    return {
        "rms": 5 * layers + 2,
        "attention": 3 * layers,
        "gated": 2 * layers,
        "linear": (7 + 11) * layers + 1,
    }


def _swin(c: Any) -> Counts:
    blocks, joints = sum(c.depths), len(c.depths) - 1
    return {
        "ln": 2 * blocks + joints + 2,
        "attention": blocks,
        "linear": 6 * blocks + joints + 1,
    }


EXPECTED: dict[str, Callable[[Any], Counts]] = {
    "llama": _llama,
    "qwen2": _llama,
    "qwen3": lambda c: _llama(c, norms=4),
    "mistral": _llama,
    "gemma2": lambda c: _llama(c, norms=4),
    "gemma3": lambda c: _llama(c, norms=6),
    "phi": lambda c: _layer_normed(c, norms=1, rotary=2),
    "phi3": lambda c: _llama(c, linears=4),
    "opt": _layer_normed,
    "gpt2": lambda c: _layer_normed(c, linears=4),
    "gpt_neox": lambda c: _layer_normed(c, linears=4, rotary=2),
    "falcon": lambda c: _layer_normed(c, norms=1, linears=4, rotary=2),
    "mixtral": lambda c: _llama(c, linears=5),
    "qwen2_moe": lambda c: _llama(c, linears=9, gated=2),
    "bert": lambda c: _layer_normed(c, heads=2),
    "distilbert": lambda c: _layer_normed(c, more=2, heads=2),
    "roberta": lambda c: _layer_normed(c, more=2, heads=2),
    "modernbert": _modernbert,
    "vit": _layer_normed,
    "resnet": lambda _: {"linear": 1},
    "convnext": lambda c: {
        "ln": sum(c.depths) + len(c.depths) + 1,
        "linear": 2 * sum(c.depths) + 1,
    },
    "mobilenet_v2": lambda _: {"linear": 1},
    "swin": _swin,
    "t5": _t5,
}

DECODERS = [name for name in EXPECTED if FAMILIES[name].task == "CausalLM"]
OTHERS = [name for name in EXPECTED if FAMILIES[name].task != "CausalLM"]


def counts(program: Program) -> Counts:
    """Count the composites of a program, without those that it lacks."""
    found = Counter(node.target for node in program.nodes())
    return {name: found[target] for name, target in COUNTED.items() if found[target]}


@pytest.mark.parametrize("family", EXPECTED)
def test_composites_are_recovered(family: str) -> None:
    model, program = captured(family)
    expected = EXPECTED[family](model.config)
    assert counts(program) == {name: count for name, count in expected.items() if count}
    assert not {str(node.target) for node in program.nodes() if node.target in TAKEN_APART}


@pytest.mark.parametrize("family", DECODERS)
def test_attention_reads_the_cache_as_it_goes_out(family: str) -> None:
    _, program = captured(family)
    present = dict(zip(program.outputs, program.output_nodes, strict=True))
    for layer, node in enumerate(program.nodes(ops.attention)):
        kept = (present[f"present.{layer}.key"], present[f"present.{layer}.value"])
        assert node.args[1:3] == kept


def test_every_layer_adds_as_many_nodes() -> None:
    one, two, three = (len(captured("llama", layers)[1].graph.nodes) for layers in (1, 2, 3))
    assert two - one == three - two < 50


def left_padded(batch: int, length: int, seed: int = 3) -> dict[str, Tensor]:
    """Draw tokens, where row n begins with n of padding, with the positions of the tokens."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, length, dtype=torch.int64)
    for row in range(1, batch):
        mask[row, : min(row, length - 1)] = 0
    return {
        "input_ids": torch.randint(3, 101, (batch, length), generator=generator),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }


def step(
    program: Program, inputs: dict[str, Tensor], past: dict[str, Tensor], start: int, stop: int
) -> dict[str, Tensor]:
    """Run positions `start` to `stop` of a batch over the outputs of the step before."""
    given: dict[str, Tensor] = {}
    for spec in program.inputs:
        if spec.name == "attention_mask":
            given[spec.name] = inputs[spec.name][:, :stop]
        elif spec.name in inputs:
            given[spec.name] = inputs[spec.name][:, start:stop]
        elif past:
            given[spec.name] = past[spec.name.replace("past_key_values", "present")]
        else:
            batch, heads, width = len(inputs["input_ids"]), int(spec.shape[1]), int(spec.shape[3])
            given[spec.name] = torch.zeros(batch, heads, 0, width, dtype=spec.dtype)
    return program.run(**given)


def eager(model: PreTrainedModel, **inputs: Any) -> Any:
    with torch.no_grad():
        return model(**inputs)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize(
    ("batch", "steps"), [(1, (1,)), (1, (3, 4)), (2, (9, 10)), (3, (4, 10)), (3, (2, 6, 7))]
)
def test_a_decoder_equals_eager_over_any_cache(
    family: str, batch: int, steps: tuple[int, ...]
) -> None:
    model, program = captured(family)
    inputs = left_padded(batch, steps[-1])
    expected = eager(model, **inputs, use_cache=False).logits
    past: dict[str, Tensor] = {}
    logits = []
    for start, stop in zip((0, *steps), steps, strict=False):
        past = step(program, inputs, past, start, stop)
        logits.append(past["logits"])
    tokens = inputs["attention_mask"].bool()
    torch.testing.assert_close(
        torch.cat(logits, dim=1)[tokens], expected[tokens], rtol=1e-4, atol=1e-4
    )
    assert past["present.0.key"].shape[2] == steps[-1]


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize(("batch", "length", "target"), [(1, 1, 1), (2, 6, 5), (4, 21, 3)])
def test_other_models_equal_eager(family: str, batch: int, length: int, target: int) -> None:
    model, program = captured(family)
    generator = torch.Generator().manual_seed(batch)
    given: dict[str, Tensor] = {}
    for spec in program.inputs:
        sizes = {"B": batch, "S": length, "T": target if family == "t5" else length}
        shape = [int(sizes.get(str(extent), extent)) for extent in spec.shape]
        if spec.name == "attention_mask":
            given[spec.name] = torch.ones(shape, dtype=spec.dtype)
            given[spec.name][-1, (length + 1) // 2 :] = 0
        elif spec.name == "pixel_values":
            given[spec.name] = torch.randn(shape, generator=generator)
        else:
            top = 2 if spec.name == "token_type_ids" else 101
            given[spec.name] = torch.randint(top, shape, generator=generator)
    expected = eager(model, **given)
    for name, value in program.run(**given).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_requests_stay_apart_whatever_the_batch_and_the_length(family: str) -> None:
    found = analyse_program(captured(family)[1])
    assert found.unknown_operators == {}
    assert found.verdict == "isolated", found.findings
    assert {one.requests for one in found.outputs} == {"own"}


@pytest.mark.parametrize("family", FAMILIES)
def test_one_scale_for_the_whole_batch_is_found(family: str) -> None:
    program = captured(family)[1]
    with program.edit() as edit:
        layer = next(
            node
            for node in edit.nodes(
                aten.linear.default, aten.conv2d.default, aten.convolution.default
            )
            if isinstance(node.args[0], fx.Node)
        )
        x: Any = layer.args[0]
        scale = edit.call(aten.amax.default, x, before=layer)
        codes = edit.call(
            aten.round.default, edit.call(aten.div.Tensor, x, scale, before=layer), before=layer
        )
        layer.replace_input_with(x, edit.call(aten.mul.Tensor, codes, scale, before=layer))
    found = analyse_program(edit.program)
    assert found.verdict == "leaks"
    (finding,) = found.findings
    assert (finding.kind, finding.operator) == ("value", "aten.amax.default")
    assert finding.node in [place.node for place in finding.path]
    assert finding.path[0].operator == "input"


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_bfloat16_is_recovered_alike(family: str) -> None:
    model, _ = tiny(family)
    program = capture_model(model.bfloat16())
    assert counts(program) == EXPECTED[family](model.config)
    inputs = left_padded(2, 8)
    result = step(program, inputs, {}, 0, 8)["logits"]
    expected = eager(model, **inputs, use_cache=False).logits
    tokens = inputs["attention_mask"].bool()
    error = (result - expected)[tokens].float().norm() / expected[tokens].float().norm()
    assert error < 0.02
