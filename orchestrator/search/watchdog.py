"""Checks while a Tuner runs: room on the disk, a node for the next trial, and whether the run must end."""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ray.tune.stopper import Stopper

from orchestrator.cluster.resources import TrialResources, fits_a_node, list_node_resources
from orchestrator.run.directory import RunDir
from orchestrator.search.scheduler import PerSearchAsha

CHECK_EVERY_S = 10.0
LOW_DISK_BYTES = 500 * 2**20
"""With less left, the user is warned (chosen by us: some checkpoints of a large network)."""


class Watchdog(Stopper):  # type: ignore[misc]
    """Answers Tune, after every event, whether to end everything; now and then checks disk and nodes, and warns."""

    def __init__(
        self, scheduler: PerSearchAsha, rundir: RunDir, resources: TrialResources, log: Callable[[str], None]
    ) -> None:
        self._scheduler = scheduler
        self._rundir = rundir
        self._resources = resources
        self._log = log
        self._checked_at = time.monotonic()
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Leave Ray nothing to save."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """End no trial by itself."""
        return False

    def stop_all(self) -> bool:
        """Return whether the Tuner is to end now, its trials as they are."""
        now = time.monotonic()
        if now - self._checked_at >= CHECK_EVERY_S:
            self._checked_at = now
            self._check()
        return self._scheduler.halted is not None

    def _check(self) -> None:
        free = None
        with suppress(OSError):  # a file server that is down for a moment: writes wait for it, this does not
            free = shutil.disk_usage(self._rundir.root).free
        if free is not None:
            text = f"the disk of the run directory is nearly full: {free / 2**20:.0f} MB left"
            self._warn_once("disk", free < LOW_DISK_BYTES, text)
        self._warn_once(
            "nodes",
            not fits_a_node(self._resources, list_node_resources()),
            "no node is left that a trial fits on: waiting for one (Ctrl-C stops, the same command continues)",
        )

    def _warn_once(self, what: str, is_so: bool, text: str) -> None:
        """Warn when the condition begins, and again only after it was over."""
        if is_so and what not in self._warned:
            self._log(text)
            self._warned.add(what)
        elif not is_so:
            self._warned.discard(what)
