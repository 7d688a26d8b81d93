"""The journal: one line per epoch of a trial, in order of arrival."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from mura_models.errors import ConfigError
from mura_models.storage import retry_write
from orchestrator.run.files import to_plain

TrialState = Literal["RUNNING", "COMPLETE", "PRUNED", "FAILED"]


@dataclass(frozen=True, kw_only=True, slots=True)
class JournalLine:
    """One epoch of a trial; the fields are the keys of the line in the file, in this order."""

    seq: int
    """The number of the line, from 1."""
    search: str
    trial: str
    epoch: int
    metrics: Mapping[str, float | None]
    """A value that is not finite is None."""
    decision: Literal["continue", "stop"]
    state: TrialState
    reason: str | None = None
    """Why the trial failed."""
    note: str | None = None
    worker: Mapping[str, Any] | None = None
    """Where the epoch was trained."""

    @property
    def has_ended(self) -> bool:
        """Whether this is the trial's last line."""
        return self.state != "RUNNING"


def read_journal(path: Path) -> list[JournalLine]:
    """Return the lines of a journal; none if it does not exist. A torn last line is ignored: nothing was based on it.

    Raises ConfigError for any other damaged line.
    """
    return _parse(path, _read_whole_lines(path))


def _read_whole_lines(path: Path) -> bytes:
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def _parse(path: Path, content: bytes) -> list[JournalLine]:
    lines = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            lines.append(JournalLine(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{path}: line {number} is damaged ({error}); give another --run-dir, or --fresh"
            ) from error
    return lines


class JournalWriter:
    """Appends to a journal, each line on the disk before the next one. The driver alone has one, under the run's lock.

    Opening it cuts off a torn last line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        whole = _read_whole_lines(path)
        self._num_bytes = len(whole)
        if path.exists() and path.stat().st_size > self._num_bytes:
            os.truncate(path, self._num_bytes)
        self.lines = _parse(path, whole)
        self._written = {(line.trial, line.epoch) for line in self.lines}
        self._ended = {line.trial for line in self.lines if line.has_ended}

    def has(self, trial: str, epoch: int) -> bool:
        """Return whether this epoch of this trial is written."""
        return (trial, epoch) in self._written

    def has_ended(self, trial: str) -> bool:
        """Return whether a trial's last line is written."""
        return trial in self._ended

    def last_epoch(self, trial: str) -> int:
        """Return the last epoch of a trial that is written; 0 if there is none."""
        return max((line.epoch for line in self.lines if line.trial == trial), default=0)

    def append(
        self,
        *,
        search: str,
        trial: str,
        epoch: int,
        metrics: Mapping[str, float | None],
        state: TrialState,
        reason: str | None = None,
        note: str | None = None,
        worker: Mapping[str, Any] | None = None,
    ) -> JournalLine:
        """Write one line, flushed to the disk, and return it.

        Raises StorageError if the disk stays full or broken; the file is then as it was.
        """
        line = JournalLine(
            seq=len(self.lines) + 1,
            search=search,
            trial=trial,
            epoch=epoch,
            metrics=to_plain(metrics),
            decision="stop" if state != "RUNNING" else "continue",
            state=state,
            reason=reason,
            note=note,
            worker=to_plain(worker),
        )
        content = (json.dumps(asdict(line), ensure_ascii=False) + "\n").encode()
        retry_write(lambda: self._write(content), self.path)
        self._num_bytes += len(content)
        self.lines.append(line)
        self._written.add((trial, epoch))
        if line.has_ended:
            self._ended.add(trial)
        return line

    def _write(self, content: bytes) -> None:
        """Write after the last whole line, over what a failed attempt left there."""
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.ftruncate(handle, self._num_bytes)
            os.lseek(handle, self._num_bytes, os.SEEK_SET)
            view = memoryview(content)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)


def last_lines(lines: Iterable[JournalLine]) -> dict[str, JournalLine]:
    """Return the last line of every trial that has ended."""
    return {line.trial: line for line in lines if line.has_ended}


def to_table(lines: Iterable[JournalLine]) -> pd.DataFrame:
    """Return one row per epoch, sorted by search, trial and epoch."""
    rows = [
        {"search": line.search, "trial": line.trial, "epoch": line.epoch}
        | dict(line.metrics)
        | {"state": line.state, "reason": line.reason}
        for line in lines
    ]
    table = pd.DataFrame(rows)
    return table.sort_values(["search", "trial", "epoch"], ignore_index=True) if len(table) else table
