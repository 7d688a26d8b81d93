"""The figures of the data: counts by bone and label, sizes and exposure of the files."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from orchestrator.report.figures import GRID, INK, MUTED, Canvas, Drawing, shorten

LABEL_COLORS = {"normal": "#9cb7c9", "abnormal": "#0b5c8a"}
SPLIT_COLORS = {"train": "#5f6b76", "test": "#b9c0c7"}
UNITS = {"image": "images", "study": "studies"}
BOX_COLOR = "#0072b2"
SPREADS = {
    "width_px": ("Width of the files, by image", "pixels"),
    "height_px": ("Height of the files, by image", "pixels"),
    "mean_gray": ("Exposure, by image", "mean gray level of the image: 0 is black, 255 is white"),
}
MAX_CIRCLE_POINTS2 = 260.0


def draw_data(canvas: Canvas, data: Mapping[str, Any], exploration: Mapping[str, Any]) -> list[Drawing]:
    """Draw the counts by bone and label, then the sizes and exposure of the files."""
    return [
        *(_draw_amounts(canvas, data["splits"], unit) for unit in UNITS),
        *(_draw_labels(canvas, data["splits"], split, unit) for unit in UNITS for split in SPLIT_COLORS),
        *(_draw_spread(canvas, exploration["by_bone"], measure) for measure in SPREADS),
        _draw_sizes(canvas, exploration),
    ]


def _draw_amounts(canvas: Canvas, splits: Mapping[str, Any], unit: str) -> Drawing:
    bones = sorted({bone for part in splits.values() for bone in part["by_bone"]})
    counts = {split: [_count(splits[split], bone, f"num_{UNITS[unit]}") for bone in bones] for split in SPLIT_COLORS}
    with canvas.panel(f"{UNITS[unit].capitalize()} per bone, by {unit}", _height(bones)) as panel:
        _draw_bars(panel.axes, bones, counts, SPLIT_COLORS)
        panel.axes.set_xlabel(UNITS[unit])
    alt = f"{UNITS[unit].capitalize()} per bone in train and test; the table gives the figures"
    return panel.drawing(f"data_amounts_{unit}", alt)


def _draw_labels(canvas: Canvas, splits: Mapping[str, Any], split: str, unit: str) -> Drawing:
    bones = list(splits[split]["by_bone"])
    abnormal = [_count(splits[split], bone, f"num_{UNITS[unit]}_abnormal") for bone in bones]
    every = [_count(splits[split], bone, f"num_{UNITS[unit]}") for bone in bones]
    counts = {"normal": [n - m for n, m in zip(every, abnormal, strict=True)], "abnormal": abnormal}
    with canvas.panel(f"Labels in {split}, by {unit}", _height(bones)) as panel:
        _draw_bars(panel.axes, bones, counts, LABEL_COLORS)
        panel.axes.set_xlabel(UNITS[unit])
    alt = f"Normal and abnormal {UNITS[unit]} per bone in {split}; the table gives the figures"
    return panel.drawing(f"data_labels_{split}_{unit}", alt)


def _draw_bars(
    axes: Axes, bones: Sequence[str], counts: Mapping[str, Sequence[int]], colors: Mapping[str, str]
) -> None:
    """Draw one bar per series for every bone, with its count."""
    for number, (name, values) in enumerate(counts.items()):
        places = [y + (number - 0.5) * 0.36 for y in range(len(bones))]
        axes.barh(places, values, height=0.34, color=colors[name])
        for y, value in zip(places, values, strict=True):
            axes.annotate(f"{value:,}", (value, y), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
    axes.margins(x=0.14)
    _finish(axes, bones)


def _draw_spread(canvas: Canvas, by_bone: Mapping[str, Any], measure: str) -> Drawing:
    """Draw a line from minimum to maximum, a bar over the middle half and a dot on the median."""
    title, label = SPREADS[measure]
    with canvas.panel(title, _height(by_bone)) as panel:
        axes = panel.axes
        for y, measures in enumerate(by_bone.values()):
            spread = measures[measure]
            axes.plot([spread["minimum"], spread["maximum"]], [y, y], color=BOX_COLOR, linewidth=1)
            axes.plot([spread["lower"], spread["upper"]], [y, y], color=BOX_COLOR, linewidth=7, alpha=0.45)
            axes.plot(spread["median"], y, "o", markersize=5.5, color=BOX_COLOR)
        axes.set_xlabel(label)
        axes.set_xlim(0, 255 if measure == "mean_gray" else None)
        _finish(axes, list(by_bone))
    return panel.drawing(f"data_{measure}", f"{title} and bone; the table gives the figures")


def _draw_sizes(canvas: Canvas, exploration: Mapping[str, Any]) -> Drawing:
    """Draw one circle per size, its area proportional to the number of images."""
    step_px, cells = exploration["size_step_px"], exploration["sizes"]
    most = max(cell["num_images"] for cell in cells)
    longest_px = max(max(cell["width_px"], cell["height_px"]) for cell in cells)
    with canvas.panel("Sizes of the files, by image", 4.1) as panel:
        axes = panel.axes
        axes.plot([0, longest_px], [0, longest_px], color=GRID, linewidth=1)
        axes.scatter(
            [cell["width_px"] - step_px / 2 for cell in cells],
            [cell["height_px"] - step_px / 2 for cell in cells],
            s=[max(3.0, MAX_CIRCLE_POINTS2 * cell["num_images"] / most) for cell in cells],
            color=BOX_COLOR,
            alpha=0.45,
            linewidth=0,
        )
        axes.set(xlabel=f"width in pixels; the largest circle is {most:,} images", ylabel="height in pixels")
        axes.set(aspect="equal", xlim=(0, 1.06 * longest_px), ylim=(0, 1.06 * longest_px))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    return panel.drawing("data_sizes", "Width and height of the files; the line marks squares")


def _finish(axes: Axes, bones: Sequence[str]) -> None:
    axes.set_yticks(range(len(bones)), [shorten(bone) for bone in bones])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(bones) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)


def _count(part: Mapping[str, Any], bone: str, what: str) -> int:
    counts = part["by_bone"].get(bone)
    return int(counts[what]) if counts else 0


def _height(bones: Sequence[str] | Mapping[str, Any]) -> float:
    return 1.1 + 0.4 * len(bones)
