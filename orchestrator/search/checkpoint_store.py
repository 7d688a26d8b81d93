"""The checkpoint store: one actor on the driver's node, so that trials anywhere need no disk of the driver's.

A trial's weights travel to it through Ray and lie in the run directory, whole, before the driver hears of the epoch. It
also tells trials where their stage's rows are: a reference that Tune is given itself is never let go again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mura_models.errors import StorageError
from mura_models.storage import RETRY_TIMEOUT_S, atomic_write, retry_read, retry_write
from mura_models.training.checksums import has_valid_checksum
from orchestrator.run.directory import RunDir

STORE_NAME = "checkpoint-store"


class LoadedCheckpoint(NamedTuple):
    """What is there of a trial's checkpoints."""

    content: bytes | None
    """Of the newest that is whole."""
    note: str | None = None
    """What a person should know, where a newer one was damaged."""


def write_checkpoint(rundir: RunDir, trial: str, content: bytes, *, patience_s: float = RETRY_TIMEOUT_S) -> None:
    """Make this the trial's checkpoint, whole or not at all, and keep the one before beside it.

    Raises StorageError where the disk stays full or broken.
    """
    path, previous = rundir.checkpoint(trial), rundir.previous_checkpoint(trial)

    def write() -> None:
        with atomic_write(path) as partial:
            partial.write_bytes(content)
            if path.exists():
                path.replace(previous)

    retry_write(write, path, timeout_s=patience_s)


def read_checkpoint(rundir: RunDir, trial: str, *, patience_s: float = RETRY_TIMEOUT_S) -> LoadedCheckpoint:
    """Return the trial's last checkpoint, or, where that is damaged, the one before.

    Raises StorageError where the disk stays broken: what cannot be read now is not lost, and nothing may be written
    over it.
    """
    is_damaged = False
    for path in (rundir.checkpoint(trial), rundir.previous_checkpoint(trial)):
        try:
            content = retry_read(path, timeout_s=patience_s)
        except FileNotFoundError:
            continue
        except OSError:  # somebody's folder of that name, say
            content = b""
        if has_valid_checksum(content):
            return LoadedCheckpoint(
                content, "the last checkpoint is damaged: went on from the one before" if is_damaged else None
            )
        is_damaged = True
    return LoadedCheckpoint(None, "the checkpoint is damaged: begun anew" if is_damaged else None)


def remove_checkpoints(rundir: RunDir, trial: str) -> None:
    """Remove what is kept of a trial."""
    for path in (rundir.checkpoint(trial), rundir.previous_checkpoint(trial)):
        path.unlink(missing_ok=True)


class CheckpointStore:
    """Writes and reads the checkpoints of one run directory."""

    def __init__(self, root: str) -> None:
        self._rundir = RunDir(Path(root))
        self._inputs: list[Any] = []
        self._patience_s = RETRY_TIMEOUT_S

    def hold_inputs(self, inputs: list[Any]) -> None:
        """Take the reference to a stage's inputs, alone in a list, else Ray would fetch them; drop the one before."""
        self._inputs = inputs

    def find_inputs(self) -> list[Any]:
        """Return what `hold_inputs` took; empty where this process was started anew since."""
        return self._inputs

    def keep(self, trial: str, content: bytes) -> None:
        """Write a trial's checkpoint. Raises StorageError; once it has, it waits no more: the run is ending."""
        with self._losing_patience():
            write_checkpoint(self._rundir, trial, content, patience_s=self._patience_s)

    def load(self, trial: str, starts_from: str = "") -> LoadedCheckpoint:
        """Return the trial's checkpoint, else the one it starts from, if there is either. Raises as `keep` does."""
        with self._losing_patience():
            kept = read_checkpoint(self._rundir, trial, patience_s=self._patience_s)
            if kept.content is None and starts_from:
                origin = read_checkpoint(self._rundir, starts_from, patience_s=self._patience_s)
                return LoadedCheckpoint(origin.content, kept.note or origin.note)
            return kept

    @contextmanager
    def _losing_patience(self) -> Iterator[None]:
        try:
            yield
        except StorageError:
            self._patience_s = 0.0
            raise
        self._patience_s = RETRY_TIMEOUT_S


def start_checkpoint_store(rundir: RunDir) -> Any:
    """Start the checkpoint store on this node, restarted by Ray should its process die; return its handle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": STORE_NAME, "num_cpus": 0, "max_restarts": -1, "max_task_retries": 3}
    actor = ray.remote(CheckpointStore).options(**options, scheduling_strategy=here)
    return actor.remote(str(rundir.root.resolve()))
