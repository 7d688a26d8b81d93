"""The journal: one line per epoch of a trial."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from mura_models.errors import ConfigError
from mura_models.storage import retry_write
from orchestrator.run.files import to_plain

Line = dict[str, Any]
"""An epoch of a trial in the journal."""


class Journal:
    """`journal.jsonl`: what every epoch of every trial came to and what was decided, in order of arrival.

    Written by the driver alone, a line at a time, each on the disk before the next one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._num_bytes = 0
        self.lines: list[dict[str, Any]] = list(self._read())
        self._seen = {(line["trial"], line["epoch"]) for line in self.lines}

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # a line cut short by the end of its writer was never acted upon
            os.truncate(self.path, len(whole))
        self._num_bytes = len(whole)
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ConfigError(
                    f"{self.path}: line {number} is damaged ({error}); give another --run-dir, or --fresh"
                ) from error

    def has(self, trial: str, epoch: int) -> bool:
        """Return whether this epoch of this trial is written."""
        return (trial, epoch) in self._seen

    def last_epoch(self, trial: str) -> int:
        """Return the last epoch of a trial that is written; 0 where there is none."""
        return max((line["epoch"] for line in self.lines if line["trial"] == trial), default=0)

    def append(self, **entry: Any) -> dict[str, Any]:
        """Write one line, flushed to the disk, and return it back with its number `seq`.

        Raises StorageError where the disk stays full or broken; the file is then as it was.
        """
        line = {"seq": len(self.lines) + 1, **to_plain(entry)}
        content = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        retry_write(lambda: self._write(content), self.path)
        self._num_bytes += len(content)
        self.lines.append(line)
        self._seen.add((line["trial"], line["epoch"]))
        return line

    def _write(self, content: bytes) -> None:
        """Write behind the last whole line: what an attempt that failed left there is overwritten."""
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

    def final_states(self) -> dict[str, dict[str, Any]]:
        """Return the last line of every trial that has ended."""
        return {line["trial"]: line for line in self.lines if line["state"] != "RUNNING"}

    def to_table(self) -> pd.DataFrame:
        """Return a row an epoch, sorted by search, trial and epoch."""
        rows = [
            {"search": line["search"], "trial": line["trial"], "epoch": line["epoch"]}
            | line["metrics"]
            | {"state": line["state"], "reason": line["reason"]}
            for line in self.lines
        ]
        table = pd.DataFrame(rows)
        return table.sort_values(["search", "trial", "epoch"], ignore_index=True) if len(table) else table
