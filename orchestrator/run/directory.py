"""The run directory: the names of its files, and its lock.

run.json  ingest.json  manifest.parquet  quarantine.csv  exploration.json  samples/  data.html  plan.csv  journal.jsonl
audit.jsonl  replicates.jsonl  trials.parquet  selected.json  predictions.parquet  report.json  report.html  figures/
bundle/  checkpoints/  embeddings/
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout

from mura_models.data.dataset import DataSet
from mura_models.errors import ConfigError, SettingError
from mura_models.storage import NO_LOCKS, remove_unfinished
from orchestrator.run.config import RunConfig
from orchestrator.run.execution import ExecutionOptions

JOB_MARKER = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the process that `ray job submit` starts."""

MAX_NAME_CHARACTERS = 150
"""Of a checkpoint's file name; file systems allow 255 bytes, and an unfinished file has a longer name."""


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of one run; creates nothing by itself."""

    root: Path

    @property
    def run_json(self) -> Path:
        """Config, seed, versions, git commit, data fingerprint."""
        return self.root / "run.json"

    @property
    def manifest(self) -> Path:
        """One row per image that is used, with its fold."""
        return self.root / "manifest.parquet"

    @property
    def quarantine(self) -> Path:
        """One row per excluded file, with the reason."""
        return self.root / "quarantine.csv"

    @property
    def ingest(self) -> Path:
        """How many images were decoded and embedded, and by which runtime."""
        return self.root / "ingest.json"

    @property
    def exploration(self) -> Path:
        """Statistics of the data, before anything is trained."""
        return self.root / "exploration.json"

    @property
    def samples(self) -> Path:
        """A few small train images, named in exploration.json."""
        return self.root / "samples"

    @property
    def data_html(self) -> Path:
        """The page on the data."""
        return self.root / "data.html"

    @property
    def plan(self) -> Path:
        """One row per trial, written before anything is trained."""
        return self.root / "plan.csv"

    @property
    def journal(self) -> Path:
        """One line per epoch of a trial."""
        return self.root / "journal.jsonl"

    @property
    def audit_journal(self) -> Path:
        """One line per epoch of a stopped trial that was run to its end."""
        return self.root / "audit.jsonl"

    @property
    def replicate_journal(self) -> Path:
        """One line per epoch of a winner's configuration under a fresh seed."""
        return self.root / "replicates.jsonl"

    @property
    def embeddings(self) -> Path:
        """Embeddings by networks trained here, while the run needs them."""
        return self.root / "embeddings"

    @property
    def trials(self) -> Path:
        """The journal as a table."""
        return self.root / "trials.parquet"

    @property
    def selected(self) -> Path:
        """The selected model of each bone, and why."""
        return self.root / "selected.json"

    @property
    def bundle(self) -> Path:
        """The deployable bundle."""
        return self.root / "bundle"

    @property
    def predictions(self) -> Path:
        """One row per test image."""
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
        """Two files per trial while it runs, the last and the one before; afterwards those that are exported."""
        return self.root / "checkpoints"

    def checkpoint(self, trial: str) -> Path:
        """Return the checkpoint of a trial; its bone may have any characters, and any number of them."""
        name = quote(trial, safe="")
        if len(name) > MAX_NAME_CHARACTERS:
            digest = hashlib.sha256(trial.encode()).hexdigest()[:16]
            name = f"{name[: MAX_NAME_CHARACTERS - 17]}-{digest}"
        return self.checkpoints / f"{name}.safetensors"

    def previous_checkpoint(self, trial: str) -> Path:
        """Return the checkpoint that a trial had before its last."""
        return self.checkpoint(trial).with_suffix(".previous.safetensors")

    def remove_unfinished(self) -> None:
        """Remove what a killed driver was writing, except embeddings, which are continued."""
        for folder in (self.root, self.checkpoints):
            remove_unfinished(folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs out of the directory; the lock is released when its process ends, however it ends.

        Raises ConfigError if another run holds it, or the disk cannot be written to or has no locks.
        """
        lock = FileLock(self.root / ".lock", thread_local=False, fallback_to_soft=False)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"{self.root}: another run is writing here; wait for it, or give another --run-dir"
            ) from None
        except OSError as error:
            if error.errno in NO_LOCKS:  # some file systems of clusters have none unless mounted with them
                problem = f"its disk has no locks ({error.strerror}); give one on another disk"
            else:
                problem = f"cannot be written to ({error.strerror}); give another"
            raise SettingError("run_dir", self.root, problem) from None
        try:
            yield
        finally:
            lock.release()


def is_inside_job() -> bool:
    """Return whether this process was started by `ray job submit`."""
    return JOB_MARKER in os.environ


def choose_rundir(config: RunConfig, execution: ExecutionOptions, dataset: DataSet) -> RunDir:
    """Return the run directory: as given, else named after data and config, so that the same command continues.

    Raises ConfigError for a relative path inside a Ray job, whose folder is temporary.
    """
    root = execution.run_dir or Path("runs") / f"{dataset.name}-{config.digest(dataset.fingerprint())}"
    if is_inside_job() and not root.is_absolute():
        rule = "a Ray job works in a temporary folder and would lose it; give an absolute path"
        raise SettingError("run_dir", root, rule)
    if execution.fresh:
        taken = root
        number = 2
        while root.exists():
            root = taken.with_name(f"{taken.name}-{number}")
            number += 1
    return RunDir(root)
