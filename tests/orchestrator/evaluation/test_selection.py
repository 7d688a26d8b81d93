"""From trials to the selected model of each bone, on dev rows alone."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from factories import make_features, make_manifest, make_model
from scipy.special import expit
from sklearn.metrics import f1_score, roc_auc_score

from mura_models.errors import RunError
from mura_models.evaluation.calibration import calibrate
from mura_models.evaluation.metrics import score
from mura_models.inference.assembly import FROZEN, Network
from mura_models.training.dev_metrics import predict_class_array
from mura_models.training.probe import ProbeTraining
from orchestrator.evaluation import selection
from orchestrator.evaluation.report_data import write_selected
from orchestrator.evaluation.selection import (
    assemble,
    list_selected_models,
    score_routers,
    select_best_baseline,
    select_best_router,
    select_models,
)
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.run.files import read_json
from orchestrator.run.journal import JournalLine
from orchestrator.search.context import TrainData, gather_data
from orchestrator.search.plan import make_plan
from orchestrator.search.stages import SearchResults
from orchestrator.search.winners import DevRows, TrialScore, Winner, rank_trials, select_best_trial
from orchestrator.search.winners import make_winner as make_trial_winner

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = RunConfig(num_trials=2, num_epochs=2, num_folds=3, batch_size=16)
MANIFEST = make_manifest()
PLAN = make_plan(CONFIG, MANIFEST)
BONES = ("elbow", "hand", "wrist")
LINEAR, MLP, HAND = "baseline/linear_probe", "baseline/mlp_probe", "specialist:hand/mlp_probe"
S = "s/mlp_probe"
TOO_FEW = "baseline: too few dev rows for a comparison"


def gather():
    """Return the rows of every search."""
    embeddings = SimpleNamespace(embed=lambda backbone, rows, all_views: make_features(rows))
    (stage,) = PLAN.stages
    return gather_data(CONFIG, stage, TrainData.of(MANIFEST), embeddings)


DATA = gather()


def write_line(trial, score, *, epoch=5, state="COMPLETE", search=S):
    """Return a journal's last line of a trial."""
    metrics = {"dev_auroc": score, "dev_loss": 0.5}
    decision = "continue" if state == "RUNNING" else "stop"
    return JournalLine(
        seq=1, search=search, trial=f"{search}/{trial}", epoch=epoch, metrics=metrics, decision=decision, state=state
    )


def make_winner(search, *, skill, folds=(0, 1, 2)):
    """Return a winner whose dev logits separate the labels by `skill`; equal noise on equal rows."""
    data, trial = DATA[search], PLAN.of_search(search)[0]
    noise = np.random.default_rng(0).normal(size=len(data.features_NVD))[data.rows]
    logits = (skill * (data.labels - 0.5) + noise)[:, None]
    dev = DevRows.of(data, logits[data.dev_entries])
    dev = dev.subset(np.isin(dev.folds, folds))
    model = make_model(trial.target, trial.recipe, temperature=1.0, threshold=0.5)
    standing = TrialScore(trial=trial.name, score=0.8, kept_epoch=2, num_epochs=2)
    return Winner(trial=trial, score=standing, exported=(trial.name,), networks=model.networks, dev=dev, model=model)


def make_router(*, skill, recipe="linear_probe", folds=(0, 1, 2)):
    """Return a router whose dev logits separate the bones by `skill`."""
    search = "router/linear_probe"
    data, trial = DATA[search], PLAN.of_search(search)[0]
    noise = np.random.default_rng(1).normal(size=(len(data.rows), 3))
    dev = DevRows.of(data, skill * np.eye(3)[data.labels] + noise)
    dev = dev.subset(np.isin(dev.folds, folds))
    trial = SimpleNamespace(search=f"router/{recipe}", target="router", recipe=recipe, stage=1 + (recipe == "finetune"))
    standing = TrialScore(trial="", score=0.8, kept_epoch=2, num_epochs=2)
    networks = make_model("router").networks
    return Winner(trial=trial, score=standing, exported=(), networks=networks, dev=dev, model=None)


def select(*winners, bones=BONES):
    """Select the models of the bones."""
    named = {winner.search: winner for winner in winners}
    return select_models(CONFIG, PLAN.untrainable, named, bones)


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
    assert select_best_trial(lines, S, "dev_auroc").trial == f"{S}/{best}"


def test_if_the_best_epoch_is_kept_it_is_the_one_that_counts():
    lines = [
        write_line("000", value, epoch=epoch, state="COMPLETE" if epoch == 4 else "RUNNING")
        for epoch, value in ((1, 0.7), (2, 0.9), (3, 0.9), (4, 0.6))
    ]
    lines += [write_line("001", 0.8)]
    ranked = rank_trials(lines, S, "dev_auroc", kept_epoch="best")
    assert [(one.trial, one.score, one.kept_epoch) for one in ranked] == [(f"{S}/000", 0.9, 2), (f"{S}/001", 0.8, 5)]
    assert select_best_trial(lines, S, "dev_auroc").trial == f"{S}/001"


@pytest.mark.parametrize("lines", [[], [write_line("000", 0.7, state="FAILED")]])
def test_a_search_whose_trials_all_failed_has_no_winner(lines):
    with pytest.raises(RunError, match=f"{S}: every trial failed"):
        select_best_trial(lines, S, "dev_auroc")


@pytest.mark.parametrize("state", ["COMPLETE", "PRUNED"])
def test_a_search_whose_metric_does_not_exist_is_reported(state):
    lines = [write_line("000", None, state=state), write_line("001", None, state="FAILED")]
    with pytest.raises(RunError, match=f"{S}: dev_auroc does not exist on its dev rows"):
        select_best_trial(lines, S, "dev_auroc")
    with pytest.raises(RunError, match="other/mlp_probe: every trial failed"):
        select_best_trial(lines, "other/mlp_probe", "dev_auroc")


def test_a_winner_is_calibrated_on_its_own_dev_rows():
    for search in (LINEAR, MLP, "specialist:elbow/mlp_probe"):
        data, trial = DATA[search], PLAN.of_search(search)[0]
        training = ProbeTraining(data, trial.settings)
        *_, last = training.epochs()
        standing = TrialScore(trial=trial.name, score=last.metrics["dev_auroc"], kept_epoch=2, num_epochs=2)
        networks = [Network(backbone=FROZEN, heads=training.heads)]
        winner = make_trial_winner(
            trial, standing, data, exported=[trial.name], networks=networks, dev_logits=training.dev_logits
        )
        calibration = calibrate(training.dev_logits[:, 0], data.labels, data.studies)
        assert winner.model.calibration == calibration
        rows = pd.DataFrame({"study": data.studies, "label": data.labels})
        rows["p"] = expit(training.dev_logits[:, 0].astype(np.float64) / calibration.temperature)
        studies = rows.groupby("study").mean()
        expected = roc_auc_score(studies["label"], studies["p"])
        assert score(winner.score_studies([0, 1, 2]))["auroc"] == pytest.approx(expected)


def test_a_specialist_that_is_clearly_better_is_selected_for_its_bone_alone():
    selected = select(make_winner(MLP, skill=0.2), make_winner(HAND, skill=5))
    assert selected["hand"].model == HAND
    assert selected["hand"].reason.startswith("specialist: paired dev gain in auroc over the best baseline +")
    assert selected["elbow"].model == selected["wrist"].model == MLP


@pytest.mark.parametrize("skill", [0.2, 2.0])
def test_a_specialist_no_better_than_the_baseline_is_not_selected(skill):
    selected = select(make_winner(MLP, skill=2), make_winner(HAND, skill=skill))
    assert selected["hand"].model == MLP
    assert selected["hand"].reason.startswith("baseline: paired dev gain")


@pytest.mark.parametrize(
    ("gain", "error", "is_selected"),
    [
        (0.051, 0.05, True),
        (0.05, 0.05, False),
        (0.01, 0.05, False),
        (-0.2, 0.05, False),
        (0.0, 0.0, False),
        (0.3, 0.0, None),
        (0.3, np.nan, None),
        (np.nan, np.nan, None),
    ],
)
def test_the_gain_must_be_above_one_standard_error(monkeypatch, gain, error, is_selected):
    monkeypatch.setattr(selection, "standard_error_of_gain", lambda *_: (gain, error))
    selected = select(make_winner(MLP, skill=1), make_winner(HAND, skill=1))
    assert (selected["hand"].model == HAND) is bool(is_selected)
    figures = f"{gain:+.4f}, standard error {error:.4f}"
    assert (TOO_FEW if is_selected is None else figures) in selected["hand"].reason


def keep_studies(winner, bone, num_of_label):
    """Keep so many studies of either label of a bone."""
    dev, kept = winner.dev, winner.dev.bones != bone
    for label, num in enumerate(num_of_label):
        studies = np.unique(dev.studies[(dev.bones == bone) & (dev.labels == label)])
        kept |= np.isin(dev.studies, studies[:num])
    return replace(winner, dev=dev.subset(kept))


@pytest.mark.parametrize(
    ("num_normal", "num_abnormal", "is_selected"), [(2, 2, False), (9, 15, False), (15, 9, False), (10, 10, True)]
)
def test_a_specialist_needs_ten_dev_studies_of_each_label_to_be_selected(num_normal, num_abnormal, is_selected):
    """Two and two separated by the one and not by the other would be a gain of 1.0 without an error."""
    kept = "hand", (num_normal, num_abnormal)
    selected = select(keep_studies(make_winner(MLP, skill=-1), *kept), keep_studies(make_winner(HAND, skill=6), *kept))
    assert (selected["hand"].model == HAND) is is_selected
    assert (selected["hand"].reason == TOO_FEW) is not is_selected


def test_a_specialist_needs_dev_studies_of_five_patients_of_each_label_to_be_selected():
    def of_patients(num, winner):
        dev = winner.dev
        return replace(winner, dev=replace(dev, patients=np.where(dev.labels == 1, dev.patients % num, dev.patients)))

    baseline, hand = make_winner(MLP, skill=-1), make_winner(HAND, skill=6)
    assert select(of_patients(4, baseline), of_patients(4, hand))["hand"].reason == TOO_FEW
    assert select(of_patients(5, baseline), of_patients(5, hand))["hand"].model == HAND


def test_a_baseline_evaluated_on_too_few_rows_does_not_replace_another():
    everywhere, once = make_winner(LINEAR, skill=-1), make_winner(MLP, skill=9, folds=(0,))
    assert select_best_baseline(CONFIG, {LINEAR: everywhere, MLP: once}) is once
    few = once
    for bone in BONES:
        few = keep_studies(few, bone, (3, 3))
        everywhere = keep_studies(everywhere, bone, (3, 3))
    assert select_best_baseline(CONFIG, {LINEAR: everywhere, MLP: few}) is everywhere


def set_threshold(winner, threshold):
    """Return a winner that exports another threshold."""
    calibration = replace(winner.model.calibration, threshold=threshold)
    return replace(winner, model=replace(winner.model, calibration=calibration))


@pytest.mark.parametrize("metric", ["accuracy", "kappa", "image_accuracy"])
def test_a_specialist_does_not_win_by_a_threshold_set_on_the_rows_compared(metric):
    """The same logits: the baseline's own threshold is right for all bones together, and wrong for this one."""
    baseline, hand = set_threshold(make_winner(MLP, skill=1), 0.8), make_winner(HAND, skill=1)
    own = calibrate(hand.dev.logits[:, 0], hand.dev.labels, hand.dev.studies)
    selected = select_models(
        replace(CONFIG, metric=metric),
        PLAN.untrainable,
        {MLP: baseline, HAND: set_threshold(hand, own.threshold)},
        BONES,
    )
    assert selected["hand"].model == MLP
    assert "best baseline +0.0000, standard error 0.0000" in selected["hand"].reason
    assert selected["hand"].dev == score(
        baseline.score_studies([0, 1, 2], "hand")
    )  # reported at the exported threshold


@pytest.mark.parametrize("metric", ["accuracy", "kappa"])
def test_a_baseline_does_not_win_by_a_threshold_set_on_the_rows_compared(metric):
    everywhere = set_threshold(make_winner(LINEAR, skill=2), 0.9)
    once = make_winner(MLP, skill=2, folds=(0,))
    assert select_best_baseline(replace(CONFIG, metric=metric), {LINEAR: everywhere, MLP: once}) is everywhere


def test_a_specialist_is_compared_with_the_best_baseline():
    """Better than the worse baseline is not enough."""
    weak, strong = make_winner(LINEAR, skill=0.1), make_winner(MLP, skill=6)
    selected = select(weak, strong, make_winner(HAND, skill=2))
    assert {choice.model for choice in selected.values()} == {MLP}
    assert select_best_baseline(CONFIG, {LINEAR: weak, MLP: strong}) is strong


def test_models_evaluated_on_one_fold_are_compared_on_that_fold():
    """A baseline that is good elsewhere must not win by rows on which the other was not evaluated."""
    everywhere, once = make_winner(LINEAR, skill=0.5), make_winner(MLP, skill=4, folds=(0,))
    cheat = everywhere.dev.logits.copy()
    cheat[everywhere.dev.folds != 0] = 20 * (everywhere.dev.labels[everywhere.dev.folds != 0, None] - 0.5)
    flattered = replace(everywhere, dev=replace(everywhere.dev, logits=cheat))
    assert select_best_baseline(CONFIG, {LINEAR: flattered, MLP: once}) is once
    assert select(flattered, once)["hand"].model == MLP


def test_a_baseline_evaluated_on_fewer_rows_must_be_better_by_more_than_a_standard_error():
    everywhere, a_little, clearly = (
        make_winner(LINEAR, skill=2),
        make_winner(MLP, skill=2.05, folds=(0,)),
        make_winner(MLP, skill=6, folds=(0,)),
    )
    folds = [0]
    assert score(a_little.score_studies(folds))["auroc"] >= score(everywhere.score_studies(folds))["auroc"]
    assert select_best_baseline(CONFIG, {LINEAR: everywhere, MLP: a_little}) is everywhere
    assert select_best_baseline(CONFIG, {LINEAR: everywhere, MLP: clearly}) is clearly


def test_the_router_is_the_better_one_on_the_rows_common_to_both():
    probe, network = make_router(skill=3), make_router(skill=5, recipe="finetune", folds=(0,))
    winners = {winner.search: winner for winner in (probe, network)}
    assert select_best_router(winners) is network
    mine = probe.dev.folds == 0
    expected = f1_score(probe.dev.labels[mine], predict_class_array(probe.dev.logits[mine]), average="macro")
    assert score_routers(winners)["router/linear_probe"] == pytest.approx(expected)


def test_of_equal_routers_the_probe_is_taken():
    probe, network = make_router(skill=50), make_router(skill=50, recipe="finetune", folds=(0,))
    assert select_best_router({"router/finetune": network, "router/linear_probe": probe}) is probe


def test_a_bone_without_a_specialist_has_the_reason():
    selected = select(make_winner(MLP, skill=1), make_winner(HAND, skill=1))
    assert "40 normal and 3 abnormal images in train" in selected["wrist"].reason
    assert selected["elbow"].reason == "the best baseline on dev; no specialist: its trials failed"


def test_a_selected_model_is_scored_on_its_bones_dev_studies():
    baseline = make_winner(MLP, skill=1)
    dev = select(baseline, make_winner(HAND, skill=0))["hand"].dev
    data = DATA[MLP]
    studies = np.unique(data.studies[data.bones == "hand"])
    labels = [data.labels[data.studies == study][0] for study in studies]
    means = [expit(baseline.dev.logits[data.studies == study, 0]).mean() for study in studies]
    assert dev["auroc"] == pytest.approx(roc_auc_score(labels, means))
    assert dev["accuracy"] == pytest.approx(np.mean((np.array(means) >= 0.5) == labels))


def test_without_a_baseline_nothing_can_be_selected():
    with pytest.raises(RunError, match="no baseline was trained"):
        select(make_winner(HAND, skill=3))


def test_the_assembly_holds_router_models_and_the_selection():
    baseline, hand = make_winner(MLP, skill=1), make_winner(HAND, skill=3)
    router = make_router(skill=3)
    winners = {MLP: baseline, HAND: hand, "router/linear_probe": router}
    selected = {"elbow": MLP, "hand": HAND, "wrist": MLP}
    assembly = assemble(winners, selected, BONES)
    assert (assembly.classes, dict(assembly.selected), set(assembly.models)) == (BONES, selected, {MLP, HAND})
    assert (assembly.router.recipe, assembly.router.networks) == ("linear_probe", router.networks)
    assert assembly.can_route


def test_without_a_router_the_best_baseline_is_selected_for_every_bone():
    winners = {MLP: make_winner(MLP, skill=0.2), HAND: make_winner(HAND, skill=5)}
    selected = select_models(CONFIG, PLAN.untrainable, winners, BONES, can_route=False)
    assert {bone: choice.model for bone, choice in selected.items()} == dict.fromkeys(BONES, MLP)
    assert all("no router was trained" in choice.reason for choice in selected.values())
    assert not assemble(winners, dict.fromkeys(BONES, MLP), BONES).can_route


def test_the_selection_is_written_to_json(tmp_path):
    winners = {MLP: make_winner(MLP, skill=0.2), HAND: make_winner(HAND, skill=5)}
    selected = select_models(CONFIG, PLAN.untrainable, winners, BONES)
    results = SearchResults(winners=winners, failed={LINEAR: "every trial failed"})
    write_selected(RunDir(tmp_path), list_selected_models(selected, winners), results)
    written = read_json(tmp_path / "selected.json")
    hand = written["selected"]["hand"]
    assert (hand["target"], hand["recipe"], hand["lr"]) == (
        "specialist:hand",
        "mlp_probe",
        winners[HAND].trial.settings.lr,
    )
    assert {"trial", "lr_schedule", "dev", "threshold", "temperature", "reason"} <= set(hand)
    assert written["failed"] == {LINEAR: "every trial failed"}
    assert set(written["winners"]) == {MLP, HAND}
