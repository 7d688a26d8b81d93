"""The checkpoint store: one actor on the driver's node, so that trials on any node need no disk of the driver's.

A trial's weights are sent to it through Ray and are in the run directory, whole, before the driver gets the epoch. It
also holds the reference to the stage's inputs: Tune never releases a reference that it is given itself.
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
    """The newest whole checkpoint of a trial, if there is one."""

    content: bytes | None
    note: str | None = None
    """For the user, if a newer one was damaged."""


def write_checkpoint(rundir: RunDir, trial: str, content: bytes, *, patience_s: float = RETRY_TIMEOUT_S) -> None:
    """Write a trial's checkpoint, whole or not at all, and keep the one before it.

    Raises StorageError if the disk stays full or broken.
    """
    path, previous = rundir.checkpoint(trial), rundir.previous_checkpoint(trial)

    def write() -> None:
        with atomic_write(path) as partial:
            partial.write_bytes(content)
            if path.exists():
                path.replace(previous)

    retry_write(write, path, timeout_s=patience_s)


def read_checkpoint(rundir: RunDir, trial: str, *, patience_s: float = RETRY_TIMEOUT_S) -> LoadedCheckpoint:
    """Return the trial's last checkpoint, or the one before it if that is damaged.

    Raises StorageError if the disk stays broken: what cannot be read now is not lost and must not be overwritten.
    """
    is_damaged = False
    for path in (rundir.checkpoint(trial), rundir.previous_checkpoint(trial)):
        try:
            content = retry_read(path, timeout_s=patience_s)
        except FileNotFoundError:
            continue
        except OSError:  # such as a folder of that name
            content = b""
        if has_valid_checksum(content):
            return LoadedCheckpoint(
                content, "the last checkpoint is damaged: resumed from the one before" if is_damaged else None
            )
        is_damaged = True
    return LoadedCheckpoint(None, "the checkpoint is damaged: started from the beginning" if is_damaged else None)


def remove_checkpoints(rundir: RunDir, trial: str) -> None:
    """Remove the checkpoints of a trial."""
    for path in (rundir.checkpoint(trial), rundir.previous_checkpoint(trial)):
        path.unlink(missing_ok=True)


class CheckpointStore:
    """Writes and reads the checkpoints of one run directory."""

    def __init__(self, root: str) -> None:
        self._rundir = RunDir(Path(root))
        self._inputs: list[Any] = []
        self._patience_s = RETRY_TIMEOUT_S

    def set_inputs(self, inputs: list[Any]) -> None:
        """Keep the reference to a stage's inputs, in a list, or Ray would fetch them; release the one before."""
        self._inputs = inputs

    def get_inputs(self) -> list[Any]:
        """Return the list of `set_inputs`; empty if this process was restarted since."""
        return self._inputs

    def keep(self, trial: str, content: bytes) -> None:
        """Write a trial's checkpoint. Raises StorageError; after that it retries no more: the run is ending."""
        with self._fail_fast_after_error():
            write_checkpoint(self._rundir, trial, content, patience_s=self._patience_s)

    def load(self, trial: str, starts_from: str = "") -> LoadedCheckpoint:
        """Return the trial's checkpoint, else the one it starts from, if there is either. Raises as `keep` does."""
        with self._fail_fast_after_error():
            kept = read_checkpoint(self._rundir, trial, patience_s=self._patience_s)
            if kept.content is None and starts_from:
                origin = read_checkpoint(self._rundir, starts_from, patience_s=self._patience_s)
                return LoadedCheckpoint(origin.content, kept.note or origin.note)
            return kept

    @contextmanager
    def _fail_fast_after_error(self) -> Iterator[None]:
        try:
            yield
        except StorageError:
            self._patience_s = 0.0
            raise
        self._patience_s = RETRY_TIMEOUT_S


def start_checkpoint_store(rundir: RunDir) -> Any:
    """Start the checkpoint store on this node and return its handle; Ray restarts it if its process dies."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": STORE_NAME, "num_cpus": 0, "max_restarts": -1, "max_task_retries": 3}
    actor = ray.remote(CheckpointStore).options(**options, scheduling_strategy=here)
    return actor.remote(str(rundir.root.resolve()))
