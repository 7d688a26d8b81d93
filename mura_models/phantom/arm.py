"""Elbow and forearm, and the bones that the hand shares with them.

Lengths in millimeters are typical adult ones, chosen by us.
"""

from dataclasses import replace
from math import cos, sin

import numpy as np

from mura_models.phantom.anatomy import Joint, Point, Profile, Skeleton, Traits, Tube, even

# Scaphoid, lunate, triquetrum, pisiform, trapezium, trapezoid, capitate, hamate: ends and half width.
CARPALS: tuple[tuple[tuple[float, float], tuple[float, float], float], ...] = (
    ((-21, 3), (-12, 25), 8.2),
    ((-2, 10), (-2, 26), 8.6),
    ((13, 8), (13, 24), 7.4),
    ((17, 10), (17, 20), 4.8),
    ((-27, -3), (-22, 10), 7.6),
    ((-15, -8), (-14, 5), 6.4),
    ((-3, -10), (-3, 14), 7.6),
    ((12, -7), (11, 12), 8.0),
)


def build_radius_and_ulna(traits: Traits, *, wrist_y: float, upward: bool) -> tuple[Tube, Tube]:
    """Build both bones of the forearm, from elbow to wrist; `upward` puts the wrist above the elbow."""
    direction = -1.0 if upward else 1.0
    elbow_y = wrist_y - direction * 240
    radius = even((0, 10.5), (0.04, 10.5), (0.1, 6.5), (0.17, 8), (0.5, 7), (0.8, 9), (0.93, 15.5), (1, 15))
    ulna = even((0, 10), (0.06, 12.5), (0.14, 11), (0.3, 8), (0.7, 6), (0.9, 5), (0.96, 7.5), (1, 7))
    slim = 1 / traits.slenderness
    return (
        Tube(
            start=(-13, elbow_y, 0),
            end=(-9, wrist_y, 0),
            profile=tuple((p, left * slim, right * slim) for p, left, right in radius),
            cortex_mm=2.6,
            bend_mm=5.0 * direction,
            flatness=0.8,
        ),
        Tube(
            start=(9, elbow_y - direction * 18, -6),
            end=(15, wrist_y + direction * -3, 0),
            profile=tuple((p, left * slim, right * slim) for p, left, right in ulna),
            cortex_mm=2.6,
            bend_mm=-2.0 * direction,
        ),
    )


def build_carpals(traits: Traits, rng: np.random.Generator) -> list[Tube]:
    """Build the eight bones of the wrist."""
    tubes = []
    for upper, lower, half in CARPALS:
        left, right = half * rng.uniform(0.85, 1.1, 2) / traits.slenderness**0.5
        depth = rng.uniform(-5, 5)
        profile = (
            (0.0, left * 0.8, right * 0.8),
            (0.3, left, right),
            (0.7, left, right),
            (1.0, left * 0.75, right * 0.75),
        )
        tubes.append(Tube(start=(*upper, depth), end=(*lower, depth), profile=profile, cortex_mm=1.0))
    return tubes


def build_arm(traits: Traits, *, flexion: float) -> tuple[list[Tube], list[Tube], list[Joint]]:
    """Build upper arm and forearm around an elbow at the origin, bent by `flexion` radians."""
    slim = 1 / traits.slenderness
    ends: Profile = ((0, 14, 14), (0.6, 11, 11), (0.82, 13, 14), (0.92, 22, 26), (0.965, 26, 31), (1, 20, 22))
    humerus = Tube(
        start=(0, -300, 0),
        end=(0, -2, 0),
        profile=tuple((p, left * slim, right * slim) for p, left, right in ends),
        flatness=0.55,
        cortex_mm=4.0,
    )
    radius, ulna = (bend_at_elbow(tube, flexion) for tube in build_radius_and_ulna(traits, wrist_y=243, upward=False))
    bones = [humerus, radius, ulna]
    joints = [Joint(first=(0, 1), second=(1, 0)), Joint(first=(0, 1), second=(2, 0))]
    upper = even((0, 52), (0.7, 44), (1, 40), scale=traits.flesh)
    lower = even((0, 38), (0.25, 44), (0.7, 33), (1, 27), scale=traits.flesh)
    flesh = [
        Tube(start=(0, -330, 0), end=(0, 25, 0), profile=upper),
        bend_at_elbow(Tube(start=(0, -25, 0), end=(0, 260, 0), profile=lower, flatness=0.8), flexion),
    ]
    return bones, flesh, joints


def bend_at_elbow(tube: Tube, flexion: float) -> Tube:
    """Turn a tube about the x axis through the origin."""

    def turn(point: Point) -> Point:
        x, y, z = point
        return x, y * cos(flexion) - z * sin(flexion), y * sin(flexion) + z * cos(flexion)

    return replace(tube, start=turn(tube.start), end=turn(tube.end))


def build_elbow(traits: Traits, rng: np.random.Generator) -> Skeleton:
    """Build an elbow, straight to bent; the bend shows from the side."""
    flexion = float(rng.uniform(0.2, 1.5))
    bones, flesh, joints = build_arm(traits, flexion=flexion)
    return Skeleton(
        bones=tuple(bones),
        flesh=tuple(flesh),
        joints=tuple(joints),
        center_mm=(0, 0),
        height_mm=200,
        width_mm=150,
    )


def build_forearm(traits: Traits, rng: np.random.Generator) -> Skeleton:
    """Build a forearm from elbow to wrist."""
    bones, flesh, joints = build_arm(traits, flexion=float(rng.uniform(0.0, 0.15)))
    wrist = len(bones)
    for tube in build_carpals(traits, rng):
        (x0, y0, z0), (x1, y1, z1) = tube.start, tube.end
        bones.append(replace(tube, start=(x0, 269 - y0, z0), end=(x1, 269 - y1, z1)))
    joints += [Joint(first=(1, 1), second=(wrist + 1, 1))]
    palm = Tube(start=(0, 235, 0), end=(0, 340, 0), profile=even((0, 30), (1, 42)), flatness=0.5)
    return Skeleton(
        bones=tuple(bones),
        flesh=(*flesh, palm),
        joints=tuple(joints),
        center_mm=(0, 120),
        height_mm=330,
        width_mm=140,
    )
