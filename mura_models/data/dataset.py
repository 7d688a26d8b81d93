"""Reads a data set of any kind (MURA folder, manifest CSV, folder of images) into one manifest."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mura_models.data.corrections import Corrections, CorrectionSummary, correct_labels, read_corrections
from mura_models.data.csv_manifest import list_csv, list_csv_for_prediction, read_text, split_lines
from mura_models.data.images import READERS
from mura_models.data.mura import compare_counts, find_tree, is_phantom_tree, list_mura, parse_path
from mura_models.data.safe_read import NOT_TEXT, check_exists, explain, is_text, to_text
from mura_models.data.scan import (
    LINK_OUTSIDE,
    Listing,
    apply_rules,
    check_files,
    is_junk,
    leads_outside,
    summarize_excluded,
)
from mura_models.errors import DataError

Kind = Literal["mura", "csv", "folder"]
COLUMNS = (
    *("path", "file", "bone", "patient", "study", "label", "split", "fold"),
    *("digest", "width", "height", "mode"),
)
"""Of a manifest, in this order; further columns of a CSV follow."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set after the scan: the images that can be used, and those that were excluded."""

    name: str
    """Short, from the folder's or the file's name; names the run directory."""
    kind: Kind
    """What was read: a MURA tree, a manifest CSV (or list of paths), or a folder of images."""
    is_phantom: bool
    """Whether the images are synthetic."""
    manifest: pd.DataFrame
    """One row per image that can be used.

    path: as the data set names it. file: absolute path on this machine.
    bone, patient, study: text. label: int8, 0 = normal, 1 = abnormal. split: "train" or "test".
    fold: int16, -1 = none is given.
    digest: SHA-256 of the file. width, height: int32, in pixels, after EXIF rotation. mode: Pillow's color mode.

    A data set to predict on may lack bone, patient, study, label, split and fold, and some rows may lack a value.
    """
    quarantine: pd.DataFrame
    """One row per excluded image, with the columns path and reason."""
    notes: tuple[str, ...]
    """Lines for the user on how the data were read."""
    corrections: CorrectionSummary | None = None
    """What the file of corrected labels changed, if one was given."""

    def fingerprint(self) -> str:
        """Return a SHA-256 of what models learn from: files, bones, patients, studies, labels, splits and folds.

        Neither paths nor the order of the rows change it.
        """
        columns = ["digest", "bone", "patient", "study", "label", "split", "fold"]
        known = [column for column in columns if column in self.manifest]
        rows = sorted(json.dumps([str(cell) for cell in row]) for row in self.manifest[known].to_numpy(object))
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def read_dataset(
    path: str | os.PathLike[str],
    corrections: str | os.PathLike[str] | None = None,
    *,
    num_threads: int = 8,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataSet:
    """Scan a MURA folder or a manifest CSV. Every file is read once, and none is decoded.

    Args:
        path: A MURA-v1.1 folder, or a CSV with the columns path, bone, patient, study, label and optionally split
            (train, test or dev) and fold. Paths are relative to the CSV.
        corrections: A CSV of corrected labels (columns label, source, and path or study). It is applied before the
            rules on labels and leaks.
        num_threads: Threads that read files.
        on_progress: Called with the number of files read and of all files.

    Returns:
        The images that can be used, one row each in `manifest`; `quarantine` (path, reason) lists the others. A study
        with two labels is excluded, and so are train rows of a patient or an image that is also in test.

    Raises:
        DataError: The data or the corrections cannot be read, train or test is empty, or train has one label only.
        StorageError: A file server was gone for longer than a minute.

    Examples:
        >>> data = mura.read_dataset("clinic/manifest.csv")
        >>> data.manifest.groupby(["bone", "split"])["label"].mean()
        >>> data.quarantine["reason"].value_counts()
    """
    path = Path(path)
    check_exists(path, wanted="a MURA-v1.1 folder or a manifest CSV")
    corrected = read_corrections(Path(corrections)) if corrections else None  # before the scan, which takes long
    if path.is_dir():
        return _read_mura(path, corrected, num_threads, on_progress)
    listing = check_files(list_csv(path), num_threads=num_threads, on_progress=on_progress)
    listing, summary = _correct(listing, corrected)
    listing = apply_rules(listing, study_columns=("patient", "bone", "study"))
    return _check_usable(_make_dataset(_csv_name(path), "csv", listing, corrections=summary), path)


def _read_mura(
    folder: Path,
    corrections: Corrections | None,
    num_threads: int,
    on_progress: Callable[[int, int], None] | None,
) -> DataSet:
    root = find_tree(folder)
    if root is None:
        raise DataError(f"{folder}: not a MURA folder (no train/XR_<BONE>/patient<N>); give one, or a manifest CSV")
    listing = check_files(list_mura(root), num_threads=num_threads, on_progress=on_progress)
    is_phantom = is_phantom_tree(root)
    if not is_phantom:
        listing = listing.add_notes(compare_counts(listing.table))
    listing, summary = _correct(listing, corrections)
    # MURA numbers the studies of each split separately.
    listing = apply_rules(listing, study_columns=("split", "patient", "bone", "study"))
    name = "phantom" if is_phantom else _make_slug(root)
    return _check_usable(_make_dataset(name, "mura", listing, is_phantom=is_phantom, corrections=summary), folder)


def _correct(listing: Listing, corrections: Corrections | None) -> tuple[Listing, CorrectionSummary | None]:
    return correct_labels(listing, corrections) if corrections else (listing, None)


def read_predict_input(path: Path) -> DataSet:
    """Read images to predict on: a CSV with a column `path`, a MURA folder, a folder of images, or a list of paths.

    A list has no header and one path per line, like MURA's own image_paths.csv. The manifest has only the columns that
    are known. Files that cannot be read are excluded; the rules on labels and splits do not apply.

    Raises DataError if no image can be read, StorageError if a file server is gone for longer than a minute.
    """
    check_exists(path, wanted="a CSV, a MURA folder or a folder of images")
    if not path.is_dir():
        listing = _list_paths(path) if _is_list(path) else list_csv_for_prediction(path)
        dataset = _make_dataset(_csv_name(path), "csv", check_files(listing))
    elif root := find_tree(path):
        dataset = _make_dataset(
            _make_slug(root), "mura", check_files(list_mura(root)), is_phantom=is_phantom_tree(root)
        )
    else:
        dataset = _make_dataset(_make_slug(path), "folder", check_files(_list_folder(path)))
    if dataset.manifest.empty:
        raise DataError(f"{path}: no image that can be read{summarize_excluded(dataset.quarantine)}")
    return dataset


def study_codes(frame: pd.DataFrame) -> NDArray[np.int64]:
    """Return one integer per row, the same for all rows of a study; a row without a study is a study of its own."""
    return _make_codes(frame, "study", ("patient", "bone", "study"))


def patient_codes(frame: pd.DataFrame) -> NDArray[np.int64]:
    """Return one integer per row, the same for all rows of a patient; a row without a patient is one of its own."""
    return _make_codes(frame, "patient", ("patient",))


def _make_codes(frame: pd.DataFrame, needed: str, columns: Sequence[str]) -> NDArray[np.int64]:
    alone = np.arange(len(frame), dtype=np.int64)
    if needed not in frame:
        return alone
    groups = frame.groupby([c for c in columns if c in frame], sort=False, dropna=False).ngroup().to_numpy(np.int64)
    is_known = frame[needed].notna().to_numpy()
    return pd.factorize(np.where(is_known, groups, len(frame) + alone))[0].astype(np.int64)


def _is_list(path: Path) -> bool:
    """Return whether a file is a list of paths without a header: its first line is the name of an image."""
    lines = split_lines(read_text(path)[0])
    return bool(lines) and Path(lines[0].strip('"')).suffix.lower() in READERS


def _list_paths(path: Path) -> Listing:
    """List the images of a list of paths; MURA's own paths also give bone, patient, study and label."""
    text, notes = read_text(path)
    paths = [line.strip('"') for line in split_lines(text)]
    table = pd.DataFrame({"path": paths, "file": [_resolve_listed(path.parent, line) for line in paths]}, dtype="str")
    parsed = [parts for line in paths if (parts := parse_path(line)) is not None]
    if len(parsed) == len(paths):
        for column in ("bone", "patient", "study"):
            table[column] = pd.Series([parts[column] for parts in parsed], dtype="str")
        if all(parts["label"] for parts in parsed):
            table["label"] = np.array([parts["label"] == "positive" for parts in parsed], np.int8)
    return Listing(table=table, notes=notes).exclude(np.where(table["file"].duplicated(), "duplicate row", ""))


def _resolve_listed(folder: Path, line: str) -> str:
    """Return the file of a path that is relative to the list, or, like MURA's, begins with the name of its folder."""
    relative = folder.absolute() / line
    without_first = folder.absolute().joinpath(*Path(line).parts[1:])
    # os.path, since a Path raises for names that are too long.
    begins_with_folder = os.path.isfile(without_first) and not os.path.exists(relative)  # noqa: PTH110, PTH113
    return os.path.normpath(without_first if begins_with_folder else relative)


def _list_folder(folder: Path) -> Listing:
    """List the images of a folder and its subfolders, sorted. No link to a folder or out of the folder is followed."""
    root = folder.absolute()
    real_root = os.path.realpath(root)
    images: list[Path] = []
    reasons: list[str] = []
    num_others = 0

    def add(path: Path, reason: str) -> None:
        images.append(path)
        reasons.append(reason)

    def on_error(error: OSError) -> None:
        add(Path(error.filename), f"folder cannot be read: {explain(error)}")

    for above, folders, names in os.walk(root, onerror=on_error):
        folders[:] = [name for name in folders if not is_junk(name)]
        for link in (path for name in folders if (path := Path(above, name)).is_symlink()):
            add(link, "link to a folder")
        files = [Path(above, name) for name in names if not is_junk(name)]
        chosen = [file for file in files if file.suffix.lower() in READERS]
        for file in chosen:
            add(file, LINK_OUTSIDE if leads_outside(str(file), real_root) else "" if is_text(file) else NOT_TEXT)
        num_others += len(files) - len(chosen)
    found = sorted(zip(images, reasons, strict=True))
    notes = (f"{num_others} files of other kinds in {folder} are ignored",) if num_others else ()
    paths = [to_text(image.relative_to(root).as_posix()) for image, _ in found]
    table = pd.DataFrame({"path": paths, "file": [to_text(image) for image, _ in found]}, dtype="str")
    return Listing(table=table, notes=notes).exclude([reason for _, reason in found])


def _make_dataset(
    name: str,
    kind: Kind,
    listing: Listing,
    *,
    is_phantom: bool = False,
    corrections: CorrectionSummary | None = None,
) -> DataSet:
    columns = [column for column in COLUMNS if column in listing.table]
    extra = [column for column in listing.table if column not in COLUMNS]
    return DataSet(
        name=name,
        kind=kind,
        is_phantom=is_phantom,
        manifest=listing.table[columns + extra],
        quarantine=listing.quarantine,
        notes=listing.notes,
        corrections=corrections,
    )


def _check_usable(dataset: DataSet, path: Path) -> DataSet:
    manifest = dataset.manifest
    for split in ("train", "test"):
        if not (manifest["split"] == split).any():
            raise DataError(f"{path}: no usable {split} image{summarize_excluded(dataset.quarantine)}")
    labels = manifest["label"][manifest["split"] == "train"].unique()
    if len(labels) < 2:
        raise DataError(f"{path}: every train image has label {labels[0]}: both 0 and 1 are needed")
    return dataset


def _csv_name(path: Path) -> str:
    folder = path.absolute().parent
    return _make_slug(folder if path.stem == "manifest" else folder.with_name(f"{folder.name}-{path.stem}"))


def _make_slug(path: Path) -> str:
    slug = re.sub(r"[^a-z0-9._]+", "-", path.absolute().name.lower()).strip("-.")
    return slug or "data"
