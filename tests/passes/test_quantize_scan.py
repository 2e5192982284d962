"""Rounding what selective scans read: the graph, the scales, the numbers, what is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from planish.ir.activations import ActivationScheme, fake_quantize
from planish.ir.isolation.programs import analyse_program
from planish.ir.ops import selective_scan
from planish.ir.program import Program
from planish.lowering.onnx.lower import MODEL_FILE, lower
from planish.passes import name_of
from planish.passes.contract import NotApplicable
from planish.passes.pipeline import apply, relative_error
from planish.passes.quantize_scan import QuantizeScan, clustered, clusters
from planish.plan import plan
from planish.recipes import load
from planish.runtime.ort_backend import OnnxBackend
from support.captured import captured

AFTER = """
  %fake_quantize: f32[B, T, 8, 16] = planish.fake_quantize(%reshape, @selective_scan.x_scale, i8, False)
  %fake_quantize_1: f32[B, T, 2, 8] = planish.fake_quantize(%reshape_1, @selective_scan.b_scale, i8, False)
  %fake_quantize_2: f32[B, T, 2, 8] = planish.fake_quantize(%reshape_2, @selective_scan.c_scale, i8, False)
  %selective_scan: (f32[B, T, 8, 16], f32[B, 8, 16, 8]) = planish.selective_scan(%fake_quantize, %softplus, %reshape_3, %fake_quantize_1, %fake_quantize_2, @backbone.layers.0.mixer.D, %past_ssm_0)
"""  # noqa: E501


@pytest.fixture(params=["mamba", "mamba2"])
def model(request: pytest.FixtureRequest) -> Program:
    return captured(request.param)[1]


def test_each_scan_reads_roundings() -> None:
    after = QuantizeScan()(captured("mamba2")[1])
    assert AFTER.strip() in after.text()
    assert [change.node for change in after.changes[-2:]] == ["selective_scan", "selective_scan_1"]
    assert after.changes[-1].what.startswith("selective_scan_1: int8 static; ")
    schemes = {ActivationScheme.read_by(node) for node in after.nodes(fake_quantize)}
    assert schemes == {ActivationScheme(dynamic=False, per_token=False)}


def test_scales_cover_what_was_seen_and_are_few(model: Program) -> None:
    after = QuantizeScan(head_clusters=2, channel_clusters=3)(model)
    for scan in after.nodes(selective_scan):
        scale = after.tensors[f"{scan.name}.x_scale"]
        assert scale.shape == scan.args[0].meta["val"].shape[2:]  # type: ignore[union-attr]
        assert len(scale.unique()) <= 6
        groups = scan.args[3].meta["val"].shape[2]  # type: ignore[union-attr]
        assert after.tensors[f"{scan.name}.b_scale"].shape == (groups, 1)


def test_the_model_is_nearly_the_same_and_stays_isolated(model: Program) -> None:
    sample = model.samples[0]
    after, (step,) = apply(model, [QuantizeScan()], names=name_of)
    error = relative_error(after.run(**sample)["logits"], model.run(**sample)["logits"])
    assert 0 < error < 0.02
    assert step.isolation == analyse_program(after).verdict == "isolated"


def test_more_clusters_lose_less() -> None:
    program = captured("mamba2")[1]
    name = "backbone.layers.0.mixer.conv1d.weight"
    loud = program.tensors[name] * torch.logspace(-1, 1, len(program.tensors[name]))[:, None, None]
    uneven = dataclasses.replace(program, tensors={**program.tensors, name: loud})
    sample = uneven.samples[0]
    want = uneven.run(**sample)["logits"]
    one, many = (
        relative_error(
            QuantizeScan(head_clusters=n, channel_clusters=n)(uneven).run(**sample)["logits"], want
        )
        for n in (1, 8)
    )
    assert many < 0.8 * one


def test_onnx_computes_the_same(model: Program, tmp_path: object) -> None:
    after = QuantizeScan()(model)
    lower(after, tmp_path)  # type: ignore[arg-type]
    sample = model.samples[0]
    feeds = {name: tensor.numpy() for name, tensor in sample.items()}
    got = OnnxBackend(tmp_path / MODEL_FILE, "cpu").run(feeds)["logits"]  # type: ignore[operator]
    np.testing.assert_allclose(got, after.run(**sample)["logits"].numpy(), rtol=1e-2, atol=1e-3)


def test_like_magnitudes_share_a_cluster() -> None:
    found = clusters(torch.tensor([1.0, 100.0, 1.1, 0.9, 110.0]), 2)
    assert found.tolist() == [0, 1, 0, 0, 1]
    assert len(clusters(torch.zeros(3), 4).unique()) == 1
    largest = torch.tensor([[1.0, 10.0], [1.2, 11.0], [50.0, 2.0]])
    together = torch.tensor([[1.2, 11.0], [1.2, 11.0], [50.0, 2.0]])
    assert torch.equal(clustered(largest, 2, 2), together)


def test_what_has_no_scan_is_refused_with_the_reason() -> None:
    said = r"LlamaForCausalLM has no selective scan; this pass is for state-space models"
    with pytest.raises(NotApplicable, match=said):
        QuantizeScan()(captured("llama")[1])
    refusal = plan(captured("llama")[1], "mamba-w8a8").refusal
    assert refusal is not None
    assert "no selective scan" in refusal.reason


def test_rounding_twice_and_samples_that_are_not_finite_are_refused() -> None:
    program = captured("mamba2")[1]
    with pytest.raises(NotApplicable, match="rounded already"):
        QuantizeScan()(QuantizeScan()(program))
    name = "backbone.layers.0.mixer.in_proj.weight"
    broken = {**program.tensors, name: program.tensors[name] * float("inf")}
    with pytest.raises(NotApplicable, match="not finite on the calibration samples"):
        QuantizeScan()(dataclasses.replace(program, tensors=broken))


def test_the_recipe_plans_and_runs(model: Program) -> None:
    planned = plan(model, "mamba-w8a8")
    assert planned.refusal is None
    after, steps = apply(model, load("mamba-w8a8").passes, names=name_of)
    assert [step.name for step in steps] == [
        "quantize_scan",
        "quantize_weights",
        "quantize_activations",
    ]
    assert planned.nbytes[1] == after.nbytes
    assert steps[-1].isolation == "isolated"
