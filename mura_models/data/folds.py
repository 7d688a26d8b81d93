"""Folds by patient, over all bones at once."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mura_models.errors import DataError


def assign_folds(manifest: pd.DataFrame, *, num_folds: int, seed: int) -> NDArray[np.int16]:
    """Return a fold from 0 to num_folds - 1 for every train row, -1 for every test row.

    A patient is in one fold only, over all bones. Folds that the manifest gives stay; the other patients
    fill the folds of which none is given (all, where all are given). Each bone and label is spread as
    evenly as whole patients allow. The same for any order of rows.

    Raises DataError where folds given contradict, or for fewer patients than folds.
    """
    train = manifest[manifest["split"] == "train"]
    given = _read_given(train, num_folds)
    free = sorted(set(range(num_folds)) - set(given))
    counts = _count_strata(train[~train["patient"].isin(given.index)])
    if len(counts) < len(free):
        raise DataError(f"{len(counts)} train patients without a given fold for {len(free)} folds: ask for fewer folds")
    targets = np.array(free or range(num_folds))
    placed = pd.Series(targets[_spread(counts, len(targets), seed)], index=counts.index)
    folds = manifest["patient"].map(pd.concat([given, placed]).astype(np.int64))
    is_train = (manifest["split"] == "train").to_numpy()
    return np.where(is_train, folds.fillna(-1), -1).astype(np.int16)


def _read_given(train: pd.DataFrame, num_folds: int) -> "pd.Series[int]":
    """Return patient -> fold, where the manifest gives one."""
    rows = train[train["fold"] >= 0]
    by_patient = rows.groupby("patient")["fold"].agg(["min", "max"])
    torn = by_patient[by_patient["min"] != by_patient["max"]]
    if len(torn):
        first, last = torn["min"].iloc[0], torn["max"].iloc[0]
        raise DataError(
            f"patient '{torn.index[0]}' has folds {first} and {last}: give all rows of a patient the same fold"
        )
    if len(by_patient) and by_patient["max"].max() >= num_folds:
        raise DataError(f"fold {by_patient['max'].max()} is given: with {num_folds} folds, 0 to {num_folds - 1} exist")
    return by_patient["min"]


def _count_strata(train: pd.DataFrame) -> pd.DataFrame:
    """Count images: a row a patient, a column a bone and label."""
    return train.groupby(["patient", "bone", "label"]).size().unstack(["bone", "label"], fill_value=0).sort_index()


def _spread(counts: pd.DataFrame, num_folds: int, seed: int) -> NDArray[np.int64]:
    """Return a fold for every patient, those with most images first.

    Each goes where it adds least to the squares of the folds' shares of every stratum. The same idea as
    scikit-learn's StratifiedGroupKFold, as even, and many times as fast at MURA's size (docs/DECISIONS.md).
    """
    columns = sorted(counts.columns)
    images_PS = counts[columns].to_numpy(np.float64)
    images_PS = np.column_stack([images_PS, images_PS.sum(axis=1)])  # all images: no fold stays empty
    weight_S = 1 / np.maximum(images_PS.sum(axis=0), 1) ** 2
    shuffled = np.random.default_rng(seed).permutation(len(images_PS))
    order = shuffled[np.argsort(-images_PS[shuffled, -1], kind="stable")]
    folds = np.zeros(len(images_PS), np.int64)
    held_FS = np.zeros((num_folds, images_PS.shape[1]))
    for patient in order:
        fold = int(np.argmin(held_FS @ (images_PS[patient] * weight_S)))
        folds[patient] = fold
        held_FS[fold] += images_PS[patient]
    return folds
