"""What the part on the data is filled with, on data.html and on report.html alike."""

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.report.data_figures import LABEL_COLORS, SPLIT_COLORS


@dataclass(frozen=True, kw_only=True)
class Image:
    """A sample as the page shows it."""

    src: str
    """The picture itself, as an address."""
    size: str
    mode: str


def gather_data_parts(exploration: Mapping[str, Any], samples: Path) -> dict[str, Any]:
    """Return the template's variables beside the counts and the figures.

    samples: the folder of the images that the exploration names.
    """
    images: dict[str, dict[str, list[Image]]] = {}
    for sample in exploration["samples"]:
        of_bone = images.setdefault(sample["bone"], {label: [] for label in LABEL_COLORS})
        of_bone[sample["label"]].append(
            Image(
                src=encode_png((samples / sample["file"]).read_bytes()),
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


def encode_png(content: bytes) -> str:
    """Return a picture as an address that holds it."""
    return "data:image/png;base64," + b64encode(content).decode()
