"""`mura.evaluate` and `mura.compare`: arrays in, the figures of the bootstrap out."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from mura_models.data.dataset import patient_codes, study_codes
from mura_models.errors import DataError, SettingError
from mura_models.evaluation.arrays import compare, evaluate
from mura_models.evaluation.bootstrap import compare as compare_scored
from mura_models.evaluation.bootstrap import compare_mean_of_groups, summarize
from mura_models.evaluation.metrics import METRICS, Scored, to_studies

STUDY = ["patient", "bone", "study"]


@pytest.fixture(scope="module")
def table():
    """Images of 60 patients, each with a study of two images of the hand or the wrist, and two systems."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(60), 2)
    label = np.repeat(rng.integers(2, size=60), 2)
    return pd.DataFrame(
        {
            "bone": np.where(patient % 3, "hand", "wrist"),
            "patient": [f"p{number}" for number in patient],
            "study": "study1",
            "label": label,
            "p_new": np.clip(0.3 * label + rng.uniform(0, 0.7, 120), 0, 1),
            "p_old": np.clip(0.2 * label + rng.uniform(0, 0.8, 120), 0, 1),
        }
    )


def score_images(table, column, threshold=0.5):
    """Return the rows as the bootstrap takes them."""
    return Scored(
        labels=table["label"].to_numpy(),
        p_abnormal=table[column].to_numpy(),
        thresholds=np.full(len(table), threshold),
        patients=patient_codes(table),
    )


def test_images_have_the_figures_and_intervals_of_the_bootstrap(table):
    result = evaluate(table["label"], table["p_new"], patients=table["patient"], threshold=0.4)
    assert list(result) == list(METRICS)
    assert result == summarize(score_images(table, "p_new", 0.4))
    assert result["auroc"]["value"] == pytest.approx(roc_auc_score(table["label"], table["p_new"]), abs=1e-12)
    assert result["auroc"]["ci95"][0] < result["auroc"]["value"] < result["auroc"]["ci95"][1]


def test_studies_have_the_figures_and_intervals_of_the_bootstrap(table):
    result = evaluate(table["label"], table["p_new"], patients=table["patient"], studies=table[STUDY], seed=3)
    assert result == summarize(to_studies(score_images(table, "p_new"), study_codes(table)), seed=3)


def test_one_column_can_name_the_study(table):
    named = evaluate(table["label"], table["p_new"], patients=table["patient"], studies=table["patient"])
    assert named == evaluate(table["label"], table["p_new"], patients=table["patient"], studies=table[STUDY])


def test_lists_do_as_columns_do(table):
    lists = (table[column].tolist() for column in ("label", "p_new", "patient"))
    labels, probabilities, patients = lists
    assert evaluate(labels, probabilities, patients=patients) == evaluate(
        table["label"], table["p_new"], patients=table["patient"]
    )


def test_every_row_is_its_own_patient_by_default(table):
    expected = evaluate(table["label"], table["p_new"], patients=np.arange(len(table)))
    assert evaluate(table["label"], table["p_new"]) == expected
    missing = evaluate(table["label"], table["p_new"], patients=[None] * len(table))
    assert missing == expected


def test_thresholds_can_differ_between_rows(table):
    mixed = np.where(table["bone"] == "hand", 0.3, 0.6)
    result = evaluate(table["label"], table["p_new"], threshold=mixed)
    assert result["accuracy"]["value"] == ((table["p_new"] >= mixed) == table["label"]).mean()


def test_a_metric_that_does_not_exist_has_a_reason():
    result = evaluate([1, 1], [0.2, 0.9])
    assert result["auroc"] == {"value": None, "ci95": None, "reason": "one class only"}
    assert result["accuracy"] == {"value": 0.5, "ci95": None, "reason": "too few"}


def test_two_systems_are_compared_on_the_same_resamples(table):
    result = compare(table["label"], table["p_new"], table["p_old"], metric="kappa", patients=table["patient"])
    assert result == compare_scored(*(score_images(table, name) for name in ("p_new", "p_old")), metric="kappa")
    assert result["ci95"][0] < result["difference"] < result["ci95"][1]
    assert 0 < result["p"] <= 1


def test_within_groups_the_mean_difference_is_that_of_the_report(table):
    result = compare(
        table["label"],
        table["p_new"],
        table["p_old"],
        patients=table["patient"],
        studies=table[STUDY],
        groups=table["bone"],
    )
    systems = [to_studies(score_images(table, name), study_codes(table)) for name in ("p_new", "p_old")]
    bones = table.drop_duplicates(STUDY)["bone"].to_numpy()
    assert result == compare_mean_of_groups(*systems, bones, metric="auroc")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"labels": [0, 2]}, r"labels \[0.0, 2.0\]: each must be 0 or 1"),
        ({"labels": [0, "x"]}, "labels: must be numbers"),
        ({"labels": pd.Series([0, None], dtype="Int8")}, r"labels \[0.0, nan\]: each must be 0 or 1"),
        (
            {"probabilities": [0.1]},
            r"labels, p_abnormal, thresholds, patients have \[2, 1, 2, 2\] rows: must be of one length",
        ),
        ({"probabilities": [0.1, np.nan]}, "p_abnormal holds NaN"),
        ({"probabilities": [0.1, 1.5]}, r"probabilities: each must be in \[0, 1\]"),
        ({"patients": ["a"]}, "must be of one length"),
        ({"studies": ["s", "s"]}, "carries two labels"),
        ({"labels": [1, 1], "studies": ["s", "s"], "patients": ["a", "b"]}, "patients: a study has 0 and 1"),
    ],
)
def test_columns_that_cannot_be_are_refused(changes, text):
    arguments = {"labels": [0, 1], "probabilities": [0.1, 0.9]} | changes
    with pytest.raises(DataError, match=text):
        evaluate(arguments.pop("labels"), arguments.pop("probabilities"), **arguments)


def test_an_unknown_metric_is_refused():
    with pytest.raises(SettingError, match="metric=auc: must be one of kappa"):
        compare([0, 1], [0.1, 0.9], [0.2, 0.8], metric="auc")


def test_a_study_in_two_groups_is_refused():
    with pytest.raises(DataError, match="groups: a study has hand and wrist"):
        compare([1, 1], [0.1, 0.9], [0.2, 0.8], studies=["s", "s"], groups=["hand", "wrist"])


def test_groups_of_another_length_are_refused():
    with pytest.raises(DataError, match="groups of 1 rows"):
        compare([1, 0], [0.1, 0.9], [0.2, 0.8], groups=["hand"])
