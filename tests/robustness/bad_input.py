"""Shared by the tables of bad input: a clinic with valid images, what a case may expect, and a time limit.

A case is a `Rejection` (one line, exit code 2, nothing started) or a function that damages a `Clinic` and returns what
must be excluded, path -> reason; all other rows must be kept with their cells and pixels unchanged.
"""

import csv
import io
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from mura_models.data.dataset import read_dataset
from mura_models.data.decode import decode_batch, read_scanned
from mura_models.data.images import decode_image
from mura_models.data.preprocessing_settings import Preprocessing
from orchestrator.ingest.manifest import finish_manifest
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir

COLUMNS = ("path", "bone", "patient", "study", "label", "split")
NUM_TRAIN, NUM_TEST = 8, 4
LIMIT_S = 30.0
"""A case takes well under a second; one that takes longer than this hangs."""


class Hung(BaseException):
    """A case took too long. Not an Exception, so that the tested code cannot catch it."""


@contextmanager
def time_limit(limit_s: float = LIMIT_S) -> Iterator[None]:
    """Raise Hung inside the block after `limit_s`, and again every second in case it was swallowed."""

    def raise_hung(*_: object) -> None:
        raise Hung(f"not done after {limit_s:g} s")

    before = signal.signal(signal.SIGALRM, raise_hung)
    signal.setitimer(signal.ITIMER_REAL, limit_s, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A mistake that the command reports in one line, with exit code 2, before anything starts."""

    text: str
    """Part of the line."""
    options: tuple[str, ...] = ()
    """Added to `--all-bones --dry-run --folds 2 --data manifest.csv`; later options override earlier ones."""
    instead: tuple[str, ...] = ()
    """The whole command, if it is another one; begins with `mura` for a subcommand."""
    not_made: str = "runs"
    """A file that must not exist afterwards."""
    environment: dict[str, str] = field(default_factory=dict)
    make: Callable[["Clinic"], object] = lambda clinic: None
    """Called in the clinic's folder before the command."""


def encode(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    """Encode an image."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


@dataclass
class Clinic:
    """A folder with valid images of two bones and a manifest, which a case damages."""

    folder: Path
    rows: list[dict[str, str]] = field(default_factory=list)
    pixels: dict[str, tuple[np.ndarray, float]] = field(default_factory=dict)
    """Path -> the image's gray values as they must be read, and their tolerance."""
    given: list[dict[str, str]] | None = None
    """Rows as they must be read, if they differ from `rows`."""

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.csv"

    def fill(self) -> "Clinic":
        """Write the valid images: as many normal as abnormal ones of each bone, one per patient."""
        rng = np.random.default_rng(0)
        for number in range(NUM_TRAIN + NUM_TEST):
            image_HW = rng.integers(0, 256, (24, 32), dtype=np.uint8)
            split = "train" if number < NUM_TRAIN else "test"
            cells = {"bone": ("hand", "wrist")[number // 2 % 2], "label": str(number % 2), "split": split}
            self.add(f"{number}.png", encode(Image.fromarray(image_HW)), image_HW, **cells)
        return self

    def add(
        self, path: str, content: bytes | None, pixels: np.ndarray | None = None, *, off_by: float = 0, **cells: str
    ) -> dict[str, str]:
        """Add a row, by default of a new train patient, and its file."""
        who = f"p{len(self.rows)}"
        row = {"path": path, "bone": "hand", "patient": who, "study": "1", "label": "0", "split": "train"} | cells
        self.rows.append(row)
        if content is not None:
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_bytes(content)
        if pixels is not None:
            self.pixels[path] = pixels, off_by
        return row

    def add_valid(self, path: str, **cells: str) -> dict[str, str]:
        """Add a valid image that differs from all others."""
        image_HW = np.full((20, 20), 100 + len(self.rows), np.uint8)
        return self.add(path, encode(Image.fromarray(image_HW)), image_HW, **cells)

    def to_csv(self, *, delimiter: str = ",", line_end: str = "\n", columns: tuple[str, ...] = COLUMNS) -> str:
        """Return the rows as a table; a column that a row lacks is empty."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, delimiter=delimiter, lineterminator=line_end)
        writer.writerow(columns)
        writer.writerows([row.get(column, "") for column in columns] for row in self.rows)
        return buffer.getvalue()

    def write(self, content: str | bytes | None = None) -> Path:
        """Write the manifest; by default from the rows."""
        content = self.to_csv() if content is None else content
        self.manifest.write_bytes(content if isinstance(content, bytes) else content.encode())
        return self.manifest

    def read(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the rows that a run keeps and excludes: scan, decode and rules as in a run, without Ray."""
        dataset = read_dataset(self.manifest)
        files = dataset.manifest.drop_duplicates("digest")
        named = [(digest, Path(file).suffix) for digest, file in zip(files["digest"], files["file"], strict=True)]
        contents = [
            read_scanned(Path(file), digest) for digest, file in zip(files["digest"], files["file"], strict=True)
        ]
        _, _, failures = decode_batch(named, contents, Preprocessing(image_size_px=32))
        rundir = RunDir(self.folder.parent / "run")
        kept, _ = finish_manifest(RunConfig(num_folds=2), dataset, failures, rundir)
        return kept, pd.read_csv(rundir.quarantine, keep_default_na=False)


def check_rows(clinic: Clinic, excluded: dict[str, str]) -> None:
    """Check that exactly these are excluded, and that all others are kept unchanged."""
    kept, quarantine = clinic.read()
    rows = clinic.rows if clinic.given is None else clinic.given
    assert sorted([*kept["path"], *quarantine["path"]]) == sorted(row["path"] for row in rows)  # nothing is lost
    reasons = dict(zip(quarantine["path"], quarantine["reason"], strict=True))
    assert reasons == excluded
    given = {row["path"]: row for row in rows}
    for row in kept.to_dict("records"):
        read = {column: str(row[column]) for column in COLUMNS}
        assert read == {column: given[row["path"]][column] for column in COLUMNS}
        expected_HW, off_by = clinic.pixels[row["path"]]
        read_HW = decode_image(Path(row["file"]).read_bytes(), Path(row["file"]).suffix)
        assert read_HW.shape == expected_HW.shape
        assert np.abs(read_HW - expected_HW.astype(np.float64)).max() <= off_by, row["path"]
