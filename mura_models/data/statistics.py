"""Statistics of a data set: sizes, color modes and exposure per bone, and a few train images.

Sizes and color modes are those of the files; exposure is the mean gray level of the cached image.
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
"""Images per bone and label, each of another patient (chosen by us)."""
THUMBNAIL_PX = 96
IMAGES_PER_CHUNK = 512
"""Read from the cache at once: 32 MiB of images of 256 px."""
NUM_GRID_STEPS = 32
LABEL_NAMES = ("normal", "abnormal")


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Distribution of a measure over images."""

    minimum: float
    lower: float
    """First quartile."""
    median: float
    upper: float
    """Third quartile."""
    maximum: float


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Properties of a group of images."""

    num_images: int
    width_px: Quantiles
    height_px: Quantiles
    mean_gray: Quantiles
    """0 = black, 255 = white."""
    modes: dict[str, int]
    """Color mode as Pillow names it -> number of images, the most frequent first."""


@dataclass(frozen=True, kw_only=True)
class SizeCell:
    """Number of images whose sides are at most these and less than one step smaller."""

    width_px: int
    height_px: int
    num_images: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A thumbnail of one train image, in the proportions of its file."""

    bone: str
    label: str
    width_px: int
    height_px: int
    mode: str
    png: bytes


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """Statistics of a data set; only `samples` excludes test images."""

    overall: Measures
    by_bone: dict[str, Measures]
    size_step_px: int
    sizes: tuple[SizeCell, ...]
    samples: tuple[Sample, ...]


def explore(manifest: pd.DataFrame, images: CachedArray, preprocessing: Preprocessing, *, seed: int) -> Exploration:
    """Return statistics of all images of a manifest, and samples of its train images.

    images: the cached images, made with this preprocessing.
    """
    measured = manifest.assign(mean_gray=measure_gray(images)[images.find_rows(manifest["digest"])])
    step_px = max(1, math.ceil(measured[["width", "height"]].to_numpy().max() / NUM_GRID_STEPS))
    return Exploration(
        overall=_measure(measured),
        by_bone={str(bone): _measure(part) for bone, part in measured.groupby("bone")},
        size_step_px=step_px,
        sizes=tuple(_count_sizes(measured, step_px)),
        samples=tuple(_draw_samples(manifest, images, preprocessing, seed)),
    )


def measure_gray(images: CachedArray) -> NDArray[np.float64]:
    """Return the mean gray level of every cached image, read in chunks."""
    means_N = np.empty(len(images.array))
    for start in range(0, len(images.array), IMAGES_PER_CHUNK):
        chunk_BHW = images.array[start : start + IMAGES_PER_CHUNK]
        means_N[start : start + IMAGES_PER_CHUNK] = chunk_BHW.mean(axis=(1, 2))
    return means_N


def _measure(part: pd.DataFrame) -> Measures:
    modes = part["mode"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    return Measures(
        num_images=len(part),
        width_px=_quantiles(part["width"]),
        height_px=_quantiles(part["height"]),
        mean_gray=_quantiles(part["mean_gray"]),
        modes={str(mode): int(count) for mode, count in modes.items()},
    )


def _quantiles(values: "pd.Series[float]") -> Quantiles:
    minimum, lower, median, upper, maximum = np.quantile(values.to_numpy(float), (0, 0.25, 0.5, 0.75, 1)).tolist()
    return Quantiles(minimum=minimum, lower=lower, median=median, upper=upper, maximum=maximum)


def _count_sizes(measured: pd.DataFrame, step_px: int) -> Iterator[SizeCell]:
    """Count images on a grid of sizes, so that the figure stays small for any data set."""
    width_px, height_px = (-(-measured[side] // step_px) * step_px for side in ("width", "height"))
    for width, height, count in measured.groupby([width_px, height_px]).size().reset_index().to_numpy():
        yield SizeCell(width_px=int(width), height_px=int(height), num_images=int(count))


def _draw_samples(
    manifest: pd.DataFrame, images: CachedArray, preprocessing: Preprocessing, seed: int
) -> Iterator[Sample]:
    """Draw train images, independent of the order of the rows; bones sorted, normal before abnormal."""
    train = manifest[manifest["split"] == "train"].sort_values(["digest", "path"])
    for bone, of_bone in train.groupby("bone"):
        for label, label_name in enumerate(LABEL_NAMES):
            shuffled = of_bone[of_bone["label"] == label].sample(frac=1, random_state=seed)
            drawn = shuffled.drop_duplicates("digest").drop_duplicates("patient").head(NUM_SAMPLES)
            rows = images.find_rows(drawn["digest"])
            for row, image in zip(rows, drawn.to_dict("records"), strict=True):
                size = (int(image["width"]), int(image["height"]))
                yield Sample(
                    bone=str(bone),
                    label=label_name,
                    width_px=size[0],
                    height_px=size[1],
                    mode=str(image["mode"]),
                    png=make_thumbnail(images.array[row], size, preprocessing),
                )


def make_thumbnail(image_HW: NDArray[np.uint8], size: tuple[int, int], preprocessing: Preprocessing) -> bytes:
    """Return a PNG of an image in the proportions of its file, with a longer side of THUMBNAIL_PX.

    size: width and height of the file in pixels.
    """
    image = Image.fromarray(image_HW)
    shares = [side / max(size) for side in size]
    if preprocessing.resize == "pad":  # cut off the black bars
        width, height = (max(1, round(image.width * share)) for share in shares)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)  # as ImageOps.pad rounds
        image = image.crop((left, top, left + width, top + height))
    width, height = (max(1, round(THUMBNAIL_PX * share)) for share in shares)
    buffer = BytesIO()
    image.resize((width, height), Image.Resampling.LANCZOS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
