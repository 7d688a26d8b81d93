"""What the part on the data is filled with, on data.html and on report.html alike."""

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.report.data_figures import LABEL_COLOURS, SPLIT_COLOURS


@dataclass(frozen=True, kw_only=True)
class Film:
    """A sample as the page shows it."""

    src: str
    """The picture itself, as an address."""
    size: str
    mode: str


def gather_data_parts(exploration: Mapping[str, Any], samples: Path) -> dict[str, Any]:
    """Give the template's variables beside the counts and the figures.

    samples: the folder of the films that the exploration names.
    """
    films: dict[str, dict[str, list[Film]]] = {}
    for sample in exploration["samples"]:
        of_bone = films.setdefault(sample["bone"], {label: [] for label in LABEL_COLOURS})
        of_bone[sample["label"]].append(
            Film(
                src=encode_png((samples / sample["file"]).read_bytes()),
                size=f"{sample['width_px']} \u00d7 {sample['height_px']}",
                mode=sample["mode"],
            )
        )
    return {
        "exploration": exploration,
        "films": films,
        "label_colours": LABEL_COLOURS,
        "split_colours": SPLIT_COLOURS,
    }


def encode_png(content: bytes) -> str:
    """Give a picture as an address that holds it."""
    return "data:image/png;base64," + b64encode(content).decode()
