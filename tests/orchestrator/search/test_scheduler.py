"""The brackets, driven as Tune drives them: who may stop whom, and that a journal brings back every decision."""

import json
import math
import pickle
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.utils.util import flatten_dict

from orchestrator.run.journal import JournalWriter, last_lines, read_journal, to_table
from orchestrator.search.scheduler import (
    MAX_WORKER_FAILURES,
    MIN_PEERS,
    AshaBracket,
    BracketSettings,
    PerSearchAsha,
    list_rungs,
)
from orchestrator.search.trial import EPOCH_RESULT, EpochResult

GRACE, EPOCHS = 2, 8  # rungs at 2 and 4
EASY, HARD = "specialist:easy/mlp_probe", "specialist:hard/mlp_probe"
METRICS = {EASY: "dev_auroc", HARD: "dev_auroc", "router/linear_probe": "dev_macro_f1"}

tune_ids = count()


@dataclass
class Driver:
    """Reports epochs to a scheduler in Tune's manner: flattened, under ids that Tune makes up."""

    path: Path
    is_stopping: bool = True
    own_grace: dict = field(default_factory=dict)
    lines: list = field(default_factory=list)

    def __post_init__(self):
        self.journal = JournalWriter(self.path)
        self.trials = {}
        self.scheduler = PerSearchAsha(
            rules={
                search: BracketSettings(metric=metric, grace_epochs=GRACE, num_epochs=EPOCHS)
                for search, metric in METRICS.items()
            },
            grace_epochs=self.own_grace,
            is_stopping=self.is_stopping,
            journal=self.journal,
            on_line=self.lines.append,
        )

    def add(self, search, number):
        """Let Tune add a trial."""
        config = {"trial": {"search": search, "trial": f"{search}/{number:03d}"}}
        trial = SimpleNamespace(
            trial_id=f"tune{next(tune_ids)}",
            config=config,
            last_result={},
            status="RUNNING",
            get_error=lambda: None,
        )
        self.scheduler.on_trial_add(None, trial)
        self.trials[search, number] = trial
        return trial

    def report(self, search, number, epoch, score, *, is_last=False, failure=None):
        """Report an epoch; say whether the trial goes on."""
        trial = self.trials.get((search, number)) or self.add(search, number)
        metrics = {"dev_loss": 0.5} | ({} if score is None else {METRICS[search]: score})
        reported = EpochResult(epoch=epoch, metrics=metrics, failure=failure, worker={"pid": 1})
        result = {EPOCH_RESULT: reported, "done": is_last or failure is not None}
        trial.last_result = result
        flat = flatten_dict(result)
        if result["done"]:
            self.scheduler.on_trial_complete(None, trial, flat)
            return False
        return self.scheduler.on_trial_result(None, trial, flat) == TrialScheduler.CONTINUE

    def climb(self, search, scores):
        """Let one trial a score report epochs 1 to grace, one trial after the other; say which go on."""
        goes_on = []
        for number, score in enumerate(scores):
            assert self.report(search, number, 1, score)
            goes_on.append(self.report(search, number, GRACE, score))
        return goes_on


def fail(driver, search, number):
    """Let a trial's worker die as often as it takes: Tune starts it again, and at last gives up."""
    trial = driver.trials[search, number]
    for status in ["ERROR"] * MAX_WORKER_FAILURES + ["RUNNING"]:
        trial.status = status
        driver.scheduler.on_trial_error(None, trial)


@pytest.fixture
def path(tmp_path):
    """The path of the journal."""
    return tmp_path / "journal.jsonl"


def read_decisions(path):
    """Return what was decided of every epoch, in order of arrival."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["trial"], line["epoch"], line["decision"], line["state"]) for line in lines]


def test_the_worse_half_is_stopped_at_a_rung(path):
    assert Driver(path).climb(EASY, [0.6, 0.7, 0.8, 0.5, 0.9]) == [True, True, True, False, True]
    assert [line for line in read_decisions(path) if line[3] == "PRUNED"] == [(f"{EASY}/003", 2, "stop", "PRUNED")]


def test_an_easy_bone_does_not_stop_a_hard_one(path):
    driver = Driver(path)
    driver.climb(EASY, [0.95, 0.96, 0.97, 0.98, 0.99])
    assert all(driver.climb(HARD, [0.61, 0.62, 0.63, 0.64, 0.65]))


def test_nothing_is_stopped_before_three_peers_have_stood_at_the_rung(path):
    assert MIN_PEERS == 3
    assert Driver(path).climb(EASY, [0.9, 0.8, 0.7, 0.6]) == [True, True, True, False]


def test_nothing_is_stopped_before_grace_or_between_rungs(path):
    driver = Driver(path)
    for number in range(6):
        assert driver.report(EASY, number, 1, 0.9 - number / 10)
    for number in range(6):
        driver.report(EASY, number, GRACE, 0.9)
    for number in range(6):
        assert driver.report(EASY, number, 3, 0.9 - number / 10)


def test_a_trial_is_not_stopped_before_its_own_warm_up_is_over(path):
    slow = f"{EASY}/004"
    driver = Driver(path, own_grace={slow: 3})
    driver.climb(EASY, [0.9, 0.8, 0.85, 0.95])
    assert driver.report(EASY, 4, 1, 0.1)
    assert driver.report(EASY, 4, GRACE, 0.1)
    assert not driver.report(EASY, 4, 3, 0.1)


def test_a_trial_whose_warm_up_is_over_late_stands_at_the_rung_it_passed(path):
    driver = Driver(path, own_grace={f"{EASY}/{number:03d}": 3 for number in range(4)})
    for number, score in enumerate([0.9, 0.8, 0.85]):
        assert driver.report(EASY, number, 3, score)
    assert not driver.report(EASY, 3, 3, 0.1)


def test_a_trial_whose_warm_up_ends_past_two_rungs_is_not_compared_at_the_lower_one_later(path):
    driver = Driver(path, own_grace={f"{EASY}/004": 5})
    driver.climb(EASY, [0.8, 0.8, 0.8, 0.8])
    for epoch in range(1, 5 + 1):
        assert driver.report(EASY, 4, epoch, 0.9)
    assert driver.report(EASY, 4, 6, 0.1)
    assert driver.report(EASY, 4, 7, 0.1)


def test_the_rungs_are_where_asha_has_them():
    assert list_rungs(grace_epochs=2, num_epochs=8) == {2, 4}
    assert list_rungs(grace_epochs=7, num_epochs=16) == {7, 14}
    assert list_rungs(grace_epochs=1, num_epochs=1) == set()


def test_without_early_stopping_nothing_is_stopped(path):
    assert all(Driver(path, is_stopping=False).climb(EASY, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]))


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_failed_trial_stands_on_no_rung(path, is_resumed):
    """Neither as a peer nor as a score to beat, also where the journal brings it back."""
    driver = Driver(path)
    for number in range(4):
        driver.report("router/linear_probe", number, GRACE, 0.99, failure="epoch 2: train_loss is nan")
    if is_resumed:
        driver = Driver(path)
    for number in range(4, 7):
        assert driver.report("router/linear_probe", number, GRACE, 0.5 - number / 100)


@pytest.mark.parametrize("is_resumed", [False, True])
@pytest.mark.parametrize("score", [math.nan, math.inf, None])
def test_a_score_that_is_not_finite_stands_on_no_rung(path, score, is_resumed):
    driver = Driver(path)
    for number in range(4):
        assert driver.report(EASY, number, GRACE, score)
    if is_resumed:
        driver = Driver(path)
    for number in range(4, 7):
        assert driver.report(EASY, number, GRACE, 0.5 - number / 100)


def test_a_failure_is_written_with_its_reason(path):
    driver = Driver(path)
    driver.report(EASY, 0, 1, 0.7)
    driver.report(EASY, 0, 2, None, failure="epoch 2: dev_loss is nan")
    last = last_lines(read_journal(path))[f"{EASY}/000"]
    assert (last.state, last.reason, last.decision) == ("FAILED", "epoch 2: dev_loss is nan", "stop")


def test_a_last_epoch_is_written_as_complete(path):
    driver = Driver(path)
    driver.report(EASY, 0, 1, 0.7)
    driver.report(EASY, 0, 2, 0.8, is_last=True)
    assert read_decisions(path)[-1] == (f"{EASY}/000", 2, "stop", "COMPLETE")


def test_every_line_is_reported_as_it_is_written(path):
    driver = Driver(path)
    driver.climb(EASY, [0.6, 0.7])
    assert driver.lines == read_journal(path)
    assert [line.seq for line in driver.lines] == [1, 2, 3, 4]


def test_a_worker_that_dies_for_good_is_one_failed_line(path):
    driver = Driver(path)
    driver.report(EASY, 0, 1, 0.7)
    fail(driver, EASY, 0)
    last = last_lines(read_journal(path))[f"{EASY}/000"]
    assert (last.state, last.epoch, last.reason) == ("FAILED", 2, "the worker failed 4 times")


def test_a_continued_trial_that_dies_leaves_no_epoch_twice(path):
    """The checkpoint was at epoch 1 when the worker died, the journal at 3."""
    driver = Driver(path)
    for epoch in (1, 2, 3):
        driver.report(EASY, 0, epoch, 0.7)
    resumed = Driver(path)
    resumed.report(EASY, 0, 1, 0.7)
    fail(resumed, EASY, 0)
    table = to_table(read_journal(path))
    assert not table.duplicated(["trial", "epoch"]).any()
    assert last_lines(read_journal(path))[f"{EASY}/000"].state == "FAILED"


def test_a_continued_trial_that_ends_before_what_is_written_has_failed(path):
    """On a GPU the epochs that are trained again may come out otherwise, and patience may end earlier."""
    driver = Driver(path)
    for epoch in (1, 2, 3):
        driver.report(EASY, 0, epoch, 0.7)
    resumed = Driver(path)
    resumed.report(EASY, 0, 1, 0.7)
    resumed.report(EASY, 0, 2, 0.7, is_last=True)
    last = last_lines(read_journal(path))[f"{EASY}/000"]
    assert (last.state, last.epoch) == ("FAILED", 4)
    assert last.reason == "trained again from a checkpoint, it ended at epoch 2 already"


def test_an_epoch_reported_twice_counts_once(path):
    driver = Driver(path)
    driver.climb(EASY, [0.6, 0.7])
    assert driver.report(EASY, 1, 1, 0.7)
    assert driver.report(EASY, 1, 2, 0.7)
    assert len(read_decisions(path)) == 4


def test_brackets_know_trials_by_the_plan_and_not_by_tune(path):
    """Under Tune's new id a continued trial would be compared between rungs, by itself."""
    first = Driver(path)
    first.climb(EASY, [0.9, 0.8, 0.7])
    resumed = Driver(path)
    assert all(resumed.report(EASY, number, 3, 0.1) for number in range(3))
    assert not resumed.report(EASY, 3, GRACE, 0.1)


def test_ray_is_given_nothing_to_pickle(path):
    driver = Driver(path)
    driver.climb(EASY, [0.6, 0.7])
    assert vars(pickle.loads(pickle.dumps(driver.scheduler))) == {}


class RayBracket:
    """Ray's own ASHA, given a trial's score at the first epoch at or past a rung, and the rule of three peers."""

    def __init__(self, *, grace_epochs, num_epochs):
        self.rungs = sorted(list_rungs(grace_epochs=grace_epochs, num_epochs=num_epochs))
        self.arrived, self.last = {}, {}
        self.asha = AsyncHyperBandScheduler(
            time_attr="epoch",
            metric="score",
            mode="max",
            grace_period=grace_epochs,
            max_t=max(num_epochs, grace_epochs),
            reduction_factor=2,
        )

    def should_stop(self, trial, epoch, score):
        rung = sum(epoch >= at for at in self.rungs)
        if rung <= self.last.get(trial, 0):
            return False
        if trial not in self.last:
            self.asha.on_trial_add(None, SimpleNamespace(trial_id=trial))
        self.last[trial] = rung
        self.arrived.setdefault(rung, set()).add(trial)
        decision = self.asha.on_trial_result(None, SimpleNamespace(trial_id=trial), {"epoch": epoch, "score": score})
        return decision == TrialScheduler.STOP and len(self.arrived[rung]) > MIN_PEERS


@settings(max_examples=300, deadline=None)
@given(
    num_epochs=st.integers(1, 40),
    grace_epochs=st.integers(1, 40),
    reports=st.lists(
        st.tuples(st.integers(0, 7), st.integers(1, 12), st.floats(-1, 1, width=32)), min_size=20, max_size=80
    ),
)
def test_a_bracket_stops_the_trials_that_rays_asha_stops(num_epochs, grace_epochs, reports):
    """Below a trial's last epoch, after which there is nothing to stop."""
    brackets = [kind(grace_epochs=grace_epochs, num_epochs=num_epochs) for kind in (AshaBracket, RayBracket)]
    epochs = {}
    for trial, num, score in reports:
        epochs[trial] = min(epochs.get(trial, 0) + num, num_epochs)
        ours, rays = (bracket.should_stop(str(trial), epochs[trial], score) for bracket in brackets)
        assert ours == rays or epochs[trial] == num_epochs


# A trial's script: a score per epoch, how many epochs it runs, and whether it then fails.
scores = st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9, math.nan, None])
scripts = st.tuples(st.lists(scores, min_size=EPOCHS, max_size=EPOCHS), st.integers(1, EPOCHS), st.booleans())
searches = st.lists(scripts, min_size=4, max_size=7)


@dataclass
class Execution:
    """A run of scripted trials that may be cut off and continued."""

    path: Path
    script: dict

    def __post_init__(self):
        self.ended, self.at = set(), dict.fromkeys(self.script, 0)
        self.driver = Driver(self.path)

    def advance(self, choice):
        """Let one of the living trials run its next epoch."""
        living = sorted(set(self.script) - self.ended)
        if not living:
            return
        name = living[choice % len(living)]
        self.at[name] += 1
        if not self.tell(name, self.at[name]):
            self.ended.add(name)

    def tell(self, name, epoch):
        """Report an epoch as the script has it."""
        scores, num_epochs, fails = self.script[name]
        is_end = epoch == num_epochs
        failure = "epoch: train_loss is inf" if is_end and fails else None
        return self.driver.report(*name, epoch, scores[epoch - 1], is_last=is_end, failure=failure)

    def cut(self, num_lost):
        """Die half-way through a line and come back; checkpoints are up to `num_lost` epochs behind the journal."""
        with self.path.open("ab") as handle:
            handle.write(b'{"seq": 99, "trial": "speci')
        self.driver = Driver(self.path)
        for name in sorted(set(self.script) - self.ended):
            for epoch in range(max(1, self.at[name] + 1 - num_lost), self.at[name] + 1):
                assert self.tell(name, epoch)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    easy=searches,
    hard=searches,
    choices=st.lists(st.integers(0, 99), min_size=30, max_size=90),
    cuts=st.dictionaries(st.integers(1, 60), st.integers(0, 3), min_size=1, max_size=3),
)
def test_a_run_cut_anywhere_decides_as_one_that_was_not(easy, hard, choices, cuts):
    script = {(search, i): part for search, parts in ((EASY, easy), (HARD, hard)) for i, part in enumerate(parts)}
    with TemporaryDirectory() as folder, patch("os.fsync"):  # no power is lost here, and it is slow
        whole, torn = (Execution(Path(folder, name), script) for name in ("whole.jsonl", "torn.jsonl"))
        for step, choice in enumerate(choices):
            if step in cuts:
                torn.cut(cuts[step])
            whole.advance(choice)
            torn.advance(choice)
        torn.cut(0)
        assert read_decisions(torn.path) == read_decisions(whole.path)
