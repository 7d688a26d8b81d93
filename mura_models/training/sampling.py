"""Which rows, under which augmentation views, each update of each head sees: a function of seed and update.

Here too is what is done against imbalance, always alike for a specialist and its baseline:

    plain                   every row equally often
    balanced_bones          every bone equally often (the source paper's)
    balanced_bones_labels   every bone and label equally often
    weighted_labels         every row equally often, the rarer label of a bone weighted up (MURA's paper, 1712.06957)
"""

from collections.abc import Sequence

import numpy as np

from mura_models.training.sampling_modes import Sampling


class BatchPlan:
    """The batches of K heads over n rows: head k is never shown the rows of fold `held_out[k]`.

    Plain sampling walks through one shuffled pass after the other, so that every row is seen equally often; with
    `balanced_by`, an array of n values, every value is drawn equally often instead.
    """

    def __init__(
        self,
        folds: np.ndarray,
        *,
        held_out: Sequence[int],
        num_views: int,
        batch_size: int,
        balanced_by: np.ndarray | None = None,
        seed: int,
    ) -> None:
        self._batch_size = batch_size
        self._num_views = num_views
        self._seed = seed
        self._entries = [np.flatnonzero(folds != fold) for fold in held_out]
        self._weights = [None if balanced_by is None else _balance(balanced_by[entries]) for entries in self._entries]
        self._passes: dict[tuple[int, int], np.ndarray] = {}

    def draw(self, update: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows [K, B] and views [K, B] of update number `update`."""
        size = self._batch_size
        rng = np.random.default_rng([self._seed, update])
        views_KB = rng.integers(self._num_views, size=(len(self._entries), size))
        rows_KB = np.empty((len(self._entries), size), np.int64)
        for head, (entries, weights) in enumerate(zip(self._entries, self._weights, strict=True)):
            if weights is not None:
                rows_KB[head] = rng.choice(entries, size=size, p=weights)
                continue
            position = np.arange(update * size, (update + 1) * size)
            for number in range(position[0] // len(entries), position[-1] // len(entries) + 1):
                here = position // len(entries) == number
                rows_KB[head, here] = self._shuffle(head, number)[position[here] % len(entries)]
        return rows_KB, views_KB

    def _shuffle(self, head: int, number: int) -> np.ndarray:
        """Return the order of pass `number` over the rows that a head may see."""
        if (head, number) not in self._passes:
            self._passes.pop((head, number - 2), None)
            rng = np.random.default_rng([self._seed, head, number, 1])
            self._passes[head, number] = rng.permutation(self._entries[head])
        return self._passes[head, number]


def balance_by(sampling: Sampling, bones: np.ndarray, labels: np.ndarray | None) -> np.ndarray | None:
    """Return what must be drawn equally often, a value a row; None where every row is. A router has no `labels`."""
    if sampling == "balanced_bones" or (sampling == "balanced_bones_labels" and labels is None):
        return bones
    return _join(bones, labels) if sampling == "balanced_bones_labels" else None


def weigh_labels(sampling: Sampling, bones: np.ndarray, labels: np.ndarray | None) -> np.ndarray | None:
    """Return each row's weight in the loss, float32 with mean 1: the share of the bone's rows with the other label.

    A router's rows are weighted inversely to their bone's number. None where all weigh the same.
    """
    if sampling != "weighted_labels":
        return None
    if labels is None:
        weights = _balance(bones)
    else:
        _, bone_of_row, images = np.unique(bones, return_inverse=True, return_counts=True)
        _, stratum_of_row, alike = np.unique(_join(bones, labels), return_inverse=True, return_counts=True)
        weights = 1 - alike[stratum_of_row] / images[bone_of_row]
        weights[weights == 0] = 1  # a bone with one label
    scaled: np.ndarray = (weights / weights.mean()).astype(np.float32)
    return scaled


def weigh_rows(sampling: Sampling, bones: np.ndarray, labels: np.ndarray | None) -> np.ndarray | None:
    """Return the weights (mean 1) with which a fit over all rows at once sees what `sampling` shows a training."""
    balanced_by = balance_by(sampling, bones, labels)
    return weigh_labels(sampling, bones, labels) if balanced_by is None else _balance(balanced_by) * len(bones)


def _join(bones: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    assert labels is not None
    strata: np.ndarray = np.unique(bones, return_inverse=True)[1] * 2 + labels
    return strata


def _balance(values: np.ndarray) -> np.ndarray:
    """Return each row a probability such that every value is drawn equally often."""
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    weights: np.ndarray = 1.0 / counts[codes]
    weights /= weights.sum()
    return weights
