"""From the manifest, the layers and the measurements to what the page says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from planish.report.words import ABSENT, count, percent, size, times

Json = Mapping[str, Any]

SECTIONS = (
    ("sizes", "Sizes"),
    ("steps", "What was done"),
    ("structure", "Structure"),
    ("layers", "Layer by layer"),
    ("quality", "Quality"),
    ("speed", "Speed"),
    ("isolation", "Isolation"),
    ("load", "How to load it"),
    ("provenance", "Where it comes from"),
)


def title_of(manifest: Json) -> str:
    """The model's name without its folders; its class where it has none."""
    model = manifest["model"]
    return PurePath(model.get("name") or model.get("class") or "model").name


def tiles(manifest: Json, evaluations: Sequence[Json], benchmarks: Sequence[Json]) -> list[Json]:
    """The few figures that the page begins with."""
    before, after = manifest["tensor_bytes"]
    verdict = isolation(manifest)
    share = f"{percent(after / before)} of {size(before)}" if before else "the model has none"
    found = [
        _tile("weights", size(after), share),
        *(_quality_tile(one) for one in evaluations[:1]),
        *(_speed_tile(one) for one in benchmarks[:1]),
        _tile("requests in a batch", verdict["word"], verdict["aside"], verdict["tone"]),
    ]
    return [tile for tile in found if tile]


def _tile(label: str, figure: str, detail: str, tone: str = "") -> Json:
    return {"label": label, "figure": figure, "detail": detail, "tone": tone}


def _quality_tile(evaluation: Json) -> Json:
    value, baseline = evaluation["perplexity"]["value"], evaluation["baseline"]
    if not baseline:
        return _tile("perplexity", f"{value:.2f}", f"on {_file(evaluation['text'])}")
    detail = f"before {baseline['value']:.2f}; {evaluation['recovery']:.1f}% recovered"
    return _tile("perplexity", f"{value:.2f}", detail)


def _speed_tile(benchmark: Json) -> Json:
    """Decoding one text, or the first row where nothing decodes."""
    rows = benchmark["rows"]
    row = next((row for row in rows if row["phase"] == "decode"), rows[0])
    what = f"{row['phase']}, batch {row['batch']}"
    speed = f"{row['speed']['median']:.0f} {row['unit']}"
    if not row["ratio"]:
        return _tile(what, speed, benchmark["provider"])
    tone = "bad" if row["ratio"]["high"] < 1 else ""
    return _tile(
        what, times(row["ratio"]["median"]), f"{speed}, against {benchmark['against']}", tone
    )


def isolation(manifest: Json) -> Json:
    """The verdict, a word for it, what it means, and its tone."""
    verdict = str(manifest["isolation"])
    known = next(known for start, known in _VERDICTS.items() if verdict.startswith(start))
    return {"verdict": verdict, **known}


_VERDICTS = {
    "isolated": {
        "word": "isolated",
        "aside": "proven for every input and batch size",
        "tone": "good",
        "meaning": "No request can change what another gets, for any input and any batch size: "
        "this was proven on the program that was lowered.",
    },
    "leaks": {
        "word": "leaks",
        "aside": "one request reaches another",
        "tone": "bad",
        "meaning": "A path was found on which one request reaches the answer to another. Do not "
        "serve requests of different owners in one batch.",
    },
    "": {
        "word": "unproven",
        "aside": "neither proven nor refuted",
        "tone": "warn",
        "meaning": "Nothing was proven, in either direction. Do not take it for safe.",
    },
}


def sizes(manifest: Json) -> list[Json]:
    """Before and after: parameters, tensors, and each set of files against the original tensors."""
    before, after = manifest["tensor_bytes"]
    rows = [
        _size_row("parameters", *_parameters(manifest), count),
        _size_row("tensors", before, after, size),
    ]
    for what, matches in _FILE_SETS.items():
        nbytes = sum(
            entry["bytes"] for path, entry in manifest["files"].items() if re.match(matches, path)
        )
        if nbytes:
            rows.append(_size_row(what, before, nbytes, size))
    return rows


def _parameters(manifest: Json) -> tuple[int, int]:
    """Numbers before and after, however they are stored."""
    pairs = [delta["parameters"] for delta in manifest["layers"]]
    return sum(old for old, _ in pairs), sum(new for _, new in pairs)


_FILE_SETS = {
    "checkpoint (transformers, vLLM)": r"[^/]+\.safetensors$",
    "ONNX model": "onnx/",
    "torch program": "torch/",
}


def _size_row(what: str, before: int, after: int, shown: Any) -> Json:
    return {
        "what": what,
        "before": shown(before),
        "after": shown(after),
        "share": percent(after / before) if before else ABSENT,
    }


def steps(manifest: Json, seconds: Mapping[str, float]) -> list[Json]:
    """One entry a pass, with the time it took where that is known."""
    return [
        {
            "name": step["name"],
            "options": [(key, _plain(value)) for key, value in step["options"].items()],
            "promise": _PROMISES[step["numerics"]],
            "exact": step["numerics"] == "exact",
            "rewrites": len(step["changes"]),
            "changes": step["changes"],
            "measured": step["error"] is not None,
            "error": "not measured: no samples"
            if step["error"] is None
            else percent(step["error"]),
            "nbytes": " → ".join(map(size, step["nbytes"])),
            "isolation": step["isolation"],
            "seconds": seconds.get(step["name"]),
        }
        for step in manifest["steps"]
    ]


_PROMISES = {
    "exact": "exact: the same function, to rounding; checked on the samples",
    "lossy": "lossy: what it costs is measured",
}


def _plain(value: Any) -> str:
    """An option as a recipe spells it."""
    return json.dumps(value, ensure_ascii=False).strip('"')


def layers(deltas: Sequence[Json]) -> list[Json]:
    """One row a layer."""
    return [
        {
            "layer": delta["layer"],
            "form": delta["form"][0]
            if delta["form"][0] == delta["form"][1]
            else " → ".join(form or ABSENT for form in delta["form"]),
            "numbers": count(delta["parameters"][1]),
            "before": size(delta["nbytes"][0]),
            "after": size(delta["nbytes"][1]),
            "error": ABSENT if delta["error"] is None else percent(delta["error"]),
        }
        for delta in deltas
    ]


def worst_error(deltas: Sequence[Json]) -> str:
    """The largest error of a weight; empty where there is none."""
    largest = max((delta["error"] or 0.0 for delta in deltas), default=0.0)
    return percent(largest) if largest else ""


def evaluation_caption(evaluation: Json) -> str:
    """How perplexity was measured."""
    found = evaluation["perplexity"]
    said = (
        f"Perplexity {found['value']:.3f} on {found['tokens']} tokens of "
        f"{_file(evaluation['text'])}, in windows of {evaluation['window']} "
        f"tokens, {evaluation['stride']} apart"
    )
    if evaluation["baseline"]:
        baseline = evaluation["baseline"]
        said += (
            f"; {baseline['label']} has {baseline['value']:.3f}, so {evaluation['recovery']:.1f}% "
            "of it is recovered"
        )
    return f"{said}. Whiskers are one standard error, taking tokens as independent."


def choices_text(choices: Json) -> str:
    """How many questions were answered right."""
    found, baseline = choices["accuracy"], choices["baseline"]
    said = (
        f"{percent(found['plain'])} ± {percent(found['error'])} of {found['questions']} questions "
        f"of {_file(choices['file'])} answered right; guessing gives {percent(choices['guessing'])}"
    )
    return f"{said}, {baseline['label']} {percent(baseline['plain'])}." if baseline else f"{said}."


def benchmark(found: Json) -> Json:
    """A benchmark, with what was slower in words."""
    slower = [
        f"{row['phase']} at batch {row['batch']} ({times(row['ratio']['median'])})"
        for row in found["rows"]
        if row["ratio"] and row["ratio"]["high"] < 1
    ]
    machine = found["machine"]
    caption = (
        f"Prompts of {found['prompt']} tokens, {found['new_tokens']} new ones, "
        f"{found['provider']}, on {machine['cores']} cores of {machine['processor']}. Both sides "
        "were timed in turns in one run; lines reach from the lowest to the highest round."
    )
    return {**found, "slower": slower, "caption": caption}


def facts(manifest: Json, benchmarks: Sequence[Json]) -> list[tuple[str, str]]:
    """What was converted, with what."""
    model = manifest["model"]
    rows = [(f"model's {key}", str(value)) for key, value in model.items() if value]
    rows += [(f"input {name}", f"SHA-256 {hash_}") for name, hash_ in manifest["inputs"].items()]
    rows.append(("target", manifest["target"]))
    rows.append(
        ("versions", ", ".join(f"{name} {of}" for name, of in manifest["versions"].items()))
    )
    for found in benchmarks[:1]:
        machine = found["machine"]
        cores = f"{machine['processor']}, {machine['cores']} cores"
        rows.append(("timed on", f"{cores}, {machine['system']}, Python {machine['python']}"))
    return rows


def files(manifest: Json) -> list[Json]:
    """One row a file."""
    return [
        {"path": path, "size": size(entry["bytes"]), "sha256": entry["sha256"]}
        for path, entry in manifest["files"].items()
    ]


def snippets(manifest: Json) -> list[Json]:
    """How to load what is in the folder, for each library that can."""
    paths = set(manifest["files"])
    causal = manifest["model"].get("task") == "causal-lm"
    found = [("Planish", _PLANISH_TEXT if causal else _PLANISH)]
    if "model.safetensors" in paths or "model.safetensors.index.json" in paths:
        found.append(("transformers", _TRANSFORMERS_TEXT if causal else _TRANSFORMERS))
        if causal:
            found.append(("vLLM", _VLLM))
    if "onnx/model.onnx" in paths:
        found.append(("ONNX Runtime", _ONNXRUNTIME))
    kind = manifest["model"]["class"]
    return [{"title": title, "code": code.replace("CLASS", kind)} for title, code in found]


_PLANISH_TEXT = """\
import planish

session = planish.load("DIR")
print(session.generate("The capital of France is", max_new_tokens=20).text)"""
_PLANISH = """\
import planish

session = planish.load("DIR")
outputs = session.run(**inputs)  # arrays by name; session.inputs says which"""
_TRANSFORMERS_TEXT = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIR")
tokenizer = AutoTokenizer.from_pretrained("DIR")"""
_TRANSFORMERS = """\
from transformers import CLASS

model = CLASS.from_pretrained("DIR")"""
_VLLM = """\
vllm serve DIR"""
_ONNXRUNTIME = """\
import onnxruntime

session = onnxruntime.InferenceSession("DIR/onnx/model.onnx")
print([(value.name, value.shape) for value in session.get_inputs()])"""


def _file(path: str) -> str:
    return PurePath(path).name
