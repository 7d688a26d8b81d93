"""Evaluate predictions given as plain arrays: `mura.evaluate` and `mura.compare`."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mura_models.errors import DataError, SettingError
from mura_models.evaluation.bootstrap import Comparison, Estimate, compare_mean_of_groups, summarize
from mura_models.evaluation.bootstrap import compare as compare_scored
from mura_models.evaluation.metrics import METRICS, Scored, index_studies, to_studies


def evaluate(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    patients: npt.ArrayLike | None = None,
    studies: npt.ArrayLike | pd.DataFrame | None = None,
    threshold: npt.ArrayLike = 0.5,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Compute metrics with 95% bootstrap intervals, as in a run's report.

    Args:
        labels: [N] 0 (normal) or 1 (abnormal) per image.
        probabilities: [N] `p_abnormal` per image, in [0, 1].
        patients: [N] patient per image. Patients are resampled, since images of one patient are not independent. By
            default, every study (or image) is its own patient. A missing value is a patient of its own.
        studies: [N] study per image, unique over all patients, or a DataFrame whose columns together name the study,
            such as `table[["patient", "bone", "study"]]`. If given, the unit is the study: its probability and
            threshold are the means over its images. By default, the unit is the image.
        threshold: Abnormal if the probability is at least this: one number, or [N] one per image.
        num_resamples: Number of bootstrap resamples.
        seed: Of the resamples. The same seed and patients give the same intervals.

    Returns:
        One estimate per metric: auroc, kappa, kappa_at_half (Cohen's kappa at threshold 0.5), accuracy, f1,
        sensitivity, specificity. An estimate is a dict:

        - `value`: None if the metric does not exist
        - `ci95`: [low, high]; None if there are fewer than 10 rows, or fewer than 5 patients, of either label
        - `reason`: why `value` or `ci95` is None; absent otherwise

    Raises:
        DataError: Arrays differ in length or hold other values, or a study has two labels or patients.

    Examples:
        >>> table = bundle.predict("clinic.csv")
        >>> result = mura.evaluate(table["label"], table["p_abnormal"], patients=table["patient"])
        >>> result["auroc"]
        {'value': 0.86, 'ci95': [0.81, 0.90]}
        >>> pd.DataFrame(result).T  # as a table
    """
    scored = _make_scored(labels, probabilities, threshold, patients, studies)
    return summarize(scored, num_resamples=num_resamples, seed=seed)


def compare(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    metric: str = "auroc",
    patients: npt.ArrayLike | None = None,
    studies: npt.ArrayLike | pd.DataFrame | None = None,
    groups: npt.ArrayLike | None = None,
    threshold: npt.ArrayLike = 0.5,
    reference_threshold: npt.ArrayLike = 0.5,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare two systems on the same images: metric of `probabilities` minus metric of `reference`, paired.

    Args:
        labels: [N] 0 (normal) or 1 (abnormal) per image.
        probabilities: [N] `p_abnormal` of the system.
        reference: [N] `p_abnormal` of the system it is compared with.
        metric: One of auroc, kappa, kappa_at_half, accuracy, f1, sensitivity, specificity.
        patients: As for `evaluate`. Both systems share the resampled patients.
        studies: As for `evaluate`.
        groups: [N] group per image, such as the bone. If given, the difference is the mean over groups of the
            differences within them, each group counting the same (the headline of a run's report).
        threshold: Of the system: one number, or [N] one per image.
        reference_threshold: Of the reference.
        num_resamples: Number of bootstrap resamples.
        seed: Of the resamples.

    Returns:
        A dict with `difference`, `ci95` ([low, high]), `p` (two-sided, never 0) and, if one of them is None, `reason`.
        With `groups` also `left_out`, the groups in which the metric does not exist, and `too_few`, those with fewer
        than 10 rows, or rows of fewer than 5 patients, of either label.

    Raises:
        SettingError: `metric` is unknown.
        DataError: As for `evaluate`, or a study is in two groups.

    Examples:
        >>> mura.compare(t["label"], t["p_specialists"], t["p_baseline"], patients=t["patient"], groups=t["bone"])
        {'difference': 0.012, 'ci95': [-0.004, 0.029], 'p': 0.14, 'left_out': [], 'too_few': []}
    """
    if metric not in METRICS:
        raise SettingError("metric", metric, f"must be one of {', '.join(METRICS)}")
    system = _make_scored(labels, probabilities, threshold, patients, studies)
    other = _make_scored(labels, reference, reference_threshold, patients, studies)
    if groups is None:
        return compare_scored(system, other, metric=metric, num_resamples=num_resamples, seed=seed)
    names = np.asarray(groups).astype(str)
    if len(names) != len(np.asarray(labels)):
        raise DataError(f"groups of {len(names)} rows: must have one per label ({len(np.asarray(labels))})")
    if studies is not None:
        names = _one_per_study(names, _code(studies), "groups")
    return compare_mean_of_groups(system, other, names, metric=metric, num_resamples=num_resamples, seed=seed)


def _make_scored(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    threshold: npt.ArrayLike,
    patients: npt.ArrayLike | None,
    studies: Any,
) -> Scored:
    labels_N = _to_numbers("labels", labels)
    if not np.isin(labels_N, (0, 1)).all():
        raise DataError(f"labels {np.unique(labels_N)[:5].tolist()}: each must be 0 or 1")
    num_rows = len(labels_N)
    study_codes = np.arange(num_rows) if studies is None else _code(studies)
    patient_codes = study_codes if patients is None else _code(patients)
    try:
        scored = Scored(
            labels=labels_N.astype(np.int64),
            p_abnormal=_to_numbers("probabilities", probabilities),
            thresholds=np.broadcast_to(_to_numbers("threshold", threshold), num_rows).copy(),
            patients=patient_codes,
        )
        if not ((scored.p_abnormal >= 0) & (scored.p_abnormal <= 1)).all():
            raise DataError("probabilities: each must be in [0, 1]")
        if studies is None:
            return scored
        _one_per_study(patient_codes, study_codes, "patients")
        return to_studies(scored, study_codes)
    except ValueError as error:
        raise DataError(str(error)) from error


def _to_numbers(name: str, column: Any) -> npt.NDArray[np.float64]:
    try:
        return np.asarray(column, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: must be numbers ({error})") from error


def _code(column: npt.ArrayLike | pd.DataFrame) -> npt.NDArray[np.int64]:
    """Return one whole number per distinct value or row; one with a missing value is distinct from all others."""
    frame = column if isinstance(column, pd.DataFrame) else pd.DataFrame({"value": np.asarray(column)})
    codes = frame.groupby(list(frame.columns), sort=False, dropna=False).ngroup().to_numpy(np.int64)
    is_missing = frame.isna().any(axis=1).to_numpy()
    codes = np.where(is_missing, len(codes) + np.arange(len(codes)), codes)
    return pd.factorize(codes)[0].astype(np.int64)


def _one_per_study(values: npt.NDArray[Any], study_codes: npt.NDArray[np.int64], name: str) -> npt.NDArray[Any]:
    """Return each study's value, in the order of `to_studies`. Raises DataError if a study has several."""
    if len(values) != len(study_codes):
        raise DataError(f"{name} of {len(values)} rows: must have one per row ({len(study_codes)})")
    first_rows, study_of_row = index_studies(np.zeros(len(study_codes), np.int64), study_codes)
    differs = values != values[first_rows][study_of_row]
    if differs.any():
        raise DataError(f"{name}: a study has {values[first_rows][study_of_row][differs][0]} and {values[differs][0]}")
    return np.asarray(values[first_rows])
