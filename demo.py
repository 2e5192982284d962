"""`planish demo`: the main job on a real language model, from checkpoint to answer."""

from __future__ import annotations

import tempfile
from pathlib import Path

from planish import assets, commands, console, display, release
from planish.runtime.bench import bench
from planish.runtime.evaluate import evaluate
from planish.runtime.session import Session

RECIPE = "w4a16"
QUESTION = "What is the capital of France?"
WITHOUT_MODEL = 3
"""The exit code when the real model cannot be had."""


def run(output: Path, *, quick: bool) -> int:
    """Convert SmolLM2-135M-Instruct, measure it against the original, and ask it a question.

    Args:
        output: the artifact's folder.
        quick: measure on fewer tokens.

    Returns:
        0, or `WITHOUT_MODEL` when a small random model had to stand in.
    """
    try:
        model = assets.smollm2()
        text = assets.fetch("wikitext2") / "test.parquet"
    except assets.AssetUnavailable as error:
        console.print_error(error)
        return _without_model(output)
    session = _converted(model, output)
    console.out.rule("quality")
    with console.counting("perplexity", quiet=False) as bar:
        quality = evaluate(
            session,
            text,
            against=model,
            max_tokens=2048 if quick else 8192,
            progress=bar,
        )
    display.show_evaluation(quality)
    console.out.rule("speed")
    with console.counting("bench", quiet=False) as bar:
        speed = bench(
            session,
            model,
            batch_sizes=(1,) if quick else (1, 4),
            rounds=2 if quick else 3,
            progress=bar,
        )
    display.show_benchmark(speed)
    release.add_measurements(output, {"evaluation": quality.to_json(), "bench": speed.to_json()})
    console.out.rule("an answer")
    console.out.print(f"> {QUESTION}", markup=False)
    commands.generate(output, [QUESTION], as_json=False, chat=True, max_new_tokens=48)
    console.out.rule()
    console.out.print(f"The report: {output / 'report.html'}", markup=False, soft_wrap=True)
    return 0


def _converted(model: Path, output: Path) -> Session:
    console.out.rule(f"planish convert {model.name} --recipe {RECIPE}")
    result = commands.convert(str(model), RECIPE, output, commands.Conversion(), quiet=False)
    commands.show_result(result, as_json=False)
    return Session.open(output)


def _without_model(output: Path) -> int:
    """Do the same with a Llama of random weights, of which nothing can be asked."""
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415  (slow to import)

    console.out.print("A small Llama with random weights stands in; its figures mean nothing.")
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
    )
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        session = _converted(Path(folder), output)
    completion = session.generate([1, 2, 3], max_new_tokens=8)
    console.out.print(f"tokens after 1, 2, 3: {completion.tokens}", markup=False)
    return WITHOUT_MODEL
