"""From trials to what serves each bone, on dev rows alone."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_features, make_manifest, make_model
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from mura_models.calibration import calibrate
from mura_models.errors import RunError
from mura_models.metrics import Scored
from mura_models.training import ProbeTraining
from orchestrator import aggregate
from orchestrator.aggregate import (
    Winner,
    assemble,
    choose_serving,
    crown_winners,
    describe_served,
    find_best_baseline,
    pick_winner,
)
from orchestrator.config import RunConfig
from orchestrator.plan import make_plan
from orchestrator.preparing import gather_data

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = RunConfig(num_trials=2, num_epochs=2, num_folds=3, batch_size=16)
MANIFEST = make_manifest()
PLAN = make_plan(CONFIG, MANIFEST)
BONES = ("elbow", "hand", "wrist")
LINEAR, MLP, HAND = "baseline/linear_probe", "baseline/mlp_probe", "specialist:hand/mlp_probe"
S = "s/mlp_probe"


def gather():
    """Give the rows of every search."""
    train = MANIFEST[MANIFEST["split"] == "train"]
    places = {digest: row for row, digest in enumerate(train["digest"])}
    embeddings = SimpleNamespace(
        rows=make_features(train), find=lambda digests: np.array([places[digest] for digest in digests])
    )
    return gather_data(CONFIG, PLAN, MANIFEST, SimpleNamespace(embeddings=embeddings))


DATA = gather()


def write_line(trial, score, *, epoch=5, state="COMPLETE", search=S):
    """Give a journal's last line of a trial."""
    metrics = {"dev_auroc": score, "dev_loss": 0.5}
    return {"search": search, "trial": f"{search}/{trial}", "epoch": epoch, "metrics": metrics, "state": state}


def make_winner(search, *, skill, score=0.8):
    """Give a winner whose dev rows tell the labels apart by `skill`; equal noise on equal rows."""
    data, trial = DATA[search], PLAN.of_search(search)[0]
    noise = np.random.default_rng(0).normal(size=len(data.features_NOD))[data.rows]
    dev = Scored(
        labels=data.labels,
        p_abnormal=expit(skill * (data.labels - 0.5) + noise),
        thresholds=np.full(len(data.rows), 0.5),
        patients=data.patients,
    )
    model = make_model(trial.target, trial.recipe)
    return Winner(trial=trial, heads=model.heads, score=score, num_epochs=2, model=model, dev=dev)


def serve(*winners, bones=BONES):
    """Choose what serves the bones."""
    return choose_serving(CONFIG, PLAN, {winner.trial.search: winner for winner in winners}, DATA, bones)


@pytest.mark.parametrize(
    ("lines", "best"),
    [
        ([write_line("000", 0.7), write_line("001", 0.8)], "001"),
        ([write_line("000", 0.8, epoch=6), write_line("001", 0.8, epoch=5)], "001"),  # a tie: fewer epochs
        ([write_line("001", 0.8), write_line("000", 0.8)], "000"),  # then the plan's order, not arrival
        ([write_line("000", 0.7), write_line("001", 0.8, state="PRUNED", epoch=2)], "001"),
        ([write_line("000", 0.7), write_line("001", 0.9, state="FAILED")], "000"),
        ([write_line("000", 0.7), write_line("001", None)], "000"),
        ([write_line("000", 0.9, state="RUNNING", epoch=4), write_line("000", 0.7), write_line("001", 0.8)], "001"),
        ([write_line("000", 0.7), write_line("001", 0.9, search="other/mlp_probe")], "000"),
        ([write_line("000", 0.0)], "000"),
    ],
)
def test_the_winner_is_the_trial_with_the_best_last_epoch(lines, best):
    assert pick_winner(lines, S, "dev_auroc")["trial"] == f"{S}/{best}"


@pytest.mark.parametrize("lines", [[], [write_line("000", 0.7, state="FAILED")], [write_line("000", None)]])
def test_a_search_whose_trials_all_failed_has_no_winner(lines):
    with pytest.raises(RunError, match=f"{S}: every trial failed"):
        pick_winner(lines, S, "dev_auroc")


def run_trials(failing=()):
    """Train every trial of the plan; give journal lines and checkpoints."""
    lines, checkpoints = [], {}
    for trial in PLAN.trials:
        training = ProbeTraining(DATA[trial.search], trial.settings(CONFIG))
        *_, last = training.epochs()
        checkpoints[trial.trial] = training.save()
        state = "FAILED" if trial.search in failing else "COMPLETE"
        named = {"search": trial.search, "trial": trial.trial, "epoch": last.epoch}
        lines.append(named | {"metrics": last.metrics, "state": state})
    return lines, checkpoints


def test_every_search_is_crowned_with_a_model_calibrated_on_its_own_dev_rows():
    lines, checkpoints = run_trials(failing=(HAND,))
    winners, failed = crown_winners(CONFIG, PLAN, lines, DATA, checkpoints.__getitem__)
    assert failed == {HAND: f"{HAND}: every trial failed"}
    assert set(winners) == set(PLAN.searches) - {HAND}
    assert winners["router/linear_probe"].model is None
    for search in (LINEAR, MLP, "specialist:elbow/mlp_probe"):
        winner, data = winners[search], DATA[search]
        best = max((line for line in lines if line["search"] == search), key=lambda line: line["metrics"]["dev_auroc"])
        assert winner.trial.trial == best["trial"]
        assert winner.score == best["metrics"]["dev_auroc"]
        again = ProbeTraining(data, winner.trial.settings(CONFIG))
        list(again.epochs())
        assert winner.model.calibration == calibrate(again.dev_logits[:, 0], data.labels, data.studies)
        assert roc_auc_score(data.labels, winner.dev.p_abnormal) == roc_auc_score(data.labels, again.dev_logits[:, 0])


def test_a_specialist_that_is_clearly_better_serves_its_bone_alone():
    served = serve(make_winner(MLP, skill=0.2), make_winner(HAND, skill=5))
    assert served["hand"].model == HAND
    assert served["hand"].why.startswith("specialist: paired dev gain in auroc over the best baseline +")
    assert served["elbow"].model == served["wrist"].model == MLP


@pytest.mark.parametrize("skill", [0.2, 2.0])
def test_a_specialist_no_better_than_the_baseline_does_not_serve(skill):
    served = serve(make_winner(MLP, skill=2), make_winner(HAND, skill=skill))
    assert served["hand"].model == MLP
    assert served["hand"].why.startswith("baseline: paired dev gain")


@pytest.mark.parametrize(
    ("gain", "error", "is_served"),
    [(0.051, 0.05, True), (0.05, 0.05, False), (0.01, 0.05, False), (-0.2, 0.05, False), (np.nan, np.nan, False)],
)
def test_the_gain_must_be_above_one_standard_error(monkeypatch, gain, error, is_served):
    monkeypatch.setattr(aggregate, "standard_error_of_gain", lambda *_: (gain, error))
    served = serve(make_winner(MLP, skill=1), make_winner(HAND, skill=1))
    assert (served["hand"].model == HAND) is is_served
    assert f"{gain:+.4f}, standard error {error:.4f}" in served["hand"].why


def test_a_specialist_is_held_against_the_best_baseline():
    """Good enough against the worse baseline is not good enough."""
    weak, strong = make_winner(LINEAR, skill=0.1, score=0.6), make_winner(MLP, skill=6, score=0.9)
    served = serve(weak, strong, make_winner(HAND, skill=2))
    assert {choice.model for choice in served.values()} == {MLP}
    assert find_best_baseline({LINEAR: weak, MLP: strong}) is strong


def test_a_bone_without_a_specialist_says_why():
    served = serve(make_winner(MLP, skill=1), make_winner(HAND, skill=1))
    assert "40 normal and 3 abnormal images in train" in served["wrist"].why
    assert served["elbow"].why == "the best baseline on dev; no specialist: its trials failed"


def test_what_a_served_model_is_worth_is_measured_on_its_bones_dev_studies():
    baseline = make_winner(MLP, skill=1)
    dev = serve(baseline, make_winner(HAND, skill=0))["hand"].dev
    data = DATA[MLP]
    studies = np.unique(data.studies[data.bones == "hand"])
    labels = [data.labels[data.studies == study][0] for study in studies]
    means = [baseline.dev.p_abnormal[data.studies == study].mean() for study in studies]
    assert dev["auroc"] == pytest.approx(roc_auc_score(labels, means))
    assert dev["accuracy"] == pytest.approx(np.mean((np.array(means) >= 0.5) == labels))


def test_without_a_baseline_nothing_can_be_served():
    with pytest.raises(RunError, match="no baseline was trained"):
        serve(make_winner(HAND, skill=3))


def test_the_assembly_holds_router_models_and_what_serves():
    baseline, hand = make_winner(MLP, skill=1), make_winner(HAND, skill=3)
    trial = PLAN.of_search("router/linear_probe")[0]
    router = Winner(trial=trial, heads=baseline.heads, score=0.9, num_epochs=2, model=None, dev=None)
    winners = {MLP: baseline, HAND: hand, "router/linear_probe": router}
    serving = {"elbow": MLP, "hand": HAND, "wrist": MLP}
    assembly = assemble(winners, serving, BONES)
    assert (assembly.classes, dict(assembly.serving), set(assembly.models)) == (BONES, serving, {MLP, HAND})
    assert assembly.router is baseline.heads
    assert assembly.can_route


def test_without_a_router_the_best_baseline_serves_every_bone():
    winners = {MLP: make_winner(MLP, skill=0.2), HAND: make_winner(HAND, skill=5)}
    served = choose_serving(CONFIG, PLAN, winners, DATA, BONES, can_route=False)
    assert {bone: choice.model for bone, choice in served.items()} == dict.fromkeys(BONES, MLP)
    assert all("no router was trained" in choice.why for choice in served.values())
    assert not assemble(winners, dict.fromkeys(BONES, MLP), BONES).can_route


def test_what_was_decided_is_written_down():
    winners = {MLP: make_winner(MLP, skill=0.2), HAND: make_winner(HAND, skill=5)}
    served = choose_serving(CONFIG, PLAN, winners, DATA, BONES)
    told = describe_served(served, winners, {LINEAR: "every trial failed"})
    hand = told["served"]["hand"]
    assert (hand["target"], hand["recipe"], hand["lr"]) == ("specialist:hand", "mlp_probe", winners[HAND].trial.lr)
    assert {"trial", "lr_schedule", "dev", "threshold", "temperature", "why"} <= set(hand)
    assert told["failed"] == {LINEAR: "every trial failed"}
    assert set(told["winners"]) == {MLP, HAND}
