"""The page: complete, well-formed, self-contained, and safe whatever names a model has."""

import re
from pathlib import Path
from typing import Any

import pytest

from planish.report import write_report
from planish.report.html import render
from support.pages import Page


def delta(layer: str, numbers: int, error: float | None, bits: int = 32) -> dict[str, Any]:
    form = "float32" if bits == 32 else f"int{bits} symmetric, groups of 64"
    return {
        "layer": layer,
        "parameters": [numbers, numbers],
        "nbytes": [4 * numbers, numbers * bits // 8],
        "form": ["float32", form],
        "error": error,
    }


BLOCKS = [
    one
    for block in range(6)
    for one in (
        delta(f"model.layers.{block}.mlp.up", 4096, 0.05 + block / 100, 4),
        delta(f"model.layers.{block}.norm", 64, 0.0),
    )
]
STEP = {
    "name": "quantize_weights",
    "options": {"bits": 4, "group_size": None, "symmetric": True, "targets": ["Linear"]},
    "numerics": "lossy",
    "changes": [{"node": f"linear_{place}", "what": f"rounded {place}"} for place in range(6)],
    "error": 0.0123,
    "parameters": [24960, 24960],
    "nbytes": [99840, 13824],
    "isolation": "unproven (not analysed)",
    "rewrites": 6,
}


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "model": {"class": "LlamaForCausalLM", "task": "causal-lm", "kind": "huggingface"},
        "recipe": {"name": "w4a16", "text": "passes:\n- quantize_weights:\n    bits: 4\n"},
        "target": "onnx",
        "inputs": {"model.safetensors": "ab" * 32},
        "versions": {"planish": "0.1.0", "torch": "2.13.0"},
        "steps": [STEP],
        "layers": [delta("model.embed", 1000, 0.0), *BLOCKS],
        "parameters": [25960, 25960],
        "tensor_bytes": [103840, 17824],
        "isolation": "unproven (not analysed)",
        "notes": [],
        "files": {
            "model.safetensors": {"bytes": 18000, "sha256": "cd" * 32},
            "onnx/model.onnx": {"bytes": 19000, "sha256": "ef" * 32},
        },
        **changes,
    }


def spread(median: float, width: float = 0.05) -> dict[str, float]:
    return {"median": median, "low": median * (1 - width), "high": median * (1 + width)}


def bench(prefill: float, decode: float) -> dict[str, Any]:
    return {
        "label": "artifact",
        "against": "transformers",
        "rows": [
            {
                "phase": phase,
                "batch": 1,
                "unit": "tokens/s",
                "speed": spread(100 * ratio),
                "against": spread(100),
                "ratio": spread(ratio),
            }
            for phase, ratio in (("prefill", prefill), ("decode", decode))
        ],
        "prompt": 256,
        "new_tokens": 32,
        "rounds": 5,
        "provider": "CPUExecutionProvider",
        "threads": None,
        "torch_threads": 2,
        "machine": {
            "processor": "Some CPU",
            "cores": 2,
            "system": "Linux",
            "python": "3.11",
            "versions": {},
        },
        "peak_memory": 1,
        "verdicts": [],
    }


EVALUATION = {
    "perplexity": {"label": "out", "value": 25.0, "loss": 3.219, "error": 0.01, "tokens": 999},
    "baseline": {"label": "model", "value": 20.0, "loss": 2.996, "error": 0.01, "tokens": 999},
    "recovery": 80.0,
    "text": "/somewhere/private/test.txt",
    "window": 1024,
    "stride": 512,
}
CHOICES = {
    "accuracy": {"label": "out", "plain": 0.31, "error": 0.02, "questions": 500},
    "baseline": {"label": "model", "plain": 0.33, "error": 0.02, "questions": 500},
    "recovery": 94.0,
    "guessing": 0.25,
    "file": "questions.jsonl",
}
MEASURED = {
    "seconds": {"quantize_weights": 1.25},
    "evaluation": EVALUATION,
    "choices": CHOICES,
    "bench": bench(0.7, 1.9),
}


@pytest.fixture(scope="module")
def text() -> str:
    return render(manifest(), MEASURED)


def test_the_page_loads_nothing_and_runs_nothing(text: str) -> None:
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    assert page.values("src") == []
    links = page.values("href") + page.values("xlink:href")
    assert links
    assert all(link.startswith("#") for link in links)
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert "@import" not in text


def test_ids_are_unique_and_links_lead_somewhere(text: str) -> None:
    page = Page(text)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = page.values("href") + page.values("xlink:href")
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_every_picture_says_what_it_shows(text: str) -> None:
    pictures = [attrs for tag, attrs in Page(text).tags if tag == "svg"]
    assert len(pictures) == 2 * 4  # sizes, errors, quality, speed: for a screen and for a phone
    for picture in pictures:
        assert picture["role"] == "img"
        label = picture["aria-labelledby"]
        title = re.search(f'<title id="{label}">(.+?)</title>', text)
        assert title
        assert any(digit in title[1] for digit in "0123456789")


def test_both_colour_schemes_define_every_colour_in_use(text: str) -> None:
    light, dark = text.split("@media (prefers-color-scheme: dark)", 1)
    dark = dark[: dark.index("* {")]
    used = set(re.findall(r"var\((--[\w-]+)\)", text)) - {"--serif", "--sans", "--mono"}
    assert "--after" in used
    for scheme in (light, dark):
        assert used <= set(re.findall(r"(--[\w-]+):", scheme))
    assert not re.findall(r"#00000\d", text)  # no role was left without its colour


def test_names_from_a_model_are_text() -> None:
    evil = "<script>alert('x')</script>$x^2$"
    layers = [delta(f"model.layers.{block}.{evil}", 4096, 0.1, 4) for block in range(6)]
    step = {**STEP, "changes": [{"node": evil, "what": evil}]}
    text = render(
        manifest(
            layers=layers,
            steps=[step],
            notes=[evil],
            recipe={"name": evil, "text": evil},
            model={"class": evil, "task": "causal-lm", "name": f"/a/{evil}"},
        ),
        MEASURED,
    )
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert text.count("&lt;script&gt;") > 5
    assert "$x^2$" in text


def test_the_same_data_give_the_same_page(text: str, tmp_path: Path) -> None:
    write_report(tmp_path, manifest(), MEASURED)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text


def test_figures_stand_in_the_page(text: str) -> None:
    for said in (
        "17.8 kB",  # tensors after
        "17.2% of 104 kB",
        "1.23%",  # error of the outputs
        "10%",  # the largest error of a weight
        "80.0% recovered",
        "1.90\N{MULTIPLICATION SIGN}",
        "group_size: null",
        "all 6 rewrites",
        "31% ± 2% of 500 questions",
        "cd" * 32,
    ):
        assert said in text, said
    assert "/somewhere/private" not in text


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (bench(0.7, 1.9), "Slower than transformers:</strong> prefill at batch 1 (0.70"),
        (bench(1.2, 1.9), "Slower than transformers in nothing that was measured"),
    ],
)
def test_what_is_slower_is_said_plainly(found: dict[str, Any], said: str) -> None:
    assert said in render(manifest(layers=[]), {"bench": found})


def test_what_was_not_measured_is_not_made_up() -> None:
    text = render(manifest(layers=[]), {})
    Page(text)
    assert text.count("Not measured yet.") == 2
    step = {**STEP, "error": None}
    assert "not measured: no samples" in render(manifest(steps=[step], layers=[]), {})


def test_measurements_without_a_baseline_stand_alone() -> None:
    found = bench(1, 1)
    found["against"] = None
    for row in found["rows"]:
        row["against"] = row["ratio"] = None
    evaluation = {**EVALUATION, "baseline": None, "recovery": None}
    text = render(manifest(layers=[]), {"bench": found, "evaluation": [evaluation, evaluation]})
    Page(text)
    assert text.count("Perplexity 25.000 on 999 tokens of test.txt") == 2
    assert "Slower than" not in text


@pytest.mark.parametrize(
    ("verdict", "tone"),
    [
        ("isolated for all B", "good"),
        ("leaks along x", "bad"),
        ("unproven (not analysed)", "warn"),
        ("anything else", "warn"),  # what is not known to be safe is not called safe
    ],
)
def test_the_verdict_has_its_tone(verdict: str, tone: str) -> None:
    text = render(manifest(isolation=verdict, layers=[]), {})
    assert f'<div class="note {tone}"><p><strong>{verdict}</strong>' in text


def test_only_what_is_there_is_offered_for_loading() -> None:
    text = render(
        manifest(layers=[], files={"torch/program.json": {"bytes": 1, "sha256": "00"}}), {}
    )
    assert "planish.load" in text
    assert "vllm" not in text
    assert "onnxruntime" not in text
    encoder = {"class": "BertModel", "task": "encoder"}
    text = render(manifest(model=encoder, layers=[]), {})
    assert "from transformers import BertModel" in text
    assert "vllm" not in text


def test_a_model_without_blocks_or_changes_has_a_page() -> None:
    layers = [delta(f"conv{place}", 100 * place, 0.0) for place in range(1, 4)]
    Page(render(manifest(layers=layers, steps=[]), {}))
    layers[1]["error"] = 0.3
    Page(render(manifest(layers=layers), {}))
    text = render(manifest(layers=[], steps=[]), {})
    assert "No weight changed" not in text
    Page(text)
