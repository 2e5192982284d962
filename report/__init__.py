"""The report of an artifact: one HTML page with pictures."""

from planish.report.html import write_report

__all__ = ["write_report"]
