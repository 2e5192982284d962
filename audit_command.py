"""What `planish audit` does: many targets, one line each, and each finding with its path."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import planish
from planish import audit_targets, audit_text, auditing, commands, confirm, console, repairing
from planish.auditing import AuditReport, Unreadable
from planish.ir.errors import PlanishError

FORMATS = ("text", "json", "sarif", "html")


@dataclass(frozen=True)
class Options:
    """What the command line was told; the names of `planish.audit`."""

    batch_axes: tuple[str, ...] = ()
    output_axes: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    internal: tuple[str, ...] = ()
    owner_map: str | None = None
    spec: Path | None = None
    input_shapes: tuple[str, ...] = ()
    witness: Path | None = None
    optimized: bool = False
    cu_seqlens: tuple[str, ...] = ()
    segment_ids: tuple[str, ...] = ()
    disjoint: tuple[str, ...] = ()
    pages: tuple[str, ...] = ()


def main(given: Sequence[str], options: Options, form: str, output: Path | None) -> int:
    """Audit and report.

    Returns:
        The exit code: 0 isolated, 1 leaks, 3 unproven, 2 unreadable; for many, the worst.
    """
    if form not in FORMATS:
        raise commands.BadUsage(f"--format {form}: choose one of {', '.join(FORMATS)}.")
    reports = run(given, options, quiet=form != "text")
    if form == "text":
        audit_text.show(reports)
    else:
        text = rendered(reports, form, _command(given, options))
        if output is None:
            print(text)
        else:
            output.write_text(text + "\n", encoding="utf-8")
            console.err.print(f"written to {output}", markup=False)
    return auditing.exit_code(reports)


def rendered(reports: Sequence[AuditReport | Unreadable], form: str, command: str = "") -> str:
    """The reports as a document: one target by itself, several with a summary."""
    made = [one.to_json() for one in reports]
    if form == "html":
        from planish.report.audit_html import render  # noqa: PLC0415

        return render(made, version=planish.__version__, command=command)
    document = auditing.summarize(reports) if len(reports) > 1 else made[0]
    if form == "sarif":
        from planish.report.audit_sarif import sarif  # noqa: PLC0415

        code = auditing.exit_code(reports)
        document = sarif(made, version=planish.__version__, command=command, exit_code=code)
    return json.dumps(document, indent=2, ensure_ascii=False)


def _command(given: Sequence[str], options: Options) -> str:
    """What to type to make the same reports again."""
    flags = {
        "--batch-axis": options.batch_axes,
        "--output-axis": options.output_axes,
        "--shared": options.shared,
        "--internal": options.internal,
        "--owner-map": (options.owner_map,),
        "--cu-seqlens": options.cu_seqlens,
        "--segment-ids": options.segment_ids,
        "--disjoint": options.disjoint,
        "--pages": options.pages,
        "--spec": (options.spec,),
        "--input-shape": options.input_shapes,
        "--witness": (options.witness,),
    }
    told = ["--optimized"] if options.optimized else []
    told += [
        part
        for flag, values in flags.items()
        for value in values
        if value is not None
        for part in (flag, str(value))
    ]
    return shlex.join(["planish", "audit", *given, *told])


def run(given: Sequence[str], options: Options, *, quiet: bool) -> list[AuditReport | Unreadable]:
    """Audit every target; one that cannot be read is reported and does not stop the others.

    Raises:
        PlanishError: if there is only one target, and it cannot be read.
    """
    arguments = _labels(options)
    named = [one for one in given if commands.is_function(one)]
    paths = list(audit_targets.targets([one for one in given if one not in named]))
    several: list[str | Path] = [*named, *paths]
    total = len(several)
    reports: list[AuditReport | Unreadable] = []
    with console.counting("audit", quiet=quiet) as progress:
        for number, one in enumerate(several):
            progress(str(one), number, total)
            try:
                told = {**arguments, "witness": options.witness or False}
                if isinstance(one, Path):
                    told["optimized"] = options.optimized
                    reports.append(auditing.audit(one, **told))
                else:
                    model, inputs = commands.example(one, options.input_shapes)
                    reports.append(auditing.audit(model, inputs=inputs, **told))
            except (PlanishError, OSError) as error:
                if total == 1 or isinstance(error, confirm.Contradicted):
                    raise
                reports.append(Unreadable(str(one), str(error)))
    return reports


def replay(path: Path, target: Path, *, as_json: bool) -> int:
    """Run a witness again, and say what moved.

    Returns:
        1 if the output moves, 0 if not a bit of it does.
    """
    witness = confirm.replayed(path, target)
    moved = witness.difference > 0
    if as_json:
        told = ("output", "rows", "changed", "how", "difference", "size")
        console.print_json({**{one: getattr(witness, one) for one in told}, "moved": moved})
    else:
        console.out.print(
            f"rows {list(witness.changed)} of the inputs were changed ({witness.how}); rows "
            f"{list(witness.rows)} of {witness.output} "
            + (f"moved by {witness.difference:.4g} (of {witness.size:.4g})" if moved else "stayed"),
            markup=False,
            soft_wrap=True,
        )
    return int(moved)


def fix(given: Sequence[str], output: Path, options: Options, *, as_json: bool) -> int:
    """Repair one ONNX file.

    Returns:
        0; whatever is not proven isolated raises.
    """
    if len(given) != 1:
        raise commands.BadUsage("--fix takes one ONNX file; call it once for each.")
    fixed = repairing.fix(Path(given[0]), output, **_labels(options))
    if as_json:
        console.print_json(fixed.to_json())
        return 0
    out = console.out
    for line in fixed.changes[:5]:
        out.print(line, markup=False, soft_wrap=True)
    if len(fixed.changes) > 5:
        out.print(f"and {len(fixed.changes) - 5} more like these")
    for name, error in fixed.errors.items():
        told = f"{name}: differs by {error:.3g} (relative, one request alone, random inputs)"
        out.print(told, markup=False, soft_wrap=True)
    out.print(f"{fixed.path}: {fixed.report.verdict}", markup=False, soft_wrap=True)
    return 0


def _labels(options: Options) -> dict[str, Any]:
    """What the options say, as arguments of `planish.audit`."""
    return {
        "batch_axes": dict(_axis_or_none("--batch-axis", one) for one in options.batch_axes),
        "output_axes": dict(_axis("--output-axis", one) for one in options.output_axes),
        "shared": options.shared,
        "internal": options.internal,
        "owner_map": options.owner_map,
        "cu_seqlens": options.cu_seqlens,
        "segment_ids": options.segment_ids,
        "disjoint": options.disjoint,
        "pages": options.pages,
        "spec": options.spec,
    }


def _axis_or_none(option: str, given: str) -> tuple[str, int | None]:
    name, _, axis = given.rpartition("=")
    return (name, None) if name and axis == "none" else _axis(option, given)


def _axis(option: str, given: str) -> tuple[str, int]:
    name, _, axis = given.rpartition("=")
    if not name or not axis.lstrip("-").isdigit():
        raise commands.BadUsage(f"{option} {given}: give a name and a number, such as x=1.")
    return name, int(axis)
