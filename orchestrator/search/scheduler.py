"""Early stopping: one ASHA bracket per search, and the line in the journal that every decision leaves.

A bracket over several bones would let the easy bone prune the hard one. Ladders know trials by their plan id alone, so
that a continued trial, to which Tune gives a new id, is judged as if nothing had happened.
"""

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.utils.util import unflatten_dict

from mura_models.errors import StorageError, hide_folders
from orchestrator.run.journal import Journal, Line

MAX_WORKER_FAILURES = 3
"""How often a trial is started again whose worker died; each time it goes on from its last checkpoint."""

REDUCTION_FACTOR = 2
MIN_PEERS = 3
"""A trial is not stopped before so many others have stood at its rung: the first arrivals are no measure."""


class AshaBracket:
    """ASHA (Li et al., arXiv 1810.05934) for the trials of one search, by Ray's own scheduler."""

    def __init__(self, *, metric: str, grace_epochs: int, num_epochs: int) -> None:
        self.metric = metric
        self._rungs = sorted(list_rungs(grace_epochs=grace_epochs, num_epochs=num_epochs))
        self._arrivals: dict[int, set[str]] = defaultdict(set)
        self._stood_at: dict[str, int] = {}
        self._asha = AsyncHyperBandScheduler(
            time_attr="epoch",
            metric=metric,
            mode="max",
            grace_period=grace_epochs,
            max_t=max(num_epochs, grace_epochs),
            reduction_factor=REDUCTION_FACTOR,
        )

    def add(self, trial: str) -> None:
        """Let a trial take part."""
        self._asha.on_trial_add(None, SimpleNamespace(trial_id=trial))

    def is_to_stop(self, trial: str, epoch: int, score: float) -> bool:
        """Record a trial's score at the first epoch at or past a rung, and say whether it ends here.

        Ray is told of no other epoch: past its last rung it would judge a trial at those that it had skipped.
        """
        rung = bisect_right(self._rungs, epoch)
        if rung <= self._stood_at.get(trial, 0):
            return False
        self._stood_at[trial] = rung
        self._arrivals[rung].add(trial)
        result = {"epoch": epoch, self.metric: score}
        decision = self._asha.on_trial_result(None, SimpleNamespace(trial_id=trial), result)
        return bool(decision == TrialScheduler.STOP) and len(self._arrivals[rung]) > MIN_PEERS


def list_rungs(*, grace_epochs: int, num_epochs: int) -> frozenset[int]:
    """Return the epochs at which a bracket judges."""
    rungs = set()
    epoch = grace_epochs
    while epoch < num_epochs:
        rungs.add(epoch)
        epoch *= REDUCTION_FACTOR
    return frozenset(rungs)


def _identify(trial: Trial) -> tuple[str, str]:
    """Return search and plan id of one of Tune's trials."""
    return trial.config["trial"]["search"], trial.config["trial"]["trial"]


def _unflatten(result: Line) -> Line:
    """Undo what Tune does to a nested result on its way to the scheduler."""
    nested: Line = unflatten_dict(result)
    return nested


@dataclass(frozen=True, kw_only=True, slots=True)
class BracketSettings:
    """How the trials of one search are judged."""

    metric: str
    """The dev metric."""
    grace_epochs: int
    """The first rung."""
    num_epochs: int
    """The horizon: a trial's last epoch."""


class PerSearchAsha(FIFOScheduler):  # type: ignore[misc]
    """Tune's trial scheduler for all searches of a stage: trials in the plan's order, judged search by search.

    `grace_epochs` gives trials that may not be judged before an epoch of their own, as those whose rate still rises;
    `is_stopping` False lets every trial run to its own end; `on_failure` is told of a worker's death before its trial
    is started again. Where the journal or a checkpoint cannot be written, `halted` says why: nothing is judged any
    more, and whoever runs the Tuner ends it.
    """

    def __init__(
        self,
        *,
        rules: Mapping[str, BracketSettings],
        grace_epochs: Mapping[str, int],
        is_stopping: bool,
        journal: Journal,
        on_line: Callable[[Line], None] = lambda line: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.halted: str | None = None
        self._journal = journal
        self._on_line = on_line
        self._on_failure = on_failure
        self._num_failures: Counter[str] = Counter()
        self._is_stopping = is_stopping
        self._grace_epochs = grace_epochs
        self._brackets = {
            search: AshaBracket(metric=rule.metric, grace_epochs=rule.grace_epochs, num_epochs=rule.num_epochs)
            for search, rule in rules.items()
        }
        self._known: set[str] = set()
        self._replay()

    def __getstate__(self) -> dict[str, Any]:
        """Leave Ray nothing to save: a stopped run is rebuilt from the journal, never from Ray's pickles."""
        return {}

    def _replay(self) -> None:
        """Put back on the brackets what the journal says, in the order in which it came."""
        for line in self._journal.lines:
            if line["search"] in self._brackets:
                self._add(line["search"], line["trial"])
                if line["state"] != "FAILED":
                    self._judge(line["search"], line["trial"], line["epoch"], line["metrics"])

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Enter a trial on its search's bracket, once."""
        self._add(*_identify(trial))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Judge an epoch that is not the trial's last, write it down and answer Tune."""
        result = _unflatten(result)
        (search, name), epoch = _identify(trial), result["epoch"]
        if self.halted or self._journal.has(name, epoch):  # a worker lost before its checkpoint runs epochs again
            return str(TrialScheduler.CONTINUE)
        is_stopped = self._judge(search, name, epoch, result["metrics"])
        self._write(search, name, result, state="PRUNED" if is_stopped else "RUNNING")
        return str(TrialScheduler.STOP if is_stopped else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Write down a trial's last epoch, if it is not the one that was stopped."""
        result = _unflatten(result)
        search, name = _identify(trial)
        self.halted = self.halted or result.get("storage_error")
        if self.halted or name in self._journal.final_states():
            return
        failure = result.get("failure")
        if self._journal.has(name, result["epoch"]):
            self._give_up(search, name, f"trained again from a checkpoint, it ended at epoch {result['epoch']} already")
            return
        if not failure:
            self._judge(search, name, result["epoch"], result["metrics"])
        self._write(search, name, result, state="FAILED" if failure else "COMPLETE", reason=failure)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Write down that a trial failed for good; Tune also calls this before it starts the trial again.

        Tune gives up at once where a worker dies between two trials that it serves: such a trial is left open, and
        whoever runs the Tuner starts it in another.
        """
        search, name = _identify(trial)
        self._num_failures[name] += 1
        self._on_failure()
        is_started_again = trial.status == Trial.ERROR  # set before a new start, not yet set when Tune gives up
        if is_started_again or self._num_failures[name] <= MAX_WORKER_FAILURES or self.halted:
            return
        cause = str(trial.get_error() or "").strip().splitlines()
        reason = f"the worker failed {self._num_failures[name]} times{f': {hide_folders(cause[-1])}' if cause else ''}"
        self._give_up(search, name, reason)

    def _give_up(self, search: str, name: str, reason: str) -> None:
        """Write down, behind the last epoch of a trial, that it failed."""
        result = {"epoch": self._journal.last_epoch(name) + 1, "metrics": {}}
        self._write(search, name, result, state="FAILED", reason=reason)

    def _add(self, search: str, trial: str) -> None:
        if trial not in self._known:
            self._known.add(trial)
            self._brackets[search].add(trial)

    def _judge(self, search: str, trial: str, epoch: int, metrics: dict[str, float | None]) -> bool:
        score = metrics.get(self._brackets[search].metric)
        if not self._is_stopping or score is None or not math.isfinite(score):
            return False
        if epoch < self._grace_epochs.get(trial, 0):
            return False
        return self._brackets[search].is_to_stop(trial, epoch, score)

    def _write(self, search: str, trial: str, result: dict[str, Any], *, state: str, reason: str | None = None) -> None:
        try:
            line = self._journal.append(
                search=search,
                trial=trial,
                epoch=result["epoch"],
                metrics=result["metrics"],
                decision="continue" if state == "RUNNING" else "stop",
                state=state,
                reason=reason,
                note=result.get("note"),
                worker=result.get("worker"),
            )
        except StorageError as error:
            self.halted = str(error)
        else:
            self._on_line(line)
