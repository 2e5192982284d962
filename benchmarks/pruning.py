"""Pruned models: convolutional networks on real images, a language model's perplexity, and speed.

    python benchmarks/pruning.py cifar [--rounds 15]
    python benchmarks/pruning.py smollm2 [--samples 32] [--windows 4] [--ratios 0.1 0.2 0.3]

`cifar`: VGG16 and ResNet56 lose channels until half of the multiply-adds are left. There are twenty
real images: ten, flipped and shifted, are learned from, and the other ten, as they are and flipped
and shifted, are judged; then the other way round. Agreement is the share of pictures that get the
class that the whole network gives them. ONNX files of both, batch norms folded, are timed in turns.

`smollm2`: MLP channels of SmolLM2-135M are removed, the same share of each layer. Samples are of
WikiText-2's validation set, 512 tokens each; perplexity is of windows of 1,024 tokens, apart from
each other, of its test set. Figures go to `benchmarks/results/pruning.json`; those of the other
part stay.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from planish import assets, capture, cifar, optimize
from planish.ir.cost import costs, total
from planish.ir.program import Program
from planish.passes import FuseConvBn, PruneChannels
from planish.passes.contract import Pass
from planish.runtime.machine import this_machine
from planish.runtime.ort_backend import OnnxBackend
from planish.runtime.texts import read_text
from planish.runtime.timing import forward_round, in_turns
from planish.runtime.tokenizer import Tokenizer
from planish.samples import _inputs, with_samples

RESULTS = Path(__file__).parent / "results" / "pruning.json"
LENGTH, WINDOW, BATCH = 512, 1024, 4

NETWORKS = {"vgg16": (cifar.vgg16_bn, 0.3), "resnet56": (cifar.resnet56, 0.5)}
"""Networks, and which share of channels holds half of the multiply-adds."""

SHIFTS = ((0, 0), (3, 0), (-3, 0), (0, 3), (0, -3))


def views(images: Tensor) -> Tensor:
    """Images, flipped and not, moved by a few pixels."""
    both = torch.cat([images, images.flip(3)])
    padded = torch.nn.functional.pad(both, (3, 3, 3, 3), mode="reflect")
    return torch.cat([padded[..., 3 + y : 35 + y, 3 + x : 35 + x] for y, x in SHIFTS])


def classes(program: Program, images: Tensor) -> Tensor:
    """What each image is taken for."""
    (name,) = (spec.name for spec in program.inputs)
    return program.run(**{name: images})[program.outputs[0]].argmax(-1)


def multiply_adds(program: Program) -> int:
    """Of one image."""
    (size,) = program.sizes
    return total(costs(program, {size.name: 1}).values()).flops // 2


def agreement(network: str, options: dict[str, Any]) -> dict[str, Any]:
    """How a pruned network agrees with itself as it was, on pictures that it did not learn from."""
    build, ratio = NETWORKS[network]
    images, labels = cifar.images()
    same = seen = same_views = seen_views = right = 0
    found: dict[str, Any] = {}
    for learned in (slice(0, None, 2), slice(1, None, 2)):
        judged = torch.ones(len(images), dtype=torch.bool)
        judged[learned] = False
        program = capture(build(), images[:2])
        given = with_samples(program, [{program.inputs[0].name: views(images[learned])}])
        start = time.perf_counter()
        after = PruneChannels(ratio=ratio, **options)(FuseConvBn()(given))
        found["seconds"] = time.perf_counter() - start
        found["multiply_adds"] = multiply_adds(after) / multiply_adds(program)
        found["parameters"] = after.parameters / program.parameters
        now = classes(after, images[judged])
        same += int((now == classes(program, images[judged])).sum())
        right += int((now == labels[judged]).sum())
        seen += int(judged.sum())
        more = views(images[judged])
        same_views += int((classes(after, more) == classes(program, more)).sum())
        seen_views += len(more)
    return {
        "network": network,
        "options": options,
        **found,
        "images": seen,
        "agreement": same / seen,
        "accuracy": right / seen,
        "views": seen_views,
        "agreement_of_views": same_views / seen_views,
    }


def speed(network: str, rounds: int) -> dict[str, float]:
    """Seconds a batch of 16 images takes before and after, timed in turns on one thread."""
    build, ratio = NETWORKS[network]
    images, _ = cifar.images()
    model = build()
    recipes: dict[str, Sequence[Pass]] = {
        "before": [FuseConvBn()],
        "after": [FuseConvBn(), PruneChannels(ratio=ratio, importance="magnitude")],
    }
    sides = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, passes in recipes.items():
            folder = Path(scratch) / name
            optimize(model, passes, inputs=images[:2], output=folder, target="onnx")
            backend = OnnxBackend(folder / "onnx" / "model.onnx", "cpu", threads=1)
            batch = {backend.inputs[0].name: images[:16].numpy()}
            sides.append(partial(forward_round, partial(backend.run, batch)))
        times = dict(zip(recipes, in_turns(sides, rounds, lambda: None), strict=True))
    seconds = {name: [one["forward"] for one in found] for name, found in times.items()}
    ratios = [a / b for a, b in zip(seconds["before"], seconds["after"], strict=True)]
    return {
        **{f"seconds_{name}": median(some) for name, some in seconds.items()},
        "speedup": median(ratios),
    }


def run_cifar(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Agreement by importance, with and without repair, and speed."""
    rows = []
    for network in NETWORKS:
        for options in (
            {"importance": "magnitude"},
            {"importance": "wanda"},
            {"importance": "wanda", "repair": True},
            {"importance": "wanda", "repair": True, "drift": 0.5},
            {"importance": "wanda", "repair": True, "drift": 1.0},
        ):
            rows.append(agreement(network, options))
            print(json.dumps(rows[-1]), flush=True)
    speeds = {network: speed(network, given.rounds) for network in NETWORKS}
    print(json.dumps(speeds), flush=True)
    yield {"rows": rows, "speed": speeds}


def perplexity(program: Program, windows: Tensor) -> float:
    """Of windows [W, T] apart from each other: exp of the mean loss over T - 1 tokens of each."""
    loss = 0.0
    for window in windows:
        logits = program.run(**_inputs(program, window[None]))["logits"][0, :-1].float()
        loss += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    return math.exp(loss / (windows.shape[0] * (windows.shape[1] - 1)))


def run_smollm2(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Perplexity with fewer MLP channels, after each ratio."""
    model, wikitext = assets.smollm2(), assets.fetch("wikitext2")
    tokenizer = Tokenizer(model)

    def cut(name: str, count: int, length: int) -> Tensor:
        tokens = tokenizer.encode(read_text(wikitext / f"{name}.parquet"))
        return torch.tensor(tokenizer.rows(tokens, count, length))

    samples = [
        {"input_ids": rows} for rows in cut("validation", given.samples, LENGTH).split(BATCH)
    ]
    windows = cut("test", given.windows, WINDOW)
    program = with_samples(capture(str(model)), samples)
    base = perplexity(program, windows)
    print("float32", base, flush=True)
    asked = {"samples": given.samples, "sample_tokens": LENGTH, "drift": given.drift}
    asked |= {"windows": given.windows, "window": WINDOW}
    rows: list[dict[str, Any]] = []
    for ratio in given.ratios:
        options = {"importance": "wanda", "repair": True, "drift": given.drift}
        start = time.perf_counter()
        after = PruneChannels(ratio=ratio, **options)(program)
        row = {
            "ratio": ratio,
            **options,
            "seconds": time.perf_counter() - start,
            "parameters": after.parameters / program.parameters,
            "perplexity": (now := perplexity(after, windows)),
            "times": now / base,
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
        yield {**asked, "float32": base, "rows": rows}


def main() -> None:
    """Measure what was asked for, print it, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("cifar", "smollm2"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--ratios", type=float, nargs="*", default=[0.1, 0.2, 0.3])
    parser.add_argument("--drift", type=float, default=0.0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    for found in run_cifar(given) if given.part == "cifar" else run_smollm2(given):
        kept = json.loads(given.results.read_text()) if given.results.exists() else {}
        kept[given.part] = {"machine": asdict(this_machine()), **found}
        given.results.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
