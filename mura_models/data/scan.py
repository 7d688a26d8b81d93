"""The scan: every file read once, and the rules on which rows may stay."""

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
"""More than any image of MAX_PIXELS needs: 16 bits of four channels, uncompressed, are 0.7 GB."""


DISK_PATIENCE_S = 15.0
"""How long files that a disk fails at are read again, all of them together (chosen by us)."""

LINK_OUTSIDE = "link out of the data folder"


def _make_quarantine() -> pd.DataFrame:
    return pd.DataFrame({"path": [], "reason": []}, dtype="str")


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The rows that may still be used, what was left out, and lines that the user should see."""

    rows: pd.DataFrame
    quarantine: pd.DataFrame = field(default_factory=_make_quarantine)
    notes: tuple[str, ...] = ()

    def leave_out(self, reasons: Sequence[str] | NDArray[Any]) -> "Listing":
        """Move rows to the quarantine: a reason a row, empty for those that stay."""
        reason = pd.Series(reasons, index=self.rows.index, dtype="str")
        is_out = reason != ""
        out = pd.DataFrame({"path": self.rows["path"][is_out], "reason": reason[is_out]})
        return replace(
            self,
            rows=self.rows[~is_out].reset_index(drop=True),
            quarantine=pd.concat([self.quarantine, out], ignore_index=True),
        )

    def add_notes(self, *notes: str) -> "Listing":
        """Add lines for the user."""
        return replace(self, notes=(*self.notes, *notes))


def count_reasons(quarantine: pd.DataFrame) -> dict[str, int]:
    """Count what was left out by reason, the most frequent first.

    What a reason quotes, a cell or part of a name, may be a patient's: only quarantine.csv has it.
    """
    reasons = quarantine["reason"].str.replace(_QUOTED, "'...'", regex=True)
    return {str(reason): int(count) for reason, count in reasons.value_counts().items()}


_QUOTED = re.compile("'.*'", re.DOTALL)


class FileFacts(NamedTuple):
    """What a file's bytes and header tell; `reason` is empty where the file can be used."""

    reason: str
    digest: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    fault: StorageFault | None = None


_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What the system says of a name or a link that leads to no file."""


def read_facts(file: str) -> FileFacts:
    """Read one file: its SHA-256, and the image's size and color mode."""
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
    """Read every file once; add digest, width, height and mode, and leave out what cannot be used.

    on_progress: called in this thread with the files read and all files, after each.

    Raises StorageError where a file server is gone for longer than PATIENCE_S.
    """
    files: list[str] = listing.rows["file"].tolist()
    facts: list[FileFacts] = []
    with ThreadPoolExecutor(num_threads) as pool:
        for file, found in zip(files, pool.map(read_facts, files), strict=True):
            facts.append(_await_server(file) if found.fault is StorageFault.SERVER_GONE else found)
            if on_progress is not None:
                on_progress(len(facts), len(files))
    _read_again(files, facts)
    rows = listing.rows.assign(
        digest=pd.Series([found.digest for found in facts], dtype="str"),
        width=np.array([found.width for found in facts], np.int32),
        height=np.array([found.height for found in facts], np.int32),
        mode=pd.Series([found.mode for found in facts], dtype="str"),
    )
    return replace(listing, rows=rows).leave_out([found.reason for found in facts])


def _await_server(file: str) -> FileFacts:
    """Read a file once its file server is back: good images left out would make it another data set."""

    def read() -> FileFacts:
        found = read_facts(file)
        if found.fault is StorageFault.SERVER_GONE:
            raise StorageError(f"an image's {found.reason}; once it can, the same command continues")
        return found

    return retry(read, timeout_s=RETRY_TIMEOUT_S)


def _read_again(files: Sequence[str], facts: list[FileFacts]) -> None:
    """Read anew what the disk failed at, until nothing more comes for a while: a bad sector stays bad."""
    end = time.monotonic() + DISK_PATIENCE_S
    while failed := [place for place, found in enumerate(facts) if found.fault is StorageFault.IO_ERROR]:
        for place in failed:
            if time.monotonic() >= end:
                return
            facts[place] = _await_server(files[place])
            # The server is coming back: wait for all of its images.
            if facts[place].fault is not StorageFault.IO_ERROR:
                end = time.monotonic() + DISK_PATIENCE_S
        time.sleep(RETRY_EVERY_S)


def apply_rules(listing: Listing, *, study_columns: Sequence[str]) -> Listing:
    """Leave out what would make a figure dishonest.

    A study with two labels goes; of a patient or an image in train and test the train rows go; an image that still has
    two labels goes; a bone that train does not hold goes from test. An image is known by its bytes, not by its name.

    study_columns: the columns that make a study one.
    """
    rows = listing.rows
    num_labels = rows.groupby(list(study_columns))["label"].transform("nunique")
    listing = listing.leave_out(np.where(num_labels > 1, "study carries two labels", ""))
    for column, reason in (("patient", "patient also in test"), ("digest", "same image also in test")):
        rows = listing.rows
        is_train = rows["split"] == "train"
        leaks = is_train & rows[column].isin(rows[column][~is_train])
        listing = listing.leave_out(np.where(leaks, reason, ""))
    num_labels = listing.rows.groupby("digest")["label"].transform("nunique")
    listing = listing.leave_out(np.where(num_labels > 1, "same image under two labels", ""))
    rows = listing.rows
    is_known = rows["bone"].isin(rows["bone"][rows["split"] == "train"])
    return listing.leave_out(np.where(is_known, "", "bone not in train"))


def is_junk(name: str) -> bool:
    """Tell what an archive or a desktop leaves behind: `.DS_Store`, `._image1.png`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def leads_outside(file: str, real_root: str) -> bool:
    """Return whether a file, links followed, lies outside `real_root`, itself free of links."""
    return not Path(os.path.realpath(file)).is_relative_to(real_root)
