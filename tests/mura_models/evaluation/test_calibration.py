import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, log_loss

from mura_models.evaluation.calibration import apply_temperature, calibrate, choose_threshold, fit_temperature

quickly = settings(max_examples=50, deadline=None)  # a busy machine is no failure


def draw_calibrated(num_rows, seed=0):
    """Draw logits and the labels they promise: P(label = 1) = sigmoid(logit)."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2, size=num_rows)
    return logits, (generator.random(num_rows) < apply_temperature(logits, 1.0)).astype(np.int8)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_the_temperature_that_spoilt_the_logits_is_found(temperature):
    logits, labels = draw_calibrated(30_000)
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.03)


def test_the_fitted_temperature_has_the_least_cross_entropy_to_platts_targets():
    logits, labels = draw_calibrated(200)
    num_abnormal, num_normal = labels.sum(), (1 - labels).sum()
    abnormal, normal = (num_abnormal + 1) / (num_abnormal + 2), 1 / (num_normal + 2)
    parts = np.where(labels, abnormal, normal)  # each row is abnormal in this part, and normal in the rest
    both, weights = np.repeat([1, 0], 200), np.r_[parts, 1 - parts]
    grid = np.geomspace(0.5, 8, 801)
    losses = [log_loss(both, np.tile(apply_temperature(logits * 2, t), 2), sample_weight=weights) for t in grid]
    assert fit_temperature(logits * 2, labels) == pytest.approx(grid[np.argmin(losses)], rel=0.004)


def test_smoothing_fades_with_the_number_of_rows():
    for num_rows, allowed in ((200, 0.1), (2000, 0.01), (20_000, 0.001)):
        logits, labels = draw_calibrated(num_rows)
        grid = np.geomspace(0.5, 2, 2001)
        losses = [log_loss(labels, apply_temperature(logits, temperature)) for temperature in grid]
        assert fit_temperature(logits, labels) == pytest.approx(grid[np.argmin(losses)], rel=allowed)


@pytest.mark.parametrize("labels", [[], [0, 0, 0], [1, 1, 1]])
def test_without_both_labels_nothing_is_rescaled(labels):
    logits = np.arange(len(labels), dtype=np.float64)
    studies = np.arange(len(labels))
    found = calibrate(logits, np.array(labels, np.int8), studies)
    assert (found.temperature, found.threshold) == (1.0, 0.5)


def test_a_separable_dev_set_gives_no_certainty():
    """Without smoothing every scale fits better than the one before, up to the bound, where p is 1.0 exactly."""
    labels = np.repeat([0, 1], 10)
    logits = np.r_[np.linspace(-9, -5, 10), np.linspace(5, 9, 10)]
    for scale in (0.1, 1.0, 4.0):
        p_abnormal = apply_temperature(scale * logits, fit_temperature(scale * logits, labels))
        assert p_abnormal[labels == 1].mean() == pytest.approx(11 / 12, abs=0.02)
        assert p_abnormal[labels == 0].mean() == pytest.approx(1 / 12, abs=0.02)
        assert p_abnormal.max() < 0.97


def test_a_reversed_dev_set_stays_within_bounds():
    labels = np.array([0, 0, 1, 1])
    assert fit_temperature(np.array([2.0, 1.0, -1.0, -2.0]), labels) == pytest.approx(20, rel=0.01)


def test_extreme_logits_give_probabilities_without_overflow():
    p_abnormal = apply_temperature(np.array([-1e4, 0, 1e4], np.float32), 0.05)
    assert p_abnormal.dtype == np.float64
    assert p_abnormal.tolist() == [0, 0.5, 1]


@quickly
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12)), min_size=2, max_size=30))
def test_no_threshold_has_a_higher_kappa(drawn):
    labels, grid = np.array(drawn).T
    p_abnormal = grid / 12
    threshold = choose_threshold(labels, p_abnormal)
    if len(set(labels)) == 1:
        assert threshold == 0.5
        return
    best = max(cohen_kappa_score(labels, p_abnormal >= candidate) for candidate in (*p_abnormal, 2.0))
    if best > 1e-9:
        assert cohen_kappa_score(labels, p_abnormal >= threshold) == pytest.approx(best)
    else:
        assert threshold == 0.5


@quickly
@given(st.floats(0.01, 0.99))
def test_neighboring_floats_stay_distinct(p_normal):
    p_abnormal = np.array([p_normal, np.nextafter(p_normal, 1)])
    threshold = choose_threshold(np.array([0, 1]), p_abnormal)
    assert (p_abnormal >= threshold).tolist() == [False, True]


def test_a_gap_is_split_in_its_middle():
    assert choose_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.9])) == pytest.approx(0.4)


def test_of_equally_good_thresholds_the_widest_gap_wins():
    labels = np.array([0, 1, 0, 1])  # a split after the first and one before the last are equally good
    assert choose_threshold(labels, np.array([0.0, 0.1, 0.2, 0.8])) == pytest.approx(0.5)
    assert choose_threshold(labels, np.array([0.0, 0.6, 0.7, 0.8])) == pytest.approx(0.3)


def test_of_equally_wide_gaps_the_one_nearest_to_the_default_wins():
    labels, p_abnormal = np.array([0, 1, 0, 1]), np.array([0.0, 0.25, 0.5, 0.75])
    assert choose_threshold(labels, p_abnormal) == 0.625
    assert choose_threshold(labels, p_abnormal, default=0.25) == 0.125


def test_a_model_no_better_than_chance_keeps_the_default():
    assert choose_threshold(np.array([1, 1, 0, 0]), np.array([0.1, 0.2, 0.6, 0.9])) == 0.5
    assert choose_threshold(np.array([0, 1]), np.array([0.3, 0.3]), default=0.4) == 0.4


def test_the_threshold_is_set_on_studies_and_the_temperature_on_images():
    logits, labels_of_studies = draw_calibrated(400, seed=1)
    studies = np.repeat(np.arange(400), 3)
    noise = np.random.default_rng(2).normal(size=1200)
    images, labels = logits[studies] + noise, labels_of_studies[studies]
    found = calibrate(images, labels, studies)
    assert found.temperature == fit_temperature(images, labels)
    p_of_studies = apply_temperature(images, found.temperature).reshape(400, 3).mean(axis=1)
    kappa = cohen_kappa_score(labels_of_studies, p_of_studies >= found.threshold)
    best = max(cohen_kappa_score(labels_of_studies, p_of_studies >= p) for p in p_of_studies)
    assert kappa == pytest.approx(best)


def test_a_study_with_two_labels_is_refused():
    with pytest.raises(ValueError, match="two labels"):
        calibrate(np.array([0.0, 1.0]), np.array([0, 1]), np.array([3, 3]))
