"""The scan: reads every file once, and excludes rows by the rules on labels and leaks."""

import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mura_models.data.images import inspect_image
from mura_models.data.safe_read import explain, read_file
from mura_models.errors import ImageError, StorageError
from mura_models.storage import RETRY_EVERY_S, RETRY_TIMEOUT_S, StorageFault, classify_fault, retry

MAX_IMAGE_BYTES = 2**30
"""More than any image of MAX_PIXELS needs: four channels of 16 bits, uncompressed, are 0.7 GB."""

DISK_PATIENCE_S = 15.0
"""How long reading is retried, over all files with an I/O error together (chosen by us)."""

LINK_OUTSIDE = "link out of the data folder"


def _make_quarantine() -> pd.DataFrame:
    return pd.DataFrame({"path": [], "reason": []}, dtype="str")


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A data set on its way to a manifest."""

    table: pd.DataFrame
    """One row per image that may still be used."""
    quarantine: pd.DataFrame = field(default_factory=_make_quarantine)
    """`path` and `reason` of the excluded images."""
    notes: tuple[str, ...] = ()
    """Lines for the user."""

    def exclude(self, reasons: Sequence[str] | NDArray[Any]) -> "Listing":
        """Move rows to the quarantine.

        reasons: one per row, empty for the rows that stay.
        """
        reason = pd.Series(reasons, index=self.table.index, dtype="str")
        is_out = reason != ""
        out = pd.DataFrame({"path": self.table["path"][is_out], "reason": reason[is_out]})
        return replace(
            self,
            table=self.table[~is_out].reset_index(drop=True),
            quarantine=pd.concat([self.quarantine, out], ignore_index=True),
        )

    def add_notes(self, *notes: str) -> "Listing":
        """Return the listing with more lines for the user."""
        return replace(self, notes=(*self.notes, *notes))


def count_reasons(quarantine: pd.DataFrame) -> dict[str, int]:
    """Return reason -> number of excluded images, the most frequent first.

    Quoted text in a reason, a cell or part of a name, may identify a patient: it is masked here.
    """
    reasons = quarantine["reason"].str.replace(_QUOTED, "'...'", regex=True)
    return {str(reason): int(count) for reason, count in reasons.value_counts().items()}


def summarize_excluded(quarantine: pd.DataFrame) -> str:
    """Return the end of an error message: how many files were excluded and the most frequent reason."""
    if quarantine.empty:
        return ""
    reason, count = next(iter(count_reasons(quarantine).items()))
    files = "1 file" if len(quarantine) == 1 else f"{len(quarantine)} files"
    return f"; {files} excluded, most often: {reason} ({count})"


_QUOTED = re.compile("'.*'", re.DOTALL)


class FileFacts(NamedTuple):
    """What is known of a file from its bytes and its header."""

    reason: str
    """Why the file cannot be used; empty if it can."""
    digest: str = ""
    """SHA-256 of its bytes."""
    width: int = 0
    """In pixels, after EXIF rotation, as the height."""
    height: int = 0
    mode: str = ""
    """Color mode as Pillow names it."""
    fault: StorageFault | None = None
    """Why it could not be read, if that is the storage's fault."""


_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""Errors for a name or a link that leads to no file."""


def read_facts(file: str) -> FileFacts:
    """Read one file and return its digest and its header, or the reason why it cannot be used."""
    path = Path(file)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return FileFacts("not a file")
        data = read_file(path, max_bytes=MAX_IMAGE_BYTES)
        header = inspect_image(data, path.suffix)
    except ImageError as error:
        return FileFacts(str(error))
    except OSError as error:
        if error.errno in _MISSING:
            return FileFacts("missing file")
        return FileFacts(f"file cannot be read: {explain(error)}", fault=classify_fault(error))
    except ValueError as error:  # a null character in the name
        return FileFacts(f"file cannot be read: {explain(error)}")
    return FileFacts("", hashlib.sha256(data).hexdigest(), *header)


def check_files(
    listing: Listing, *, num_threads: int = 8, on_progress: Callable[[int, int], None] | None = None
) -> Listing:
    """Read every file once: add digest, width, height and mode, and exclude what cannot be used.

    on_progress: called in this thread after each file, with the number of files read and of all files.

    Raises StorageError if a file server is gone for longer than RETRY_TIMEOUT_S.
    """
    files: list[str] = listing.table["file"].tolist()
    facts: list[FileFacts] = []
    with ThreadPoolExecutor(num_threads) as pool:
        for file, found in zip(files, pool.map(read_facts, files), strict=True):
            facts.append(_read_when_back(file) if found.fault is StorageFault.SERVER_GONE else found)
            if on_progress is not None:
                on_progress(len(facts), len(files))
    _retry_io_errors(files, facts)
    table = listing.table.assign(
        digest=pd.Series([found.digest for found in facts], dtype="str"),
        width=np.array([found.width for found in facts], np.int32),
        height=np.array([found.height for found in facts], np.int32),
        mode=pd.Series([found.mode for found in facts], dtype="str"),
    )
    return replace(listing, table=table).exclude([found.reason for found in facts])


def _read_when_back(file: str) -> FileFacts:
    """Read a file once its file server is back: excluding good images would make it another data set."""

    def read() -> FileFacts:
        found = read_facts(file)
        if found.fault is StorageFault.SERVER_GONE:
            raise StorageError(f"an image's {found.reason}; repair its disk or server")
        return found

    return retry(read, timeout_s=RETRY_TIMEOUT_S)


def _retry_io_errors(files: Sequence[str], facts: list[FileFacts]) -> None:
    """Retry the files with I/O errors until none succeeds for a while: a bad sector stays bad."""
    end = time.monotonic() + DISK_PATIENCE_S
    while failed := [number for number, found in enumerate(facts) if found.fault is StorageFault.IO_ERROR]:
        for number in failed:
            if time.monotonic() >= end:
                return
            facts[number] = _read_when_back(files[number])
            # The server is coming back: wait for all of its images.
            if facts[number].fault is not StorageFault.IO_ERROR:
                end = time.monotonic() + DISK_PATIENCE_S
        time.sleep(RETRY_EVERY_S)


def apply_rules(listing: Listing, *, study_columns: Sequence[str]) -> Listing:
    """Exclude, in this order, what would bias the figures.

    1. Studies with two labels.
    2. Of a patient in both train and test, the train rows; then the same for images.
    3. Images that still have two labels.
    4. Test rows of a bone that train lacks.

    Images are compared by their bytes, not by name.

    study_columns: the columns that together identify a study.
    """
    table = listing.table
    num_labels = table.groupby(list(study_columns))["label"].transform("nunique")
    listing = listing.exclude(np.where(num_labels > 1, "study carries two labels", ""))
    for column, reason in (("patient", "patient also in test"), ("digest", "same image also in test")):
        table = listing.table
        is_train = table["split"] == "train"
        leaks = is_train & table[column].isin(table[column][~is_train])
        listing = listing.exclude(np.where(leaks, reason, ""))
    num_labels = listing.table.groupby("digest")["label"].transform("nunique")
    listing = listing.exclude(np.where(num_labels > 1, "same image under two labels", ""))
    table = listing.table
    is_known = table["bone"].isin(table["bone"][table["split"] == "train"])
    return listing.exclude(np.where(is_known, "", "bone not in train"))


def is_junk(name: str) -> bool:
    """Return whether an archive or a desktop left this behind: `.DS_Store`, `._image1.png`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def leads_outside(file: str, real_root: str) -> bool:
    """Return whether a file, with links followed, is outside `real_root`, which is itself free of links."""
    return not Path(os.path.realpath(file)).is_relative_to(real_root)
