"""The figures of report.json on the terminal, 80 columns wide."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.report.summary import (
    PAPER_NOTES,
    PHANTOM_LABEL,
    Headline,
    count_bones_without,
    format_published,
    format_value,
    list_headlines,
    summarize_audit,
)
from orchestrator.run.directory import RunDir
from orchestrator.run.report_schema import read_report

COLUMNS = {"study": ("auroc", "kappa"), "image": ("auroc", "accuracy")}
MIN_WIDTH = 80


def print_summary(rundir: RunDir, console: Console) -> None:
    """Print every system's test figures, the headline and the paths of report and bundle."""
    report = read_report(rundir.report_json)
    mark = f" ({PHANTOM_LABEL})" if report["data"]["is_phantom"] else ""
    for unit, metrics in COLUMNS.items():
        _print(console, f"\nTest by {unit}, all bones pooled, 95% CI{mark}")
        console.print(_tabulate(report["systems"], unit, metrics), width=max(console.width, MIN_WIDTH), crop=False)
    _print(console, f"\nHeadline{mark}\nstudy-level AUROC on test, mean over bones of within-bone differences")
    for headline in list_headlines(report):
        _print(console, _format_headline(headline))
        if headline.without_specialist:
            _print_wrapped(console, f"{count_bones_without(headline)} ({', '.join(headline.without_specialist)})")
        if headline.caveat:
            _print_wrapped(console, headline.caveat)
    if report["router"]:
        _print(console, f"\nRouter: macro F1 {report['router']['image']['macro_f1']:.3f} by image")
    if report["paper"] is not None:
        _print_paper(report["paper"], mark, console)
    if report["run"]["audit"] and report["run"]["audit"]["trials"]:
        _print_wrapped(console, "\n" + to_ascii(summarize_audit(report["run"])))
    _print(console, f"Report: {rundir.report_html.resolve()}")
    _print(console, f"Bundle: {rundir.bundle.resolve()}")


def _print_paper(rows: Sequence[Mapping[str, Any]], mark: str, console: Console) -> None:
    """Print the paper's figures next to ours, then why some of ours are missing."""
    _print(console, f"\nComparison with the paper: image-level test accuracy at 0.5{mark}")
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for name in ("section", "system"):
        table.add_column(name, no_wrap=True)
    table.add_column("bone", overflow="fold")
    for name in ("paper", "ours [95% CI]"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        section = row["section"].split(",")[0]  # the column of bones has the rest
        ours = "-" if row["ours"]["value"] is None else format_estimate(row["ours"])
        bone = Text("all" if row["bone"] is None else row["bone"])
        table.add_row(section, row["system"], bone, to_ascii(format_published(row["published"])), ours)
    console.print(table, width=max(console.width, MIN_WIDTH), crop=False)
    for row in (row for row in rows if row["ours"]["value"] is None):
        whom = row["system"] if row["bone"] is None else row["bone"]
        _print_wrapped(console, f"{row['section']}, {whom}: no figure, {row['ours']['reason']}")
    _print_wrapped(console, " ".join(PAPER_NOTES))


def format_estimate(estimate: dict[str, Any]) -> str:
    """Format a value with its interval."""
    if estimate["value"] is None:
        return f"-      {estimate['reason']}"
    value = to_ascii(format_value(estimate["value"]))
    if estimate["ci95"] is None:
        return f"{value}  {estimate['reason']}"
    low, high = (to_ascii(format_value(bound)) for bound in estimate["ci95"])
    return f"{value} [{low}, {high}]"


def to_ascii(text: str) -> str:
    """Replace minus and dash by characters that every terminal's encoding has."""
    return text.replace("\u2212", "-").replace("\u2013", "-")


def _tabulate(systems: dict[str, Any], unit: str, metrics: tuple[str, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("system", no_wrap=True)
    for metric in metrics:
        table.add_column({"auroc": "AUROC"}.get(metric, metric), no_wrap=True)
    for name, system in systems.items():
        table.add_row(name, *(format_estimate(system["overall"][unit][metric]) for metric in metrics))
    return table


def _format_headline(headline: Headline) -> str:
    bounds = f"95% CI {headline.interval}" if headline.interval else f"no interval: {headline.reason}"
    return to_ascii(
        f"{headline.system} against {headline.baseline}:\n  {headline.difference}, {bounds}: {headline.verdict}"
    )


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_wrapped(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, width=max(console.width, MIN_WIDTH))
