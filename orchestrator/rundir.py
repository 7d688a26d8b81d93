"""The run directory: the only place that knows file names, its lock and the journal.

run.json  ingest.json  manifest.parquet  quarantine.csv  exploration.json  samples/  data.html  plan.csv  journal.jsonl
audit.jsonl  refit.jsonl  trials.parquet  served.json  predictions.parquet  report.json  report.html  figures/
bundle/  checkpoints/  embeddings/
"""

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from mura_models.errors import ConfigError
from mura_models.writing import remove_unfinished, whole_file, write_patiently

MAX_NAME_CHARACTERS = 150
"""Of a checkpoint's file name; file systems allow 255 bytes, and a file in the making has a longer name."""


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of one run; makes nothing by itself."""

    root: Path

    @property
    def run_json(self) -> Path:
        """Config, seed, versions, git commit, data fingerprint."""
        return self.root / "run.json"

    @property
    def manifest(self) -> Path:
        """A row an image that is used, with its fold."""
        return self.root / "manifest.parquet"

    @property
    def quarantine(self) -> Path:
        """A row a file that is not used, with the reason."""
        return self.root / "quarantine.csv"

    @property
    def ingest(self) -> Path:
        """What was decoded and embedded, by which runtime."""
        return self.root / "ingest.json"

    @property
    def exploration(self) -> Path:
        """What the data looks like before anything is trained."""
        return self.root / "exploration.json"

    @property
    def samples(self) -> Path:
        """A few train films, small, as exploration.json names them."""
        return self.root / "samples"

    @property
    def data_html(self) -> Path:
        """The page on the data."""
        return self.root / "data.html"

    @property
    def plan(self) -> Path:
        """A row a trial, written before anything is trained."""
        return self.root / "plan.csv"

    @property
    def journal(self) -> Path:
        """A line an epoch of a trial."""
        return self.root / "journal.jsonl"

    @property
    def audit_journal(self) -> Path:
        """A line an epoch of a stopped trial that was run to its end."""
        return self.root / "audit.jsonl"

    @property
    def refit_journal(self) -> Path:
        """A line an epoch of a winner's configuration under a fresh seed."""
        return self.root / "refit.jsonl"

    @property
    def embeddings(self) -> Path:
        """Embeddings by networks trained here, while the run needs them."""
        return self.root / "embeddings"

    @property
    def trials(self) -> Path:
        """The journal as a table."""
        return self.root / "trials.parquet"

    @property
    def served(self) -> Path:
        """What answers for each bone, and why."""
        return self.root / "served.json"

    @property
    def bundle(self) -> Path:
        """The deployable bundle."""
        return self.root / "bundle"

    @property
    def predictions(self) -> Path:
        """A row a test image."""
        return self.root / "predictions.parquet"

    @property
    def report_json(self) -> Path:
        """Every figure of the report."""
        return self.root / "report.json"

    @property
    def report_html(self) -> Path:
        """The page."""
        return self.root / "report.html"

    @property
    def figures(self) -> Path:
        """The page's figures."""
        return self.root / "figures"

    @property
    def checkpoints(self) -> Path:
        """Two files a trial while it runs, the last and the one before; the search winners' afterwards."""
        return self.root / "checkpoints"

    def checkpoint(self, trial: str) -> Path:
        """Name the checkpoint of a trial, whatever characters its bone has and however many."""
        name = quote(trial, safe="")
        if len(name) > MAX_NAME_CHARACTERS:
            digest = hashlib.sha256(trial.encode()).hexdigest()[:16]
            name = f"{name[: MAX_NAME_CHARACTERS - 17]}-{digest}"
        return self.checkpoints / f"{name}.safetensors"

    def previous_checkpoint(self, trial: str) -> Path:
        """Name the checkpoint that a trial had before its last."""
        return self.checkpoint(trial).with_suffix(".previous.safetensors")

    def remove_unfinished(self) -> None:
        """Remove what a driver that was killed had begun to write; embeddings in the making go on."""
        for folder in (self.root, self.checkpoints):
            remove_unfinished(folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second driver out while this one runs; the lock dies with its process."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock_file = (self.root / ".lock").open("w")
        except OSError as error:
            raise ConfigError(f"run-dir={self.root}: cannot be written to ({error.strerror}); give another") from None
        with lock_file as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"{self.root}: another run is writing here; wait for it, or give another --run-dir"
                ) from None
            except OSError as error:  # some file systems of clusters have none unless mounted with them
                raise ConfigError(
                    f"run-dir={self.root}: its disk has no locks ({error.strerror}); give one on another disk"
                ) from None
            yield


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote. Raises ConfigError where it is damaged or somebody else's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: damaged ({error}); give another --run-dir, or --fresh") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not written by this program; give another --run-dir, or --fresh")
    return content


def write_json(path: Path, content: object) -> None:
    """Write JSON whole or not at all; NaN and infinity become null, as JSON has neither."""
    with whole_file(path) as aside:
        text = json.dumps(to_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
        aside.write_text(text + "\n", encoding="utf-8")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table whole or not at all, as CSV or parquet by its suffix."""
    with whole_file(path) as aside:
        if path.suffix == ".csv":
            table.to_csv(aside, index=False)
        else:
            table.to_parquet(aside, index=False)


def to_plain(content: Any) -> Any:
    """Turn numpy scalars into Python's and what is not finite into None, all the way down."""
    if isinstance(content, dict):
        return {str(key): to_plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [to_plain(value) for value in content]
    if hasattr(content, "item"):
        content = content.item()
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


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
        """Say whether this epoch of this trial is written."""
        return (trial, epoch) in self._seen

    def last_epoch(self, trial: str) -> int:
        """Give the last epoch of a trial that is written; 0 where there is none."""
        return max((line["epoch"] for line in self.lines if line["trial"] == trial), default=0)

    def append(self, **entry: Any) -> dict[str, Any]:
        """Write one line, flushed to the disk, and give it back with its number `seq`.

        Raises StorageError where the disk stays full or broken; the file is then as it was.
        """
        line = {"seq": len(self.lines) + 1, **to_plain(entry)}
        content = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        write_patiently(lambda: self._write(content), self.path)
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
        """Give the last line of every trial that has ended."""
        return {line["trial"]: line for line in self.lines if line["state"] != "RUNNING"}

    def to_table(self) -> pd.DataFrame:
        """Give a row an epoch, sorted by search, trial and epoch."""
        rows = [
            {"search": line["search"], "trial": line["trial"], "epoch": line["epoch"]}
            | line["metrics"]
            | {"state": line["state"], "why": line["why"]}
            for line in self.lines
        ]
        table = pd.DataFrame(rows)
        return table.sort_values(["search", "trial", "epoch"], ignore_index=True) if len(table) else table
