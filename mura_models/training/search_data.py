"""The rows of one search: embeddings, images, labels and folds.

Shapes: N rows (images) of train, n of the search, V views, D features, K heads (held-out folds).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchData:
    """The rows that one search trains and is evaluated on; all searches share `features_NVD`."""

    features_NVD: np.ndarray
    """Every training image's embeddings by the frozen backbone, float16."""
    rows: np.ndarray
    """Which of them belong to this search: [n] indices into N. The arrays below have one entry for each."""
    labels: np.ndarray
    """Class of each row: 0/1, or the bone's number for the router."""
    folds: np.ndarray
    studies: np.ndarray
    patients: np.ndarray
    bones: np.ndarray
    held_out: tuple[int, ...]
    """The dev folds, one head each: head k never sees the rows of fold `held_out[k]`."""
    bone_classes: tuple[str, ...] | None = None
    """The classes in their order if the target is the bone (the router); None if it is the abnormality."""
    images_NHW: np.ndarray | None = None
    """Every training image, uint8, in the order of `features_NVD`; None if only heads are trained."""

    @property
    def is_router(self) -> bool:
        """Whether the target is the bone rather than the abnormality."""
        return self.bone_classes is not None

    @property
    def num_outputs(self) -> int:
        """Outputs of a head: 1 for abnormal or not, one per bone for the router."""
        return len(self.bone_classes) if self.bone_classes else 1

    @property
    def dev_entries(self) -> np.ndarray:
        """The rows that one of the heads has not seen: [m] indices into `rows`, ascending."""
        return np.flatnonzero(np.isin(self.folds, self.held_out))


def measure_features(data: SearchData) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [K, D] of each head's own training rows, plain view."""
    features_nD = data.features_NVD[data.rows, 0].astype(np.float32)
    moments = [(f.mean(0), f.std(0)) for f in (features_nD[data.folds != fold] for fold in data.held_out)]
    mean_KD, std_KD = (torch.from_numpy(np.stack(part)) for part in zip(*moments, strict=True))
    return mean_KD, std_KD
