"""What a person sees while a run is on: lines and bars on the terminal, gauges for the dashboard and Prometheus."""

import time
from collections import Counter
from typing import Any

from ray.util.metrics import Gauge
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mura_models.writing import is_storage_trouble
from orchestrator.config import RunConfig
from orchestrator.plan import Plan

QUIET_STEP_S = 15.0
"""Where there is no terminal to draw on, a line is written at most so often (chosen by us)."""

LABELS = {"scan": "read files", "decode": "decode films", "embed": "embed films", "phantom": "make phantom"}


class Monitor:
    """Shows progress; holds nothing that a run needs."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._bars: dict[str, Any] = {}
        self._said_at: dict[str, float] = {}

    def __enter__(self) -> "Monitor":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Write one line; where it goes to a disk that is full, it comes later or never, and the run goes on."""
        try:
            self.console.print(text, markup=False, soft_wrap=True)
        except OSError as error:
            if not is_storage_trouble(error):
                raise

    def say_now_and_then(self, what: str, text: str) -> None:
        """Write a line about `what`, unless one was written just now."""
        now = time.monotonic()
        if now - self._said_at.get(what, -QUIET_STEP_S) >= QUIET_STEP_S:
            self._said_at[what] = now
            self.say(text)

    def on_progress(self, what: str, done: int, total: int, note: str = "") -> None:
        """Move the bar of `what`; without a terminal, write a line now and then."""
        label = LABELS.get(what, what)
        if what not in self._bars:
            self._bars[what] = self._progress.add_task(label, total=total, note=note)
        self._progress.update(self._bars[what], completed=done, total=total, note=note)
        now = time.monotonic()
        is_due = now - self._said_at.get(what, now if done < total else 0.0) > QUIET_STEP_S
        self._said_at.setdefault(what, now)
        if not self.console.is_terminal and (done == total or is_due):
            self._said_at[what] = now
            self.say(f"{label}: {done} of {total}{f', {note}' if note else ''}")


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
        """Take in one line of a journal: of the search, of its audit or of a refit."""
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
    bone = target.split(":", 1)[1] if ":" in target else "all"
    return {"search": search, "bone": bone, "recipe": recipe}
