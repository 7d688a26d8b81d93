"""What the tables of bad input share: a clinic with sound images, what a case may expect, and a limit on time.

A case is `Told` (one line, exit code 2, nothing started) or a function that makes a `Clinic` worse and returns what is
to be left out, path -> reason; all other rows must stay, with their cells and pixels as they were given.
"""

import csv
import io
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from PIL import Image

from mura_models.data.dataset import read_dataset
from mura_models.data.images import decode_image
from mura_models.data.preprocessing_settings import Preprocessing
from orchestrator.ingest.decode import decode_images, read_again
from orchestrator.ingest.manifest import finish_manifest
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir

COLUMNS = ("path", "bone", "patient", "study", "label", "split")
NUM_TRAIN, NUM_TEST = 8, 4
LIMIT_S = 30.0
"""A case takes well under a second; what is still not done after so long hangs."""


class Hung(BaseException):
    """Not an Exception: nothing that is tested may catch it."""


@contextmanager
def time_limit(limit_s: float = LIMIT_S) -> Iterator[None]:
    """Raise Hung in what runs inside after `limit_s`, and again every second, should it have been swallowed."""

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
class Told:
    """A mistake that the command tells in one line, with exit code 2, before anything starts."""

    text: str
    """Part of the line."""
    options: tuple[str, ...] = ()
    """After `--all-bones --dry-run --folds 2 --data manifest.csv`, which later options overrule."""
    instead: tuple[str, ...] = ()
    """The whole command, where it is not that one; `mura` for a sub-command."""
    not_made: str = "runs"
    """A file that must not be there afterwards."""
    environment: dict[str, str] = field(default_factory=dict)
    make: Callable[["Clinic"], object] = lambda clinic: None
    """Called in the clinic's folder before the command."""


def encode(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    """Write an image into bytes."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


@dataclass
class Clinic:
    """A folder with a manifest of sound images of two bones, which a case makes worse."""

    folder: Path
    rows: list[dict[str, str]] = field(default_factory=list)
    pixels: dict[str, tuple[np.ndarray, float]] = field(default_factory=dict)
    """Path -> the image's grey values as they must be read, and by how much they may be off."""
    given: list[dict[str, str]] | None = None
    """Rows as they must be read, where they are not `rows`."""

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.csv"

    def fill(self) -> "Clinic":
        """Write the sound images: as many normal as abnormal, of each bone, a patient each."""
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
        """Add a row, by default of a train patient of its own, and its file."""
        who = f"p{len(self.rows)}"
        row = {"path": path, "bone": "hand", "patient": who, "study": "1", "label": "0", "split": "train"} | cells
        self.rows.append(row)
        if content is not None:
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_bytes(content)
        if pixels is not None:
            self.pixels[path] = pixels, off_by
        return row

    def add_sound(self, path: str, **cells: str) -> dict[str, str]:
        """Add a sound image of its own."""
        image_HW = np.full((20, 20), 100 + len(self.rows), np.uint8)
        return self.add(path, encode(Image.fromarray(image_HW)), image_HW, **cells)

    def to_csv(self, *, delimiter: str = ",", line_end: str = "\n", columns: tuple[str, ...] = COLUMNS) -> str:
        """Write the rows as a table; a column that a row lacks is empty."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, delimiter=delimiter, lineterminator=line_end)
        writer.writerow(columns)
        writer.writerows([row.get(column, "") for column in columns] for row in self.rows)
        return buffer.getvalue()

    def write(self, content: str | bytes | None = None) -> Path:
        """Write the manifest, from the rows where nothing else is given."""
        content = self.to_csv() if content is None else content
        self.manifest.write_bytes(content if isinstance(content, bytes) else content.encode())
        return self.manifest

    def read(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return what a run keeps and leaves out: scan, decode and rules as a run has them, without Ray."""
        dataset = read_dataset(self.manifest)
        files = dataset.manifest.drop_duplicates("digest")
        named = [(digest, Path(file).suffix) for digest, file in zip(files["digest"], files["file"], strict=True)]
        contents = [read_again(Path(file), digest) for digest, file in zip(files["digest"], files["file"], strict=True)]
        _, _, failures = decode_images._function(named, contents, Preprocessing(image_size_px=32))
        rundir = RunDir(self.folder.parent / "run")
        kept = finish_manifest(RunConfig(num_folds=2), dataset, SimpleNamespace(failures=failures), rundir)
        return kept, pd.read_csv(rundir.quarantine, keep_default_na=False)


def check_rest(clinic: Clinic, left_out: dict[str, str]) -> None:
    """Check that these and no others are left out, and that all others are kept as they were given."""
    kept, quarantine = clinic.read()
    rows = clinic.rows if clinic.given is None else clinic.given
    assert sorted([*kept["path"], *quarantine["path"]]) == sorted(row["path"] for row in rows)  # nothing is lost
    reasons = dict(zip(quarantine["path"], quarantine["reason"], strict=True))
    assert reasons == left_out
    given = {row["path"]: row for row in rows}
    for row in kept.to_dict("records"):
        told = {column: str(row[column]) for column in COLUMNS}
        assert told == {column: given[row["path"]][column] for column in COLUMNS}
        expected_HW, off_by = clinic.pixels[row["path"]]
        read_HW = decode_image(Path(row["file"]).read_bytes(), Path(row["file"]).suffix)
        assert read_HW.shape == expected_HW.shape
        assert np.abs(read_HW - expected_HW.astype(np.float64)).max() <= off_by, row["path"]
