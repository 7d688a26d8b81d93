"""Known label errors: a CSV of corrected labels, applied before the rules on labels and leaks.

A row names one image by `path`, or all images of one `study`. A path corrects that image alone: if its study has other
images, the study then has two labels and is excluded, so correct the study instead.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from mura_models.data.csv_manifest import EMPTY, LABELS, read_cells
from mura_models.data.mura import parse_path
from mura_models.data.scan import Listing
from mura_models.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Correction:
    """One row of the file; either `path` or `study` is empty."""

    row_number: int
    """Counted from 1 below the header, without empty lines."""
    path: str
    study: str
    label: int
    source: str

    def __str__(self) -> str:
        return f"path '{self.path}'" if self.path else f"study '{self.study}'"


@dataclass(frozen=True, kw_only=True)
class Corrections:
    """A file of corrections, read and checked but not yet matched with images."""

    file: Path
    entries: tuple[Correction, ...]


@dataclass(frozen=True, kw_only=True)
class CorrectionSummary:
    """What a file of corrections changed. Images are counted before the rules on labels and leaks."""

    file: str
    """Its name without the folder."""
    num_rows: int
    images_changed: int
    images_unchanged: int
    """Images that had the corrected label already."""
    by_source: dict[str, int]
    """Source -> images changed."""


def read_corrections(file: Path) -> Corrections:
    """Read a CSV with `label`, `source` and at least one of `path` and `study`; other columns are ignored.

    Raises DataError for an invalid cell.
    """
    header, rows, _ = read_cells(file)
    missing = [column for column in ("label", "source") if column not in header]
    if missing or not {"path", "study"} & set(header):
        named = ", ".join(missing) or "path or study"
        raise DataError(
            f"{file}: no column {named} (found: {', '.join(header)}); needed are path or study, label and source"
        )
    corrections = []
    for number, cells in enumerate(rows, start=1):
        if any(cells[len(header) :]):
            raise DataError(f"{file}: row {number} has more cells than the header; put text with commas in quotes")
        given = dict(zip(header, cells, strict=False))
        known = {name: cell for name, cell in given.items() if cell.lower() not in EMPTY}
        try:
            corrections.append(_make_correction(number, known))
        except ValueError as error:
            raise DataError(f"{file}: row {number}: {error}") from None
    return Corrections(file=file, entries=tuple(corrections))


def _make_correction(row_number: int, cells: dict[str, str]) -> Correction:
    """Check the cells of one row, without the empty ones. Raises ValueError with the reason."""
    path, study = cells.get("path", ""), cells.get("study", "")
    if path and study:
        raise ValueError(f"path '{path}' and study '{study}' are both given; give one of them")
    if not path and not study:
        raise ValueError("neither path nor study is given; give one of them")
    label = cells.get("label", "")
    if label.lower() not in LABELS:
        raise ValueError(f"label '{label}' is not 0 or 1")
    if "source" not in cells:
        raise ValueError("source is empty; name who or what corrects the label")
    return Correction(
        row_number=row_number, path=path, study=study, label=LABELS[label.lower()], source=cells["source"]
    )


def correct_labels(listing: Listing, corrections: Corrections) -> tuple[Listing, CorrectionSummary]:
    """Return the listing with corrected labels, and a summary of what was changed.

    A correction whose images are all in the quarantine changes nothing. Raises DataError for a correction that matches
    no image, and for two that give one image different labels.
    """
    table = listing.table
    by_name = _index_names(table)
    excluded = {name for path in listing.quarantine["path"] for name in _image_names(path)}
    chosen: dict[int, Correction] = {}
    for correction in corrections.entries:
        name = _target_name(correction)
        if name not in by_name and name not in excluded:
            raise DataError(
                f"{corrections.file}: row {correction.row_number}: {correction} matches no image of the data"
            )
        for row in by_name.get(name, ()):
            first = chosen.setdefault(row, correction)
            if first.label != correction.label:
                raise DataError(
                    f"{corrections.file}: rows {first.row_number} and {correction.row_number} contradict each other: "
                    f"{first} is {first.label}, {correction} is {correction.label}"
                )
    labels = table["label"].to_numpy(np.int8, copy=True)
    by_source = dict.fromkeys((correction.source for correction in corrections.entries), 0)
    for row, correction in chosen.items():
        by_source[correction.source] += int(labels[row] != correction.label)
        labels[row] = correction.label
    num_changed = sum(by_source.values())
    summary = CorrectionSummary(
        file=corrections.file.name,
        num_rows=len(corrections.entries),
        images_changed=num_changed,
        images_unchanged=len(chosen) - num_changed,
        by_source=by_source,
    )
    return replace(listing, table=table.assign(label=labels)), summary


Name = tuple[str, str]
"""("path", a path) or ("study", a study)."""


def _index_names(table: pd.DataFrame) -> dict[Name, list[int]]:
    """Return every name that a correction may use -> rows of its images."""
    by_name: defaultdict[Name, list[int]] = defaultdict(list)
    columns = (table[column] for column in ("path", "patient", "bone", "study"))
    for row, (path, patient, bone, study) in enumerate(zip(*columns, strict=True)):
        for name in (*_image_names(path), ("study", f"{patient}/{bone}/{study}")):
            by_name[name].append(row)
    return dict(by_name)


def _image_names(path: str) -> list[Name]:
    """Return the names of an image: its path and, if that is one of MURA's, the folder of its study."""
    parts = parse_path(path)
    return [("path", path)] + ([("study", parts["folder"])] if parts else [])


def _target_name(correction: Correction) -> Name:
    if correction.path:
        return "path", correction.path
    study = correction.study.rstrip("/")
    parts = parse_path(f"{study}/any")
    return "study", parts["folder"] if parts else study
