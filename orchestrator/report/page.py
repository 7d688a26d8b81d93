"""report.html: one self-contained page from report.json, trials.parquet and predictions.parquet; data.html likewise."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from mura_models.errors import hide_folders
from mura_models.storage import atomic_directory, atomic_write
from orchestrator.report import summary as wording
from orchestrator.report.data_figures import draw_data
from orchestrator.report.data_parts import gather_data_parts
from orchestrator.report.figures import (
    FAMILY_COLORS,
    STATE_COLORS,
    Canvas,
    Drawing,
    draw_bones,
    draw_confusions,
    draw_differences,
    draw_roc,
)
from orchestrator.report.learning_curves import PART_COLORS, draw_learning_curves, draw_winner_curves
from orchestrator.run.directory import RunDir
from orchestrator.run.files import read_json

HERE = Path(__file__).parent
METRICS = {
    "auroc": "AUROC",
    "kappa": "Kappa",
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
}
"""Those with a column on the page; report.json has more."""
UNSET = {
    "bones": "all",
    "num_steps": "set by the number of images",
    "first_lr": "the first trials of each recipe",
    "specialist_lr": "as the baseline's",
    "specialist_probe_steps": "as the baseline's",
    "finetune_steps": "set by the number of images",
    "finetune.backbone_lr_factor": "1, 0.3 and 0.1 in turn",
}
"""Settings that were left open, and what that means (run/config.py, training/finetune_settings.py)."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The page's figures by section."""

    differences: Sequence[Drawing]
    bones: Sequence[Drawing]
    roc: Sequence[Drawing]
    router: Sequence[Drawing]
    searches: Sequence[Drawing]
    winners: Sequence[Drawing]
    data: Sequence[Drawing]

    def all(self) -> list[Drawing]:
        """Return every figure in the order of the page."""
        return [
            *(*self.differences, *self.bones, *self.roc, *self.router, *self.searches),
            *(*self.winners, *self.data),
        ]


def render_report(rundir: RunDir) -> None:
    """Write report.html and figures/, each whole or not at all."""
    report = read_json(rundir.report_json)
    winners = read_json(rundir.selected)["winners"]
    trials, predictions = pd.read_parquet(rundir.trials), pd.read_parquet(rundir.predictions)
    exploration = read_json(rundir.exploration)
    figures = draw_figures(report, winners, trials, predictions, exploration)
    with atomic_directory(rundir.figures) as partial:
        for drawing in figures.all():
            (partial / f"{drawing.name}.svg").write_text(drawing.svg, encoding="utf-8")
    page = render_page(report, winners, figures, gather_data_parts(exploration, rundir.samples))
    with atomic_write(rundir.report_html) as partial:
        partial.write_text(page, encoding="utf-8")


def render_data_page(rundir: RunDir) -> None:
    """Write data.html, whole or not at all: the data before anything is trained."""
    exploration = read_json(rundir.exploration)
    data = exploration["data"]
    template = make_environment().get_template("data_page.html.j2")
    page = template.render(
        data=data,
        css=read_css(),
        data_figures=draw_data(Canvas(is_phantom=data["is_phantom"]), data, exploration),
        phantom_label=wording.PHANTOM_LABEL,
        **gather_data_parts(exploration, rundir.samples),
    )
    with atomic_write(rundir.data_html) as partial:
        partial.write_text(page, encoding="utf-8")


def draw_figures(
    report: Mapping[str, Any],
    winners: Mapping[str, Any],
    trials: pd.DataFrame,
    predictions: pd.DataFrame,
    exploration: Mapping[str, Any],
) -> Figures:
    """Draw everything the page shows."""
    canvas = Canvas(is_phantom=report["data"]["is_phantom"])
    return Figures(
        differences=draw_differences(canvas, report),
        bones=draw_bones(canvas, report),
        roc=draw_roc(canvas, report, predictions),
        router=draw_confusions(canvas, report["router"]) if report["router"] else [],
        searches=draw_learning_curves(canvas, report, winners, trials),
        winners=draw_winner_curves(canvas, report, winners, trials),
        data=draw_data(canvas, report["data"], exploration),
    )


def make_environment() -> jinja2.Environment:
    """Return what fills the templates; every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "value": wording.format_value,
        "signed": wording.format_signed,
        "interval": wording.format_interval,
        "p": wording.format_p,
        "rate": wording.format_rate,
        "gloss": wording.gloss_system,
        "family": wording.name_family,
        "bones_without": wording.count_bones_without,
        "hide_folders": hide_folders,
        "published": wording.format_published,
        "count": "{:,}".format,
        "share": wording.format_share,
        "data_uri": encode_svg,
    }
    return environment


def read_css() -> Markup:
    """Return the pages' style."""
    return Markup((HERE / "report.css").read_text(encoding="utf-8"))


def render_page(
    report: Mapping[str, Any], winners: Mapping[str, Any], figures: Figures, data_parts: Mapping[str, Any]
) -> str:
    """Fill the template of report.html."""
    headlines = wording.list_headlines(report)
    best_baseline = wording.find_best_baseline(report)
    environment = make_environment()
    return environment.get_template("report.html.j2").render(
        **report,
        **data_parts,
        css=read_css(),
        data_figures=figures.data,
        winners=winners,
        figures=figures,
        headlines=headlines,
        answer=wording.write_answer(headlines, best_baseline),
        best_baseline=best_baseline,
        bone_comparisons=wording.list_bone_comparisons(report),
        other_comparisons=wording.select_comparisons(report, scope="mean_of_bones")
        + wording.select_comparisons(report, scope="pooled"),
        routing_cost=wording.find_routing_cost(report),
        settings=list_settings(report["run"]["config"]),
        paper_notes=wording.PAPER_NOTES,
        audit_answer=wording.describe_audit(report["run"]),
        recipe_glosses=wording.RECIPE_GLOSSES,
        metrics=METRICS,
        phantom_label=wording.PHANTOM_LABEL,
        family_colors=FAMILY_COLORS,
        state_colors=STATE_COLORS,
        part_colors=PART_COLORS,
    )


def encode_svg(drawing: Drawing) -> str:
    """Return a figure as a data URL: nothing inside can reach the page, nor its names another figure's."""
    return "data:image/svg+xml;base64," + b64encode(drawing.svg.encode()).decode()


def list_settings(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return a run's settings as rows; a file is named without its folder."""
    rows: list[tuple[str, str]] = []
    for name, value in config.items():
        if isinstance(value, dict):
            rows += list_settings(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, format_setting(prefix + name, value)))
    return rows


def format_setting(name: str, value: object) -> str:
    """Write one setting; where it was left open, what that means."""
    if value is None:
        return UNSET.get(name, "by default")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else str(value)
