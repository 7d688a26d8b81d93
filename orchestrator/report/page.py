"""report.html: one self-contained page from report.json and trials.parquet; data.html from exploration.json."""

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
from orchestrator.report import summary
from orchestrator.report.data_figures import LABEL_COLORS, SPLIT_COLORS, draw_data
from orchestrator.report.figures import (
    KIND_COLORS,
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
from orchestrator.run.names import SystemId, parse_bone
from orchestrator.run.report_schema import read_report

TEMPLATES = Path(__file__).parent / "templates"
METRICS = {
    "auroc": "AUROC",
    "kappa": "Kappa",
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
}
"""Metrics with a column on the page; report.json has more."""
UNSET = {
    "bones": "all",
    "num_steps": "set by the number of images",
    "first_lr": "set per recipe",
    "specialist_lr": "as the baseline's",
    "specialist_probe_steps": "as the baseline's",
    "finetune_steps": "set by the number of images",
    "finetune.backbone_lr_factor": "1, 0.3 and 0.1 in turn",
}
"""What an unset setting means (run/config.py, training/finetune_settings.py)."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample image as the page shows it."""

    src: str
    """The picture itself, as a data URI."""
    size: str
    mode: str


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
    report = read_report(rundir.report_json)
    winners = read_json(rundir.selected)["winners"]
    exploration = read_json(rundir.exploration)
    figures = draw_figures(report, winners, pd.read_parquet(rundir.trials), exploration)
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
        phantom_label=summary.PHANTOM_LABEL,
        bone_gloss=summary.BONE_GLOSS,
        **gather_data_parts(exploration, rundir.samples),
    )
    with atomic_write(rundir.data_html) as partial:
        partial.write_text(page, encoding="utf-8")


def draw_figures(
    report: Mapping[str, Any],
    winners: Mapping[str, Any],
    trials: pd.DataFrame,
    exploration: Mapping[str, Any],
) -> Figures:
    """Draw every figure of the page."""
    canvas = Canvas(is_phantom=report["data"]["is_phantom"])
    return Figures(
        differences=draw_differences(canvas, report),
        bones=draw_bones(canvas, report),
        roc=draw_roc(canvas, report["roc"]),
        router=draw_confusions(canvas, report["router"]) if report["router"] else [],
        searches=draw_learning_curves(canvas, report, winners, trials),
        winners=draw_winner_curves(canvas, report, winners, trials),
        data=draw_data(canvas, report["data"], exploration),
    )


def make_environment() -> jinja2.Environment:
    """Return the Jinja environment of the templates; every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "value": summary.format_value,
        "signed": summary.format_signed,
        "interval": summary.format_interval,
        "p": summary.format_p,
        "rate": summary.format_rate,
        "gloss": summary.gloss_system,
        "kind": lambda system: SystemId.parse(str(system)).kind,
        "target_kind": lambda target: target if parse_bone(target) is None else "specialist",
        "bones_without": summary.count_bones_without,
        "hide_folders": hide_folders,
        "published": summary.format_published,
        "count": "{:,}".format,
        "share": summary.format_share,
        "data_uri": lambda drawing: encode_image(drawing.svg.encode(), "svg+xml"),
    }
    return environment


def read_css() -> Markup:
    """Return the style sheet of the pages."""
    return Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))


def render_page(
    report: Mapping[str, Any], winners: Mapping[str, Any], figures: Figures, data_parts: Mapping[str, Any]
) -> str:
    """Fill the template of report.html."""
    headlines = summary.list_headlines(report)
    return (
        make_environment()
        .get_template("report.html.j2")
        .render(
            **report,
            **data_parts,
            css=read_css(),
            data_figures=figures.data,
            winners=winners,
            figures=figures,
            headlines=headlines,
            answer=summary.write_answer(headlines, report["best_baseline"]),
            bone_comparisons=summary.list_bone_comparisons(report),
            other_comparisons=summary.select_comparisons(report, scope="mean_of_bones")
            + summary.select_comparisons(report, scope="pooled"),
            routing_cost=summary.find_routing_cost(report),
            settings=list_settings(report["run"]["config"]),
            paper_notes=summary.PAPER_NOTES,
            audit_answer=summary.summarize_audit(report["run"]),
            recipe_glosses=summary.RECIPE_GLOSSES,
            metrics=METRICS,
            phantom_label=summary.PHANTOM_LABEL,
            bone_gloss=summary.BONE_GLOSS,
            kind_colors=KIND_COLORS,
            state_colors=STATE_COLORS,
            part_colors=PART_COLORS,
        )
    )


def gather_data_parts(exploration: Mapping[str, Any], samples: Path) -> dict[str, Any]:
    """Return the variables of data.html.j2 other than the counts and the figures.

    samples: the folder of the images that the exploration names.
    """
    images: dict[str, dict[str, list[Sample]]] = {}
    for sample in exploration["samples"]:
        of_bone = images.setdefault(sample["bone"], {label: [] for label in LABEL_COLORS})
        of_bone[sample["label"]].append(
            Sample(
                src=encode_image((samples / sample["file"]).read_bytes(), "png"),
                size=f"{sample['width_px']} \u00d7 {sample['height_px']}",
                mode=sample["mode"],
            )
        )
    return {
        "exploration": exploration,
        "images": images,
        "label_colors": LABEL_COLORS,
        "split_colors": SPLIT_COLORS,
    }


def encode_image(content: bytes, kind: str) -> str:
    """Return a picture as a data URI: nothing inside can reach the page, and no names clash between figures."""
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


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
    """Format one setting; for an unset one, its meaning."""
    if value is None:
        return UNSET.get(name, "by default")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else str(value)
