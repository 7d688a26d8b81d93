"""What a person sees while a run is on: lines and bars on the terminal, gauges for the dashboard and Prometheus."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mura_models.storage import classify_fault

QUIET_STEP_S = 15.0
"""Where there is no terminal to draw on, a line is written at most so often (chosen by us)."""

LABELS = {"scan": "read files", "decode": "decode images", "embed": "embed images", "phantom": "make phantom"}


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
            if classify_fault(error) is None:
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
