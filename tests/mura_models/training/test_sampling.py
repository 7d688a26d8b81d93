"""What is done against imbalance: how often each row is drawn, and what it weighs."""

import numpy as np
import pandas as pd
import pytest
from sklearn.utils.class_weight import compute_sample_weight

from mura_models.training.sampling import BatchPlan, fit_weights, label_weights, sampling_strata

BONES = np.repeat(["elbow", "hand", "wrist"], [10, 40, 6])
LABELS = np.concatenate([np.repeat([0, 1], [8, 2]), np.repeat([0, 1], [10, 30]), np.zeros(6, int)])
"""The wrist has one label only."""


def draw_shares(sampling, *, labels=LABELS, num_steps=400):
    """Return how often each row is drawn, as a share of all draws."""
    batches = BatchPlan(
        np.zeros(len(BONES), int),
        held_out=(1,),  # nothing is left out
        num_views=1,
        batch_size=28,
        strata=sampling_strata(sampling, BONES, labels),
        seed=0,
    )
    rows = np.concatenate([batches.draw(step)[0][0] for step in range(num_steps)])
    return np.bincount(rows, minlength=len(BONES)) / len(rows)


def sum_by(shares, *columns):
    """Sum shares by bone, or by bone and label."""
    return pd.Series(shares).groupby(list(columns)).sum().to_numpy()


def test_balanced_bones_are_drawn_equally_often():
    assert sum_by(draw_shares("balanced_bones"), BONES) == pytest.approx(np.full(3, 1 / 3), abs=0.02)


def test_balanced_bones_and_labels_are_drawn_equally_often():
    shares = draw_shares("balanced_bones_labels")
    assert sum_by(shares, BONES, LABELS) == pytest.approx(np.full(5, 1 / 5), abs=0.02)


@pytest.mark.parametrize("sampling", ["plain", "weighted_labels"])
def test_else_every_row_is_drawn_equally_often(sampling):
    assert draw_shares(sampling) == pytest.approx(np.full(56, 1 / 56), abs=1e-3)


def test_a_router_is_balanced_over_bones_whatever_the_labels():
    for sampling in ("balanced_bones", "balanced_bones_labels"):
        assert sampling_strata(sampling, BONES, None).tolist() == BONES.tolist()


def test_weighted_labels_are_muras_by_bone():
    """MURA's loss, arXiv 1712.06957: w1 = normal / all, w0 = abnormal / all, of each study type; mean 1 here."""
    weights = label_weights("weighted_labels", BONES, LABELS)
    expected = np.empty(56)
    for bone in set(BONES):
        of_bone = bone == BONES
        abnormal = LABELS[of_bone].mean()
        expected[of_bone] = np.where(LABELS[of_bone] == 1, 1 - abnormal, abnormal) if 0 < abnormal < 1 else 1
    assert weights == pytest.approx(expected / expected.mean())
    assert weights.dtype == np.float32


def test_a_routers_rows_weigh_inversely_to_their_bones_number():
    weights = label_weights("weighted_labels", BONES, None)
    assert weights == pytest.approx(compute_sample_weight("balanced", BONES))


@pytest.mark.parametrize("sampling", ["plain", "balanced_bones", "balanced_bones_labels"])
def test_only_weighted_labels_weighs_rows_in_the_loss(sampling):
    assert label_weights(sampling, BONES, LABELS) is None


@pytest.mark.parametrize("sampling", ["balanced_bones", "balanced_bones_labels"])
def test_a_fit_over_all_rows_weighs_them_as_often_as_a_training_draws_them(sampling):
    weights = fit_weights(sampling, BONES, LABELS)
    assert weights.mean() == pytest.approx(1)
    assert weights / len(weights) == pytest.approx(draw_shares(sampling, num_steps=2000), abs=4e-3)


def test_a_fit_over_all_rows_is_plain_or_weighted_as_a_training_is():
    assert fit_weights("plain", BONES, LABELS) is None
    expected = label_weights("weighted_labels", BONES, LABELS)
    assert np.array_equal(fit_weights("weighted_labels", BONES, LABELS), expected)
