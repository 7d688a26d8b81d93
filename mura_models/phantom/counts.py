"""Plans the studies of the phantom, in MURA's proportions of bones and labels."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mura_models.data.mura_counts import MURA_COUNTS, MURA_PATIENTS, Split

MAX_PROJECTIONS = 4  # chosen by us; MURA's means are between 2.0 and 3.5
MIN_TEST_STUDIES = 15  # per bone and label: below about ten, an interval is too wide to be of use


@dataclass(frozen=True, kw_only=True)
class PlannedStudy:
    """One study to draw; `index` is unique in the phantom and seeds its random numbers."""

    index: int
    split: Split
    bone: str
    patient: int
    number: int
    label: int
    num_projections: int

    @property
    def folder(self) -> str:
        """The study's folder below `MURA-v1.1`, with `/` between its parts."""
        name = f"study{self.number}_{'positive' if self.label else 'negative'}"
        return f"{self.split}/{self.bone}/patient{self.patient:05d}/{name}"


def plan_studies(scale: float, seed: int) -> list[PlannedStudy]:
    """List every study of the phantom; at scale 1.0 the counts are exactly MURA's."""
    studies: list[PlannedStudy] = []
    num_patients = 0
    for split, by_bone in MURA_COUNTS.items():
        rng = np.random.default_rng((seed, 0, split == "valid"))
        cells = _list_cells(split, scale, rng)
        share = MURA_PATIENTS[split] / sum(sum(num_studies) for num_studies, _ in by_bone.values())
        patients = _assign_patients(len(cells), round(share * len(cells)), rng) + num_patients
        num_patients = int(patients.max())
        numbers: Counter[tuple[str, int]] = Counter()
        for (bone, label, num_projections), patient in zip(cells, patients.tolist(), strict=True):
            numbers[bone, patient] += 1
            studies.append(
                PlannedStudy(
                    index=len(studies),
                    split=split,
                    bone=bone,
                    patient=patient,
                    number=numbers[bone, patient],
                    label=label,
                    num_projections=num_projections,
                )
            )
    return studies


def _list_cells(split: Split, scale: float, rng: np.random.Generator) -> list[tuple[str, int, int]]:
    """List (bone, label, number of projections) of every study of one split."""
    # Chosen by us: 25 per label and bone from scale 0.05 on, so that a specialist can be trained.
    fewest = MIN_TEST_STUDIES if split == "valid" else round(min(25, max(4, 500 * scale)))
    cells: list[tuple[str, int, int]] = []
    for bone, (mura_studies, mura_images) in MURA_COUNTS[split].items():
        for label in (0, 1):
            num_studies = max(fewest, round(scale * mura_studies[label]))
            num_images = round(num_studies * mura_images[label] / mura_studies[label])
            projections = _spread_projections(num_studies, num_images, rng)
            cells += [(bone, label, num_projections) for num_projections in projections.tolist()]
    return cells


def _spread_projections(num_studies: int, num_images: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the number of images per study: one each, and the others at random up to MAX_PROJECTIONS."""
    free = rng.permutation(np.repeat(np.arange(num_studies), MAX_PROJECTIONS - 1))
    return 1 + np.bincount(free[: num_images - num_studies], minlength=num_studies)


def _assign_patients(num_studies: int, num_patients: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the patient of each study, from 1: each patient has a study, and the others are drawn at random."""
    returning = rng.integers(num_patients, size=num_studies - num_patients)
    return rng.permutation(np.concatenate([np.arange(num_patients), returning])) + 1
