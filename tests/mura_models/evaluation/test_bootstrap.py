from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from mura_models.evaluation import bootstrap as intervals
from mura_models.evaluation.bootstrap import compare, compare_mean_of_groups, standard_error_of_gain, summarize
from mura_models.evaluation.metrics import METRICS, Scored, mean_of_groups, score


def draw_scored(seed, *, num_rows=400, shift=1.0, num_patients=None):
    """Draw rows whose logits differ by `shift` between the labels; each row is its own patient by default."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, num_rows)
    logits = generator.normal(size=num_rows) + shift * (labels - 0.5)
    patients = np.arange(num_rows) if num_patients is None else generator.integers(num_patients, size=num_rows)
    return Scored(
        labels=labels.astype(np.int8),
        p_abnormal=1 / (1 + np.exp(-logits)),
        thresholds=np.full(num_rows, 0.45),
        patients=patients,
    )


def blur(scored, seed, strength):
    """Make a weaker system on the same rows."""
    noise = np.random.default_rng(seed).normal(size=len(scored.labels)) * strength
    return replace(scored, p_abnormal=np.clip(scored.p_abnormal + noise, 0, 1))


def test_summary_gives_every_metric_inside_its_interval():
    scored = draw_scored(0)
    summary = summarize(scored)
    assert tuple(summary) == METRICS
    points = score(scored)
    for metric, estimate in summary.items():
        low, high = estimate["ci95"]
        assert estimate["value"] == points[metric]
        assert low < estimate["value"] < high
        assert "reason" not in estimate


def test_accuracy_interval_equals_the_binomial_one_for_independent_images():
    scored = draw_scored(1, num_rows=1000)
    accuracy = summarize(scored, num_resamples=4000)["accuracy"]
    low, high = np.array(binom.interval(0.95, 1000, accuracy["value"])) / 1000
    assert accuracy["ci95"] == pytest.approx([low, high], abs=0.003)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    truth = 0.760250  # P(x > y) for two unit normals one apart: Phi(1 / sqrt 2)
    intervals_of_auroc = [
        summarize(draw_scored(seed, num_rows=200), num_resamples=300)["auroc"]["ci95"] for seed in range(300)
    ]
    coverage = np.mean([low <= truth <= high for low, high in intervals_of_auroc])
    assert 0.91 <= coverage <= 0.98


def test_images_of_one_patient_do_not_narrow_the_interval():
    once = draw_scored(2, num_rows=300)
    four_times = once.subset(np.tile(np.arange(300), 4))
    as_if_independent = replace(four_times, patients=np.arange(1200))
    width_once, width_clustered, width_naive = (
        np.ptp(summarize(scored)["auroc"]["ci95"]) for scored in (once, four_times, as_if_independent)
    )
    assert width_clustered == pytest.approx(width_once, rel=1e-9)
    assert width_naive == pytest.approx(width_once / 2, rel=0.15)


def test_the_same_seed_gives_the_same_bits_whatever_the_chunk(monkeypatch):
    scored = draw_scored(3, num_patients=90)
    first = summarize(scored, seed=5)
    assert summarize(scored, seed=5) == first
    assert summarize(scored, seed=6) != first
    monkeypatch.setattr(intervals, "CHUNK_ELEMENTS", 7 * len(scored.labels))
    assert summarize(scored, seed=5) == first


def test_patient_codes_are_only_names():
    scored = draw_scored(4, num_patients=60)
    renamed = replace(scored, patients=scored.patients * 1000 + 17)
    assert summarize(renamed) == summarize(scored)


def test_too_few_rows_of_a_label_give_a_value_without_interval():
    scored = draw_scored(5)
    nine_abnormal = np.r_[np.flatnonzero(scored.labels)[:9], np.flatnonzero(scored.labels == 0)]
    for estimate in summarize(scored.subset(nine_abnormal)).values():
        assert estimate["value"] is not None
        assert (estimate["ci95"], estimate["reason"]) == (None, "too few")
    ten_abnormal = np.r_[np.flatnonzero(scored.labels)[:10], np.flatnonzero(scored.labels == 0)]
    assert summarize(scored.subset(ten_abnormal))["auroc"]["ci95"] is not None


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize(("num_patients", "is_enough"), [(1, False), (4, False), (5, True)])
def test_rows_of_too_few_patients_of_a_label_are_too_few(label, num_patients, is_enough):
    """Patients are drawn: all the rows of one patient weigh as one, and the interval would have no width."""
    scored = draw_scored(5)
    of_label = scored.labels == label
    scored = replace(scored, patients=np.where(of_label, 1000 + np.cumsum(of_label) % num_patients, scored.patients))
    estimates = [*summarize(scored).values(), compare(scored, blur(scored, 1, 0.3), metric="auroc")]
    assert {estimate["ci95"] is not None for estimate in estimates} == {is_enough}
    assert {estimate.get("reason") for estimate in estimates} == {None if is_enough else "too few"}


def test_a_bone_of_too_few_patients_is_named():
    a = draw_scored(19, num_rows=300)
    bones = np.where(np.arange(300) < 200, "wrist", "shoulder")
    a = replace(a, patients=np.where(bones == "wrist", a.patients, 200 + a.patients % 4))
    headline = compare_mean_of_groups(a, blur(a, 20, 0.3), bones, metric="auroc")
    assert headline["too_few"] == ["shoulder"]
    assert headline["ci95"] is not None


def test_one_label_gives_no_auroc_and_says_why():
    normal = draw_scored(6).subset(draw_scored(6).labels == 0)
    summary = summarize(normal)
    assert summary["auroc"] == {"value": None, "ci95": None, "reason": "one class only"}
    assert summary["accuracy"]["value"] is not None
    assert compare(normal, normal, metric="auroc")["reason"] == "one class only"
    assert summarize(normal.subset(np.array([], int)))["accuracy"]["reason"] == "no rows"


def test_a_system_equals_itself():
    scored = draw_scored(7)
    for metric in METRICS:
        assert compare(scored, scored, metric=metric) == {"difference": 0, "ci95": [0, 0], "p": 1}


@pytest.mark.parametrize("metric", METRICS)
def test_a_comparison_turned_round_changes_its_sign_only(metric):
    a = draw_scored(8, num_patients=150)
    b = blur(a, 9, 0.3)
    forth, back = compare(a, b, metric=metric), compare(b, a, metric=metric)
    assert back["difference"] == -forth["difference"]
    assert back["ci95"] == pytest.approx([-forth["ci95"][1], -forth["ci95"][0]], abs=1e-12)
    assert back["p"] == forth["p"]


def test_a_real_difference_is_found_and_pairing_sharpens_it():
    a = draw_scored(10, num_rows=1000)
    b = blur(a, 11, 0.3)
    comparison = compare(a, b, metric="auroc")
    assert comparison["p"] < 0.01
    assert comparison["ci95"][0] > 0
    unpaired_width = np.hypot(*(np.ptp(summarize(system)["auroc"]["ci95"]) for system in (a, b)))
    assert np.ptp(comparison["ci95"]) < 0.8 * unpaired_width


def test_p_values_of_equal_systems_are_small_as_rarely_as_they_should_be():
    p_values = []
    for seed in range(200):
        a = draw_scored(seed, num_rows=200, shift=0.0)
        b = replace(draw_scored(seed + 1000, num_rows=200, shift=0.0), labels=a.labels)
        p_values.append(compare(a, b, metric="auroc", num_resamples=300)["p"])
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.04)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.08)


def test_systems_on_other_rows_are_refused():
    a, b = draw_scored(12), draw_scored(13)
    for function in (compare, standard_error_of_gain):
        with pytest.raises(ValueError, match="must be equal"):
            function(a, b, metric="auroc")


def test_too_few_rows_give_a_difference_without_interval():
    a = draw_scored(14, num_rows=12)
    comparison = compare(a, blur(a, 1, 0.3), metric="accuracy")
    assert comparison["difference"] is not None
    assert (comparison["ci95"], comparison["p"], comparison["reason"]) == (None, None, "too few")


def test_the_headline_is_the_mean_of_the_differences_within_bones():
    a = draw_scored(15, num_rows=900, num_patients=300)
    b = blur(a, 16, 0.3)
    bones = np.array(["wrist", "wrist", "elbow"] * 300)
    headline = compare_mean_of_groups(a, b, bones, metric="auroc")
    expected = mean_of_groups(a, bones)["auroc"] - mean_of_groups(b, bones)["auroc"]
    assert headline["difference"] == pytest.approx(expected)
    assert headline["ci95"][0] < expected < headline["ci95"][1]
    assert headline["left_out"] == headline["too_few"] == []


def test_groups_draw_their_patients_together():
    a = draw_scored(17, num_rows=300)
    b = blur(a, 18, 0.3)
    of_one = compare(a, b, metric="accuracy")
    twice = np.tile(np.arange(300), 2)
    same_patients = compare_mean_of_groups(
        a.subset(twice), b.subset(twice), np.repeat(["left", "right"], 300), metric="accuracy"
    )
    assert same_patients["difference"] == pytest.approx(of_one["difference"])
    assert same_patients["ci95"] == pytest.approx(of_one["ci95"], abs=1e-12)


def test_bones_without_the_metric_are_left_out_by_name_and_small_ones_are_named():
    a = draw_scored(19, num_rows=300)
    bones = np.full(300, "wrist", dtype="<U8")
    normal, abnormal = np.flatnonzero(a.labels == 0), np.flatnonzero(a.labels)
    bones[normal[:20]] = "hip"
    bones[np.r_[normal[20:30], abnormal[:5]]] = "shoulder"
    b = blur(a, 20, 0.3)
    headline = compare_mean_of_groups(a, b, bones, metric="auroc")
    assert headline["left_out"] == ["hip"]
    assert headline["too_few"] == ["shoulder"]
    assert headline["ci95"] is not None
    only_hip = bones == "hip"
    nothing = compare_mean_of_groups(a.subset(only_hip), b.subset(only_hip), bones[only_hip], metric="auroc")
    assert (nothing["difference"], nothing["reason"]) == (None, "one class only")


def test_the_headline_has_no_interval_where_most_resamples_lack_a_bone():
    a = draw_scored(21, num_rows=600)
    bones = np.arange(600) % 6
    # All abnormal rows of each bone are one patient's: all six are drawn in 6% of the resamples.
    a = replace(a, patients=np.where(a.labels == 1, bones, np.arange(600) + 10))
    headline = compare_mean_of_groups(a, blur(a, 22, 0.3), bones, metric="auroc")
    assert headline["difference"] is not None
    assert (headline["ci95"], headline["reason"]) == (None, "too few")


def test_standard_error_of_gain_equals_the_textbook_one():
    a = draw_scored(23, num_rows=1000)
    b = blur(a, 24, 0.3)
    gain, standard_error = standard_error_of_gain(a, b, "accuracy", num_resamples=4000)
    is_right = [(system.p_abnormal >= system.thresholds) == system.labels for system in (a, b)]
    differences = is_right[0].astype(float) - is_right[1]
    assert gain == pytest.approx(differences.mean())
    assert standard_error == pytest.approx(differences.std(ddof=1) / np.sqrt(1000), rel=0.05)


def test_standard_error_of_gain_is_missing_with_one_label():
    scored = draw_scored(25)
    normal = scored.subset(scored.labels == 0)
    assert np.isnan(standard_error_of_gain(normal, normal, "auroc")).all()
