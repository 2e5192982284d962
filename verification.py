"""`planish verify`: whether an artifact is what was written, and still proven isolated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.ir.isolation.labels import Labels
from planish.ir.isolation.programs import (
    EXIT_CODES,
    analyse_onnx,
    analyse_program,
    explain,
    graph_hash,
    rules_hash,
)
from planish.ir.isolation.verdict import Analysis
from planish.lowering import artifact
from planish.lowering.artifact import BadArtifact
from planish.lowering.programs import program_in


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        folder: the artifact.
        files: how many files have the hashes that the manifest gives.
        verdict: of the model that the artifact runs, analysed anew.
        certified: the verdict that the manifest gives.
        same_rules: whether the certificate was made by the rules of this version.
        findings: why, if the verdict is not `isolated`.
        assumptions: what the verdict rests on; which rows belong to whom is what the manifest says.
    """

    folder: Path
    files: int
    verdict: str
    certified: str
    same_rules: bool
    findings: tuple[str, ...]
    assumptions: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """As of an audit."""
        return EXIT_CODES[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        told = ("files", "verdict", "certified", "same_rules")
        return {
            "folder": str(self.folder),
            **{one: getattr(self, one) for one in told},
            "findings": list(self.findings),
            "assumptions": list(self.assumptions),
        }


def verify(folder: str | Path) -> Verification:
    """Check every hash of an artifact, and analyse again what it runs.

    Raises:
        BadArtifact: if a file is missing, was changed, or is not the one that was proven.
    """
    folder = Path(folder)
    artifact.verify(folder)
    manifest = artifact.read_manifest(folder)
    certificate = manifest.get("certificate", {})
    analysis = _analysed(folder, certificate)
    return Verification(
        folder,
        len(manifest["files"]),
        analysis.verdict,
        str(manifest["isolation"]),
        certificate.get("rules_sha256") == rules_hash(),
        tuple(explain(one) for one in analysis.findings),
        analysis.assumptions,
    )


def _analysed(folder: Path, certificate: dict[str, Any]) -> Analysis:
    """The verdict on the file that is run, which has to be the one that was certified."""
    told = certificate.get("labels", {})
    labels = Labels(told.get("batch_axes", {}), shared=tuple(told.get("shared", ())))
    file = artifact.model_file(folder)
    if file is None:
        raise BadArtifact(f"{folder} holds no model that could be analysed.")
    lowered = file != folder / artifact.TORCH_PROGRAM
    proven = certificate.get("lowered", {}).get("sha256") if lowered else None
    if proven is not None and proven != artifact.sha256(file):
        raise BadArtifact(f"{file} is not the file that the certificate in planish.json names.")
    if file.suffix == ".onnx":
        return analyse_onnx(file, labels)
    program = program_in(file.parent)
    proven = None if lowered else certificate.get("graph_sha256")
    if proven is not None and proven != graph_hash(program):
        raise BadArtifact(
            f"{file.parent} holds another graph than the certificate in planish.json names."
        )
    return analyse_program(program, labels)
