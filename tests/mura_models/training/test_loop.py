"""The epoch loop: what it is shown, what it says, and that a stopped trial goes on as if nothing had happened."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from factories import NUM_FOLDS, make_probe_data, make_settings
from sklearn.metrics import f1_score, log_loss, roc_auc_score

from mura_models.errors import ConfigError
from mura_models.training.checkpoints import Checkpoint
from mura_models.training.lr_schedules import LrSchedule
from mura_models.training.probe import ProbeTraining
from mura_models.training.sampling import BatchPlan

pytestmark = pytest.mark.usefixtures("one_thread")


def train(data, settings):
    """Train to the end."""
    training = ProbeTraining(data, settings)
    views = list(training.epochs())
    return training, views


def list_state(training, head=slice(None)):
    """Return every tensor of some heads."""
    return {name: tensor[head] for name, tensor in training.heads.state_dict().items()}


def are_equal(first, second):
    """Whether two states are the same to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def assert_same_checkpoint(first, second):
    """Compare two checkpoints to the last bit: heads, optimizer, dev logits and history."""
    a, b = Checkpoint.from_bytes(first.save()), Checkpoint.from_bytes(second.save())
    assert are_equal(a.state, b.state)
    assert a.optimizer.keys() == b.optimizer.keys()
    assert all(are_equal(a.optimizer[number], b.optimizer[number]) for number in a.optimizer)
    assert np.array_equal(a.dev_logits, b.dev_logits)
    assert (a.history, a.best_score, a.best_epoch) == (b.history, b.best_score, b.best_epoch)


def script_scores(monkeypatch, scores):
    """Make the epochs of all trials have these scores."""
    given = iter(scores)
    monkeypatch.setattr(
        "mura_models.training.loop.evaluate_dev", lambda *_: {"dev_loss": 1.0, "dev_auroc": next(given)}
    )


@pytest.mark.parametrize("sampling", ["plain", "balanced_bones"])
def test_one_seed_gives_one_result_to_the_last_bit(sampling):
    data, settings = make_probe_data(), make_settings(sampling=sampling)
    first, again, other = (train(data, replace(settings, seed=seed))[0] for seed in (7, 7, 8))
    assert_same_checkpoint(first, again)
    assert first.history != other.history


@pytest.mark.parametrize("sampling", ["plain", "balanced_bones"])
@pytest.mark.parametrize("target", ["baseline", "hand", "router"])
def test_a_head_never_sees_its_own_fold(target, sampling):
    clean, fold = make_probe_data(target), 1
    own = clean.folds == fold
    features_NVD, labels = clean.features_NVD.copy(), clean.labels.copy()
    features_NVD[clean.rows[own]] = 40 * np.random.default_rng(1).normal(size=features_NVD[clean.rows[own]].shape)
    labels[own] = labels[own].max() - labels[own]
    poisoned = replace(clean, features_NVD=features_NVD, labels=labels)
    settings = make_settings(sampling=sampling, metric="macro_f1" if target == "router" else "auroc")
    before, after = (train(data, settings)[0] for data in (clean, poisoned))
    assert are_equal(list_state(before, fold), list_state(after, fold))
    for other in set(range(NUM_FOLDS)) - {fold}:
        assert not torch.equal(before.heads.weights[0][other], after.heads.weights[0][other])


def test_every_row_is_predicted_by_the_head_that_never_saw_it():
    data = make_probe_data("hand")
    training, _ = train(data, make_settings())
    for entry, fold in enumerate(data.folds):
        features_1D = torch.from_numpy(data.features_NVD[data.rows[entry], :1]).float()
        expected = training.heads.forward_one(int(fold), features_1D)[0].detach()
        assert training.dev_logits[entry] == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize("num_done", [1, 2, 3])
@pytest.mark.parametrize("recipe", ["linear", "mlp"])
def test_a_trial_stopped_after_any_epoch_goes_on_to_the_same_bits(recipe, num_done):
    data = make_probe_data()
    settings = make_settings(head=recipe, weight_decay=3.0, lr_schedule=LrSchedule(name="one_cycle"))
    whole, _ = train(data, settings)
    stopped = ProbeTraining(data, settings)
    for _ in range(num_done):
        stopped.train_epoch()
    resumed = ProbeTraining(data, settings)
    resumed.restore(stopped.save())
    assert [view.epoch for view in resumed.epochs()] == list(range(num_done + 1, settings.num_epochs + 1))
    assert_same_checkpoint(resumed, whole)


def test_a_resumed_trial_still_knows_its_best_epoch(monkeypatch):
    data, settings = make_probe_data(), make_settings(num_epochs=9, grace_epochs=1, patience_epochs=3)
    script_scores(monkeypatch, [0.6, 0.9, 0.7])
    stopped = ProbeTraining(data, settings)
    for _ in range(3):
        stopped.train_epoch()
    script_scores(monkeypatch, [0.8] * 9)
    resumed = ProbeTraining(data, settings)
    resumed.restore(stopped.save())
    assert [view.epoch for view in resumed.epochs()] == [4, 5]


def test_a_trial_that_ended_early_does_not_go_on_when_restored(monkeypatch):
    data, settings = make_probe_data(), make_settings(num_epochs=9, grace_epochs=1, patience_epochs=1)
    script_scores(monkeypatch, [0.9, 0.8, 0.7, 0.6])
    ended, views = train(data, settings)
    assert len(views) == 2
    restored = ProbeTraining(data, settings)
    restored.restore(ended.save())
    assert list(restored.epochs()) == []


def test_a_checkpoint_holds_the_heads_that_were_trained():
    training, _ = train(make_probe_data(), make_settings())
    checkpoint = Checkpoint.from_bytes(training.save())
    assert are_equal(checkpoint.build_heads().state_dict(), training.heads.state_dict())
    assert np.array_equal(checkpoint.dev_logits, training.dev_logits)


@pytest.mark.parametrize(
    ("scores", "grace", "patience", "last"),
    [
        ([0.9] + [0.5] * 9, 3, 2, 5),  # best at 1: patience counts from the end of grace
        ([0.5, 0.5, 0.5, 0.9] + [0.5] * 6, 3, 2, 6),  # best at 4: it counts from there
        ([0.9] * 10, 3, 2, 5),  # as good is not better
        ([0.1 * epoch for epoch in range(10)], 3, 2, 10),  # always better
        ([0.9] + [0.5] * 9, 3, None, 10),  # never
        ([0.9] + [0.5] * 9, 10, 1, 10),
    ],
)
def test_patience_is_counted_after_grace(monkeypatch, scores, grace, patience, last):
    script_scores(monkeypatch, scores)
    settings = make_settings(num_epochs=10, steps_per_epoch=1, grace_epochs=grace, patience_epochs=patience)
    _, views = train(make_probe_data(), settings)
    assert [view.is_last for view in views] == [False] * (last - 1) + [True]
    assert views[-1].failure is None


@pytest.mark.parametrize("target", ["baseline", "router"])
def test_a_loss_that_is_not_finite_ends_the_trial_as_failed(target):
    settings = make_settings(lr=1e38, metric="macro_f1" if target == "router" else "auroc")
    _, views = train(make_probe_data(target), settings)
    assert views[-1].is_last
    assert len(views) == 1
    assert views[-1].failure.startswith("epoch 1: train_loss is ")


def test_a_damaged_embedding_fails_the_trial_rather_than_training_on():
    data = make_probe_data()
    data.features_NVD[0, 0] = np.inf
    with np.errstate(invalid="ignore"):
        _, views = train(data, make_settings())
    assert views[-1].failure is not None


def draw_rows(folds, num_steps, **settings):
    """Return the rows [steps, K, B] that the heads are shown."""
    plan = BatchPlan(folds, **{"held_out": range(NUM_FOLDS), "num_views": 4, "batch_size": 8, "seed": 0} | settings)
    return np.stack([plan.draw(step)[0] for step in range(num_steps)])


def test_plain_sampling_shows_every_row_equally_often():
    folds = np.arange(17) % NUM_FOLDS
    rows_UKB = draw_rows(folds, 50)
    for head in range(NUM_FOLDS):
        others = np.flatnonzero(folds != head)
        for num_steps in (1, 7, 50):
            counts = np.bincount(rows_UKB[:num_steps, head].ravel(), minlength=17)
            assert (counts[folds == head] == 0).all()
            assert np.ptp(counts[others]) <= 1


def test_plain_sampling_shuffles_every_pass_again():
    rows_UB = draw_rows(np.arange(12) % NUM_FOLDS, 2)[:, 0]
    assert sorted(rows_UB[0]) == sorted(rows_UB[1])
    assert rows_UB[0].tolist() != rows_UB[1].tolist()


def test_balanced_sampling_shows_every_bone_equally_often():
    bones = np.repeat(["elbow", "hand"], [270, 30])
    rows_UKB = draw_rows(np.arange(300) % NUM_FOLDS, 200, strata=bones)
    share_of_hand = (bones[rows_UKB] == "hand").mean(axis=(0, 2))
    assert share_of_hand == pytest.approx([0.5] * NUM_FOLDS, abs=0.05)  # 1,600 draws a head


def test_the_four_views_are_drawn_equally_often():
    plan = BatchPlan(np.arange(30) % NUM_FOLDS, held_out=range(NUM_FOLDS), num_views=4, batch_size=64, seed=0)
    views_UKB = np.stack([plan.draw(step)[1] for step in range(60)])
    assert np.bincount(views_UKB.ravel()) / views_UKB.size == pytest.approx([0.25] * 4, abs=0.02)


def test_an_update_draws_the_same_whatever_was_drawn_before():
    folds = np.arange(17) % NUM_FOLDS
    assert np.array_equal(draw_rows(folds, 31)[30], draw_rows(folds, 31)[::-1][0])
    plan = BatchPlan(folds, held_out=range(NUM_FOLDS), num_views=4, batch_size=8, seed=0)
    alone = [plan.draw(step)[0] for step in (30, 2, 30)]
    assert np.array_equal(alone[0], draw_rows(folds, 31)[30])
    assert np.array_equal(alone[0], alone[2])


def test_without_weight_decay_the_optimizer_is_the_papers_adam():
    data, settings = make_probe_data(), make_settings(weight_decay=0.0)
    ours, theirs = ProbeTraining(data, settings), ProbeTraining(data, settings)
    theirs.optimizer = torch.optim.Adam(theirs.heads.parameters(), lr=settings.lr)
    list(ours.epochs()), list(theirs.epochs())
    for name, tensor in list_state(ours).items():
        torch.testing.assert_close(tensor, list_state(theirs)[name])


def test_weight_decay_shrinks_weights_by_lr_times_decay_and_leaves_biases():
    data, settings = make_probe_data(), make_settings(num_epochs=1, steps_per_epoch=1, grace_epochs=1)
    start = ProbeTraining(data, settings).heads.weights[0].detach()
    plain, decayed = (train(data, replace(settings, weight_decay=decay))[0].heads for decay in (0.0, 5.0))
    torch.testing.assert_close(plain.weights[0] - decayed.weights[0], settings.lr * 5.0 * start)
    assert torch.equal(plain.biases[0], decayed.biases[0])


def test_the_rate_of_an_epoch_is_that_of_its_last_step():
    schedule = LrSchedule(name="cosine", final_factor=0.01)
    settings = make_settings(lr=0.01, lr_schedule=schedule)
    _, views = train(make_probe_data(), settings)
    assert [view.metrics["lr"] for view in views] == [schedule.rate(0.01, u, 12) for u in (2, 5, 8, 11)]
    assert views[-1].metrics["lr"] == pytest.approx(0.0001)


def test_dev_metrics_are_those_of_scikit_learn_by_study():
    data = make_probe_data()
    training, views = train(data, make_settings())
    p_abnormal = 1 / (1 + np.exp(-training.dev_logits[:, 0].astype(np.float64)))
    rows = pd.DataFrame({"study": data.studies, "label": data.labels, "p": p_abnormal})
    studies = rows.groupby("study").mean()
    assert len(studies) < len(rows)
    assert views[-1].metrics["dev_auroc"] == pytest.approx(roc_auc_score(studies["label"], studies["p"]))
    assert views[-1].metrics["dev_loss"] == pytest.approx(log_loss(rows["label"], rows["p"]), rel=1e-5)


def test_the_router_learns_the_bones():
    data = make_probe_data("router")
    training, views = train(data, make_settings(head="linear", lr=0.1, num_epochs=12, metric="macro_f1"))
    named = training.dev_logits.argmax(1)
    assert views[-1].metrics["dev_macro_f1"] == pytest.approx(f1_score(data.labels, named, average="macro"))
    assert views[-1].metrics["dev_macro_f1"] > 0.95


def test_a_bone_whose_rows_are_all_in_few_folds_is_trained_all_the_same():
    data = make_probe_data("hand")
    _, views = train(replace(data, folds=data.folds % 2), make_settings())
    assert views[-1].failure is None
    assert math.isfinite(views[-1].metrics["dev_auroc"])


@pytest.mark.parametrize(
    "wrong",
    [{"lr": 0.0}, {"lr": math.nan}, {"weight_decay": -1.0}, {"num_epochs": 0}, {"batch_size": 0}, {"grace_epochs": 0}],
)
def test_a_trial_that_cannot_be_is_refused_by_its_value(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ConfigError, match=f"{name}={value}: must"):
        make_settings(**wrong)
