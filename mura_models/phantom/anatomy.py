"""Skeletons as tubes in three dimensions, in millimeters, and the traits of a patient.

x runs to the side, y down along the limb, z along the beam. Other projections show the same skeleton turned about y, so
that the projections of a study agree with each other.
"""

from dataclasses import dataclass

import numpy as np

Point = tuple[float, float, float]
Profile = tuple[tuple[float, float, float], ...]  # (position 0..1, half width to the left, to the right)


@dataclass(frozen=True, kw_only=True)
class Tube:
    """A bone, or a part of one: an axis and its half widths along it."""

    start: Point
    end: Point
    profile: Profile
    flatness: float = 1.0  # half depth over half width
    cortex_mm: float = 2.0
    density: float = 1.0
    bend_mm: float = 0.0  # sideways bow of the axis at its middle
    joins: bool = False  # a part of the bone before it, which it overlaps instead of adding to it
    injurable: bool = True


@dataclass(frozen=True, kw_only=True)
class Joint:
    """Two tubes that meet: (index, end) each, end 0 = start, 1 = end."""

    first: tuple[int, int]
    second: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """The content of the images of one bone: bones, flesh, joints and the field that an image covers."""

    bones: tuple[Tube, ...]
    flesh: tuple[Tube, ...]
    joints: tuple[Joint, ...]
    center_mm: tuple[float, float]
    height_mm: float
    width_mm: float


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Properties that all images of one patient share."""

    size: float  # of the whole limb, 1 = typical
    slenderness: float  # length over width of a bone, 1 = typical
    cortex: float
    density: float
    flesh: float
    is_growing: bool  # growth plates still open


def draw_traits(rng: np.random.Generator) -> Traits:
    """Draw a patient."""
    is_growing = bool(rng.random() < 0.15)
    return Traits(
        size=float(rng.uniform(0.7, 0.9) if is_growing else rng.uniform(0.9, 1.1)),
        slenderness=float(rng.uniform(0.88, 1.12)),
        cortex=float(rng.uniform(0.75, 1.25)),
        density=float(rng.uniform(0.75, 1.15)),
        flesh=float(rng.uniform(0.85, 1.25)),
        is_growing=is_growing,
    )


def even(*points: tuple[float, float], scale: float = 1.0) -> Profile:
    """Make a profile that is the same on both sides from (position, half width) pairs."""
    return tuple((position, half * scale, half * scale) for position, half in points)
