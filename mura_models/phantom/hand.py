"""Hand, wrist and finger. Lengths in millimeters are typical adult ones, chosen by us."""

from dataclasses import replace
from math import cos, radians, sin

import numpy as np

from mura_models.phantom.anatomy import Joint, Skeleton, Traits, Tube, even
from mura_models.phantom.arm import build_carpals, build_radius_and_ulna

METACARPAL = ((0.0, 1.0), (0.12, 0.95), (0.3, 0.55), (0.6, 0.5), (0.8, 0.75), (0.9, 0.95), (1.0, 0.85))
PHALANX = ((0.0, 1.0), (0.15, 0.95), (0.4, 0.6), (0.7, 0.55), (0.88, 0.8), (1.0, 0.75))
TUFT = ((0.0, 1.0), (0.15, 0.9), (0.45, 0.42), (0.75, 0.45), (0.9, 0.65), (1.0, 0.55))

# Thumb to little finger: base (x, y), angle from upright in degrees, lengths of its bones, half width.
RAYS: tuple[tuple[tuple[float, float], float, tuple[float, ...], float], ...] = (
    ((-24, -2), -42, (45, 32, 23), 7.5),
    ((-13, -9), -11, (67, 40, 23, 18), 7.6),
    ((-2, -10), -1, (64, 44, 28, 19), 7.6),
    ((8, -8), 8, (57, 41, 26, 19), 7.0),
    ((17, -5), 18, (53, 33, 19, 17), 6.6),
)


def build_ray(index: int, traits: Traits, rng: np.random.Generator) -> list[Tube]:
    """Build metacarpal and phalanges of one ray, 0 = thumb."""
    (x, y), degrees, lengths, half = RAYS[index]
    angle = radians(degrees + rng.normal(0, 2.0))
    depth, lift = 0.0, rng.uniform(0.0, 0.12)
    half = half / traits.slenderness
    shapes = (METACARPAL, *[PHALANX] * (len(lengths) - 2), TUFT)
    tubes = []
    for number, (length, shape) in enumerate(zip(lengths, shapes, strict=True)):
        reach = length * cos(lift)
        end = (x + reach * sin(angle), y - reach * cos(angle), depth + length * sin(lift))
        width = half * (1.0, 0.95, 0.82, 0.7)[number]
        tubes.append(
            Tube(
                start=(x, y, depth),
                end=end,
                profile=even(*shape, scale=width),
                flatness=0.85,
                cortex_mm=1.7,
                bend_mm=float(rng.normal(0, 0.5)),
            )
        )
        gap = 1.6 / reach
        x, y, depth = (a + (b - a) * (1 + gap) for a, b in zip(tubes[-1].start, end, strict=True))
        angle += rng.normal(0, 0.03)
        lift += abs(rng.normal(0.12, 0.12))
    return tubes


def wrap_finger(tube: Tube, traits: Traits) -> Tube:
    """Return the flesh around a bone of a ray; it reaches past the joints, into its neighbour's."""
    start, end = np.array(tube.start), np.array(tube.end)
    over = (end - start) * 7 / np.linalg.norm(end - start)
    half = 1.75 * tube.profile[0][1] * traits.flesh
    return Tube(
        start=tuple((start - over).tolist()),
        end=tuple((end + over).tolist()),
        profile=even((0, half), (1, 0.93 * half)),
    )


def link_chain(first: int, count: int) -> list[Joint]:
    """Link tubes that follow one another, each start to the end before it."""
    return [Joint(first=(i, 1), second=(i + 1, 0)) for i in range(first, first + count - 1)]


def build_hand(traits: Traits, rng: np.random.Generator) -> Skeleton:
    """Build a hand, fingers up, with the ends of radius and ulna."""
    bones: list[Tube] = []
    joints: list[Joint] = []
    for index in range(5):
        ray = build_ray(index, traits, rng)
        joints += link_chain(len(bones), len(ray))
        bones += ray
    carpals = len(bones)
    bones += build_carpals(traits, rng)
    joints += [Joint(first=(carpals + 4, 0), second=(0, 0)), Joint(first=(carpals + 6, 0), second=(8, 0))]
    radius, ulna = build_radius_and_ulna(traits, wrist_y=27.0, upward=True)
    joints += [Joint(first=(len(bones), 1), second=(carpals + i, 1)) for i in (0, 1)]
    bones += [radius, ulna]
    flesh = [wrap_finger(tube, traits) for tube in bones[:carpals]]
    palm = even((0, 27), (0.35, 33), (0.7, 44), (1, 38), scale=traits.flesh**0.5)
    flesh += [
        Tube(start=(-2, 48, 0), end=(2, -82, 0), profile=palm, flatness=0.35),
        Tube(
            start=(0, 230, 0),
            end=(0, -25, 0),
            profile=even((0, 42), (0.7, 33), (1, 29), scale=traits.flesh),
            flatness=0.65,
        ),
    ]
    return Skeleton(
        bones=tuple(bones),
        flesh=tuple(flesh),
        joints=tuple(joints),
        center_mm=(-4, -70),
        height_mm=245,
        width_mm=190,
    )


def build_wrist(traits: Traits, rng: np.random.Generator) -> Skeleton:
    """Build a wrist: the hand, magnified."""
    return replace(build_hand(traits, rng), center_mm=(0, 12), height_mm=155, width_mm=110)


def build_finger(traits: Traits, rng: np.random.Generator) -> Skeleton:
    """Build one to three neighboring fingers, or the thumb alone."""
    count = int(rng.integers(1, 4))
    first = 0 if count == 1 and rng.random() < 0.3 else int(rng.integers(1, 6 - count))
    bones: list[Tube] = []
    joints: list[Joint] = []
    for index in range(first, first + count):
        ray = build_ray(index, traits, rng)
        joints += link_chain(len(bones), len(ray))
        bones += ray
    flesh = [wrap_finger(tube, traits) for tube in bones]
    upper = np.mean([tube.end[:2] for tube in bones if tube.profile[3][1] < 4], axis=0)
    lower = np.mean([RAYS[index][0] for index in range(first, first + count)], axis=0)
    knuckle = 0.45 * upper + 0.55 * lower if first == 0 else 0.62 * upper + 0.38 * lower
    return Skeleton(
        bones=tuple(bones),
        flesh=tuple(flesh),
        joints=tuple(joints),
        center_mm=(float(knuckle[0]), float(knuckle[1])),
        height_mm=125,
        width_mm=55 + 22 * count,
    )
