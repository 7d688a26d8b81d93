"""The page's figures as SVG text: small panels that a phone can show one below the other.

Every figure names its unit and is labeled if the images are synthetic. The same report gives the same bytes.
"""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orchestrator.report.summary import PHANTOM_LABEL, list_bone_comparisons, select_comparisons
from orchestrator.run.names import SELECTED_ROUTED, SystemId

# Okabe and Ito's colors, distinct to the color-blind; darkened for thin lines on white.
INK, MUTED, GRID, ALARM = "#1f2a33", "#5f6b76", "#dfe3e8", "#a8320a"
KIND_COLORS = {"baseline": "#8a939c", "specialists": "#d55e00", "selected": "#0072b2"}
STATE_COLORS = {"COMPLETE": "#0072b2", "PRUNED": "#e69f00", "FAILED": "#a8320a", "RUNNING": "#b4bcc4"}
STATE_DASHES = {"COMPLETE": "solid", "PRUNED": (0, (4, 2)), "FAILED": (0, (1, 1.5)), "RUNNING": "solid"}

# Laid out with matplotlib's own wide font and shown in the reader's narrower one, so nothing can overlap.
FONT_STACK = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a bone may hold a dollar sign
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "axes.unicode_minus": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mura-study",
}
PANEL_WIDTH_INCHES = 4.3
MAX_LABEL = 18
CELL_TEXT_MAX_CLASSES = 12


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A finished figure."""

    name: str
    """Its file's name without the suffix."""
    alt: str
    svg: str


class Canvas:
    """Draws the panels of one report, all of them labeled if the images are synthetic."""

    def __init__(self, *, is_phantom: bool) -> None:
        self.is_phantom = is_phantom

    @contextmanager
    def panel(self, title: str, height_inches: float, width_inches: float = PANEL_WIDTH_INCHES) -> Iterator["Panel"]:
        """Return axes to draw on; `Panel.drawing` exists once the block has ended."""
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
            axes = figure.add_subplot()
            axes.tick_params(length=0, pad=5)
            figure.suptitle(title, x=0.012, ha="left", fontsize=9.5, fontweight="bold")
            if self.is_phantom:
                axes.set_title(PHANTOM_LABEL, loc="right", fontsize=8, fontweight="bold", color=ALARM, pad=15)
            panel = Panel(axes)
            yield panel
            panel.svg = _write_svg(figure)


class Panel:
    """Axes, and the SVG they become."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.svg = ""

    def drawing(self, name: str, alt: str) -> Drawing:
        """Return the finished panel under a name."""
        return Drawing(name=name, alt=alt, svg=self.svg)


def _write_svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with warnings.catch_warnings():  # the reader's fonts may have glyphs that matplotlib's own lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().replace("'DejaVu Sans'", FONT_STACK)


def shorten(text: str) -> str:
    """Cut a name to the space next to an axis; control characters, which SVG does not allow, become spaces."""
    plain = "".join(character if character.isprintable() else " " for character in text)
    return plain if len(plain) <= MAX_LABEL else f"{plain[: MAX_LABEL - 1]}\u2026"


def draw_differences(canvas: Canvas, report: Mapping[str, Any]) -> list[Drawing]:
    """Draw one forest plot per kind of system and baseline: filled marks are routed, hollow ones know the bone."""
    rows = select_comparisons(report, scope="mean_of_bones", unit="study", metric="auroc")
    rows += list_bone_comparisons(report)
    bounds = [bound for row in rows for bound in (row["ci95"] or [row["difference"] or 0.0])]
    reach = 1.1 * max([0.02, *map(abs, bounds)])
    drawings = []
    for baseline in dict.fromkeys(row["reference"] for row in rows):
        for kind in ("specialists", "selected"):
            mine = [row for row in rows if SystemId.parse(row["system"]).kind == kind and row["reference"] == baseline]
            if mine:
                drawings.append(_draw_forest(canvas, mine, kind, baseline, reach))
    return drawings


def _draw_forest(canvas: Canvas, rows: Sequence[Mapping[str, Any]], kind: str, baseline: str, reach: float) -> Drawing:
    bones = [*dict.fromkeys(row["bone"] for row in rows if row["scope"] == "bone"), None]
    title = f"{kind.capitalize()} \u2212 {baseline}"
    with canvas.panel(title, 1.25 + 0.36 * len(bones)) as panel:
        axes = panel.axes
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.axhline(len(bones) - 1.5, color=GRID, linewidth=0.8)
        for y, bone in enumerate(bones):
            mine = sorted(
                (row for row in rows if row["bone"] == bone), key=lambda row: row["system"]
            )  # the routed one last
            for row in mine:
                is_routed = SystemId.parse(row["system"]).routing == "routed"
                place = y + (0.14 if is_routed else -0.14)
                _draw_interval(axes, row["difference"], row["ci95"], place, KIND_COLORS[kind], is_filled=is_routed)
            _write_reason(axes, y, [(row["difference"], row["ci95"], row["reason"]) for row in mine])
        axes.set_yticks(range(len(bones)), ["mean over bones" if b is None else shorten(b) for b in bones])
        axes.get_yticklabels()[-1].set_fontweight("bold")
        axes.set(xlim=(-reach, reach), ylim=(len(bones) - 0.4, -0.6))
        axes.set_xlabel("difference in study-level AUROC on test, 95% CI")
        axes.text(0.475, 1.01, "\u2190 baseline better", ha="right", transform=axes.transAxes, **_NOTE)
        axes.text(0.525, 1.01, "system better \u2192", transform=axes.transAxes, **_NOTE)
        axes.xaxis.set_major_locator(MaxNLocator(5, symmetric=True))
        axes.spines["left"].set_visible(False)
    return panel.drawing(
        f"differences_{kind}_{baseline}",
        f"Study-level AUROC differences of {kind} and {baseline}, bone by bone; the tables give the figures",
    )


def _draw_interval(
    axes: Axes, value: float | None, ci95: Sequence[float] | None, y: float, color: str, *, is_filled: bool
) -> None:
    if value is None:
        return
    if ci95:
        axes.plot(ci95, [y, y], color=color, linewidth=1.6, solid_capstyle="butt")
    axes.plot(value, y, "o", markersize=5.5, color=color, markerfacecolor=color if is_filled else "white")


def _write_reason(
    axes: Axes, y: float, marks: Sequence[tuple[float | None, Sequence[float] | None, str | None]]
) -> None:
    """Write once per row why marks or intervals are missing: (value, interval, reason) of each, the filled one last."""
    lacking = [(value, str(reason)) for value, ci95, reason in marks if ci95 is None]
    if not lacking:
        return
    text, value = ", ".join(dict.fromkeys(reason for _, reason in lacking)), lacking[-1][0]
    if value is not None:
        axes.annotate(text, (value, y), (8, 0), textcoords="offset points", va="center", **_NOTE)
        return
    is_alone = all(mark[0] is None for mark in marks)
    place, y = axes.get_yaxis_transform(), y if is_alone else y - 0.28  # above another's mark
    axes.annotate(text, (0.5, y), (8, 0), place, "offset points", va="center", **_NOTE)


_NOTE: dict[str, Any] = {"fontsize": 8, "fontstyle": "italic", "color": MUTED}


def draw_bones(canvas: Canvas, report: Mapping[str, Any]) -> list[Drawing]:
    """Draw AUROC and kappa by true bone, for the best baseline and the selected system."""
    systems = (report["best_baseline"], str(SELECTED_ROUTED))
    drawings = []
    for metric, label in (("auroc", "AUROC"), ("kappa", "kappa")):
        bones = list(report["systems"][systems[-1]]["by_bone"])
        with canvas.panel(f"{label} by bone, by study", 1.2 + 0.36 * len(bones)) as panel:
            axes = panel.axes
            axes.axvline(0.5 if metric == "auroc" else 0, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
            for y, bone in enumerate(bones):
                estimates = [report["systems"][name]["by_bone"][bone]["study"][metric] for name in systems]
                for number, (name, estimate) in enumerate(zip(systems, estimates, strict=True)):
                    place, color = y + (0.14 if number else -0.14), KIND_COLORS[SystemId.parse(name).kind]
                    _draw_interval(axes, estimate["value"], estimate["ci95"], place, color, is_filled=number == 1)
                _write_reason(axes, y, [(e["value"], e["ci95"], e.get("reason")) for e in estimates])
            axes.set_yticks(range(len(bones)), [shorten(bone) for bone in bones])
            axes.set(ylim=(len(bones) - 0.4, -0.6), xlabel=f"study-level {label} on test, 95% CI")
            axes.set_xlim(right=1.02)
            axes.grid(axis="x", color=GRID, linewidth=0.8)
            axes.set_axisbelow(True)
            axes.spines["left"].set_visible(False)
        drawings.append(panel.drawing(f"bones_{metric}", f"Study-level {label} by bone of {' and '.join(systems)}"))
    return drawings


def draw_roc(canvas: Canvas, panels: Sequence[Mapping[str, Any]]) -> list[Drawing]:
    """Draw the ROC curves by image, all bones first."""
    drawings = []
    for number, roc in enumerate(panels):
        part = "all bones" if roc["bone"] is None else roc["bone"]
        with canvas.panel(shorten(part), 3.4, 3.2) as panel:
            axes = panel.axes
            axes.plot([0, 1], [0, 1], color=GRID, linewidth=1)
            for name, curve in roc["curves"].items():
                kind = SystemId.parse(name).kind
                width = 4.0 if kind == "baseline" else 1.3
                axes.plot(curve["false_positive_rate"], curve["sensitivity"], color=KIND_COLORS[kind], linewidth=width)
            counts = f"{roc['num_abnormal']} abnormal, {roc['num_normal']} normal"
            axes.text(0.98, 0.04, counts, ha="right", **_NOTE)
            axes.set(xlabel="1 \u2212 specificity, by image", ylabel="sensitivity, by image")
            axes.set(aspect="equal", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=_FIFTHS, yticks=_FIFTHS)
        drawings.append(panel.drawing(f"roc_{number:02d}", f"ROC curves by image, {part}"))
    return drawings


_FIFTHS = (0, 0.2, 0.4, 0.6, 0.8, 1)


def draw_confusions(canvas: Canvas, router: Mapping[str, Any]) -> list[Drawing]:
    """Draw the router's confusion by image and by study; the shades of a row sum to one."""
    classes = [shorten(bone) for bone in router["classes"]]
    drawings = []
    for unit in ("image", "study"):
        counts_CC = np.array(router[unit]["confusion"])
        share_CC = counts_CC / np.maximum(counts_CC.sum(axis=1, keepdims=True), 1)
        with canvas.panel(f"Router, by {unit}", 1.5 + 0.36 * max(len(classes), 4)) as panel:
            axes = panel.axes
            edges = np.arange(len(classes) + 1) - 0.5
            axes.pcolormesh(edges, edges, share_CC, cmap="Blues", vmin=0, vmax=1.15, edgecolors="white", linewidth=1)
            axes.invert_yaxis()
            is_narrow = sum(map(len, classes)) > 34
            turn: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if is_narrow else {}
            axes.set_xticks(range(len(classes)), classes, **turn)
            axes.set_yticks(range(len(classes)), classes)
            axes.set(xlabel=f"bone predicted by the router ({unit} counts)", ylabel="true bone")
            axes.spines[:].set_visible(False)
            if len(classes) <= CELL_TEXT_MAX_CLASSES:
                for (true, named), count in np.ndenumerate(counts_CC):
                    color = "white" if share_CC[true, named] > 0.6 else INK if count else "#b4bcc4"
                    axes.text(named, true, f"{count}", ha="center", va="center", fontsize=8, color=color)
        drawings.append(panel.drawing(f"router_{unit}", f"Confusion matrix of the router by {unit}"))
    return drawings
