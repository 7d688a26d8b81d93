"""Temperature and threshold of one model, from its dev rows: pure functions."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import expit

from mura_models.errors import ConfigError
from mura_models.evaluation.metrics import Floats, Ints, average_by_study, index_studies

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0  # chosen by us: at a bound, dev has too little information to fit
KAPPA_TOLERANCE = 1e-12  # equal kappas from other counts differ in their last bits


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How a model's logit becomes an answer: abnormal where sigmoid(logit / temperature) >= threshold."""

    temperature: float
    threshold: float

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature}: must be above 0 and finite")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold={self.threshold}: must be in [0, 1]")


def calibrate(logits: npt.NDArray[np.floating[Any]], labels: Ints, study_codes: npt.NDArray[Any]) -> Calibration:
    """Fit the temperature on images, then the threshold on the mean probabilities of their studies.

    Raises ValueError if a study has two labels.
    """
    temperature = fit_temperature(logits, labels)
    first_rows, study_of_row = index_studies(labels, study_codes)
    p_abnormal = average_by_study(apply_temperature(logits, temperature), first_rows, study_of_row)
    return Calibration(temperature=temperature, threshold=choose_threshold(labels[first_rows], p_abnormal))


def apply_temperature(logits: npt.NDArray[np.floating[Any]], temperature: float) -> Floats:
    """Turn logits into calibrated probabilities, in double precision."""
    p_abnormal: Floats = expit(np.asarray(logits, np.float64) / temperature)
    return p_abnormal


def fit_temperature(logits: npt.NDArray[np.floating[Any]], labels: Ints) -> float:
    """Return the temperature in [0.05, 20] of least cross-entropy (Guo et al., arXiv 1706.04599) to smoothed labels.

    Returns 1.0 without rows of both labels.
    """
    if len(np.unique(labels)) < 2:
        return 1.0
    logits_N = np.asarray(logits, np.float64)
    targets_N = _smooth(labels)

    def cross_entropy(log_temperature: float) -> float:
        scaled = logits_N / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0, scaled) - targets_N * scaled))

    # Convex in 1 / T, so there is one minimum, and in log T both bounds are equally far from 1.
    found = minimize_scalar(
        cross_entropy,
        bounds=(math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def _smooth(labels: Ints) -> Floats:
    """Smooth the labels as Platt (1999) does, so that a separable dev set does not yield an extreme temperature."""
    num_abnormal = np.count_nonzero(labels)
    abnormal, normal = (num_abnormal + 1) / (num_abnormal + 2), 1 / (len(labels) - num_abnormal + 2)
    targets: Floats = np.where(labels == 1, abnormal, normal)
    return targets


def choose_threshold(labels: Ints, p_abnormal: Floats, *, default: float = 0.5) -> float:
    """Choose the threshold of highest Cohen's kappa, p >= threshold being abnormal.

    Candidates are midway between neighboring probabilities. Of several that are best, the middle of the widest run
    wins, then the nearest to `default`; if none beats chance, `default` itself.
    """
    values, value_of_row = np.unique(p_abnormal, return_inverse=True)
    positives = np.bincount(value_of_row, weights=labels, minlength=len(values))
    negatives = np.bincount(value_of_row, weights=1 - labels, minlength=len(values))
    # Split k puts values[:k + 1] below the threshold and values[k + 1:] above it.
    fn, tn = np.cumsum(positives)[:-1], np.cumsum(negatives)[:-1]
    tp, fp = positives.sum() - fn, negatives.sum() - tn
    by_chance = (tp + fp) * (tn + fp) + (tp + fn) * (fn + tn)
    kappas = 2 * (tp * tn - fp * fn) / by_chance
    if not len(kappas) or kappas.max() <= 0:
        return default
    starts, stops = _find_runs(kappas >= kappas.max() - KAPPA_TOLERANCE)
    below, above = values[starts], values[stops]
    # Neighbors one float apart have no middle: any value in (below, above] splits the rows alike.
    middles = np.maximum((below + above) / 2, np.nextafter(below, np.inf))
    return float(middles[np.lexsort((np.abs(middles - default), below - above))[0]])


def _find_runs(flags: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Return the start of each run of True and the index after its end."""
    edges = np.diff(flags.astype(np.int8), prepend=0, append=0)
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
