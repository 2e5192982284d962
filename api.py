"""The Python API: `capture` and `optimize`. `load` is in `planish.runtime.session`."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from planish import recipes, release
from planish.decoding import check_decodes, check_pair, stored
from planish.gate import check_gate
from planish.ir.activations import ActivationScheme
from planish.ir.capture.export import from_module
from planish.ir.capture.huggingface import capture_model, from_checkpoint
from planish.ir.errors import PlanishError
from planish.ir.isolation.programs import analyse_program, certificate, explain, require
from planish.ir.isolation.verdict import Analysis
from planish.ir.program import Program
from planish.ir.progress import Progress, silent
from planish.ir.quant import QuantScheme
from planish.lowering.artifact import check_space, check_target
from planish.lowering.compressed_tensors import Form
from planish.lowering.gguf import check_source, kind_of
from planish.passes import name_of
from planish.passes.contract import Pass
from planish.passes.pipeline import UNANALYSED, Step, apply, severity
from planish.samples import default_samples, with_samples

Target = Literal["onnx", "torch", "triton"]
Isolation = Literal["bitwise", "enforce", "warn", "off"]
LEAST = 8
"""A model is at most so many times as large as an artifact: weights of 2 bits, written twice."""

STRICT = frozenset({"bitwise", "enforce"})
Model = nn.Module | Program | str | Path
Samples = Iterable[Mapping[str, Tensor]] | str | Path
RecipeLike = str | Path | Mapping[str, Any] | Sequence[Pass] | recipes.Recipe


class BadCall(PlanishError):
    """The arguments of an API call do not go together."""


class NotIsolated(UserWarning):
    """What was made leaks, or is not proven to keep requests apart, and was to be made anyway."""


@dataclass(frozen=True)
class Result:
    """What `optimize` made.

    Attributes:
        program: the optimized program, which runs eagerly with `program.run`.
        original: the program as captured.
        steps: what each pass did and what it cost.
        recipe: what was run.
        isolation: the verdict on whether requests in a batch stay apart.
        certificate: what the verdict speaks of, what it rests on, what it does not cover.
        policy: what was asked of the result's isolation.
        decode: the second form of a language model, which reads single new tokens, where the recipe
            makes one.
        folder: where the artifact was written, if it was.
        files: bytes by kind of file in the artifact (`"onnx"`, `"torch"` or `"triton"`,
            and `"checkpoint"`).
        notes: what did not go as usual, for people to read.
    """

    program: Program
    original: Program
    steps: tuple[Step, ...]
    recipe: recipes.Recipe
    isolation: str = UNANALYSED
    certificate: Mapping[str, Any] = field(default_factory=dict)
    policy: Isolation = "enforce"
    decode: Result | None = None
    folder: Path | None = None
    files: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def all_steps(self) -> tuple[Step, ...]:
        """What each pass did, those of the second form after the others and named for it."""
        further = () if self.decode is None else self.decode.steps
        named = (dataclasses.replace(step, name=f"decode: {step.name}") for step in further)
        return (*self.steps, *named)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; those that both forms hold count once."""
        return stored(self.program, *([] if self.decode is None else [self.decode.program]))

    def save(
        self,
        output: str | Path,
        *,
        target: Target | None = None,
        opset_only: bool = False,
        gguf: bool = False,
        gate: Sequence[int] = (),
        progress: Progress = silent,
    ) -> Result:
        """Write the artifact.

        It holds `onnx/`, `torch/` or `triton/`, a Hugging Face checkpoint where one can hold the
        result, `planish.json`, `recipe.yaml` and `report.html`. It is written aside and renamed
        into place: a failure leaves what was there before.

        Args:
            output: a folder, new or an artifact to be replaced.
            target: `"onnx"`, `"torch"` or `"triton"`; the recipe's own word by default.
            opset_only: leave out the operators of `com.microsoft`.
            gguf: write `model.gguf` too, for llama.cpp.
            gate: batch sizes at which no layer of the ONNX model may be slower than in floating
                point: layers are timed here, and lowered dense where they are. Empty: no gate.
            progress: called with what is being done, 0 and 0.

        Returns:
            This result, with `folder`, `files` and `notes` filled in.

        Raises:
            planish.lowering.artifact.NotOurs: if the folder exists and is no artifact.
            BadCall: if there is a second form, and the target is not ONNX.
            planish.gate.BadGate: if `gate` holds something that is no batch size, or the target
                is not ONNX.
            planish.lowering.artifact.NoSpace: if the disk has too little room.
            planish.lowering.onnx.UnsupportedOperator: if an operator has no ONNX form.
            planish.lowering.compressed_tensors.NotExpressible: if a GGUF file is asked for and
                cannot hold the result.
            planish.ir.isolation.programs.Refused: if the lowered model is not proven isolated,
                under `enforce`.
        """
        _check_lowering(self.recipe, self.policy, target or self.recipe.target)
        this: Any = self  # type checkers may see this file under two names
        made: Any = release.write(
            this,
            Path(output),
            target=target or self.recipe.target,
            opset_only=opset_only,
            gguf=gguf,
            gated=gate,
            progress=progress,
        )
        result: Result = made
        return result

    def to_json(self) -> dict[str, Any]:
        """What was done and what came of it, as JSON values."""
        return {
            "recipe": self.recipe.name,
            "model": self.original.source.name,
            "folder": None if self.folder is None else str(self.folder),
            "steps": [release.step_json(step) for step in self.all_steps],
            "parameters": [self.original.parameters, self.program.parameters],
            "tensor_bytes": [self.original.nbytes, self.nbytes],
            "file_bytes": dict(self.files),
            "isolation": self.isolation,
            "notes": list(self.notes),
        }


def capture(
    model: Model,
    inputs: Mapping[str, Tensor] | Sequence[Tensor] | Tensor | None = None,
    *,
    batch_axis: int | None = 0,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> Program:
    """Capture a model as a program.

    A checkpoint with a tokenizer brings samples of plain English along, others of random tokens.

    Args:
        model: an `nn.Module` in evaluation mode, a model of transformers, the folder of a
            Hugging Face checkpoint, a `.gguf` file, the name of a model on the hub, or an artifact
            of target torch without a checkpoint, which is taken as it was left.
        inputs: example tensors, by argument name or in order; needed for an `nn.Module` that is
            not of transformers.
        batch_axis: for an `nn.Module`, the dimension of its inputs that counts requests.
        dynamic: for an `nn.Module`, further symbolic dimensions: `{"x": {2: "H", 3: "W"}}`.

    Raises:
        planish.ir.capture.checkpoint.BadCheckpoint: if a checkpoint cannot be loaded.
        planish.ir.capture.export.CaptureFailed: if the model cannot be exported.
        BadCall: if `inputs` is missing, or given for a model that brings its own.
    """
    if isinstance(model, Program):
        return model
    if isinstance(model, nn.Module) and not _is_transformers(model):
        if inputs is None:
            raise BadCall(
                f"{type(model).__name__} is an nn.Module, whose inputs cannot be guessed: pass "
                "example tensors as inputs=."
            )
        return from_module(model, inputs, batch_axis=batch_axis, dynamic=dynamic)
    if inputs is not None:
        raise BadCall("inputs= is for nn.Modules; models of transformers bring their own.")
    program = (
        capture_model(model, _folder_of(model))  # type: ignore[arg-type]
        if isinstance(model, nn.Module)
        else release.read_back(model) or from_checkpoint(model)
    )
    return dataclasses.replace(program, samples=default_samples(program))


def _is_transformers(model: nn.Module) -> bool:
    return any(kind.__name__ == "PreTrainedModel" for kind in type(model).__mro__)


def _folder_of(model: Any) -> Path | None:
    folder = Path(getattr(model, "name_or_path", "") or "")
    return folder if (folder / "config.json").is_file() else None


def optimize(
    model: Model,
    recipe: RecipeLike,
    *,
    inputs: Mapping[str, Tensor] | Sequence[Tensor] | Tensor | None = None,
    samples: Samples | None = None,
    output: str | Path | None = None,
    target: Target | None = None,
    isolation: Isolation | None = None,
    opset_only: bool = False,
    gguf: bool = False,
    gate: Sequence[int] = (),
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> Result:
    """Run a recipe on a model and, where `output` is given, write the result as an artifact.

    Args:
        model: as for `capture`; a captured `Program` is taken as it is.
        recipe: the name of a ready recipe, the path of a YAML file, its contents as a dict, or a
            sequence of passes.
        inputs: as for `capture`.
        samples: batches of inputs by name, or for a model with a tokenizer a file of text (`.txt`,
            `.jsonl`, `.parquet`) or the name of a dataset on the hub, `OWNER/NAME` or
            `OWNER/NAME/CONFIG/SPLIT`, of which the column `text` is read. Passes are checked, and
            calibrated, on them.
        output: a folder to write, new or an artifact to be replaced.
        target: `"onnx"` for ONNX Runtime, `"torch"` to run the program eagerly, `"triton"` for
            generated GPU kernels; the recipe's own word by default.
        isolation: what to ask of the result; the recipe's own word by default. `"enforce"`
            refuses what leaks or is not proven isolated, `"warn"` says so and goes on, `"off"`
            does not ask. `"bitwise"` enforces, and lowers to kernels (target `"triton"`) that give
            a row the same bits whatever the number of rows; what torch computes is told.
        opset_only: leave out the operators of `com.microsoft` that ONNX Runtime runs fast.
        gguf: write `model.gguf` too, for llama.cpp: of Llama-like models with weights in floating
            point or rounded to blocks that GGUF has.
        gate: batch sizes, such as `(1, 4, 16)`, at which no layer may be slower than in floating
            point: each kind of quantized layer is timed on this machine, and stays dense in the
            ONNX model where it loses; notes and report say which. Empty: no gate.
        resume: a folder where passes that take long (`gptq`, `slice`, `distill`, ...) keep each
            finished piece, so that a run that was interrupted goes on from there; it can be deleted
            afterwards. What passes without a journal did is done again.
        progress: called with what is being done, how many pieces of it are done, and of how many.

    Raises:
        planish.ir.isolation.programs.Refused: if requests in one batch are not proven to stay
            apart, under `"enforce"`; nothing is written.
        planish.decoding.NotOneModel: if the recipe makes a second form for single tokens, and the
            model keeps no cache, or the forms do not understand each other's.
        PlanishError: with a message that says what is wrong and what would help.
    """
    chosen = recipes.load(recipe)
    policy = isolation or chosen.isolation
    _check_lowering(chosen, policy, target or chosen.target)
    if output is not None:  # before any work
        check_target(Path(output))
        check_gate(gate, target or chosen.target)
    progress("capture", 0, 0)
    original = capture(model, inputs)
    if gguf:
        _check_gguf(original, chosen.passes)  # before any work
    if output is not None:
        check_space(Path(output), original.nbytes // LEAST)
    if chosen.decode:
        check_decodes(original)
    if samples is not None:
        original = with_samples(original, samples)
    kept = None if resume is None else Path(resume)
    result = _made(original, chosen, policy, progress, kept)
    if chosen.decode:
        result = _with_decode(result, progress, kept and kept / "decode")
    if output is None:
        return result
    return result.save(
        output, target=target, opset_only=opset_only, gguf=gguf, gate=gate, progress=progress
    )


def _check_lowering(recipe: recipes.Recipe, policy: Isolation, target: Target) -> None:
    """Refuse what the target cannot give."""
    if recipe.decode and target != "onnx":
        raise BadCall(
            f"The recipe {recipe.name} has a list decode, which is for target onnx: what is "
            f"lowered to {target} is one program. Leave the list or the target out."
        )
    if policy == "bitwise" and target != "triton":
        raise BadCall(
            "isolation: bitwise needs target triton, whose kernels can add in one order whatever "
            "the number of rows; enforce proves that no request changes another's values, up to "
            "how kernels round."
        )


def _with_decode(first: Result, progress: Progress, resume: Path | None) -> Result:
    """A result with the second form that its recipe makes of the same model."""
    alone = dataclasses.replace(first.recipe, passes=first.recipe.decode, decode=())

    def told(what: str, done: int, total: int) -> None:
        progress(f"decode: {what}", done, total)

    second = _made(first.original, alone, first.policy, told, resume)
    check_pair(first.program, second.program)
    verdict = max(first.isolation, second.isolation, key=severity)
    return dataclasses.replace(first, decode=second, isolation=verdict)


def _made(
    original: Program,
    recipe: recipes.Recipe,
    policy: Isolation,
    progress: Progress,
    resume: Path | None,
) -> Result:
    """What the passes of a recipe make, held to the policy."""
    asked = policy != "off"
    repaired = any(one.contract.isolation == "repaired" for one in recipe.passes)
    if policy in STRICT and not repaired:
        require(analyse_program(original), policy, "the model")  # before any work
    program, steps = apply(
        original,
        recipe.passes,
        names=name_of,
        isolation=asked,
        strict=policy if policy in STRICT else None,
        progress=progress,
        resume=resume,
    )
    result = Result(program, original, steps, recipe, policy=policy)
    if not asked:
        return result
    analysis = analyse_program(program)
    _hold(policy, analysis, "the result")
    return dataclasses.replace(
        result, isolation=analysis.verdict, certificate=certificate(program, analysis)
    )


def _check_gguf(program: Program, passes: Sequence[Pass]) -> None:
    """Refuse a model or a rounding that no GGUF file can hold, as far as the recipe tells."""
    check_source(program.source)
    for one in passes:
        scheme = getattr(one, "scheme", None)
        if isinstance(scheme, QuantScheme):
            kind_of(name_of(one), Form(scheme))
        elif isinstance(scheme, ActivationScheme):
            kind_of(name_of(one), Form(QuantScheme(bits=8, group_size=None), scheme))


def _hold(policy: Isolation, analysis: Analysis, what: str) -> None:
    """Refuse, warn or let pass, as the policy says."""
    if policy in STRICT:
        require(analysis, policy, what)
    elif analysis.verdict != "isolated":
        first = analysis.findings[0]
        warnings.warn(
            f"isolation: the verdict on {what} is {analysis.verdict}, {explain(first)}. What would "
            f"help: {first.fix}.",
            NotIsolated,
            stacklevel=4,
        )
