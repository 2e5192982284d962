"""What can be audited, and how each kind of it is read."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planish.confirm import runnable
from planish.ir.errors import PlanishError
from planish.ir.flow.call import Call, Rule
from planish.ir.flow.lint import load
from planish.ir.isolation.cases import analyse
from planish.ir.isolation.labels import Labels
from planish.ir.isolation.programs import analyse_onnx, analyse_program
from planish.ir.isolation.verdict import Analysis
from planish.ir.program import Program
from planish.lowering.artifact import MANIFEST, model_file
from planish.lowering.programs import program_in
from planish.runtime.operators import Operator, of_onnx, of_torch
from planish.runtime.runnable import Runnable


@dataclass(frozen=True)
class Subject:
    """What was audited.

    Attributes:
        name: for people.
        analysis: the verdict on it.
        runnable: gives it in a form in which it can be run.
        operator: gives a call in it in such a form.
    """

    name: str
    analysis: Analysis
    runnable: Callable[[], Runnable]
    operator: Callable[[Call], Operator]


@dataclass(frozen=True)
class Told:
    """What the auditor says of a model.

    Attributes:
        labels: which rows belong to whom.
        declared: rules of operators that have none, by name.
        libraries: of custom operators of ONNX Runtime.
    """

    labels: Labels = field(default_factory=Labels)
    declared: Mapping[str, Rule] = field(default_factory=dict)
    libraries: tuple[str, ...] = ()


class BadTarget(PlanishError):
    """What was to be audited is no model that can be read, or not with these arguments."""


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
    names = ("config.json", MANIFEST, "program.json")
    return any((folder / name).is_file() for name in names)


def analysed(target: Any, inputs: Any, told: Told, symbolic_batch: bool) -> Subject:
    """A target with the verdict on it; see `planish.audit` for the arguments.

    Raises:
        BadTarget: if it cannot be read or exported.
    """
    if isinstance(target, Program):
        labels = told.labels if told.labels != Labels() else None
        analysis = analyse_program(target, labels)
        return Subject(target.source.name, analysis, lambda: _of_program(target), of_torch)
    if isinstance(target, str | Path):
        if inputs is not None:
            raise BadTarget("inputs= is for an nn.Module; a file says what its inputs are.")
        path = Path(target)
        return _subject(str(target), _of_path(path, told), path, told)
    return _of_torch(target, inputs, told, symbolic_batch)


def _subject(name: str, analysis: Analysis, path: Path, told: Told) -> Subject:
    """A path that was analysed."""
    file = model_file(path) or path
    return Subject(
        name,
        analysis,
        lambda: runnable(path, told.libraries),
        lambda call: of_onnx(call, file, told.libraries),
    )


def _of_path(path: Path, told: Told) -> Analysis:
    if (path / MANIFEST).is_file():
        file = model_file(path)
        if file is None:
            raise BadTarget(f"{path}: this artifact holds no model.")
        return _of_path(file if file.suffix == ".onnx" else file.parent, told)
    if (path / "program.json").is_file():
        return analyse_program(program_in(path), told.labels)
    if path.is_dir() or path.suffix == ".gguf":
        from planish.ir.capture.meta import from_config  # noqa: PLC0415

        return analyse_program(from_config(path), told.labels)
    if not path.is_file():
        raise BadTarget(f"{path}: there is no such file or folder.")
    return analyse_onnx(path, told.labels, told.declared)


def optimized(target: Any, told: Told) -> Subject:
    """The verdict on what ONNX Runtime makes of a file when it loads it.

    Raises:
        BadTarget: if it is no ONNX file, or one that ONNX Runtime cannot load.
    """
    import onnxruntime  # noqa: PLC0415

    path = Path(target) if isinstance(target, str | Path) else None
    if path is not None and path.is_dir():
        path = model_file(path)
    if path is None or not path.is_file() or path.name == "program.json":
        raise BadTarget(f"{target}: only ONNX files are optimized by ONNX Runtime.")
    load(path)  # the strict checks, before anything else reads the file
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "optimized.onnx"
        settings = onnxruntime.SessionOptions()
        settings.optimized_model_filepath = str(made)
        settings.log_severity_level = 4
        try:
            for library in told.libraries:
                settings.register_custom_ops_library(library)
            onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many kinds
            reason = str(error).strip().partition("\n")[0]
            raise BadTarget(f"{path}: ONNX Runtime cannot load it: {reason}") from error
        analysis = analyse_onnx(made, told.labels, told.declared)
    return _subject(f"{target} (optimized)", analysis, path, told)


def _of_program(program: Program) -> Runnable:
    from planish.runtime.slopes import of_program  # noqa: PLC0415

    return of_program(program)


def _of_torch(target: Any, inputs: Any, told: Told, symbolic_batch: bool) -> Subject:
    import torch  # noqa: PLC0415

    from planish.ir.flow.fx import read_exported  # noqa: PLC0415
    from planish.runtime.slopes import of_exported  # noqa: PLC0415

    name = type(target).__name__
    if isinstance(target, torch.nn.Module):
        if inputs is None:
            raise BadTarget(f"{name} is an nn.Module: pass example tensors as inputs=.")
        target = _exported(target, inputs, told.labels, symbolic_batch)
    if not isinstance(target, torch.export.ExportedProgram):
        raise BadTarget(
            f"{name} is nothing that can be audited: give a path, an nn.Module with inputs=, an "
            "ExportedProgram or a Program."
        )
    functional = target.run_decompositions({})
    analysis = analyse(lambda ties: read_exported(functional, ties, told.declared), told.labels)
    return Subject(name, analysis, lambda: of_exported(functional), of_torch)


def _exported(module: Any, inputs: Any, labels: Labels, symbolic_batch: bool) -> Any:
    """An export in which the batch of each input has any size, where the model allows it."""
    import torch  # noqa: PLC0415

    given = inputs if isinstance(inputs, Mapping) else None
    several = () if given is not None else (inputs,) if isinstance(inputs, torch.Tensor) else inputs

    def prepared(name: str, value: Any) -> tuple[Any, Any]:
        axis = labels.batch_axes.get(name, 0)
        held = isinstance(value, torch.Tensor) and value.dim() and name not in labels.shared
        if not held or axis is None:
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
