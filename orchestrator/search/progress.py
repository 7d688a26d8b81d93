"""Progress of all searches: one bar, and gauges for the dashboard and Prometheus."""

from collections import Counter
from typing import Any

from ray.util.metrics import Gauge

from orchestrator.progress import Monitor
from orchestrator.run.config import RunConfig
from orchestrator.run.names import parse_bone
from orchestrator.search.plan import Plan


class SearchMonitor:
    """Follows the trials of all searches: one bar, and gauges tagged by search, bone and recipe."""

    def __init__(self, config: RunConfig, plan: Plan, monitor: Monitor) -> None:
        self._monitor = monitor
        self._tags = {trial.search: _tag(trial.target, trial.recipe, trial.search) for trial in plan.trials}
        self._metrics = {trial.search: f"dev_{trial.settings(config).metric}" for trial in plan.trials}
        self._search_of = {trial.trial: trial.search for trial in plan.trials}
        self._states = dict.fromkeys(self._search_of, "WAITING")
        self._best: dict[str, float] = {}
        tags = ("search", "bone", "recipe")
        self._best_gauge = Gauge("mura_best_dev_metric", "Best dev metric of a search so far", tag_keys=tags)
        self._trials_gauge = Gauge("mura_trials", "Trials of a search by state", tag_keys=(*tags, "state"))

    def begin(self, lines: list[dict[str, Any]]) -> None:
        """Show every search from the start, with what the journal already has."""
        for line in lines:
            self._count(line)
        for search in self._tags:
            self._publish(search)

    def on_line(self, what: str, line: dict[str, Any]) -> None:
        """Take in one line of a journal: of the search, of its audit or of a replicate."""
        if line["note"]:
            self._monitor.say(f"{line['trial']} epoch {line['epoch']}: {line['note']}")
        if what != "search":
            self._monitor.say_now_and_then(what, f"{what}: {line['trial']} epoch {line['epoch']}")
            return
        self._count(line)
        self._publish(line["search"])
        num_ended = sum(state not in ("WAITING", "RUNNING") for state in self._states.values())
        self._monitor.on_progress("train", num_ended, len(self._states), note=f"{line['trial']} epoch {line['epoch']}")

    def _count(self, line: dict[str, Any]) -> None:
        search = line["search"]
        self._states[line["trial"]] = line["state"]
        score = line["metrics"].get(self._metrics[search])
        if score is not None:
            self._best[search] = max(score, self._best.get(search, score))

    def _publish(self, search: str) -> None:
        states = Counter(state for trial, state in self._states.items() if self._search_of[trial] == search)
        for state in ("WAITING", "RUNNING", "COMPLETE", "PRUNED", "FAILED"):
            self._trials_gauge.set(states[state], tags=self._tags[search] | {"state": state})
        if search in self._best:
            self._best_gauge.set(self._best[search], tags=self._tags[search])


def _tag(target: str, recipe: str, search: str) -> dict[str, str]:
    bone = parse_bone(target)
    return {"search": search, "bone": "all" if bone is None else bone, "recipe": recipe}
