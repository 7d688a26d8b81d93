"""Shoulder and humerus. Lengths in millimeters are typical adult ones, chosen by us."""

from dataclasses import replace
from math import cos, radians, sin

import numpy as np

from mura_models.phantom.anatomy import Joint, Profile, Skeleton, Traits, Tube, even
from mura_models.phantom.arm import build_radius_and_ulna


def build_shoulder(traits: Traits, rng: np.random.Generator) -> Skeleton:
    """Build a shoulder: humeral head, scapula with glenoid, clavicle and ribs."""
    slim = 1 / traits.slenderness
    lift = radians(rng.uniform(-2, 22))
    elbow = (6 + 300 * sin(lift), 300 * cos(lift), 0.0)
    shaft: Profile = (
        (0, 14, 22),
        (0.06, 19, 27),
        (0.16, 15, 17),
        (0.3, 11.5, 12),
        (0.7, 11, 11),
        (0.9, 20, 22),
        (1, 20, 22),
    )
    bones = [
        Tube(
            start=(4, -14, 0),
            end=elbow,
            profile=tuple((p, b * slim, a * slim) for p, a, b in shaft),
            cortex_mm=3.8,
        ),
        Tube(
            start=(-9, -22, 0),
            end=(-5, 25, 0),
            profile=even((0, 17), (0.3, 23), (0.7, 23), (1, 17), scale=slim),
            cortex_mm=1.6,
            joins=True,
        ),
        Tube(start=(-34, -19, 0), end=(-36, 22, 0), profile=even((0, 6), (1, 7)), cortex_mm=2.0, flatness=1.6),
        Tube(
            start=(-40, 0, 4),
            end=(-80, 128, 10),
            profile=((0, 12, 22), (0.2, 10, 52), (0.6, 9, 34), (1, 8, 8)),
            cortex_mm=1.5,
            flatness=0.12,
            density=1.3,
            injurable=False,
            joins=True,
        ),
        Tube(start=(-38, 16, 4), end=(-82, 126, 10), profile=even((0, 6), (1, 3)), cortex_mm=2.0, joins=True),
        Tube(
            start=(-95, -30, 25),
            end=(2, -34, 10),
            profile=even((0, 4), (0.6, 8), (0.9, 11), (1, 10)),
            flatness=0.5,
            density=0.8,
        ),
        Tube(
            start=(-48, -14, -10),
            end=(-26, -24, -25),
            profile=even((0, 6), (1, 8)),
            density=0.6,
            injurable=False,
        ),
        Tube(
            start=(-165, -48, -20),
            end=(-16, -42, 8),
            profile=even((0, 8.5), (0.4, 6), (0.75, 7), (0.9, 10), (1, 7.5)),
            bend_mm=-11,
        ),
    ]
    ribs = [
        Tube(
            start=(-210, y - 5, 20),
            end=(-92 + 0.12 * y, y + 40, 0),
            profile=even((0, 5.5), (1, 5.0)),
            bend_mm=-26,
            density=0.5,
            cortex_mm=1.3,
            injurable=False,
        )
        for y in range(-45, 170, 27)
    ]
    joints = [Joint(first=(1, 0), second=(2, 0)), Joint(first=(5, 1), second=(7, 1))]
    chest = even((0, 40), (0.3, 95), (1, 120), scale=traits.flesh**0.5)
    flesh = [
        Tube(start=(-150, -90, 0), end=(-160, 330, 0), profile=chest, flatness=0.5),
        Tube(
            start=(-60, -62, 0),
            end=(30, 40, 0),
            profile=even((0, 45), (0.5, 55), (1, 50), scale=traits.flesh),
        ),
        Tube(start=(0, -30, 0), end=elbow, profile=even((0, 52), (0.3, 52), (1, 44), scale=traits.flesh)),
    ]
    return Skeleton(
        bones=(*bones, *ribs),
        flesh=tuple(flesh),
        joints=tuple(joints),
        center_mm=(-38, 28),
        height_mm=200,
        width_mm=215,
    )


def build_humerus(traits: Traits, rng: np.random.Generator) -> Skeleton:
    """Build an upper arm from shoulder to elbow."""
    shoulder = build_shoulder(traits, rng)
    x, y, _ = shoulder.bones[0].end
    forearm = [
        replace(tube, start=(tube.start[0] + x, tube.start[1] + y, 0), end=(tube.end[0] + x, tube.end[1] + y, 0))
        for tube in build_radius_and_ulna(traits, wrist_y=243, upward=False)
    ]
    first = len(shoulder.bones)
    return replace(
        shoulder,
        bones=(*shoulder.bones, *forearm),
        joints=(*shoulder.joints, Joint(first=(0, 1), second=(first, 0))),
        center_mm=(x * 0.42, 138),
        height_mm=380,
        width_mm=165,
    )
