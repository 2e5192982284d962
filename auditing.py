"""`audit`: whether requests in one batch stay apart, in one's own models and other people's."""

from __future__ import annotations

import difflib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from planish.ir.errors import PlanishError
from planish.ir.flow.lint import load
from planish.ir.isolation.labels import Labels, Owners
from planish.ir.isolation.programs import EXIT_CODES, NOT_COVERED, analyse_onnx, analyse_program
from planish.ir.isolation.verdict import (
    Analysis,
    Finding,
    Given,
    OutputVerdict,
    Verdict,
    analyse,
)
from planish.ir.program import Program


class BadTarget(PlanishError):
    """What was to be audited is no model that can be read, or not with these arguments."""


class BadSpec(PlanishError):
    """A file that says which rows belong to whom cannot be understood."""


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Attributes:
        target: what was audited.
        verdict: `"isolated"`, `"leaks"` or `"unproven"`.
        outputs: each output with a verdict of its own.
        findings: the ways by which requests meet, definite ones first.
        unknown_operators: how often each operator without a rule occurs.
        assumptions: what the verdict rests on besides the graph.
        seconds: how long the analysis took, reading the file included.
        nodes: how many were analysed.
        inputs: with their shapes and batch axes, for whoever wants to run the model.
        output_axes: the batch axis of each output that has one.
        owners: which rows belong to one request.
        numerics: what was seen of rounding when the model was run (`planish.confirm`).
    """

    target: str
    verdict: Verdict
    outputs: tuple[OutputVerdict, ...]
    findings: tuple[Finding, ...]
    unknown_operators: Mapping[str, int]
    assumptions: tuple[str, ...]
    seconds: float
    nodes: int
    inputs: tuple[Given, ...] = ()
    output_axes: Mapping[str, int] = field(default_factory=dict)
    owners: Owners = field(default_factory=Owners)
    numerics: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 isolated, 1 leaks, 3 unproven."""
        return EXIT_CODES[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """As JSON values, `planish.audit/1`."""
        return {
            "schema": "planish.audit/1",
            "target": self.target,
            "verdict": self.verdict,
            "outputs": [asdict(one) for one in self.outputs],
            "findings": [
                {
                    "kind": one.kind,
                    "operator": one.operator,
                    "node": one.node,
                    "why": one.why,
                    "where": one.where,
                    "outputs": list(one.outputs),
                    "path": [asdict(place) for place in one.path],
                    "fix": one.fix,
                    "witness": one.witness,
                }
                for one in self.findings
            ],
            "unknown_operators": [
                {"operator": name, "count": count}
                for name, count in sorted(self.unknown_operators.items())
            ],
            "assumptions": list(self.assumptions),
            "numerics": list(self.numerics),
            "not_covered": list(NOT_COVERED),
            "seconds": round(self.seconds, 3),
            "nodes": self.nodes,
        }


@dataclass(frozen=True)
class Unreadable:
    """One of several targets that could not be audited, and why."""

    target: str
    error: str
    exit_code: int = 2

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"schema": "planish.audit/1", "target": self.target, "error": self.error}


def audit(
    target: Any,
    *,
    inputs: Any = None,
    batch_axes: Mapping[str, int] | None = None,
    output_axes: Mapping[str, int] | None = None,
    shared: Sequence[str] = (),
    internal: Sequence[str] = (),
    owner_map: int | Sequence[int] | str | None = None,
    spec: str | Path | None = None,
    symbolic_batch: bool = True,
    optimized: bool = False,
) -> AuditReport:
    """Prove that requests in one batch stay apart, or show how one reaches another.

    The proof is non-interference: for all weights, inputs, batch sizes and lengths that the graph
    admits, what one request is given does not depend on the others in its batch. Unless told
    otherwise, every input holds the batch along axis 0, each row is a request, and nothing is
    shared; nothing of this is read from the model.

    Args:
        target: the path of an ONNX file, of a checkpoint's folder, of an artifact or of a saved
            program; an `nn.Module` with `inputs`, as it stands (training mode included); an
            `ExportedProgram`; a `Program`, whose inputs declare their batch axes.
        inputs: for an `nn.Module`, example tensors: in order, or by argument name.
        batch_axes: for inputs whose batch is not along axis 0.
        output_axes: for outputs whose batch is not along axis 0.
        shared: inputs that are the same for all requests.
        internal: outputs that no request is given.
        owner_map: how many neighbouring rows belong to one request, or the owner of each row of
            an example: `[0, 1, 0, 1]`.
        spec: a YAML or JSON file with the five options before this one.
        symbolic_batch: for an `nn.Module`, export with a batch of any size.
        optimized: audit an ONNX file as ONNX Runtime rewrites it for the CPU before it runs it:
            fused operators are others than those of the file. This loads the weights.

    Raises:
        BadTarget: if the target cannot be read or exported.
        BadSpec: if the file cannot be understood.
        planish.ir.isolation.labels.BadLabels: if a name is not one of the model's.
    """
    told = _from_file(spec) if spec is not None else {}
    labels = Labels(
        {**told.get("batch_axes", {}), **(batch_axes or {})},
        {**told.get("output_axes", {}), **(output_axes or {})},
        (*told.get("shared", ()), *shared),
        (*told.get("internal", ()), *internal),
        Owners.parse(owner_map if owner_map is not None else told.get("owner_map")),
    )
    start = time.perf_counter()
    if optimized:
        name, analysis = f"{target} (optimized)", _of_optimized(target, labels)
    else:
        name, analysis = _analysed(target, inputs, labels, symbolic_batch)
    return AuditReport(
        name,
        analysis.verdict,
        analysis.outputs,
        analysis.findings,
        analysis.unknown_operators,
        analysis.assumptions,
        time.perf_counter() - start,
        analysis.nodes,
        analysis.inputs,
        analysis.output_axes,
        labels.owners,
    )


def targets(given: Sequence[str]) -> Iterator[Path]:
    """The models that paths, folders of many, and globs name, each once, in order.

    Raises:
        BadTarget: for a path that is not there, or below which no model lies.
    """
    seen: set[Path] = set()
    for one in given:
        path = Path(one)
        if path.is_dir() and not _is_model(path):
            configs = (file for file in path.rglob("config.json") if _names_a_model(file))
            found = sorted([*path.rglob("*.onnx"), *(file.parent for file in configs)])
        elif path.exists():
            found = [path]
        else:
            found = sorted(path for path in Path().glob(one)) if not path.is_absolute() else []
        if not found:
            raise BadTarget(
                f"{one}: no ONNX file and no checkpoint is there; give a file, a folder or a glob."
            )
        for path in found:
            if path not in seen:
                seen.add(path)
                yield path


def _names_a_model(config: Path) -> bool:
    """Whether a `config.json` is one of transformers; many libraries have files of that name."""
    try:
        return "model_type" in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _is_model(folder: Path) -> bool:
    names = ("config.json", "planish.json", "program.json")
    return any((folder / name).is_file() for name in names)


def _analysed(
    target: Any, inputs: Any, labels: Labels, symbolic_batch: bool
) -> tuple[str, Analysis]:
    if isinstance(target, Program):
        declared = labels if labels != Labels() else None
        return target.source.name, analyse_program(target, declared)
    if isinstance(target, str | Path):
        if inputs is not None:
            raise BadTarget("inputs= is for an nn.Module; a file says what its inputs are.")
        return str(target), _of_path(Path(target), labels)
    return _of_torch(target, inputs, labels, symbolic_batch)


def _of_path(path: Path, labels: Labels) -> Analysis:
    if path.is_dir():
        if (path / "planish.json").is_file():
            onnx = path / "onnx" / "model.onnx"
            return _of_path(onnx if onnx.is_file() else path / "torch", labels)
        if (path / "program.json").is_file():
            return analyse_program(Program.load(path), labels)
        from planish.ir.capture.meta import from_config  # noqa: PLC0415

        return analyse_program(from_config(path), labels)
    if not path.is_file():
        raise BadTarget(f"{path}: there is no such file or folder.")
    if path.suffix == ".gguf":
        from planish.ir.capture.meta import from_config  # noqa: PLC0415

        return analyse_program(from_config(path), labels)
    return analyse_onnx(path, labels)


def _of_optimized(target: Any, labels: Labels) -> Analysis:
    """The verdict on what ONNX Runtime makes of a file when it loads it."""
    import onnxruntime  # noqa: PLC0415

    path = Path(target) if isinstance(target, str | Path) else None
    if path is not None and (path / "onnx" / "model.onnx").is_file():
        path = path / "onnx" / "model.onnx"
    if path is None or not path.is_file():
        raise BadTarget(f"{target}: only ONNX files are optimized by ONNX Runtime.")
    load(path)  # the strict checks, before anything else reads the file
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "optimized.onnx"
        settings = onnxruntime.SessionOptions()
        settings.optimized_model_filepath = str(made)
        settings.log_severity_level = 4
        try:
            onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many kinds
            reason = str(error).strip().partition("\n")[0]
            raise BadTarget(f"{path}: ONNX Runtime cannot load it: {reason}") from error
        return analyse_onnx(made, labels)


def _of_torch(
    target: Any, inputs: Any, labels: Labels, symbolic_batch: bool
) -> tuple[str, Analysis]:
    import torch  # noqa: PLC0415

    from planish.ir.flow.fx import read_exported  # noqa: PLC0415

    name = type(target).__name__
    if isinstance(target, torch.nn.Module):
        if inputs is None:
            raise BadTarget(f"{name} is an nn.Module: pass example tensors as inputs=.")
        target = _exported(target, inputs, labels, symbolic_batch)
    if not isinstance(target, torch.export.ExportedProgram):
        raise BadTarget(
            f"{name} is nothing that can be audited: give a path, an nn.Module with inputs=, an "
            "ExportedProgram or a Program."
        )
    functional = target.run_decompositions({})
    return name, analyse(lambda ties: read_exported(functional, ties), labels)


def _exported(module: Any, inputs: Any, labels: Labels, symbolic_batch: bool) -> Any:
    """An export in which the batch of each input has any size, where the model allows it."""
    import torch  # noqa: PLC0415

    given = inputs if isinstance(inputs, Mapping) else None
    several = () if given is not None else (inputs,) if isinstance(inputs, torch.Tensor) else inputs

    def prepared(name: str, value: Any) -> tuple[Any, Any]:
        axis = labels.batch_axes.get(name, 0)
        if not isinstance(value, torch.Tensor) or not value.dim() or name in labels.shared:
            return value, None
        if not symbolic_batch:
            return value, None
        if value.shape[axis] == 1:  # torch takes a size of 1 for a fixed one
            value = torch.cat([value, value], axis)
        return value, {axis % value.dim(): torch.export.Dim.AUTO}

    names = _argument_names(module, len(several))
    positional = [prepared(name, value) for name, value in zip(names, several, strict=False)]
    named = {name: prepared(name, value) for name, value in (given or {}).items()}
    dynamic: Any = tuple(sizes for _, sizes in positional)
    if given is not None:
        dynamic = {name: sizes for name, (_, sizes) in named.items()}
    if names and names[0].startswith("*"):
        dynamic = {names[0][1:]: dynamic}
    try:
        return torch.export.export(
            module,
            tuple(value for value, _ in positional),
            {name: value for name, (value, _) in named.items()},
            dynamic_shapes=dynamic,
        )
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise BadTarget(
            f"{type(module).__name__} cannot be exported by torch ({first}); audit an ONNX export "
            "of it instead, or a part of it that exports."
        ) from error


def _argument_names(module: Any, count: int) -> list[str]:
    """The names of `forward`'s first arguments; `*args` stands for all that follow."""
    import inspect  # noqa: PLC0415

    names: list[str] = []
    for name, one in inspect.signature(module.forward).parameters.items():
        if one.kind is one.VAR_POSITIONAL:
            return [f"*{name}"] * count
        names.append(name)
    return names[:count]


KEYS = ("batch_axes", "output_axes", "shared", "internal", "owner_map")
"""What a spec file may say."""


def _from_file(path: str | Path) -> dict[str, Any]:
    try:
        told = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}:{where.column + 1}" if where is not None else ""
        raise BadSpec(f"{path}{line}: this is neither YAML nor JSON.") from error
    if told is None:
        return {}
    if not isinstance(told, dict):
        raise BadSpec(f"{path}: give keys and values: {', '.join(KEYS)}.")
    for key, value in told.items():
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(KEYS)}."
            raise BadSpec(f"{path}: {key}: no such key; {hint}")
        _check_value(path, key, value)
    return told


def _check_value(path: str | Path, key: str, value: Any) -> None:
    if key.endswith("axes"):
        wanted = "names with a number each, such as {input_ids: 0}"
        fits = isinstance(value, dict) and all(isinstance(one, int) for one in value.values())
    elif key == "owner_map":
        wanted = "a number of rows or a list of owners"
        fits = isinstance(value, int | list | str)
    else:
        wanted = "a list of names"
        fits = isinstance(value, list) and all(isinstance(one, str) for one in value)
    if not fits:
        raise BadSpec(f"{path}: {key}: give {wanted}, not {value!r}.")


def summarize(reports: Sequence[AuditReport | Unreadable]) -> dict[str, Any]:
    """Many reports as JSON values: each under `targets`, with counts of the verdicts."""
    words = ["unreadable" if isinstance(one, Unreadable) else one.verdict for one in reports]
    counts = {word: words.count(word) for word in ("isolated", "leaks", "unproven", "unreadable")}
    return {
        "schema": "planish.audit/1",
        "summary": counts,
        "targets": [one.to_json() for one in reports],
    }


def exit_code(reports: Sequence[AuditReport | Unreadable]) -> int:
    """Of several: 1 if any leaks, else 2 if any cannot be read, else 3 if any is unproven."""
    codes = {one.exit_code for one in reports}
    return next((code for code in (1, 2, 3) if code in codes), 0)
