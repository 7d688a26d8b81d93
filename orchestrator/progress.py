"""Lines and progress bars on the terminal."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBars

from mura_models.storage import classify_fault

QUIET_STEP_S = 15.0
"""Without a terminal to draw on, the least time between two lines of one kind (chosen by us)."""

LABELS = {"scan": "read files", "decode": "decode images", "embed": "embed images", "phantom": "make phantom"}


class Progress:
    """Logs lines and draws bars; holds no state that a run needs."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._drawn = ProgressBars(
            TextColumn("{task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._bars: dict[str, Any] = {}
        self._logged_at: dict[str, float] = {}

    def __enter__(self) -> "Progress":
        self._drawn.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._drawn.stop()

    def log(self, text: str) -> None:
        """Write one line. If the output is a file on a full disk, the line may be lost; the run goes on."""
        try:
            self.console.print(text, markup=False, soft_wrap=True)
        except OSError as error:
            if classify_fault(error) is None:
                raise

    def log_throttled(self, topic: str, text: str) -> None:
        """Write a line on a topic, unless one was written a moment ago."""
        now = time.monotonic()
        if now - self._logged_at.get(topic, -QUIET_STEP_S) >= QUIET_STEP_S:
            self._logged_at[topic] = now
            self.log(text)

    def on_progress(self, step: str, done: int, total: int, note: str = "") -> None:
        """Move the bar of a step; without a terminal, write a line now and then."""
        label = LABELS.get(step, step)
        if step not in self._bars:
            self._bars[step] = self._drawn.add_task(label, total=total, note=note)
        self._drawn.update(self._bars[step], completed=done, total=total, note=note)
        now = time.monotonic()
        is_due = now - self._logged_at.get(step, now if done < total else 0.0) > QUIET_STEP_S
        self._logged_at.setdefault(step, now)
        if not self.console.is_terminal and (done == total or is_due):
            self._logged_at[step] = now
            self.log(f"{label}: {done} of {total}{f', {note}' if note else ''}")
