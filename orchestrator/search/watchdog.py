"""What is looked after while a Tuner runs: room on the disk, a node for the next trial, an end where none can be."""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ray.tune.stopper import Stopper

from orchestrator.cluster.resources import TrialResources, fits_a_node, list_node_resources
from orchestrator.run.directory import RunDir
from orchestrator.search.scheduler import PerSearchAsha

LOOK_EVERY_S = 10.0
LOW_DISK_BYTES = 500 * 2**20
"""With less left, the user is told (chosen by us: some checkpoints of a large network)."""


class Watch(Stopper):  # type: ignore[misc]
    """Asked by Tune after every event whether to end everything; looks about now and then, and says what it sees."""

    def __init__(
        self, scheduler: PerSearchAsha, rundir: RunDir, share: TrialResources, say: Callable[[str], None]
    ) -> None:
        self._scheduler = scheduler
        self._rundir = rundir
        self._share = share
        self._say = say
        self._looked_at = time.monotonic()
        self._told: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Leave Ray nothing to save."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """End no trial by itself."""
        return False

    def stop_all(self) -> bool:
        """Return whether the Tuner is to end now, its trials as they are."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self._look()
        return self._scheduler.halted is not None

    def _look(self) -> None:
        free = None
        with suppress(OSError):  # a file server that is away for a moment: writes wait for it, this does not
            free = shutil.disk_usage(self._rundir.root).free
        if free is not None:
            text = f"the disk of the run directory is nearly full: {free / 2**20:.0f} MB left"
            self._tell_once("disk", free < LOW_DISK_BYTES, text)
        self._tell_once(
            "nodes",
            not fits_a_node(self._share, list_node_resources()),
            "no node is left that a trial fits on: waiting for one (Ctrl-C stops, the same command continues)",
        )

    def _tell_once(self, what: str, is_so: bool, text: str) -> None:
        """Say it when it begins, and again only after it was over."""
        if is_so and what not in self._told:
            self._say(text)
            self._told.add(what)
        elif not is_so:
            self._told.discard(what)
