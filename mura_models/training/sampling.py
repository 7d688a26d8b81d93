"""Which rows, under which augmentation views, each head sees in each step: a function of the seed and the step.

Also the handling of class imbalance, always the same for a specialist and its baseline:

    plain                   every row equally often
    balanced_bones          every bone equally often (the source paper's)
    balanced_bones_labels   every bone and label equally often
    weighted_labels         every row equally often, a bone's rarer label weighted up (MURA's paper, arXiv 1712.06957)
"""

from collections.abc import Sequence

import numpy as np

from mura_models.training.sampling_modes import Sampling


class BatchPlan:
    """The batches of K heads over n rows: head k never sees the rows of fold `held_out[k]`.

    Plain sampling goes through shuffled passes, so that every row is seen equally often. With `strata`, one value per
    row, every value is drawn equally often instead.
    """

    def __init__(
        self,
        folds: np.ndarray,
        *,
        held_out: Sequence[int],
        num_views: int,
        batch_size: int,
        strata: np.ndarray | None = None,
        seed: int,
    ) -> None:
        self._batch_size = batch_size
        self._num_views = num_views
        self._seed = seed
        self._entries = [np.flatnonzero(folds != fold) for fold in held_out]
        self._probabilities = [
            None if strata is None else _row_probabilities(strata[entries]) for entries in self._entries
        ]
        self._passes: dict[tuple[int, int], np.ndarray] = {}

    def draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the entries (indices into the n rows) [K, B] and views [K, B] of step number `step`."""
        size = self._batch_size
        rng = np.random.default_rng([self._seed, step])
        views_KB = rng.integers(self._num_views, size=(len(self._entries), size))
        entries_KB = np.empty((len(self._entries), size), np.int64)
        for head, (entries, probabilities) in enumerate(zip(self._entries, self._probabilities, strict=True)):
            if probabilities is not None:
                entries_KB[head] = rng.choice(entries, size=size, p=probabilities)
                continue
            position = np.arange(step * size, (step + 1) * size)
            for number in range(position[0] // len(entries), position[-1] // len(entries) + 1):
                here = position // len(entries) == number
                entries_KB[head, here] = self._shuffle(head, number)[position[here] % len(entries)]
        return entries_KB, views_KB

    def _shuffle(self, head: int, number: int) -> np.ndarray:
        """Return the order of pass `number` over the rows that a head may see."""
        if (head, number) not in self._passes:
            self._passes.pop((head, number - 2), None)
            rng = np.random.default_rng([self._seed, head, number, 1])
            self._passes[head, number] = rng.permutation(self._entries[head])
        return self._passes[head, number]


def sampling_strata(sampling: Sampling, bones: np.ndarray, labels: np.ndarray | None) -> np.ndarray | None:
    """Return the stratum of each row for balanced sampling, or None for uniform sampling. A router has no `labels`."""
    if sampling == "balanced_bones" or (sampling == "balanced_bones_labels" and labels is None):
        return bones
    return _cross(bones, labels) if sampling == "balanced_bones_labels" else None


def label_weights(sampling: Sampling, bones: np.ndarray, labels: np.ndarray | None) -> np.ndarray | None:
    """Return each row's weight in the loss, float32 with mean 1, or None if all are equal.

    The weight is the share of the bone's rows with the other label; for a router, inverse to the bone's number of rows.
    """
    if sampling != "weighted_labels":
        return None
    if labels is None:
        weights = _row_probabilities(bones)
    else:
        _, bone_of_row, images = np.unique(bones, return_inverse=True, return_counts=True)
        _, stratum_of_row, alike = np.unique(_cross(bones, labels), return_inverse=True, return_counts=True)
        weights = 1 - alike[stratum_of_row] / images[bone_of_row]
        weights[weights == 0] = 1  # a bone with one label
    scaled: np.ndarray = (weights / weights.mean()).astype(np.float32)
    return scaled


def fit_weights(sampling: Sampling, bones: np.ndarray, labels: np.ndarray | None) -> np.ndarray | None:
    """Return the row weights (mean 1) that make a fit over all rows equivalent to training with `sampling`, or None."""
    strata = sampling_strata(sampling, bones, labels)
    return label_weights(sampling, bones, labels) if strata is None else _row_probabilities(strata) * len(bones)


def _cross(bones: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    assert labels is not None
    strata: np.ndarray = np.unique(bones, return_inverse=True)[1] * 2 + labels
    return strata


def _row_probabilities(values: np.ndarray) -> np.ndarray:
    """Return the probability of each row with which every value is drawn equally often."""
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    weights: np.ndarray = 1.0 / counts[codes]
    weights /= weights.sum()
    return weights
