"""Progress of all searches: one bar, and gauges for the dashboard and Prometheus."""

from collections import Counter
from collections.abc import Iterable

from ray.util.metrics import Gauge

from orchestrator.progress import Progress
from orchestrator.run.journal import JournalLine
from orchestrator.run.names import SearchId
from orchestrator.search.context import Purpose
from orchestrator.search.plan import Plan


class SearchProgress:
    """The state of all searches: one bar, and gauges tagged by search, bone and recipe."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self._progress = progress
        self._tags = {trial.search: _make_tags(trial.id.search) for trial in plan.trials}
        self._metrics = {trial.search: trial.settings.dev_metric for trial in plan.trials}
        self._search_of = {trial.name: trial.search for trial in plan.trials}
        self._states: dict[str, str] = dict.fromkeys(self._search_of, "WAITING")
        self._best: dict[str, float] = {}
        tags = ("search", "bone", "recipe")
        self._best_gauge = Gauge("mura_best_dev_metric", "Best dev metric of a search so far", tag_keys=tags)
        self._trials_gauge = Gauge("mura_trials", "Trials of a search by state", tag_keys=(*tags, "state"))

    def begin(self, lines: Iterable[JournalLine]) -> None:
        """Publish every search, with the lines that the journal already has."""
        for line in lines:
            self._count(line)
        for search in self._tags:
            self._publish(search)

    def on_line(self, purpose: Purpose, line: JournalLine) -> None:
        """Show one line of a journal."""
        if line.note:
            self._progress.log(f"{line.trial} epoch {line.epoch}: {line.note}")
        if purpose != "search":
            self._progress.log_throttled(purpose, f"{purpose}: {line.trial} epoch {line.epoch}")
            return
        self._count(line)
        self._publish(line.search)
        num_ended = sum(state not in ("WAITING", "RUNNING") for state in self._states.values())
        self._progress.on_progress("train", num_ended, len(self._states), note=f"{line.trial} epoch {line.epoch}")

    def _count(self, line: JournalLine) -> None:
        search = line.search
        self._states[line.trial] = line.state
        score = line.metrics.get(self._metrics[search])
        if score is not None:
            self._best[search] = max(score, self._best.get(search, score))

    def _publish(self, search: str) -> None:
        states = Counter(state for trial, state in self._states.items() if self._search_of[trial] == search)
        for state in ("WAITING", "RUNNING", "COMPLETE", "PRUNED", "FAILED"):
            self._trials_gauge.set(states[state], tags=self._tags[search] | {"state": state})
        if search in self._best:
            self._best_gauge.set(self._best[search], tags=self._tags[search])


def _make_tags(search: SearchId) -> dict[str, str]:
    bone = "all" if search.bone is None else search.bone
    return {"search": str(search), "bone": bone, "recipe": search.recipe}
