import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from mura_models.evaluation.metrics import (
    METRICS,
    Scored,
    confusion,
    macro_f1,
    mean_of_groups,
    score,
    score_weighted,
    to_studies,
)

quickly = settings(max_examples=50, deadline=None)  # a busy machine is no failure


def make_scored(labels, p_abnormal, thresholds=0.5, patients=None):
    num_rows = len(labels)
    return Scored(
        labels=np.asarray(labels, np.int8),
        p_abnormal=np.asarray(p_abnormal, np.float64),
        thresholds=np.broadcast_to(np.asarray(thresholds, np.float64), num_rows),
        patients=np.arange(num_rows) if patients is None else np.asarray(patients, np.int64),
    )


# Probabilities on a coarse grid, so that most examples hold ties between the labels.
rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 4)), min_size=2, max_size=40)
both_labels = rows.filter(lambda drawn: len({label for label, _, _ in drawn}) == 2)


@quickly
@given(both_labels)
def test_point_values_equal_scikit_learn(drawn):
    labels, grid, grid_of_threshold = np.array(drawn).T
    p_abnormal, thresholds = grid / 6, grid_of_threshold / 4
    predictions = p_abnormal >= thresholds
    found = score(make_scored(labels, p_abnormal, thresholds))
    expected = {
        "kappa": sklearn_metrics.cohen_kappa_score(labels, predictions),
        "kappa_at_half": sklearn_metrics.cohen_kappa_score(labels, p_abnormal >= 0.5),
        "accuracy": sklearn_metrics.accuracy_score(labels, predictions),
        "auroc": sklearn_metrics.roc_auc_score(labels, p_abnormal),
        "f1": sklearn_metrics.f1_score(labels, predictions),
        "sensitivity": sklearn_metrics.recall_score(labels, predictions),
        "specificity": sklearn_metrics.recall_score(labels, predictions, pos_label=0),
    }
    assert tuple(found) == METRICS
    assert found == pytest.approx(expected, abs=1e-12)
    balanced = sklearn_metrics.balanced_accuracy_score(labels, predictions)
    assert (found["sensitivity"] + found["specificity"]) / 2 == pytest.approx(balanced)


@quickly
@given(both_labels, st.integers(0, 2**32 - 1))
def test_weighted_values_equal_scikit_learn_with_sample_weights(drawn, seed):
    labels, grid, patients = np.array(drawn).T
    p_abnormal = grid / 6
    weights_PR = np.random.default_rng(seed).integers(0, 4, size=(5, 3)).astype(np.float64)
    scored = make_scored(labels, p_abnormal, 0.4, patients)
    found = score_weighted(scored, METRICS, weights_PR)
    for resample, weights in enumerate(weights_PR.T):
        of_rows = weights[patients]
        if min(of_rows[labels == 1].sum(), of_rows[labels == 0].sum()) == 0:
            assert np.isnan(found["auroc"][resample]) and np.isnan(found["kappa"][resample])
            continue
        auroc = sklearn_metrics.roc_auc_score(labels, p_abnormal, sample_weight=of_rows)
        kappa = sklearn_metrics.cohen_kappa_score(labels, p_abnormal >= 0.4, sample_weight=of_rows)
        f1 = sklearn_metrics.f1_score(labels, p_abnormal >= 0.4, sample_weight=of_rows)
        assert found["auroc"][resample] == pytest.approx(auroc, abs=1e-12)
        assert found["kappa"][resample] == pytest.approx(kappa, abs=1e-12)
        assert found["f1"][resample] == pytest.approx(f1, abs=1e-12)


@pytest.mark.parametrize("label", [0, 1])
def test_with_one_label_only_what_exists_is_given(label):
    found = score(make_scored([label] * 4, [0.1, 0.6, 0.7, 0.8]))
    missing = {"kappa", "kappa_at_half", "auroc", "f1", "specificity" if label else "sensitivity"}
    assert {metric for metric, value in found.items() if np.isnan(value)} == missing
    assert found["accuracy"] == (0.75 if label else 0.25)


def test_without_rows_nothing_exists():
    assert all(np.isnan(value) for value in score(make_scored([], [])).values())


def test_each_row_is_compared_with_its_own_threshold():
    found = score(make_scored([0, 1, 0, 1], [0.3, 0.4, 0.7, 0.8], [0.35, 0.35, 0.75, 0.75]))
    assert found["kappa"] == 1
    assert found["kappa_at_half"] == 0


def test_a_study_is_the_mean_of_its_images():
    images = make_scored([1, 0, 1, 1], [0.9, 0.2, 0.3, 0.6], [0.4, 0.3, 0.4, 0.4], [7, 8, 7, 7])
    studies = to_studies(images, np.array(["b", "a", "b", "b"]))
    assert studies.labels.tolist() == [0, 1]
    assert studies.p_abnormal == pytest.approx([0.2, 0.6])
    assert studies.thresholds.tolist() == [0.3, 0.4]
    assert studies.patients.tolist() == [8, 7]


@quickly
@given(st.floats(0, 1), st.integers(1, 9))
def test_a_study_at_its_threshold_stays_abnormal(threshold, num_images):
    images = make_scored([1] * num_images, [threshold] * num_images, threshold, [0] * num_images)
    studies = to_studies(images, np.zeros(num_images, np.int64))
    assert studies.p_abnormal[0] == studies.thresholds[0] == threshold


def test_a_study_with_two_labels_is_refused_by_name():
    with pytest.raises(ValueError, match="study 5 carries two labels"):
        to_studies(make_scored([0, 0, 1], [0.1, 0.2, 0.3]), np.array([4, 5, 5]))


@pytest.mark.parametrize(
    ("labels", "p_abnormal", "rule"),
    [
        ([0, 1], [0.1], "one length"),
        ([0, 2], [0.1, 0.2], "must be 0 or 1"),
        ([0, 1], [0.1, np.nan], "must be finite"),
    ],
)
def test_impossible_columns_are_refused_with_the_rule(labels, p_abnormal, rule):
    with pytest.raises(ValueError, match=rule):
        make_scored(labels, p_abnormal)


def test_mean_of_groups_counts_a_small_bone_like_a_large_one():
    bones = np.repeat(["wrist", "elbow", "hip"], [100, 2, 2])
    scored = make_scored([0, 1] * 50 + [0, 1] + [0, 0], [0.2, 0.8] * 50 + [0.8, 0.2] + [0.2, 0.8])
    means = mean_of_groups(scored, bones)
    assert means["auroc"] == 0.5  # of wrist and elbow: the hip has no abnormal row
    assert means["accuracy"] == 0.5
    assert means["specificity"] == 0.5


def test_mean_of_groups_is_missing_where_no_group_has_the_metric():
    means = mean_of_groups(make_scored([0, 1], [0.1, 0.9]), np.array(["hip", "leg"]))
    assert means["auroc"] is None
    assert means["accuracy"] == 1


@quickly
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_confusion_and_macro_f1_equal_scikit_learn(drawn):
    labels, predictions = np.array(drawn, np.int8).T
    expected = sklearn_metrics.confusion_matrix(labels, predictions, labels=range(5))
    assert confusion(labels, predictions, 5).tolist() == expected.tolist()
    expected_f1 = sklearn_metrics.f1_score(labels, predictions, average="macro")
    assert macro_f1(labels, predictions, 5) == pytest.approx(expected_f1)
