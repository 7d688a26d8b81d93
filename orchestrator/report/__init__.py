"""report.json -> report.html and figures. It renders; it computes nothing."""

from orchestrator.report.page import render_report

__all__ = ["render_report"]
