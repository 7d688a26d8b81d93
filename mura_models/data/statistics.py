"""The data before anything is trained: sizes, color modes and exposure by bone, and a few train images.

Sizes and color modes are those of the files; exposure is the mean grey level of the image in the store.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from mura_models.data.cache import CachedArray
from mura_models.data.preprocessing_settings import Preprocessing

NUM_SAMPLES = 4
"""Images a bone and label, each of another patient (chosen by us)."""
THUMBNAIL_PX = 96
IMAGES_PER_CHUNK = 512
"""Read from the store at once: 32 MiB of images of 256 px."""
NUM_GRID_STEPS = 32
LABEL_NAMES = ("normal", "abnormal")


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """How a measure spreads over images."""

    minimum: float
    lower: float
    """A quarter of the images lies below."""
    median: float
    upper: float
    maximum: float


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What the files of some rows are like."""

    num_images: int
    width_px: Quantiles
    height_px: Quantiles
    mean_gray: Quantiles
    """0 = black, 255 = white."""
    modes: dict[str, int]
    """Colour mode as Pillow names it -> images, the most frequent first."""


@dataclass(frozen=True, kw_only=True)
class SizeCell:
    """Images whose sides lie within one step below these."""

    width_px: int
    height_px: int
    num_images: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One train image, small, in the proportions of its file."""

    bone: str
    label: str
    width_px: int
    height_px: int
    mode: str
    png: bytes


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """What a look at the data shows; only `samples` leaves test out."""

    overall: Measures
    by_bone: dict[str, Measures]
    size_step_px: int
    sizes: tuple[SizeCell, ...]
    samples: tuple[Sample, ...]


def explore(manifest: pd.DataFrame, images: CachedArray, preprocessing: Preprocessing, *, seed: int) -> Exploration:
    """Measure every image of a manifest and draw samples from its train rows.

    images: the store of these images, made under this preprocessing.
    """
    rows = manifest.assign(mean_gray=measure_gray(images)[images.find_rows(manifest["digest"])])
    step_px = max(1, math.ceil(rows[["width", "height"]].to_numpy().max() / NUM_GRID_STEPS))
    return Exploration(
        overall=_measure(rows),
        by_bone={str(bone): _measure(part) for bone, part in rows.groupby("bone")},
        size_step_px=step_px,
        sizes=tuple(_count_sizes(rows, step_px)),
        samples=tuple(_draw_samples(manifest, images, preprocessing, seed)),
    )


def measure_gray(images: CachedArray) -> NDArray[np.float64]:
    """Return the mean grey level of every image of a store, read a part at a time."""
    means_N = np.empty(len(images.array))
    for start in range(0, len(images.array), IMAGES_PER_CHUNK):
        chunk_BHW = images.array[start : start + IMAGES_PER_CHUNK]
        means_N[start : start + IMAGES_PER_CHUNK] = chunk_BHW.mean(axis=(1, 2))
    return means_N


def _measure(rows: pd.DataFrame) -> Measures:
    modes = rows["mode"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    return Measures(
        num_images=len(rows),
        width_px=_find_quantiles(rows["width"]),
        height_px=_find_quantiles(rows["height"]),
        mean_gray=_find_quantiles(rows["mean_gray"]),
        modes={str(mode): int(count) for mode, count in modes.items()},
    )


def _find_quantiles(values: "pd.Series[float]") -> Quantiles:
    minimum, lower, median, upper, maximum = np.quantile(values.to_numpy(float), (0, 0.25, 0.5, 0.75, 1)).tolist()
    return Quantiles(minimum=minimum, lower=lower, median=median, upper=upper, maximum=maximum)


def _count_sizes(rows: pd.DataFrame, step_px: int) -> Iterator[SizeCell]:
    """Count images on a grid of sizes, so that a figure of any data set stays small."""
    width_px, height_px = (-(-rows[side] // step_px) * step_px for side in ("width", "height"))
    for width, height, count in rows.groupby([width_px, height_px]).size().reset_index().to_numpy():
        yield SizeCell(width_px=int(width), height_px=int(height), num_images=int(count))


def _draw_samples(
    manifest: pd.DataFrame, images: CachedArray, preprocessing: Preprocessing, seed: int
) -> Iterator[Sample]:
    """Draw train images, whatever the order of the rows; bones sorted, normal before abnormal."""
    train = manifest[manifest["split"] == "train"].sort_values(["digest", "path"])
    for bone, of_bone in train.groupby("bone"):
        for label, label_name in enumerate(LABEL_NAMES):
            shuffled = of_bone[of_bone["label"] == label].sample(frac=1, random_state=seed)
            drawn = shuffled.drop_duplicates("digest").drop_duplicates("patient").head(NUM_SAMPLES)
            places = images.find_rows(drawn["digest"])
            for place, row in zip(places, drawn.to_dict("records"), strict=True):
                size = (int(row["width"]), int(row["height"]))
                yield Sample(
                    bone=str(bone),
                    label=label_name,
                    width_px=size[0],
                    height_px=size[1],
                    mode=str(row["mode"]),
                    png=make_thumbnail(images.array[place], size, preprocessing),
                )


def make_thumbnail(image_HW: NDArray[np.uint8], size: tuple[int, int], preprocessing: Preprocessing) -> bytes:
    """Return a PNG of an image, its longer side THUMBNAIL_PX, in the proportions that the file had.

    size: width and height of the file in pixels.
    """
    image = Image.fromarray(image_HW)
    shares = [side / max(size) for side in size]
    if preprocessing.resize == "pad":  # cut off the black beside the image
        width, height = (max(1, round(image.width * share)) for share in shares)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)  # as ImageOps.pad rounds
        image = image.crop((left, top, left + width, top + height))
    width, height = (max(1, round(THUMBNAIL_PX * share)) for share in shares)
    buffer = BytesIO()
    image.resize((width, height), Image.Resampling.LANCZOS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
