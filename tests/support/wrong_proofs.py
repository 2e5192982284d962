"""An analysis that believes everything, for tests of what catches a wrong proof."""

import dataclasses
from typing import Any

import pytest

from planish import audit_targets


def believe_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let audits call every output isolated."""
    real = audit_targets.analysed

    def believing(*args: Any) -> audit_targets.Subject:
        found = real(*args)
        outputs = [dataclasses.replace(one, verdict="isolated") for one in found.analysis.outputs]
        analysis = dataclasses.replace(
            found.analysis, verdict="isolated", outputs=tuple(outputs), findings=()
        )
        return dataclasses.replace(found, analysis=analysis)

    monkeypatch.setattr("planish.audit_targets.analysed", believing)
