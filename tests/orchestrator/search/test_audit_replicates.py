"""What is trained after a search: stopped trials to their end, winners under fresh seeds."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from factories import make_manifest

from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.search import audit
from orchestrator.search import replicates as replicate
from orchestrator.search.audit import choose_audited, report_audit, run_audit
from orchestrator.search.context import open_journals
from orchestrator.search.plan import make_plan
from orchestrator.search.replicates import list_replicates, report_replicates, run_replicates, select_exported
from orchestrator.search.winners import TrialScore

CONFIG = RunConfig(num_trials=6, num_folds=3, num_epochs=4, recipes=("mlp_probe",))
PLAN = make_plan(CONFIG, make_manifest()).stages[0]
HAND = "specialist:hand/mlp_probe"


def make_stage(root, **changes):
    """Return a stage that has a run directory and nothing to train with."""
    return SimpleNamespace(
        config=replace(CONFIG, **changes), plan=PLAN, rundir=RunDir(root), journals=open_journals(RunDir(root))
    )


def write(journal, trial, scores, state, search=HAND):
    """Write a trial's epochs."""
    for epoch, score in enumerate(scores, 1):
        is_last = epoch == len(scores)
        journal.append(
            search=search,
            trial=trial,
            epoch=epoch,
            metrics={"dev_auroc": score},
            state=state if is_last else "RUNNING",
        )


def name(number, search=HAND):
    return f"{search}/{number:03d}"


def write_search(stage):
    """Write a search of six trials: one to the end, one failed, four stopped."""
    journal = stage.journals["search"]
    write(journal, name(0), [0.6, 0.7, 0.8, 0.82], "COMPLETE")
    write(journal, name(1), [0.5], "FAILED")
    for number in (2, 3, 4, 5):
        write(journal, name(number), [0.5, 0.6 + number / 100], "PRUNED")


@pytest.fixture
def stage(tmp_path):
    made = make_stage(tmp_path, num_audited=2)
    write_search(made)
    return made


def audited_names(stage):
    return [trial.name for trial in choose_audited(stage.config, stage.plan, stage.journals["search"].lines)]


def report(stage):
    lines = [stage.journals[purpose].lines for purpose in ("search", "audit")]
    return report_audit(choose_audited(stage.config, stage.plan, lines[0]), *lines)


def test_only_stopped_trials_are_audited_as_many_as_asked_for(stage):
    stopped = {name(number) for number in (2, 3, 4, 5)}
    for num, expected in ((0, 0), (2, 2), (4, 4), (9, 4)):
        chosen = audited_names(SimpleNamespace(**vars(stage) | {"config": replace(stage.config, num_audited=num)}))
        assert len(set(chosen)) == len(chosen) == expected
        assert set(chosen) <= stopped


def test_which_are_audited_follows_from_the_seed(stage):
    draws = [
        tuple(audited_names(SimpleNamespace(**vars(stage) | {"config": replace(stage.config, seed=seed)})))
        for seed in (0, 0, *range(1, 9))
    ]
    assert draws[0] == draws[1]
    assert len(set(draws)) > 2


def test_an_audited_trial_takes_up_its_checkpoint_under_a_name_of_its_own(stage, monkeypatch):
    jobs = []
    monkeypatch.setattr(audit, "run_jobs", lambda stage, found, purpose: jobs.extend((job, purpose) for job in found))
    run_audit(stage)
    assert [(job.name, str(job.starts_from), purpose) for job, purpose in jobs] == [
        (f"{trial}/audit", trial, "audit") for trial in audited_names(stage)
    ]
    planned = {trial.id: trial for trial in PLAN.trials}
    assert all(job.settings == planned[job.starts_from].settings for job, _ in jobs)


def test_the_audit_says_how_each_would_have_ended_against_the_winner(stage):
    right, wrong = audited_names(stage)
    journal = stage.journals["audit"]
    write(journal, f"{right}/audit", [0.5, 0.6, 0.7, 0.75], "COMPLETE")
    write(journal, f"{wrong}/audit", [0.5, 0.6, 0.8, 0.9], "COMPLETE")
    first, second = report(stage)
    assert (first["trial"], first["stopped_epoch"], first["last_epoch"]) == (right, 2, 4)
    assert first["score_at_stop"] == pytest.approx(0.6 + int(right[-3:]) / 100)
    assert (first["final_score"], first["winner_score"], first["is_wrong"]) == (0.75, 0.82, False)
    assert (second["trial"], second["is_wrong"]) == (wrong, True)
    assert second["gain"] == pytest.approx(0.08)


def test_an_audited_trial_that_failed_on_its_way_says_nothing(stage):
    first, second = audited_names(stage)
    journal = stage.journals["audit"]
    write(journal, f"{first}/audit", [0.5, 0.6, 0.7], "FAILED")
    write(journal, f"{second}/audit", [0.5, 0.6, 0.7, 0.7], "COMPLETE")
    assert [found["trial"] for found in report(stage)] == [second]


def make_trial_winner(number, score=0.82):
    return {HAND: TrialScore(trial=name(number), score=score, kept_epoch=4, num_epochs=4)}


def write_replicates(stage, scores, *, failed=()):
    journal = stage.journals["replicate"]
    for number, score in enumerate(scores):
        state = "FAILED" if number in failed else "COMPLETE"
        write(journal, f"{name(0)}/seed{number}", [0.5, score], state)


def report_of_replicates(stage):
    return report_replicates(
        stage.config, {HAND: find_trial()}, make_trial_winner(0), stage.journals["replicate"].lines
    )


def find_trial():
    return next(trial for trial in PLAN.trials if trial.name == name(0))


def test_a_winner_is_trained_again_under_fresh_seeds_alone(tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(
        replicate, "run_jobs", lambda stage, found, purpose: jobs.extend((job, purpose) for job in found)
    )
    run_replicates(make_stage(tmp_path, replicate_seeds=3), {HAND: find_trial()})
    settings = find_trial().settings
    assert [(job.name, job.starts_from, purpose) for job, purpose in jobs] == [
        (f"{name(0)}/seed{number}", None, "replicate") for number in range(3)
    ]
    seeds = {job.settings.seed for job, _ in jobs}
    assert len(seeds | {settings.seed}) == 4
    assert all(replace(job.settings, seed=settings.seed) == settings for job, _ in jobs)


@pytest.mark.parametrize(
    ("scores", "median"),
    [([0.8], 0), ([0.9, 0.7, 0.8], 2), ([0.7, 0.9], 0), ([0.9, 0.6, 0.7, 0.8], 2), ([0.6, 0.9, 0.8, 0.7, 0.75], 4)],
)
def test_the_median_replicate_is_exported_and_of_two_the_lower(tmp_path, scores, median):
    stage = make_stage(tmp_path, replicate_seeds=len(scores))
    write_replicates(stage, scores)
    assert select_exported(stage.config, find_trial(), stage.journals["replicate"].lines) == [f"{name(0)}/seed{median}"]


def test_an_ensemble_ships_every_replicate_that_ended_well(tmp_path):
    stage = make_stage(tmp_path, replicate_seeds=3, ensemble=True)
    write_replicates(stage, [0.9, 0.7, 0.8], failed=[1])
    assert select_exported(stage.config, find_trial(), stage.journals["replicate"].lines) == [
        f"{name(0)}/seed0",
        f"{name(0)}/seed2",
    ]


@pytest.mark.parametrize(("num_seeds", "failed"), [(0, []), (2, [0, 1])])
def test_without_replicates_the_winner_itself_is_exported(tmp_path, num_seeds, failed):
    stage = make_stage(tmp_path, replicate_seeds=num_seeds)
    write_replicates(stage, [0.9] * num_seeds, failed=failed)
    assert select_exported(stage.config, find_trial(), stage.journals["replicate"].lines) == [name(0)]


def test_replicates_are_reported_with_mean_spread_and_seeds(tmp_path):
    stage = make_stage(tmp_path, replicate_seeds=3)
    scores = [0.9, 0.7, 0.8]
    write_replicates(stage, scores)
    report = report_of_replicates(stage)[HAND]
    assert (report["searched_score"], report["scores"], report["shipped"]) == (0.82, scores, [f"{name(0)}/seed2"])
    assert report["mean"] == pytest.approx(np.mean(scores))
    assert report["sd"] == pytest.approx(np.std(scores, ddof=1))
    assert len(set(report["seeds"])) == 3


def test_one_replicate_has_no_spread(tmp_path):
    stage = make_stage(tmp_path, replicate_seeds=1)
    write_replicates(stage, [0.8])
    assert report_of_replicates(stage)[HAND]["sd"] is None


def test_replicates_have_names_that_no_trial_has():
    names = {job.name for job in list_replicates(replace(CONFIG, replicate_seeds=3), find_trial())}
    assert len(names) == 3
    assert not {trial.name for trial in PLAN.trials} & names
