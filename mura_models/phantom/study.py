"""Draws one study: the same patient and finding in every projection."""

from collections.abc import Callable
from dataclasses import replace
from math import cos, radians
from pathlib import Path

import numpy as np
from PIL import Image

from mura_models.phantom.anatomy import Skeleton, Traits, draw_traits
from mura_models.phantom.arm import build_elbow, build_forearm
from mura_models.phantom.counts import PlannedStudy
from mura_models.phantom.findings import Finding, draw_finding
from mura_models.phantom.hand import build_finger, build_hand, build_wrist
from mura_models.phantom.projection import Projection, draw_bones, draw_flesh, frame_skeleton
from mura_models.phantom.radiograph import Style, draw_style, expose, make_mask
from mura_models.phantom.shoulder import build_humerus, build_shoulder

BUILDERS: dict[str, Callable[[Traits, np.random.Generator], Skeleton]] = {
    "XR_ELBOW": build_elbow,
    "XR_FINGER": build_finger,
    "XR_FOREARM": build_forearm,
    "XR_HAND": build_hand,
    "XR_HUMERUS": build_humerus,
    "XR_SHOULDER": build_shoulder,
    "XR_WRIST": build_wrist,
}
# Turns of the first to the fourth projection, in degrees: 0 = frontal, 90 = lateral.
TURNS = {
    "XR_ELBOW": (0, 88, 45, -30),
    "XR_FINGER": (0, 85, 40, -35),
    "XR_FOREARM": (0, 85, 40, 15),
    "XR_HAND": (0, 40, 70, -25),
    "XR_HUMERUS": (0, 45, 75, -25),
    "XR_SHOULDER": (0, 22, -20, 60),
    "XR_WRIST": (0, 82, 42, -20),
}


def write_study(root: Path, seed: int, study: PlannedStudy) -> str | None:
    """Write the images of one study below `root` and return the kind of its finding, None for a normal study.

    The finding has its own stream of random numbers, so that the label changes nothing else in an image.
    """
    traits = draw_traits(np.random.default_rng((seed, 1, study.patient)))
    skeleton = BUILDERS[study.bone](traits, np.random.default_rng((seed, 2, study.index)))
    finding_rng = np.random.default_rng((seed, 3, study.index))
    finding = draw_finding(study.bone, skeleton, finding_rng) if study.label else None
    clearest = int(finding_rng.integers(study.num_projections))
    for number in range(study.num_projections):
        rng = np.random.default_rng((seed, 4, study.index, number))
        style = draw_style(skeleton.width_mm / skeleton.height_mm, rng)
        projection = pose_projection(study, number, skeleton, style, rng=rng, size=traits.size)
        seen = draw_visibility(finding, projection, finding_rng, is_clearest=number == clearest)
        changes = finding.make_changes(seen) if finding and seen > 0.2 else {}
        bone_mm, mask = draw_bones(skeleton.bones, projection, traits, changes)
        image = expose(bone_mm, draw_flesh(skeleton.flesh, projection), style, rng)
        path = f"{study.folder}/image{number + 1}.png"
        save_png(image, root / "MURA-v1.1" / path)
        if mask.any():
            save_png(make_mask(mask), root / "masks" / path)
    return finding.kind if finding else None


def draw_visibility(
    finding: Finding | None, projection: Projection, rng: np.random.Generator, *, is_clearest: bool
) -> float:
    """Draw how clearly a projection shows the finding, 0..1; one projection of a study shows it in full."""
    if finding is None:
        return 0.0
    if is_clearest:
        return 1.0
    # Chosen by us: a quarter of the other projections do not show it.
    seen = 0.0 if rng.random() < 0.25 else float(rng.uniform(0.5, 1.0))
    return seen * abs(cos(projection.turn - finding.plane)) if finding.kind == "fracture" else seen


def save_png(image: Image.Image, path: Path) -> None:
    """Save an image, and make the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, compress_level=1)  # the fastest; the files are a fifth larger


def pose_projection(
    study: PlannedStudy,
    number: int,
    skeleton: Skeleton,
    style: Style,
    *,
    rng: np.random.Generator,
    size: float,
) -> Projection:
    """Return the projection of one image: near a standard turn, never quite straight or centered."""
    frame = frame_skeleton(skeleton, height_px=style.height_px, width_px=style.width_px)
    x, y = skeleton.center_mm
    return replace(
        frame,
        turn=radians(TURNS[study.bone][number] + rng.normal(0, 5)),
        rotation=radians(rng.normal(0, 6)),
        is_mirrored=study.index % 2 == 1,
        px_per_mm=frame.px_per_mm * size * float(rng.uniform(0.95, 1.2)),
        center_mm=(
            x + float(rng.normal(0, 0.03)) * skeleton.width_mm,
            y + float(rng.normal(0, 0.03)) * skeleton.height_mm,
        ),
    )
