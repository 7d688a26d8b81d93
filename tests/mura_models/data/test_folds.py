import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mura_models.data.folds import assign_folds
from mura_models.errors import DataError


def make_manifest(rows):
    """Return a manifest from rows of (patient, bone, label, split, fold)."""
    return pd.DataFrame(rows, columns=["patient", "bone", "label", "split", "fold"])


def draw_manifest(num_patients, num_images, seed=0):
    rng = np.random.default_rng(seed)
    patients = np.concatenate([np.arange(num_patients), rng.integers(num_patients, size=num_images - num_patients)])
    bones = np.array(["elbow", "hand", "wrist"])[rng.choice(3, num_patients, p=[0.1, 0.3, 0.6])]
    labels = rng.random(num_patients) < 0.3
    return pd.DataFrame(
        {
            "patient": [f"p{patient}" for patient in patients],
            "bone": bones[patients],
            "label": labels[patients].astype(np.int8),
            "split": "train",
            "fold": np.int16(-1),
        }
    )


images = st.tuples(st.integers(0, 30).map(str), st.sampled_from(["hand", "wrist"]), st.integers(0, 1))


@settings(max_examples=100, deadline=None)
@given(st.lists(images, min_size=1, max_size=80), st.integers(1, 6), st.integers(0, 3))
def test_patients_stay_whole_and_no_fold_is_empty(drawn, num_folds, seed):
    manifest = make_manifest([(*image, "train", -1) for image in drawn])
    if manifest["patient"].nunique() < num_folds:
        with pytest.raises(DataError, match="ask for fewer folds"):
            assign_folds(manifest, num_folds=num_folds, seed=seed)
        return
    folds = assign_folds(manifest, num_folds=num_folds, seed=seed)
    assert folds.dtype == np.int16
    assert set(folds) == set(range(num_folds))
    assert (pd.Series(folds).groupby(manifest["patient"]).nunique() == 1).all()


def test_bones_and_labels_are_spread_evenly():
    manifest = draw_manifest(num_patients=600, num_images=1800)
    manifest["test"] = assign_folds(manifest, num_folds=10, seed=0)
    counts = manifest.groupby(["bone", "label", "test"]).size().unstack(fill_value=0)
    # No patient has more than a dozen images: a fold is off by less than one patient.
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 4


def test_the_order_of_rows_does_not_matter_but_the_seed_does():
    manifest = draw_manifest(num_patients=60, num_images=150)
    folds = assign_folds(manifest, num_folds=5, seed=3)
    shuffled = manifest.sample(frac=1, random_state=0)
    assert np.array_equal(assign_folds(shuffled, num_folds=5, seed=3), folds[shuffled.index])
    assert not np.array_equal(assign_folds(manifest, num_folds=5, seed=4), folds)


def test_test_rows_have_no_fold():
    manifest = draw_manifest(num_patients=20, num_images=40)
    manifest.loc[manifest["patient"] == "p3", "split"] = "test"
    folds = assign_folds(manifest, num_folds=3, seed=0)
    assert np.array_equal(folds == -1, manifest["patient"] == "p3")


def test_given_folds_are_kept_and_the_other_patients_fill_the_rest():
    manifest = draw_manifest(num_patients=30, num_images=60)
    given_rows = manifest["patient"].isin(["p1", "p2"])
    manifest.loc[given_rows, "fold"] = 0
    folds = assign_folds(manifest, num_folds=4, seed=0)
    assert np.array_equal(folds == 0, given_rows)
    assert set(folds) == {0, 1, 2, 3}


def test_a_fold_given_for_one_row_is_given_for_the_patient():
    manifest = make_manifest(
        [("a", "hand", 0, "train", 1), ("a", "hand", 1, "train", -1), ("b", "hand", 1, "train", -1)]
    )
    assert assign_folds(manifest, num_folds=2, seed=0).tolist() == [1, 1, 0]


def test_patients_who_share_an_image_are_in_one_fold():
    manifest = draw_manifest(num_patients=40, num_images=120)
    manifest["digest"] = [f"image {number}" for number in range(len(manifest))]
    pairs = [("p1", "p2"), ("p2", "p3"), ("p7", "p8")]
    for number, pair in enumerate(pairs):
        for patient in pair:
            row = manifest.index[manifest["patient"] == patient][0]
            shared = manifest.loc[[row]].assign(digest=f"shared {number}")
            manifest = pd.concat([manifest, shared], ignore_index=True)
    for seed in range(10):
        folds = pd.Series(assign_folds(manifest, num_folds=5, seed=seed), index=manifest["patient"])
        assert set(folds) == set(range(5))
        for group in (["p1", "p2", "p3"], ["p7", "p8"], ["p5"]):
            assert folds[group].nunique() == 1


def test_images_that_are_not_shared_change_no_fold():
    manifest = draw_manifest(num_patients=40, num_images=120)
    with_digests = manifest.assign(digest=[f"image {number}" for number in range(len(manifest))])
    assert np.array_equal(assign_folds(with_digests, num_folds=5, seed=1), assign_folds(manifest, num_folds=5, seed=1))


def test_folds_given_to_patients_who_share_an_image_must_agree():
    manifest = make_manifest([("a", "hand", 0, "train", 0), ("b", "hand", 0, "train", 1)]).assign(digest="same")
    with pytest.raises(DataError, match="patients 'a' and 'b' share an image and have folds 0 and 1"):
        assign_folds(manifest, num_folds=2, seed=0)


def test_folds_that_are_all_given_are_kept():
    manifest = draw_manifest(num_patients=30, num_images=60)
    manifest["fold"] = assign_folds(manifest, num_folds=3, seed=0)
    assert np.array_equal(assign_folds(manifest, num_folds=3, seed=9), manifest["fold"])


@pytest.mark.parametrize(
    ("rows", "num_folds", "match"),
    [
        ([("a", "hand", 0, "train", 0), ("a", "wrist", 0, "train", 1)], 2, "patient 'a' has folds 0 and 1"),
        ([("a", "hand", 0, "train", 4), ("b", "hand", 0, "train", -1)], 2, "fold 4 is given"),
        ([("a", "hand", 0, "train", -1), ("b", "hand", 0, "train", -1)], 3, "2 train patients"),
        ([("a", "hand", 0, "train", 0), ("b", "hand", 0, "train", 1)], 3, "ask for fewer folds"),
    ],
)
def test_contradictions_are_named(rows, num_folds, match):
    with pytest.raises(DataError, match=match):
        assign_folds(make_manifest(rows), num_folds=num_folds, seed=0)
