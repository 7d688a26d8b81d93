"""95% intervals and paired comparisons by a percentile bootstrap over patients: pure functions.

Images of one patient are not independent, so patients are drawn, and a patient drawn twice counts twice.
Systems and bones that are compared share their draws. One seed and the same patients give the same draws.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from mura_models.evaluation.metrics import METRICS, Floats, Scored, score, score_weighted

MIN_ROWS_PER_LABEL = 10  # chosen by us: with fewer, a percentile interval is narrower than it should be
MIN_PATIENTS_PER_LABEL = 5  # chosen by us: patients are what is drawn; of 2, a "95%" interval holds the truth in 60%
CHUNK_ELEMENTS = 1_000_000  # rows x resamples at once: 8 MB per array; fast from 300 to 36,808 rows


class Estimate(TypedDict):
    """A metric with its 95% interval; `reason` is there if one of them is missing."""

    value: float | None
    ci95: list[float] | None
    reason: NotRequired[str]


class Comparison(TypedDict):
    """A difference a - b with its interval and p-value; the lists name groups, where groups are compared."""

    difference: float | None
    ci95: list[float] | None
    p: float | None
    reason: NotRequired[str]
    left_out: NotRequired[list[str]]
    too_few: NotRequired[list[str]]


def has_few(parts: Sequence[Scored]) -> bool:
    """Return whether the parts together have too few rows, or patients, of either label for an interval."""
    labels = np.concatenate([part.labels for part in parts])
    patients = np.concatenate([part.patients for part in parts])
    return any(
        len(of_label) < MIN_ROWS_PER_LABEL or len(np.unique(of_label)) < MIN_PATIENTS_PER_LABEL
        for of_label in (patients[labels == 0], patients[labels == 1])
    )


def summarize(scored: Scored, *, num_resamples: int = 2000, seed: int = 0) -> dict[str, Estimate]:
    """Return every metric with its interval; resamples in which a metric does not exist are ignored."""
    points = score(scored)
    few = has_few([scored])
    resamples = {} if few else _resample([scored], METRICS, num_resamples, seed)
    summary: dict[str, Estimate] = {}
    for metric, value in points.items():
        if np.isnan(value):
            summary[metric] = {"value": None, "ci95": None, "reason": _explain_absence(scored)}
        elif few:
            summary[metric] = {"value": value, "ci95": None, "reason": "too few"}
        else:
            summary[metric] = {"value": value, "ci95": _interval(resamples[metric][0])}
    return summary


def compare(a: Scored, b: Scored, *, metric: str, num_resamples: int = 2000, seed: int = 0) -> Comparison:
    """Compare two systems on the same rows: a - b, patients drawn for both at once.

    Two-sided, over the R resamples in which the difference d exists, and never 0:
    p = min(1, 2 (1 + min(#{d <= 0}, #{d >= 0})) / (1 + R)). Raises ValueError if the rows differ.
    """
    one_group = np.zeros(len(a.labels), np.int64)
    comparison = compare_mean_of_groups(a, b, one_group, metric=metric, num_resamples=num_resamples, seed=seed)
    del comparison["left_out"], comparison["too_few"]
    return comparison


def compare_mean_of_groups(
    a: Scored,
    b: Scored,
    groups: npt.NDArray[Any],
    *,
    metric: str,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Average the differences a - b within groups (bones), each group counting the same; see `compare`.

    Patients are drawn over all groups at once. `left_out` names the groups in which the metric does not
    exist, `too_few` those in the mean with fewer than 10 rows, or rows of fewer than 5 patients, of either
    label: the interval understates what they add. It is None if all groups together have so few, or if half of the
    resamples or more lack the metric in a group.
    """
    _check_same_rows(a, b)
    gains: dict[str, float] = {}
    pairs: dict[str, tuple[Scored, Scored]] = {}
    left_out: list[str] = []
    for name in np.unique(groups):
        pair = (a.subset(groups == name), b.subset(groups == name))
        gain = _gain(*pair, metric)
        if np.isnan(gain):
            left_out.append(str(name))
        else:
            gains[str(name)], pairs[str(name)] = gain, pair
    result: Comparison = {"difference": None, "ci95": None, "p": None, "left_out": left_out, "too_few": []}
    if not pairs:
        result["reason"] = _explain_absence(a)
        return result
    result["difference"] = float(np.mean(list(gains.values())))
    result["too_few"] = [name for name, (of_a, _) in pairs.items() if has_few([of_a])]
    few = has_few([of_a for of_a, _ in pairs.values()])
    differences = np.empty(0) if few else _resample_gains(list(pairs.values()), metric, num_resamples, seed)
    if len(differences) <= num_resamples / 2:
        result["reason"] = "too few"
    else:
        result["ci95"], result["p"] = _interval(differences), _p_value(differences)
    return result


def standard_error_of_gain(
    a: Scored, b: Scored, metric: str, *, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the paired gain a - b and its bootstrap standard error; nan if they do not exist.

    Raises ValueError if the rows differ.
    """
    _check_same_rows(a, b)
    gain = _gain(a, b, metric)
    if np.isnan(gain):
        return gain, float("nan")
    return gain, float(np.std(_resample_gains([(a, b)], metric, num_resamples, seed), ddof=1))


def _gain(a: Scored, b: Scored, metric: str) -> float:
    return score(a, (metric,))[metric] - score(b, (metric,))[metric]


def _resample_gains(pairs: Sequence[tuple[Scored, Scored]], metric: str, num_resamples: int, seed: int) -> Floats:
    """Average a - b over the pairs, one value per resample in which every pair has the metric."""
    parts = [a for a, _ in pairs] + [b for _, b in pairs]
    values = _resample(parts, (metric,), num_resamples, seed)[metric]
    gains: Floats = (values[: len(pairs)] - values[len(pairs) :]).mean(axis=0)
    return gains[~np.isnan(gains)]


def _resample(parts: Sequence[Scored], metrics: Sequence[str], num_resamples: int, seed: int) -> dict[str, Floats]:
    """Compute metrics, [parts, R] each, with the patients of all parts drawn together."""
    codes = np.unique(np.concatenate([part.patients for part in parts]))
    coded = [replace(part, patients=np.searchsorted(codes, part.patients)) for part in parts]
    largest = max(len(codes), *(len(part.labels) for part in parts))
    values: dict[str, Floats] = {metric: np.empty((len(parts), num_resamples)) for metric in metrics}
    start = 0
    for draws_PR in _draw_patients(len(codes), num_resamples, max(1, CHUNK_ELEMENTS // largest), seed):
        stop = start + draws_PR.shape[1]
        for i, part in enumerate(coded):
            for metric, column in score_weighted(part, metrics, draws_PR).items():
                values[metric][i, start:stop] = column
        start = stop
    return values


def _draw_patients(num_patients: int, num_resamples: int, chunk: int, seed: int) -> Iterator[Floats]:
    """Yield how often each patient is drawn in each resample, [P, up to chunk]; the chunk changes no draw."""
    generator = np.random.default_rng(seed)
    for start in range(0, num_resamples, chunk):
        num_columns = min(chunk, num_resamples - start)
        drawn = generator.integers(num_patients, size=(num_columns, num_patients))
        cells = drawn * num_columns + np.arange(num_columns)[:, None]
        counts = np.bincount(cells.ravel(), minlength=num_patients * num_columns)
        yield counts.reshape(num_patients, num_columns).astype(np.float64)


def _interval(values: Floats) -> list[float]:
    return [float(bound) for bound in np.percentile(values[~np.isnan(values)], (2.5, 97.5))]


def _p_value(differences: Floats) -> float:
    rarer_side = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    return min(1.0, 2 * (1 + rarer_side) / (1 + len(differences)))


def _explain_absence(scored: Scored) -> str:
    return "one class only" if len(scored.labels) else "no rows"


def _check_same_rows(a: Scored, b: Scored) -> None:
    if not (np.array_equal(a.labels, b.labels) and np.array_equal(a.patients, b.patients)):
        raise ValueError(
            f"systems on other rows ({len(a.labels)} and {len(b.labels)}): labels and patients must be equal"
        )
