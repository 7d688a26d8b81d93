"""The figures of report.json as a table on the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.rundir import RunDir, read_json

SHOWN = (("study", "auroc"), ("study", "kappa"), ("image", "auroc"), ("image", "accuracy"))


def print_summary(rundir: RunDir, console: Console) -> None:
    """Print every system's test figures, the headline and where the rest is."""
    report = read_json(rundir.report_json)
    title = "Test, all bones pooled" + (" (PHANTOM: synthetic films)" if report["data"]["is_phantom"] else "")
    table = Table(title=title, title_justify="left")
    table.add_column("system")
    for unit, metric in SHOWN:
        table.add_column(f"{metric}, {unit} [95% CI]", justify="right")
    for name, system in report["systems"].items():
        cells = [format_estimate(system["overall"][unit][metric]) for unit, metric in SHOWN]
        table.add_row(name, *cells)
    console.print(table)
    for comparison in report["comparisons"]:
        if comparison["scope"] == "mean_of_bones" and comparison["unit"] == "study" and comparison["metric"] == "auroc":
            console.print(describe_comparison(comparison), markup=False, soft_wrap=True)
    if report["router"]:
        console.print(f"router: macro F1 {report['router']['image']['macro_f1']:.3f} by image", markup=False)
    console.print(f"report: {rundir.report_html.resolve()}", markup=False, soft_wrap=True)
    console.print(f"bundle: {rundir.bundle.resolve()}", markup=False, soft_wrap=True)


def format_estimate(estimate: dict[str, Any]) -> str:
    """Write a value with its interval."""
    if estimate["value"] is None:
        return "-"
    if estimate["ci95"] is None:
        return f"{estimate['value']:.3f}"
    low, high = estimate["ci95"]
    return f"{estimate['value']:.3f} [{low:.3f}, {high:.3f}]"


def describe_comparison(comparison: dict[str, Any]) -> str:
    """Write a paired difference as a sentence."""
    difference, ci95 = comparison["difference"], comparison["ci95"]
    text = f"{comparison['a']} - {comparison['b']}: mean over bones of study AUROC differences "
    if difference is None:
        return f"{text}does not exist ({comparison['why']})"
    if ci95 is None:
        return f"{text}{difference:+.3f} (no interval: {comparison['why']})"
    return f"{text}{difference:+.3f}, 95% CI [{ci95[0]:+.3f}, {ci95[1]:+.3f}], p {comparison['p']:.3f}"
