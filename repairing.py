"""`planish audit --fix`: repair an ONNX file, prove the result, compare it with the original."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from planish.auditing import AuditReport, audit
from planish.confirm import compared_alone
from planish.ir.errors import PlanishError
from planish.ir.flow.lint import load
from planish.lowering.onnx.repair import CannotRepair, repair

EXTERNAL_ABOVE = 2**31 - 2**20
"""Bytes from which weights go into a file of their own: a protobuf holds less than 2 GB."""


FAR = 0.5
"""The relative difference from which a repaired model counts as another one. Random inputs make
the scales of a quantized model coarse, so that two of them may differ by a few tenths."""


class StillLeaks(PlanishError):
    """The repaired model is not proven isolated, or not like the original; nothing was written."""


@dataclass(frozen=True)
class Fixed:
    """A repaired model.

    Attributes:
        path: where it was written.
        changes: what was done, a line each.
        report: of its audit.
        errors: by output, the relative L2 difference from the original for one request alone;
            empty if the model could not be run on batches made here.
    """

    path: Path
    changes: tuple[str, ...]
    report: AuditReport
    errors: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "fixed": str(self.path),
            "changes": list(self.changes),
            "errors": self.errors,
            "audit": self.report.to_json(),
        }


def fix(source: Path, output: Path, **labels: Any) -> Fixed:
    """Repair an ONNX file.

    Args:
        source: the file.
        output: where to write the result; replaced only when that is proven isolated.
        labels: what `audit` takes to say which rows belong to whom.

    Raises:
        CannotRepair: if nothing that leaks has a repair.
        StillLeaks: if the result is not proven isolated.
    """
    if source.suffix != ".onnx" or not source.is_file():
        raise CannotRepair(f"{source}: only ONNX files are repaired; for a model use the API.")
    model, changes = repair(load(source))
    if not changes:
        raise CannotRepair(
            f"{source} has no node that can be repaired here; planish audit {source} says what "
            "else would help."
        )
    onnx.load_external_data_for_model(model, str(source.parent))
    staging = output.with_name(f".{output.name}.{os.getpid()}.onnx")
    try:
        large = model.ByteSize() > EXTERNAL_ABOVE
        if large:
            raise CannotRepair(f"{source} is larger than 2 GB, which is not repaired yet.")
        onnx.checker.check_model(model)
        onnx.save(model, staging)
        report = audit(staging, **labels)
        if report.verdict != "isolated":
            first = report.findings[0]
            raise StillLeaks(
                f"{source}: {len(changes)} nodes were repaired, and the verdict is still "
                f"{report.verdict}: {first.operator} %{first.node}: {first.why}. Nothing was "
                f"written. What would help: {first.fix}."
            )
        errors = compared_alone(source, staging, report)
        worst = max(errors.values(), default=0.0)
        if not worst < FAR:
            raise StillLeaks(
                f"{source}: for one request alone the repaired model differs from the original by "
                f"{worst:.2f} of its output, more than quantization explains. Nothing was "
                "written. Quantize the original model again with one scale a row."
            )
        staging.replace(output)
    finally:
        staging.unlink(missing_ok=True)
    return Fixed(output, changes, report, errors)
