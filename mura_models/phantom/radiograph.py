"""Turns thickness along the beam into an image: exposure, noise, collimation, side markers."""

from dataclasses import dataclass
from functools import lru_cache
from math import cos, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFilter, ImageFont

from mura_models.phantom.projection import Image

MAX_SIDE_PX = 512  # MURA's images are scaled to fit this
TILE_PX = 1024
MIN_SIDE_PX = 89  # the shortest side in MURA


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one image was taken and processed."""

    dose: float  # overall attenuation against the typical
    gamma: float
    haze: float  # of the background, 0..1
    noise: float
    blur_px: float
    grain: float  # contrast of the trabecular texture
    collimation: tuple[float, float, float, float, float] | None  # four margins over the side, rotation
    marker: str  # empty = none
    num_folds: int
    has_line: bool
    has_cast: bool
    height_px: int
    width_px: int
    is_rgb: bool


def draw_style(aspect: float, rng: np.random.Generator) -> Style:
    """Draw how an image was taken; `aspect` is width over height."""
    longest = MAX_SIDE_PX if rng.random() < 0.85 else int(rng.integers(200, MAX_SIDE_PX))
    ratio = float(np.clip(aspect * rng.uniform(0.85, 1.2), 0.45, 2.2))
    shortest = max(MIN_SIDE_PX, round(longest * min(ratio, 1 / ratio)))
    margins = rng.uniform(0, 0.1, 4)
    return Style(
        dose=float(rng.lognormal(-0.6, 0.3)),
        gamma=float(rng.uniform(1.1, 1.9)),
        haze=float(rng.uniform(0.0, 0.12)),
        noise=float(rng.uniform(0.004, 0.015)),
        blur_px=float(rng.uniform(0.2, 0.9)),
        grain=float(rng.uniform(0.07, 0.2)),
        collimation=(*margins.tolist(), float(rng.normal(0, 0.05))) if rng.random() < 0.45 else None,
        marker=str(rng.choice(["L", "R"])) if rng.random() < 0.6 else "",
        num_folds=int(rng.choice([0, 0, 0, 1, 2])),
        has_line=bool(rng.random() < 0.08),
        has_cast=bool(rng.random() < 0.06),
        height_px=longest if ratio < 1 else shortest,
        width_px=shortest if ratio < 1 else longest,
        is_rgb=bool(rng.random() < 0.2),
    )


def draw_noise(shape: tuple[int, int], grain_px: float, rng: np.random.Generator) -> Image:
    """Return smooth unit-variance noise with grains of about `grain_px`: a window on a fixed tile."""
    top, left = rng.integers(0, TILE_PX - MAX_SIDE_PX, 2)
    return make_tile(grain_px)[top : top + shape[0], left : left + shape[1]]


@lru_cache(maxsize=16)
def make_tile(grain_px: float) -> Image:
    """Make the noise that images are cut from, once per process: drawing it for each image is a third of the time."""
    coarse_px = int(TILE_PX / grain_px)
    coarse = np.random.default_rng(coarse_px).standard_normal((coarse_px, coarse_px), dtype=np.float32)
    smooth = resize(coarse, (TILE_PX, TILE_PX))
    return np.asarray(smooth / smooth.std(), dtype=np.float32)


def resize(image: Image, shape: tuple[int, int]) -> Image:
    """Return the image at (height, width), by bicubic interpolation."""
    bicubic = PillowImage.Resampling.BICUBIC
    return np.asarray(PillowImage.fromarray(image).resize((shape[1], shape[0]), bicubic), dtype=np.float32)


def expose(bone_mm: Image, flesh_mm: Image, style: Style, rng: np.random.Generator) -> PillowImage.Image:
    """Turn millimeters of bone and of (coarse) flesh into an 8-bit image."""
    shape = (style.height_px, style.width_px)
    weave = 0.7 * draw_noise(shape, 2.2, rng) + 0.5 * draw_noise(shape, 5.5, rng)
    flesh = np.maximum(resize(flesh_mm, shape), 0) * (1 + 0.03 * draw_noise(shape, 30, rng))
    attenuation = 0.055 * bone_mm * (1 + np.float32(style.grain) * weave) + 0.010 * flesh
    attenuation += _draw_overlays(shape, style, rng) * (flesh > 1)
    light = 1 - np.exp(np.float32(-style.dose) * np.maximum(attenuation, 0))
    light /= max(float(np.quantile(light[::8, ::8], 0.985)), 0.05) * 1.08
    light = np.float32(style.haze) + np.float32(1 - style.haze) * np.clip(light, 0, 1) ** np.float32(style.gamma)
    light += np.float32(style.noise) * draw_noise(shape, 1.4, rng)
    image = PillowImage.fromarray(np.clip(light * 245, 0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.BoxBlur(style.blur_px))
    if style.marker:
        _stamp_marker(image, style.marker, rng)
    if style.collimation is not None:
        image = PillowImage.composite(image, PillowImage.new("L", image.size, 3), _draw_aperture(style))
    return image.convert("RGB") if style.is_rgb else image


def _draw_overlays(shape: tuple[int, int], style: Style, rng: np.random.Generator) -> Image:
    """Return overlays that do not depend on the label: skin folds, a line, a cast."""
    height, width = shape
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None, :]
    total = np.zeros(shape, np.float32)
    widths_and_strengths = [(rng.uniform(2.0, 5.0), rng.uniform(-0.06, 0.06)) for _ in range(style.num_folds)]
    if style.has_line:
        widths_and_strengths.append((rng.uniform(0.8, 1.6), rng.uniform(0.1, 0.3)))
    for half_width, strength in widths_and_strengths:
        angle, bow = rng.uniform(0, np.pi), rng.normal(0, 0.0012)
        dx, dy = x - width * rng.uniform(0.25, 0.75), y - height * rng.uniform(0.25, 0.75)
        along = dx * np.float32(cos(angle)) + dy * np.float32(sin(angle))
        away = dy * np.float32(cos(angle)) - dx * np.float32(sin(angle)) + np.float32(bow) * along * along
        total += np.float32(strength) * np.exp(-((away / np.float32(half_width)) ** 2))
    if style.has_cast:
        total += 0.15 + 0.02 * draw_noise(shape, 9, rng)
    return total


def _stamp_marker(image: PillowImage.Image, letter: str, rng: np.random.Generator) -> None:
    """Stamp a lead letter near a corner, sometimes rotated."""
    size = int(max(image.size) * rng.uniform(0.05, 0.09)) + 6
    stamp = PillowImage.new("L", (size * 2, size * 2))
    ImageDraw.Draw(stamp).text((size, size), letter, fill=255, font=ImageFont.load_default(size), anchor="mm")
    stamp = stamp.rotate(float(rng.choice([0, 0, 90, rng.uniform(-30, 30)])), PillowImage.Resampling.BILINEAR)
    free_x, free_y = image.width - 2 * size, image.height - 2 * size
    x = int(free_x * float(rng.choice([rng.uniform(0, 0.12), rng.uniform(0.88, 1)])))
    y = int(free_y * float(rng.uniform(0, 1)))
    image.paste(int(rng.integers(215, 256)), (x, y), stamp)


def _draw_aperture(style: Style) -> PillowImage.Image:
    """Return the mask of the collimator's aperture: a slightly rotated rectangle."""
    assert style.collimation is not None
    left, top, right, bottom, angle = style.collimation
    width, height = style.width_px, style.height_px
    corners = [(left, top), (1 - right, top), (1 - right, 1 - bottom), (left, 1 - bottom)]
    c, s = cos(angle), sin(angle)
    points = [
        (
            (x - 0.5) * width * c - (y - 0.5) * height * s + width / 2,
            (x - 0.5) * width * s + (y - 0.5) * height * c + height / 2,
        )
        for x, y in corners
    ]
    mask = PillowImage.new("L", (width, height))
    ImageDraw.Draw(mask).polygon(points, fill=255)
    return mask.filter(ImageFilter.GaussianBlur(0.8))


def make_mask(mask: NDArray[np.bool_]) -> PillowImage.Image:
    """Return a mask as an image of 0 and 255."""
    return PillowImage.fromarray(mask.astype(np.uint8) * 255)
