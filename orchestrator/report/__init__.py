"""report.json -> report.html and figures, exploration.json -> data.html. Renders only; computes no figure."""

from orchestrator.report.page import render_data_page, render_report

__all__ = ["render_data_page", "render_report"]
