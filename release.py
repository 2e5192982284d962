"""From a result to an artifact: every file of the folder, its manifest and its report."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from planish import __version__
from planish.gate import Timing, check_gate, slower_weights, time_layers, timings_json, told, untold
from planish.ir.compare import compare
from planish.ir.isolation.programs import (
    analyse_onnx,
    analyse_program,
    explain,
    labels_of,
    require,
)
from planish.ir.program import Program
from planish.ir.progress import Progress
from planish.lowering import artifact
from planish.lowering.artifact import MANIFEST, MEASUREMENTS, ONNX_MODEL, TRITON_PROGRAM, Manifest
from planish.lowering.checkpoint import copy_companions, write_checkpoint
from planish.lowering.compressed_tensors import NotExpressible
from planish.lowering.gguf import write_gguf
from planish.lowering.onnx.lower import OnnxFiles, lower
from planish.lowering.onnx.target import CPU, STANDARD, Target
from planish.passes.coupled import coupled
from planish.passes.pipeline import Step, severity
from planish.report import write_report

if TYPE_CHECKING:
    from planish.api import Result

ONNX, TORCH, TRITON = "onnx", "torch", "triton"
CHECKPOINT, RECIPE = "checkpoint", "recipe.yaml"
GGUF = "model.gguf"

REST = (
    "bitwise holds for generated kernels; torch computes the following by kernels that it chooses "
    "by the size of the batch, so that last bits may depend on it"
)

TWO_FORMS = (
    "The ONNX model holds two forms of the model, with their weights: it reads prompts by one and "
    "single new tokens by the other (`decode` in the recipe). A checkpoint, if one was written, "
    "holds the first."
)

_LIBRARIES = (
    "torch",
    "transformers",
    "safetensors",
    "compressed-tensors",
    "gguf",
    "onnx",
    "onnxruntime",
)
_HASHED = {".json", ".safetensors", ".gguf", ".bin", ".model", ".txt", ".jinja"}


def write(
    result: Result,
    folder: Path,
    *,
    target: str,
    opset_only: bool,
    gguf: bool,
    gated: Sequence[int],
    progress: Progress,
) -> Result:
    """Write a result's artifact; see `Result.save`."""
    program = result.program
    check_gate(gated, target)
    artifact.check_target(folder)
    # Checkpoint and lowering hold each tensor once; GGUF has in float32 what is not quantized.
    extra = 4 * sum(tensor.numel() for tensor in program.tensors.values()) if gguf else 0
    artifact.check_space(folder, 2 * result.nbytes + extra + 50_000_000)
    with artifact.writing(folder) as staging:
        progress("write the checkpoint", 0, 0)
        files, notes = _write_checkpoint(result, staging)
        if gguf:
            progress("write the GGUF file", 0, 0)
            files[GGUF] = write_gguf(program, result.original, staging / GGUF)
        chosen = STANDARD if opset_only else CPU
        decodes = program if result.decode is None else result.decode.program
        timings: list[Timing] = []
        dense: frozenset[str] = frozenset()
        if gated:
            progress("time layers", 0, 0)
            timings = time_layers(decodes, chosen, gated, progress)
            notes += told(timings, gated)
            dense = slower_weights(timings, gated)
        progress(f"lower to {target}", 0, 0)
        if target == ONNX:
            notes += () if gated else untold(decodes)
            notes += () if decodes is program else (TWO_FORMS,)
            lowered = _lower_to_onnx(program, decodes, staging / ONNX, chosen, dense)
            files[ONNX] = lowered.nbytes
            notes += lowered.notes
            if result.policy != "off":
                progress("prove what was lowered", 0, 0)
                result = _prove_lowered(result, staging)
        elif target == TRITON:
            from planish.lowering.triton.lower import lower as lower_to_kernels  # noqa: PLC0415

            made = lower_to_kernels(program, staging / TRITON, bitwise=result.policy == "bitwise")
            files[TRITON] = made.nbytes
            notes += made.notes
            if result.policy != "off":
                progress("prove what was lowered", 0, 0)
                result = _prove_lowered(result, staging, made.program)
            if result.policy == "bitwise" and made.rest:
                notes += (f"{REST}: {', '.join(made.rest)}",)
        else:
            program.save(staging / TORCH)
            files[TORCH] = _nbytes(staging / TORCH)
        result = dataclasses.replace(
            result, folder=folder, files=files, notes=(*result.notes, *notes)
        )
        _write_papers(result, staging, target, timings, progress)
    return result


def _write_papers(
    result: Result,
    staging: Path,
    target: str,
    timings: Sequence[Timing],
    progress: Progress,
) -> None:
    """Recipe, manifest, measurements and report, of what was written besides."""
    (staging / RECIPE).write_text(result.recipe.to_yaml(), encoding="utf-8")
    progress("compare layers", 0, 0)
    _write_manifest(result, staging, target)
    seconds = {step.name: step.seconds for step in result.all_steps}
    gate = {"gate": timings_json(timings)} if timings else {}
    artifact.write_json(staging / MEASUREMENTS, {"seconds": seconds, **gate})
    progress("write the report", 0, 0)
    _write_report(staging)


def _lower_to_onnx(
    program: Program, decodes: Program, folder: Path, target: Target, dense: frozenset[str]
) -> OnnxFiles:
    """Lower a program, and what reads single tokens if that is another.

    Args:
        program: reads prompts.
        decodes: reads single tokens; weights stay dense in it where that is faster.
        folder: where to.
        target: what for.
        dense: the names of these weights.
    """
    gated = dataclasses.replace(target, dense=dense)
    if decodes is program:
        return lower(program, folder, gated)
    return lower(program, folder, target, decode=(decodes, gated))


def read_back(model: str | Path) -> Program | None:
    """The program of an artifact of target torch; None for what is none, or holds a checkpoint.

    No checkpoint can be written of it: which files its tensors came from was not kept.
    """
    folder = Path(model)
    if (folder / "config.json").is_file() or not (folder / artifact.TORCH_PROGRAM).is_file():
        return None
    program = Program.load(folder / TORCH)
    source = dataclasses.replace(program.source, kind="module", folder=folder)
    return dataclasses.replace(program, source=source)


def _prove_lowered(result: Result, staging: Path, kernels: Program | None = None) -> Result:
    """The certificate speaks of the file that is served too: lowering could let requests meet.

    Args:
        result: to be written.
        staging: where the lowered model lies.
        kernels: what was lowered to generated kernels; otherwise it was to ONNX.

    Raises:
        planish.ir.isolation.programs.Refused: if it does, or may, under `enforce`.
    """
    labels = labels_of(result.program)
    if kernels is None:
        file, what = ONNX_MODEL, "the lowered ONNX model"
        analysis = analyse_onnx(staging / file, labels)
    else:
        file, what = TRITON_PROGRAM, "the program with generated kernels"
        analysis = analyse_program(kernels, labels)
    if result.policy in {"enforce", "bitwise"}:
        require(analysis, result.policy, what)
    lowered = {
        "file": file,
        "sha256": artifact.sha256(staging / file),
        "verdict": analysis.verdict,
        "findings": [explain(one) for one in analysis.findings],
        "assumptions": list(analysis.assumptions),
    }
    return dataclasses.replace(
        result,
        isolation=max(result.isolation, analysis.verdict, key=severity),
        certificate={**result.certificate, "lowered": lowered},
    )


def _write_checkpoint(result: Result, staging: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    try:
        written = write_checkpoint(result.program, result.original, staging)
    except NotExpressible as error:
        copy_companions(result.original.source, staging)  # sessions read the tokenizer
        return {}, (f"no Hugging Face checkpoint was written: {error}",)
    return {CHECKPOINT: written.nbytes}, tuple(written.notes)


def _nbytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write_manifest(result: Result, staging: Path, target: str) -> None:
    source = result.original.source
    manifest = Manifest(
        model={"class": source.name, "task": source.task, "kind": source.kind},
        recipe={"name": result.recipe.name, "text": result.recipe.to_yaml()},
        target=target,
        inputs=_input_hashes(result.original),
        versions=_versions(),
        steps=tuple(step_json(step) for step in result.all_steps),
        layers=tuple(
            dataclasses.asdict(layer) for layer in compare(result.original, result.program)
        ),
        groups=tuple(
            dataclasses.asdict(group) for group in coupled(result.original, result.program)
        ),
        parameters=(result.original.parameters, result.program.parameters),
        tensor_bytes=(result.original.nbytes, result.nbytes),
        isolation=result.isolation,
        certificate=result.certificate,
        notes=result.notes,
        files=artifact.files_of(staging),
    )
    artifact.write_json(staging / MANIFEST, manifest.to_json())


def step_json(step: Step) -> dict[str, Any]:
    """What a pass did, as JSON values, without how long it took."""
    made = dataclasses.asdict(step)
    del made["seconds"]
    for change in made["changes"]:
        if change["tried"] is None:  # of most changes nothing was tried
            del change["tried"]
    return {**made, "rewrites": len(step.changes)}


def _input_hashes(original: Program) -> dict[str, str]:
    """Hashes of what went in: the checkpoint's files, or else the module's tensors."""
    folder = original.source.folder
    if folder is not None:
        return {
            path.name: artifact.sha256(path)
            for path in sorted(folder.iterdir())
            if path.is_file() and path.suffix in _HASHED
        }
    digest = hashlib.sha256()
    for name, tensor in sorted(original.tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return {"tensors": digest.hexdigest()}


def _versions() -> dict[str, str]:
    versions = {"planish": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def add_measurements(folder: Path, measured: Mapping[str, Any]) -> None:
    """Put measurements into an artifact and its report; everything else stays as it is.

    Args:
        folder: an artifact.
        measured: by kind: `"evaluation"`, `"choices"`, `"bench"`, each as its `to_json` gives it.

    Raises:
        planish.lowering.artifact.BadArtifact: if the folder is none.
    """
    known = artifact.read_measurements(folder)
    artifact.write_json(folder / MEASUREMENTS, {**known, **measured})
    _write_report(folder)


def _write_report(folder: Path) -> None:
    write_report(folder, artifact.read_manifest(folder), artifact.read_measurements(folder))
