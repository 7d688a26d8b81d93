"""Learning curves: every trial of a search by its dev score, and the winner's loss and accuracy on train and dev."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from orchestrator.report.figures import ALARM, GRID, INK, MUTED, STATE_COLORS, STATE_DASHES, Canvas, Drawing, shorten
from orchestrator.run.names import SearchId, specialist_target

METRIC_LABELS = {"auroc": "AUROC", "macro_f1": "macro F1", "image_accuracy": "accuracy at 0.5"}
METRICS_BY_IMAGE = ("macro_f1", "image_accuracy")
"""The others are by study (mura_models/training/dev_metrics.py)."""
PART_COLORS = {"train": "#009e73", "dev": INK}
PART_DASHES = {"train": (0, (4, 2)), "dev": "solid"}
SEARCH_PANEL = {"height_inches": 2.5, "width_inches": 3.6}
WINNER_PANEL = {"height_inches": 2.2, "width_inches": 2.6}


def draw_learning_curves(
    canvas: Canvas, report: Mapping[str, Any], winners: Mapping[str, Mapping[str, Any]], trials: pd.DataFrame
) -> list[Drawing]:
    """Draw one panel per search: its dev metric by epoch, one line per trial, the winner's thick."""
    drawings = []
    for number, search in enumerate(report["run"]["searches"]):
        rows = trials[trials["search"] == search]
        metric = "macro_f1" if SearchId.parse(search).is_router else report["run"]["config"]["metric"]
        winner = winners.get(search, {}).get("trial")
        with canvas.panel(str(shorten_search(search)), **SEARCH_PANEL) as panel:
            axes = panel.axes
            for trial, epochs in rows.groupby("trial"):
                _draw_curve(axes, epochs, f"dev_{metric}", is_winner=trial == winner)
            unit = "image" if metric in METRICS_BY_IMAGE else "study"
            axes.set_ylabel(f"{METRIC_LABELS.get(metric, metric)} on dev, by {unit}")
            _finish(axes, report["run"]["searches"][search]["max_epochs"])
            if not winner:
                axes.text(0.5, 0.5, "no winner", transform=axes.transAxes, ha="center", color=ALARM)
        drawings.append(panel.drawing(f"learning_curves_{number:02d}", f"Learning curves of {search}"))
    return drawings


def draw_winner_curves(
    canvas: Canvas, report: Mapping[str, Any], winners: Mapping[str, Mapping[str, Any]], trials: pd.DataFrame
) -> list[Drawing]:
    """Draw two panels per search winner: loss, then accuracy, on train and dev, by image.

    A ring marks the epoch whose weights were kept, if selected.json names one.
    """
    drawings = []
    for number, search in enumerate(report["run"]["searches"]):
        if search not in winners:
            continue
        winner = winners[search]
        epochs = trials[trials["trial"] == winner["trial"]]
        short = shorten_search(search)
        title = f"{short.target}/\n{short.recipe}"
        dev_accuracy = "dev_accuracy" if short.is_router else "dev_image_accuracy"
        for measure, dev in (("loss", "dev_loss"), ("accuracy", dev_accuracy)):
            with canvas.panel(title, **WINNER_PANEL) as panel:
                for part, column in (("train", f"train_{measure}"), ("dev", dev)):
                    _draw_part(panel.axes, epochs, column, part, kept_epoch=winner.get("kept_epoch"))
                panel.axes.set_ylabel(f"{measure}, by image")
                _finish(panel.axes, report["run"]["searches"][search]["max_epochs"])
            name = f"winner_{measure}_{number:02d}"
            drawings.append(panel.drawing(name, f"{measure.capitalize()} of the winner of {search} on train and dev"))
    return drawings


def shorten_search(search: str) -> SearchId:
    """Cut the bone in a search's name."""
    found = SearchId.parse(search)
    return found if found.bone is None else SearchId(specialist_target(shorten(found.bone)), found.recipe)


def _finish(axes: Axes, num_epochs: int) -> None:
    axes.set_xlabel("epoch")
    axes.set_xlim(0.5, num_epochs + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_curve(axes: Axes, epochs: pd.DataFrame, metric: str, *, is_winner: bool) -> None:
    if metric not in epochs:
        return
    state = str(epochs["state"].iloc[-1])
    axes.plot(
        epochs["epoch"],
        epochs[metric],
        color=INK if is_winner else STATE_COLORS.get(state, MUTED),
        linestyle="solid" if is_winner else STATE_DASHES.get(state, "solid"),
        linewidth=2.4 if is_winner else 0.9,
        alpha=1.0 if is_winner else 0.75,
        marker="o" if len(epochs) == 1 else None,
        markersize=3,
        zorder=3 if is_winner else 2,
    )


def _draw_part(axes: Axes, epochs: pd.DataFrame, column: str, part: str, *, kept_epoch: int | None) -> None:
    if column not in epochs or epochs[column].isna().all():
        return
    color = PART_COLORS[part]
    dot = "o" if len(epochs) == 1 else None
    axes.plot(epochs["epoch"], epochs[column], color=color, linestyle=PART_DASHES[part], linewidth=1.4, marker=dot)
    kept = epochs[epochs["epoch"] == kept_epoch]
    ring: dict[str, Any] = {"color": color, "markerfacecolor": "white", "markersize": 7, "linestyle": "none"}
    axes.plot(kept["epoch"], kept[column].astype(np.float64), "o", zorder=3, **ring)
