"""Projects tubes to millimeters of bone and flesh along the beam."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import cos, hypot, sin
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mura_models.phantom.anatomy import Point, Profile, Skeleton, Traits, Tube

Image = NDArray[np.float32]
STATIONS = 257  # along an axis, where half widths are tabulated


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Direction from which one image shows the skeleton, and size of the image."""

    turn: float  # about the limb's axis: 0 from the front, pi / 2 from the side
    rotation: float  # in the plane of the image
    is_mirrored: bool  # left or right limb
    px_per_mm: float
    center_mm: tuple[float, float]
    height_px: int
    width_px: int

    def project(self, point: Point) -> tuple[float, float]:
        """Return (x, y) in pixels."""
        x, y, z = point
        x = (x - self.center_mm[0]) * cos(self.turn) + z * sin(self.turn)
        y = y - self.center_mm[1]
        if self.is_mirrored:
            x = -x
        c, s = cos(self.rotation), sin(self.rotation)
        return (
            (x * c - y * s) * self.px_per_mm + self.width_px / 2,
            (x * s + y * c) * self.px_per_mm + self.height_px / 2,
        )


def frame_skeleton(skeleton: Skeleton, *, height_px: int, width_px: int) -> Projection:
    """Return the plain frontal projection that fits the skeleton's field into the image."""
    return Projection(
        turn=0.0,
        rotation=0.0,
        is_mirrored=False,
        px_per_mm=min(height_px / skeleton.height_mm, width_px / skeleton.width_mm),
        center_mm=skeleton.center_mm,
        height_px=height_px,
        width_px=width_px,
    )


@dataclass(frozen=True, kw_only=True)
class Patch:
    """The pixels around one tube, with their positions in the tube's own coordinates, in pixels."""

    rows: slice
    columns: slice
    along: Image
    across: Image
    half: Image  # half width of the bone here
    length: float
    width: float  # half width at mid-length


class Change(Protocol):
    """Effect of a finding on the tube that it is in."""

    def shift(self, patch: Patch) -> Image:
        """Return how far across the bone has moved, in pixels."""

    def apply(self, patch: Patch, thickness: Image) -> tuple[Image, NDArray[np.bool_]]:
        """Return the changed thickness and the mask of the change."""


@lru_cache(maxsize=1024)
def tabulate_profile(profile: Profile, cap: float) -> NDArray[np.float32]:
    """Return smooth half widths (left, right) at STATIONS, with ends rounded over `cap` of the length."""
    along = np.linspace(0, 1, STATIONS)
    points = np.array(profile)
    kernel = np.hanning(27) / np.hanning(27).sum()
    sides = [np.interp(along, points[:, 0], points[:, side]) for side in (1, 2)]
    smooth = [np.convolve(np.pad(side, 13, mode="edge"), kernel, "valid") for side in sides]
    inward = np.clip(np.minimum(along, 1 - along) / cap, 0, 1)
    return (np.stack(smooth) * (1 - (1 - inward) ** 2.4) ** (1 / 2.4)).astype(np.float32)


def project_tube(
    tube: Tube, projection: Projection, margin: float = 1.15
) -> tuple[Patch, float, NDArray[np.intp]] | None:
    """Return the patch that a tube covers, its depth over its width, and the station of every pixel.

    None if the tube is outside the image.
    """
    (x0, y0), (x1, y1) = projection.project(tube.start), projection.project(tube.end)
    length = max(hypot(x1 - x0, y1 - y0), 2.0)
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    # The effect of turning a tube depends on how far it runs along the axis of the turn.
    upright = abs(dy * cos(projection.rotation) - dx * sin(projection.rotation))
    c, s = cos(projection.turn), sin(projection.turn)
    narrowing = 1 + (hypot(c, tube.flatness * s) - 1) * upright
    depth = hypot(tube.flatness * c, s) / narrowing
    bend = tube.bend_mm * projection.px_per_mm * (1 + (c - 1) * upright)

    widest = max(max(left, right) for _, left, right in tube.profile)
    cap = round(min(0.5, 0.38 * widest * projection.px_per_mm * narrowing / length), 2)
    sides = tabulate_profile(tube.profile, max(cap, 0.01)) * np.float32(narrowing * projection.px_per_mm)
    window = crop_to_image((x0, y0), (x1, y1), float(sides.max()) * margin + abs(bend) + 2, projection)
    if window is None:
        return None
    rows, columns = window
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(y0)
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None, :] - np.float32(x0)
    along = x * np.float32(dx) + y * np.float32(dy)
    across = (x * np.float32(-dy) + y * np.float32(dx)) * np.float32(-1 if projection.is_mirrored else 1)
    position = along * np.float32(1 / length)
    station = np.clip(position * (STATIONS - 1), 0, STATIONS - 1).astype(np.intp)
    # The side that is wider from the front is not wider from the side.
    middle = (sides[1] - sides[0]) / 2 * np.float32(c)
    across -= np.float32(4 * bend) * position * (1 - position) + middle[station]
    patch = Patch(
        rows=rows,
        columns=columns,
        along=along,
        across=across,
        half=sides.mean(axis=0)[station],
        length=length,
        width=float(sides[:, STATIONS // 2].mean()),
    )
    return patch, depth, station


def crop_to_image(
    start: tuple[float, float], end: tuple[float, float], reach: float, projection: Projection
) -> tuple[slice, slice] | None:
    """Return the rows and columns of the image within `reach` pixels of an axis; None if there are none."""
    (x0, y0), (x1, y1) = start, end
    rows = slice(max(0, int(min(y0, y1) - reach)), min(projection.height_px, int(max(y0, y1) + reach)))
    columns = slice(max(0, int(min(x0, x1) - reach)), min(projection.width_px, int(max(x0, x1) + reach)))
    return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None


def measure_chord(half: Image, across: Image) -> Image:
    """Return the length of a beam inside a round rod, at `across` from its axis."""
    chord = half * half - across * across
    return np.asarray(2 * np.sqrt(np.maximum(chord, 0, out=chord), out=chord), dtype=np.float32)


def draw_bones(
    bones: Sequence[Tube], projection: Projection, traits: Traits, changes: dict[int, list[Change]]
) -> tuple[Image, NDArray[np.bool_]]:
    """Return millimeters of compact bone along the beam, and the mask of the changes (by index of the bone).

    Bones add up where they overlap; the parts of one bone (`Tube.joins`) do not.
    """
    total = np.zeros((projection.height_px, projection.width_px), np.float32)
    mask = np.zeros((projection.height_px, projection.width_px), np.bool_)
    below = total.copy()  # everything but the present bone, so that its parts can be merged
    for index, tube in enumerate(bones):
        here = changes.get(index, [])
        found = project_tube(tube, projection, margin=1.9 if here else 1.15)  # metal stands out beyond the bone
        if found is None:
            continue
        patch, depth, station = found
        moved = sum((change.shift(patch) for change in here), np.zeros(1, np.float32))
        thickness = measure_bone(tube, patch, patch.across + moved, station, traits, px_per_mm=projection.px_per_mm)
        thickness *= np.float32(depth)
        window = (patch.rows, patch.columns)
        for change in here:
            thickness, shows = change.apply(patch, thickness)
            mask[window] |= shows
        if tube.joins:
            total[window] = np.maximum(total[window], below[window] + thickness)
        else:
            below[...] = total
            total[window] += thickness
    return total, mask


def measure_bone(
    tube: Tube, patch: Patch, across: Image, station: NDArray[np.intp], traits: Traits, *, px_per_mm: float
) -> Image:
    """Return millimeters of compact bone in a round tube: a dense wall, and marrow denser at the ends."""
    towards_end = np.abs(np.linspace(-1, 1, STATIONS, dtype=np.float32)) ** 3
    wall = tube.cortex_mm * traits.cortex * px_per_mm * (1 - 0.72 * towards_end)
    marrow = tube.density * traits.density * (0.16 + 0.16 * towards_end)
    hollow = measure_chord(np.maximum(patch.half - wall[station], 0), across)
    bone = measure_chord(patch.half, across) - (1 - marrow[station]) * hollow
    if traits.is_growing and tube.injurable and patch.length > 3 * patch.width:
        bone *= draw_growth_plate(patch)
    return np.asarray(bone * (tube.density / px_per_mm), dtype=np.float32)


def draw_growth_plate(patch: Patch) -> Image:
    """Return a factor on the thickness: an open growth plate near the start of a child's bone."""
    at = 0.9 * patch.width + 0.06 * patch.across * patch.across / max(patch.width, 1)
    distance = (patch.along - at) / max(0.09 * patch.width, 0.8)
    return 1 - np.float32(0.6) * np.exp(-distance * distance)


def draw_flesh(flesh: Sequence[Tube], projection: Projection) -> Image:
    """Return millimeters of soft tissue along the beam, drawn at a quarter of the size."""
    coarse = Projection(
        turn=projection.turn,
        rotation=projection.rotation,
        is_mirrored=projection.is_mirrored,
        px_per_mm=projection.px_per_mm / 4,
        center_mm=projection.center_mm,
        height_px=-(-projection.height_px // 4),
        width_px=-(-projection.width_px // 4),
    )
    total = np.zeros((coarse.height_px, coarse.width_px), np.float32)
    for tube in flesh:
        found = project_tube(tube, coarse)
        if found is None:
            continue
        patch, depth, _ = found
        chord = measure_chord(patch.half, patch.across) * np.float32(depth / coarse.px_per_mm)
        # The third norm: parts that meet blend, and do not add up to a bright seam.
        total[patch.rows, patch.columns] += chord**3
    return np.cbrt(total)
