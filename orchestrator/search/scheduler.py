"""Early stopping: one ASHA bracket per search, and the line in the journal that every decision leaves.

In a bracket over several bones the easy bone would stop the hard one. Brackets know trials by their plan id alone: a
resumed trial, to which Tune gives a new id, is compared as if it had never stopped.
"""

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from mura_models.errors import StorageError, hide_folders
from orchestrator.run.journal import JournalLine, JournalWriter, TrialState
from orchestrator.search.trial import EPOCH_RESULT, EpochResult

MAX_WORKER_FAILURES = 3
"""Restarts of a trial whose worker died; each time it resumes from its last checkpoint."""

REDUCTION_FACTOR = 2
MIN_PEERS = 3
"""A trial is not stopped before this many others have reached its rung: the first arrivals are no measure."""


class AshaBracket:
    """ASHA (Li et al., arXiv 1810.05934) for the trials of one search: at a rung the lower half stops.

    A trial's score counts at the highest rung that its epoch has reached, once.
    """

    def __init__(self, *, grace_epochs: int, num_epochs: int) -> None:
        self._rungs = sorted(list_rungs(grace_epochs=grace_epochs, num_epochs=num_epochs))
        self._end = max(grace_epochs, num_epochs)
        self._scores: dict[int, list[float]] = defaultdict(list)
        self._num_arrived: Counter[int] = Counter()
        self._last_rung: dict[str, int] = {}

    def should_stop(self, trial: str, epoch: int, score: float) -> bool:
        """Record a trial's score at the first epoch at or past a rung; return whether it stops there.

        The last epoch is not compared, as in Ray's ASHA.
        """
        rung = bisect_right(self._rungs, epoch)
        if rung <= self._last_rung.get(trial, 0):
            return False
        self._last_rung[trial] = rung
        self._num_arrived[rung] += 1
        if epoch >= self._end:
            return False
        scores = self._scores[rung]
        is_low = bool(scores and score < np.percentile(scores, 100 * (1 - 1 / REDUCTION_FACTOR)))
        scores.append(score)
        return is_low and self._num_arrived[rung] > MIN_PEERS


def list_rungs(*, grace_epochs: int, num_epochs: int) -> frozenset[int]:
    """Return the epochs at which a bracket compares its trials."""
    rungs = set()
    epoch = grace_epochs
    while epoch < num_epochs:
        rungs.add(epoch)
        epoch *= REDUCTION_FACTOR
    return frozenset(rungs)


def _identify(trial: Trial) -> tuple[str, str]:
    """Return the names of search and trial of one of Tune's trials."""
    return trial.config["trial"]["search"], trial.config["trial"]["trial"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BracketSettings:
    """How the trials of one search are compared."""

    metric: str
    """The dev metric."""
    grace_epochs: int
    """The first rung."""
    num_epochs: int
    """The horizon: a trial's last epoch."""


class PerSearchAsha(FIFOScheduler):  # type: ignore[misc]
    """Tune's trial scheduler for all searches of a stage: trials in the plan's order, one bracket per search.

    `grace_epochs` has trials that are not compared before an epoch of their own, such as those whose learning rate
    still rises. Without `is_stopping` every trial runs to its own end. `on_failure` is called when a worker has died,
    before its trial is restarted. If the journal or a checkpoint cannot be written, `halted` holds the error: from then
    on nothing is compared or written, and the caller of the Tuner ends it.
    """

    def __init__(
        self,
        *,
        rules: Mapping[str, BracketSettings],
        grace_epochs: Mapping[str, int],
        is_stopping: bool,
        journal: JournalWriter,
        on_line: Callable[[JournalLine], None] = lambda line: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.halted: StorageError | None = None
        self._journal = journal
        self._on_line = on_line
        self._on_failure = on_failure
        self._num_failures: Counter[str] = Counter()
        self._is_stopping = is_stopping
        self._grace_epochs = grace_epochs
        self._metrics = {search: rule.metric for search, rule in rules.items()}
        self._brackets = {
            search: AshaBracket(grace_epochs=rule.grace_epochs, num_epochs=rule.num_epochs)
            for search, rule in rules.items()
        }
        self._replay()

    def __getstate__(self) -> dict[str, Any]:
        """Leave Ray nothing to save: a stopped run is rebuilt from the journal, never from Ray's pickles."""
        return {}

    def _replay(self) -> None:
        """Put the scores of the journal back on the brackets, in the order of its lines."""
        for line in self._journal.lines:
            if line.search in self._brackets and line.state != "FAILED":
                self._should_stop(line.search, line.trial, line.epoch, line.metrics)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Compare an epoch that is not the trial's last, write its line and answer Tune."""
        epoch: EpochResult = result[EPOCH_RESULT]
        search, name = _identify(trial)
        if self.halted or self._journal.has(name, epoch.epoch):  # lost with its worker before the checkpoint: run again
            return str(TrialScheduler.CONTINUE)
        is_stopped = self._should_stop(search, name, epoch.epoch, epoch.metrics)
        self._write(search, name, epoch, state="PRUNED" if is_stopped else "RUNNING")
        return str(TrialScheduler.STOP if is_stopped else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Write the line of a trial's last epoch, unless it is the one at which it was stopped."""
        epoch: EpochResult = result[EPOCH_RESULT]
        search, name = _identify(trial)
        self.halted = self.halted or epoch.storage_error
        if self.halted or self._journal.has_ended(name):
            return
        if self._journal.has(name, epoch.epoch):
            self._give_up(search, name, f"trained again from a checkpoint, it ended at epoch {epoch.epoch} already")
            return
        if not epoch.failure:
            self._should_stop(search, name, epoch.epoch, epoch.metrics)
        self._write(search, name, epoch, state="FAILED" if epoch.failure else "COMPLETE", reason=epoch.failure)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Write that a trial failed for good; Tune also calls this before it restarts the trial.

        Tune gives up at once if a worker dies between two trials that it runs: such a trial is left open, and the
        caller of the Tuner starts it in another.
        """
        search, name = _identify(trial)
        self._num_failures[name] += 1
        self._on_failure()
        is_restarted = trial.status == Trial.ERROR  # set before a restart, not yet set when Tune gives up
        if is_restarted or self._num_failures[name] <= MAX_WORKER_FAILURES or self.halted:
            return
        cause = str(trial.get_error() or "").strip().splitlines()
        reason = f"the worker failed {self._num_failures[name]} times{f': {hide_folders(cause[-1])}' if cause else ''}"
        self._give_up(search, name, reason)

    def _give_up(self, search: str, name: str, reason: str) -> None:
        """Write, after the last epoch of a trial, that it failed."""
        epoch = EpochResult(epoch=self._journal.last_epoch(name) + 1, metrics={})
        self._write(search, name, epoch, state="FAILED", reason=reason)

    def _should_stop(self, search: str, trial: str, epoch: int, metrics: Mapping[str, float | None]) -> bool:
        score = metrics.get(self._metrics[search])
        if not self._is_stopping or score is None or not math.isfinite(score):
            return False
        if epoch < self._grace_epochs.get(trial, 0):
            return False
        return self._brackets[search].should_stop(trial, epoch, score)

    def _write(
        self, search: str, trial: str, epoch: EpochResult, *, state: TrialState, reason: str | None = None
    ) -> None:
        try:
            line = self._journal.append(
                search=search,
                trial=trial,
                epoch=epoch.epoch,
                metrics=epoch.metrics,
                state=state,
                reason=reason,
                note=epoch.note,
                worker=epoch.worker,
            )
        except StorageError as error:
            self.halted = error
        else:
            self._on_line(line)
