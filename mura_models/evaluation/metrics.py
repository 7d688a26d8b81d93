"""Metrics of rows by image and by study: pure functions.

`score_weighted` computes metrics under many weightings of the patients at once. With every weight at 1 it
gives the point value, with a bootstrap's counts the resamples of `bootstrap.py`: one formula for both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

METRICS = ("kappa", "kappa_at_half", "accuracy", "auroc", "f1", "sensitivity", "specificity")

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Rows of one unit, image or study, with the predictions of one system.

    `labels` are 0 or 1; `thresholds` are per row, since rows may be predicted by different models; `patients`
    are whole-number codes. Raises ValueError if columns differ in length or hold other values.
    """

    labels: Ints
    p_abnormal: Floats
    thresholds: Floats
    patients: Ints

    def __post_init__(self) -> None:
        lengths = [len(column) for column in (self.labels, self.p_abnormal, self.thresholds, self.patients)]
        if len(set(lengths)) > 1:
            raise ValueError(f"labels, p_abnormal, thresholds, patients have {lengths} rows: must be of one length")
        if not np.isin(self.labels, (0, 1)).all():
            raise ValueError(f"labels {np.unique(self.labels)[:5].tolist()}: each must be 0 or 1")
        if not np.isfinite(self.p_abnormal).all():
            raise ValueError("p_abnormal holds NaN or infinity: each must be finite")

    def subset(self, mask: npt.NDArray[Any]) -> "Scored":
        """Keep the rows of a boolean mask or of an index array."""
        return Scored(
            labels=self.labels[mask],
            p_abnormal=self.p_abnormal[mask],
            thresholds=self.thresholds[mask],
            patients=self.patients[mask],
        )


def index_studies(labels: Ints, study_codes: npt.NDArray[Any]) -> tuple[Ints, Ints]:
    """Return each study's first row and each row's study, studies in the order of their codes.

    Raises ValueError if a study has two labels.
    """
    codes, first_rows, study_of_row = np.unique(study_codes, return_index=True, return_inverse=True)
    differs = labels != labels[first_rows][study_of_row]
    if differs.any():
        raise ValueError(f"study {codes[study_of_row[differs][0]]} carries two labels: leave it out")
    return first_rows, study_of_row


def average_by_study(values: Floats, first_rows: Ints, study_of_row: Ints) -> Floats:
    """Average a column over each study; a study of equal values keeps that value to the last bit."""
    offsets = values - values[first_rows][study_of_row]
    num_images = np.bincount(study_of_row, minlength=len(first_rows))
    averages: Floats = values[first_rows] + np.bincount(study_of_row, weights=offsets) / num_images
    return averages


def to_studies(scored: Scored, study_codes: npt.NDArray[Any]) -> Scored:
    """Turn images into studies by the mean probability of their images (MURA, arXiv 1712.06957).

    Studies come in the order of their codes. Raises ValueError if a study has two labels.
    """
    first_rows, study_of_row = index_studies(scored.labels, study_codes)
    return Scored(
        labels=scored.labels[first_rows],
        p_abnormal=average_by_study(scored.p_abnormal, first_rows, study_of_row),
        thresholds=average_by_study(scored.thresholds, first_rows, study_of_row),
        patients=scored.patients[first_rows],
    )


def score(scored: Scored, metrics: Sequence[str] = METRICS) -> dict[str, float]:
    """Compute metrics; nan if one does not exist, as with one label only.

    `kappa_at_half` takes 0.5 as the threshold, all others but the AUROC take the rows' own.
    """
    together = replace(scored, patients=np.zeros(len(scored.labels), np.int64))
    values = score_weighted(together, metrics, np.ones((1, 1)))
    return {metric: float(values[metric][0]) for metric in metrics}


def mean_of_groups(scored: Scored, groups: npt.NDArray[Any]) -> dict[str, float | None]:
    """Average every metric over groups (bones), each counting the same.

    A group in which a metric does not exist is not part of its mean; None if it exists in no group.
    """
    points = [score(scored.subset(groups == name)) for name in np.unique(groups)]
    means: dict[str, float | None] = {}
    for metric in METRICS:
        values = [point[metric] for point in points if not np.isnan(point[metric])]
        means[metric] = float(np.mean(values)) if values else None
    return means


def score_weighted(scored: Scored, metrics: Sequence[str], weights_PR: Floats) -> dict[str, Floats]:
    """Compute metrics under R weightings of P patients: [R] values each, nan if one does not exist.

    `scored.patients` must index the rows of `weights_PR`, whose entries are whole numbers.
    """
    values: dict[str, Floats] = {}
    if set(metrics) - {"auroc", "kappa_at_half"}:
        values |= _score_decisions(_count_cells(scored, scored.thresholds, weights_PR))
    if "kappa_at_half" in metrics:
        half = np.full(len(scored.labels), 0.5)
        values["kappa_at_half"] = _score_decisions(_count_cells(scored, half, weights_PR))["kappa"]
    if "auroc" in metrics:
        values["auroc"] = _weighted_auroc(scored, weights_PR)
    return {metric: values[metric] for metric in metrics}


def confusion(labels: Ints, predictions: Ints, num_classes: int) -> npt.NDArray[np.int64]:
    """Count rows by true class (first axis) and predicted class (second axis)."""
    cells = np.asarray(labels, np.int64) * num_classes + predictions
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def macro_f1(labels: Ints, predictions: Ints, num_classes: int) -> float:
    """Average F1 over the classes that occur as label or as prediction; nan without rows."""
    counts = confusion(labels, predictions, num_classes)
    occurrences = counts.sum(axis=0) + counts.sum(axis=1)
    present = occurrences > 0
    if not present.any():
        return float("nan")
    return float(np.mean(2 * counts.diagonal()[present] / occurrences[present]))


def _count_cells(scored: Scored, thresholds: Floats, weights_PR: Floats) -> Floats:
    """Return the weights of true negatives, false positives, false negatives and true positives, [4, R]."""
    num_patients = len(weights_PR)
    cells = 2 * scored.labels.astype(np.int64) + (scored.p_abnormal >= thresholds)
    rows_4P = np.bincount(cells * num_patients + scored.patients, minlength=4 * num_patients)
    # Not by BLAS: on busy cores its threads made this thin product 15 times slower.
    counts: Floats = np.einsum("cp,pr->cr", rows_4P.reshape(4, num_patients).astype(np.float64), weights_PR)
    return counts


def _score_decisions(cells_4R: Floats) -> dict[str, Floats]:
    tn, fp, fn, tp = cells_4R
    negatives, positives = tn + fp, tp + fn
    both = (negatives > 0) & (positives > 0)  # with one label, kappa and F1 mean nothing even if defined
    disagreement_by_chance = (tp + fp) * negatives + positives * (fn + tn)
    return {
        "kappa": _divide(2 * (tp * tn - fp * fn), disagreement_by_chance * both),
        "accuracy": _divide(tp + tn, negatives + positives),
        "f1": _divide(2 * tp, (2 * tp + fp + fn) * both),
        "sensitivity": _divide(tp, positives),
        "specificity": _divide(tn, negatives),
    }


def _weighted_auroc(scored: Scored, weights_PR: Floats) -> Floats:
    """Sum the weights of the pairs that an abnormal row wins; a tie is half a win.

    Patients are rows and resamples are columns, so that every step runs along memory.
    """
    is_abnormal = scored.labels == 1
    positives, negatives = np.flatnonzero(is_abnormal), np.flatnonzero(~is_abnormal)
    negatives = negatives[np.argsort(scored.p_abnormal[negatives])]
    num_below, num_up_to = _rank_among(scored.p_abnormal[negatives], scored.p_abnormal[positives])
    weights_of_positives = weights_PR[scored.patients[positives]]
    weight_up_to = np.zeros((len(negatives) + 1, weights_PR.shape[1]))
    np.cumsum(weights_PR[scored.patients[negatives]], axis=0, out=weight_up_to[1:])
    twice_wins = np.einsum("nr,nr->r", weights_of_positives, weight_up_to[num_below])
    twice_wins += np.einsum("nr,nr->r", weights_of_positives, weight_up_to[num_up_to])
    return _divide(twice_wins, 2 * weights_of_positives.sum(axis=0) * weight_up_to[-1])


def _rank_among(sorted_scores: Floats, scores: Floats) -> tuple[Ints, Ints]:
    """Count, for each score, the sorted scores below it, and those up to and including it."""
    return np.searchsorted(sorted_scores, scores, "left"), np.searchsorted(sorted_scores, scores, "right")


def _divide(numerators: Floats, denominators: Floats) -> Floats:
    """Divide; nan if the denominator is not positive."""
    missing: Floats = np.full(len(numerators), np.nan)
    return np.divide(numerators, denominators, out=missing, where=denominators > 0)
