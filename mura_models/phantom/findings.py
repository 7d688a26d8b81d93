"""Findings that make a study abnormal: fracture, hardware, lytic lesion, worn joint."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import cos, sin

import numpy as np
from numpy.typing import NDArray

from mura_models.phantom.anatomy import Joint, Point, Skeleton
from mura_models.phantom.projection import Change, Image, Patch, Projection, frame_skeleton

METAL = 9.0  # millimeters of compact bone that attenuate like a millimeter of steel, about


@dataclass(frozen=True, kw_only=True)
class Fracture:
    """A thin dark line across a bone; the part beyond it is displaced."""

    position: float  # along the bone, 0..1
    slope: float
    gap: float  # half width of the line over the bone's
    offset: float  # over the bone's half width
    depth: float  # of the line, 0..1
    teeth: tuple[float, ...]  # the line's jaggedness, over the bone's half width

    def measure_distance(self, patch: Patch) -> Image:
        """Return how far beyond the line each pixel is, in pixels."""
        across = np.clip(patch.across / max(patch.width, 1), -1.5, 1.5)
        jag = np.interp(across, np.linspace(-1.5, 1.5, len(self.teeth)), self.teeth)
        line = self.position * patch.length + (self.slope * across + jag) * patch.width
        return np.asarray(patch.along - line, dtype=np.float32)

    def shift(self, patch: Patch) -> Image:
        beyond = np.clip(self.measure_distance(patch) / 1.5 + 0.5, 0, 1)
        return np.asarray(beyond * self.offset * patch.width, dtype=np.float32)

    def apply(self, patch: Patch, thickness: Image) -> tuple[Image, NDArray[np.bool_]]:
        distance = np.abs(self.measure_distance(patch))
        gap = max(self.gap * patch.width, 0.9)
        line = np.exp(-((distance / gap) ** 2)) * np.float32(self.depth)
        near = (distance < 2.5 * gap + 1) & (np.abs(patch.across) < patch.half * 1.1 + 1)
        return thickness * (1 - line), near


@dataclass(frozen=True, kw_only=True)
class Lysis:
    """A dark, irregular hole in a bone, with a faint rim."""

    position: float
    side: float  # -1..1 across the bone
    radius: float  # over the bone's half width
    depth: float
    lobes: tuple[float, float, float]  # phases of the outline

    def shift(self, patch: Patch) -> Image:
        return np.zeros(1, np.float32)

    def apply(self, patch: Patch, thickness: Image) -> tuple[Image, NDArray[np.bool_]]:
        radius = max(self.radius * patch.width, 2.0)
        along = (patch.along - self.position * patch.length) / (1.3 * radius)
        across = (patch.across - self.side * patch.width) / radius
        angle = np.arctan2(across, along)
        outline = 1 + 0.14 * sum(np.sin((k + 2) * angle + phase) for k, phase in enumerate(self.lobes))
        distance = np.hypot(along, across) / outline
        hole = 0.5 - 0.5 * np.tanh((distance - 1) * 3.5)
        rim = 0.25 * self.depth * np.exp(-(((distance - 1.25) / 0.15) ** 2))
        changed = thickness * (1 - np.float32(self.depth) * hole + rim)
        return changed.astype(np.float32), (distance < 1.1) & (thickness > 0)


@dataclass(frozen=True, kw_only=True)
class WornEnd:
    """One side of a worn joint: the end reaches into the gap, dense and lipped."""

    end: int  # 0 = start, 1 = end
    reach: float  # into the gap, over the bone's half width at the end
    density: float

    def shift(self, patch: Patch) -> Image:
        return np.zeros(1, np.float32)

    def apply(self, patch: Patch, thickness: Image) -> tuple[Image, NDArray[np.bool_]]:
        inward = patch.length - patch.along if self.end else patch.along
        span = float(np.quantile(patch.half, 0.9)) + 1
        edge = np.exp(-(((inward - 0.18 * span) / (0.3 * span)) ** 2))
        plate = edge * np.clip(1.25 - np.abs(patch.across) / span, 0, 0.4) / 0.4
        lip = np.exp(-(((inward - 0.1 * span) / (0.2 * span)) ** 2)) * np.exp(
            -(((np.abs(patch.across) - span) / (0.25 * span)) ** 2)
        )
        typical = float(thickness.max(initial=0.0))
        added = np.float32(typical * self.density) * (plate * (inward > -self.reach * span) + 0.7 * lip)
        shows = (edge > 0.3) & (np.abs(patch.across) < 1.15 * span)
        return (thickness + added).astype(np.float32), shows


@dataclass(frozen=True, kw_only=True)
class Plate:
    """A plate with screws, or a rod in the canal: bright, with straight edges."""

    first: float
    last: float
    side: float  # of the plate's middle, over the bone's half width
    half_width: float  # over the bone's half width
    num_screws: int
    metal_mm: float

    def shift(self, patch: Patch) -> Image:
        return np.zeros(1, np.float32)

    def apply(self, patch: Patch, thickness: Image) -> tuple[Image, NDArray[np.bool_]]:
        start, stop = self.first * patch.length, self.last * patch.length
        half = max(self.half_width * patch.width, 1.2)
        away = patch.across - self.side * patch.width
        cover = np.clip(half - np.abs(away) + 0.5, 0, 1)
        cover *= np.clip((stop - start) / 2 - np.abs(patch.along - (start + stop) / 2) + 0.5, 0, 1)
        screw_half = max(0.16 * patch.width, 0.8)
        inside = np.clip(patch.width * 1.1 - np.abs(patch.across) + 0.5, 0, 1)
        for along in np.linspace(start, stop, self.num_screws + 2)[1:-1]:
            screw = np.clip(screw_half - np.abs(patch.along - along) + 0.5, 0, 1) * inside
            cover = np.maximum(cover, 0.8 * screw)
        return (thickness + np.float32(METAL * self.metal_mm) * cover).astype(np.float32), cover > 0.25


@dataclass(frozen=True, kw_only=True)
class Wire:
    """A thin straight wire through a bone, at an angle."""

    position: float
    slope: float
    half_length: float  # over the bone's half width
    metal_mm: float

    def shift(self, patch: Patch) -> Image:
        return np.zeros(1, np.float32)

    def apply(self, patch: Patch, thickness: Image) -> tuple[Image, NDArray[np.bool_]]:
        c, s = cos(self.slope), sin(self.slope)
        along = patch.along - self.position * patch.length
        away = np.abs(patch.across * c - along * s)
        reach = np.abs(along * c + patch.across * s)
        half = max(0.13 * patch.width, 0.7)
        cover = np.clip(half - away + 0.5, 0, 1) * np.clip(self.half_length * patch.width - reach, 0, 1)
        return (thickness + np.float32(METAL * self.metal_mm) * cover).astype(np.float32), cover > 0.25


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The finding of a study; `make_changes` returns what a projection shows of it, by tube."""

    kind: str
    plane: float  # the turn from which a fracture line shows best
    make_changes: Callable[[float], dict[int, list[Change]]]  # contrast 0..1 -> changes


# How clearly each bone's findings show, 1 = as drawn. Chosen by us so that bones differ in difficulty.
CLARITY = {
    "XR_ELBOW": 1.0,
    "XR_FINGER": 1.15,
    "XR_FOREARM": 1.2,
    "XR_HAND": 1.5,
    "XR_HUMERUS": 1.3,
    "XR_SHOULDER": 0.9,
    "XR_WRIST": 1.25,
}


def draw_finding(bone: str, skeleton: Skeleton, rng: np.random.Generator) -> Finding:
    """Draw the finding of a study, inside the field of its frontal projection."""
    clarity = CLARITY[bone]
    projection = frame_skeleton(skeleton, height_px=512, width_px=round(512 * skeleton.width_mm / skeleton.height_mm))
    kind = str(rng.choice(["fracture", "hardware", "lesion", "joint"], p=[0.2, 0.42, 0.16, 0.22]))
    joints = [
        joint
        for joint in skeleton.joints
        if is_inside(projection.project(_locate_joint(skeleton, joint)), projection, 0.9)
    ]
    if kind == "joint" and joints:
        density = float(rng.uniform(0.5, 1.2)) * clarity
        return Finding(kind=kind, plane=0.0, make_changes=lambda seen: _wear_joints(joints, density * seen))
    tube, position = pick_site(skeleton, projection, rng)
    if kind == "fracture":
        return _draw_fracture(tube, position, clarity, rng)
    if kind == "hardware":
        return _draw_hardware(tube, position, clarity, rng)
    return _draw_lesion(tube, position, clarity, rng)


def _draw_fracture(tube: int, position: float, clarity: float, rng: np.random.Generator) -> Finding:
    gap, depth = float(rng.uniform(0.15, 0.35)) * clarity, float(rng.uniform(0.8, 1.0))
    lines = [  # one break, or two with a piece between them
        Fracture(
            position=position + at,
            slope=float(rng.normal(0, 0.5)),
            gap=gap,
            offset=float(rng.choice([-1, 1]) * rng.uniform(0.4, 1.3)) * clarity,
            depth=depth,
            teeth=tuple(float(tooth) for tooth in rng.normal(0, 0.15, 13)),
        )
        for at in ((0.0,) if rng.random() < 0.6 else (-0.06, 0.06))
    ]

    def make_changes(seen: float) -> dict[int, list[Change]]:
        return {tube: [replace(line, offset=line.offset * seen, depth=line.depth * seen) for line in lines]}

    return Finding(kind="fracture", plane=float(rng.uniform(-0.6, 0.6)), make_changes=make_changes)


def _draw_lesion(tube: int, position: float, clarity: float, rng: np.random.Generator) -> Finding:
    holes = [
        (
            position + float(rng.normal(0, 0.1)),
            float(rng.uniform(-0.4, 0.4)),
            float(rng.uniform(0.9, 1.8)) * clarity,
        )
        for _ in range(int(rng.integers(1, 4)))
    ]
    depth = float(rng.uniform(0.75, 1.0))
    a, b, c = (float(phase) for phase in rng.uniform(0, 6.28, 3))

    def make_changes(seen: float) -> dict[int, list[Change]]:
        return {
            tube: [
                Lysis(position=at, side=side, radius=radius, depth=depth * seen, lobes=(a, b, c))
                for at, side, radius in holes
            ]
        }

    return Finding(kind="lesion", plane=0.0, make_changes=make_changes)


def _draw_hardware(tube: int, position: float, clarity: float, rng: np.random.Generator) -> Finding:
    metal_mm = float(rng.uniform(1.5, 4.0)) * clarity
    if rng.random() < 0.35:
        wires: list[Change] = [
            Wire(
                position=position + float(rng.normal(0, 0.04)),
                slope=float(angle),
                half_length=float(rng.uniform(2.0, 5.0)),
                metal_mm=metal_mm,
            )
            for angle in rng.normal(0.0, 0.6, int(rng.integers(2, 5)))
        ]
        return Finding(kind="hardware", plane=0.0, make_changes=lambda _: {tube: wires})
    half_length = float(rng.uniform(0.18, 0.4))
    plate: Change = Plate(
        first=max(0.03, position - half_length),
        last=min(0.97, position + half_length),
        side=float(rng.choice([-0.8, 0.0, 0.8])),
        half_width=float(rng.uniform(0.3, 0.55)),
        num_screws=int(rng.integers(3, 8)),
        metal_mm=metal_mm,
    )
    return Finding(kind="hardware", plane=0.0, make_changes=lambda _: {tube: [plate]})


def _wear_joints(joints: list[Joint], density: float) -> dict[int, list[Change]]:
    changes: dict[int, list[Change]] = {}
    for joint in joints:
        for tube, end in (joint.first, joint.second):
            changes.setdefault(tube, []).append(WornEnd(end=end, reach=0.3, density=density))
    return changes


def is_inside(point: tuple[float, float], projection: Projection, share: float) -> bool:
    """Return whether a pixel is in the central `share` of the image."""
    x, y = point[0] / projection.width_px - 0.5, point[1] / projection.height_px - 0.5
    return max(abs(x), abs(y)) < share / 2


def _locate_joint(skeleton: Skeleton, joint: Joint) -> Point:
    index, end = joint.first
    return skeleton.bones[index].end if end else skeleton.bones[index].start


def pick_site(skeleton: Skeleton, projection: Projection, rng: np.random.Generator) -> tuple[int, float]:
    """Draw a tube and a position along it in the center of the image; large bones are drawn more often."""
    sites: list[tuple[int, float]] = []
    weights: list[float] = []
    for index, tube in enumerate(skeleton.bones):
        start, end = np.array(tube.start), np.array(tube.end)
        length = float(np.linalg.norm(end - start))
        for position in (0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85):
            x, y, z = (start + position * (end - start)).tolist()
            if tube.injurable and is_inside(projection.project((x, y, z)), projection, 0.75):
                sites.append((index, position))
                weights.append(length * max(max(left, right) for _, left, right in tube.profile))
    chosen = rng.choice(len(sites), p=np.array(weights) / sum(weights))
    index, position = sites[int(chosen)]
    return index, position + float(rng.uniform(-0.05, 0.05))
