"""Which rows, under which augmentation outcomes, each update of each head sees: a function of seed and update."""

import numpy as np


class BatchPlan:
    """The batches of K heads over n rows: head k is never shown the rows of fold k.

    Plain sampling walks through one shuffled pass after the other, so that every row is seen equally often; with
    `balanced_by`, an array of n values, every value is drawn equally often instead.
    """

    def __init__(
        self,
        folds: np.ndarray,
        *,
        num_folds: int,
        num_outcomes: int,
        batch_size: int,
        balanced_by: np.ndarray | None = None,
        seed: int,
    ) -> None:
        self._batch_size = batch_size
        self._num_outcomes = num_outcomes
        self._seed = seed
        self._entries = [np.flatnonzero(folds != fold) for fold in range(num_folds)]
        self._weights = [None if balanced_by is None else _balance(balanced_by[entries]) for entries in self._entries]
        self._passes: dict[tuple[int, int], np.ndarray] = {}

    def draw(self, update: int) -> tuple[np.ndarray, np.ndarray]:
        """Give rows [K, B] and outcomes [K, B] of update number `update`."""
        size = self._batch_size
        rng = np.random.default_rng([self._seed, update])
        outcomes_KB = rng.integers(self._num_outcomes, size=(len(self._entries), size))
        rows_KB = np.empty((len(self._entries), size), np.int64)
        for fold, (entries, weights) in enumerate(zip(self._entries, self._weights, strict=True)):
            if weights is not None:
                rows_KB[fold] = rng.choice(entries, size=size, p=weights)
                continue
            position = np.arange(update * size, (update + 1) * size)
            for number in range(position[0] // len(entries), position[-1] // len(entries) + 1):
                here = position // len(entries) == number
                rows_KB[fold, here] = self._shuffle(fold, number)[position[here] % len(entries)]
        return rows_KB, outcomes_KB

    def _shuffle(self, fold: int, number: int) -> np.ndarray:
        """Give the order of pass `number` over the rows that head `fold` may see."""
        if (fold, number) not in self._passes:
            self._passes.pop((fold, number - 2), None)
            rng = np.random.default_rng([self._seed, fold, number, 1])
            self._passes[fold, number] = rng.permutation(self._entries[fold])
        return self._passes[fold, number]


def _balance(values: np.ndarray) -> np.ndarray:
    """Give each row a probability such that every value is drawn equally often."""
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    weights: np.ndarray = 1.0 / counts[codes]
    weights /= weights.sum()
    return weights
