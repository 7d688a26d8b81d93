"""Known label errors: a CSV of corrected labels, applied before the rules on labels and leaks.

A row names one image by `path`, or all images of one `study`. A corrected path corrects that image alone: where its
study has other images, the study then carries two labels and is left out, so correct the study.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from mura_models.data.csv_manifest import EMPTY, LABELS, read_cells
from mura_models.data.mura import describe_path
from mura_models.data.scan import Listing
from mura_models.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Correction:
    """One row of the file: of `path` and `study` one is empty."""

    row: int
    """Counted from 1 below the header, empty lines left out."""
    path: str
    study: str
    label: int
    source: str

    def __str__(self) -> str:
        return f"path '{self.path}'" if self.path else f"study '{self.study}'"


@dataclass(frozen=True, kw_only=True)
class Corrections:
    """A file of corrections, read and checked, not yet matched with images."""

    file: Path
    rows: tuple[Correction, ...]


@dataclass(frozen=True, kw_only=True)
class CorrectionSummary:
    """What a file of corrections came to; images are counted before the rules on labels and leaks."""

    file: str
    """Its name without the folder."""
    rows: int
    images_changed: int
    images_unchanged: int
    """Images whose label was the corrected one already."""
    by_source: dict[str, int]
    """Source -> images changed."""


def read_corrections(file: Path) -> Corrections:
    """Read a CSV with `label`, `source` and at least one of `path` and `study`; other columns are ignored.

    Raises DataError for a cell that cannot be.
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
    return Corrections(file=file, rows=tuple(corrections))


def _make_correction(row: int, cells: dict[str, str]) -> Correction:
    """Check one row's cells, without the empty ones. Raises ValueError that says what is wrong."""
    path, study = cells.get("path", ""), cells.get("study", "")
    if path and study:
        raise ValueError(f"path '{path}' and study '{study}' are both given; give one of them")
    if not path and not study:
        raise ValueError("neither path nor study is given; give one of them")
    label = cells.get("label", "")
    if label.lower() not in LABELS:
        raise ValueError(f"label '{label}' is not 0 or 1")
    if "source" not in cells:
        raise ValueError("source is empty; say who or what corrects the label")
    return Correction(row=row, path=path, study=study, label=LABELS[label.lower()], source=cells["source"])


def correct_labels(listing: Listing, corrections: Corrections) -> tuple[Listing, CorrectionSummary]:
    """Return the listing with corrected labels, and what was changed.

    A row whose images are all in the quarantine changes nothing. Raises DataError for a row that matches nothing,
    and for two rows that give one image different labels.
    """
    rows = listing.rows
    by_name = _index_names(rows)
    left_out = _name_left_out(listing.quarantine["path"])
    chosen: dict[int, Correction] = {}
    for correction in corrections.rows:
        name = _name_target(correction)
        if name not in by_name and name not in left_out:
            raise DataError(f"{corrections.file}: row {correction.row}: {correction} matches no image of the data")
        for place in by_name.get(name, ()):
            first = chosen.setdefault(place, correction)
            if first.label != correction.label:
                raise DataError(
                    f"{corrections.file}: rows {first.row} and {correction.row} contradict each other: "
                    f"{first} is {first.label}, {correction} is {correction.label}"
                )
    labels = rows["label"].to_numpy(np.int8, copy=True)
    by_source = dict.fromkeys((correction.source for correction in corrections.rows), 0)
    for place, correction in chosen.items():
        by_source[correction.source] += int(labels[place] != correction.label)
        labels[place] = correction.label
    num_changed = sum(by_source.values())
    summary = CorrectionSummary(
        file=corrections.file.name,
        rows=len(corrections.rows),
        images_changed=num_changed,
        images_unchanged=len(chosen) - num_changed,
        by_source=by_source,
    )
    return replace(listing, rows=rows.assign(label=labels)), summary


Name = tuple[str, str]
"""`path` or `study`, and which."""


def _index_names(rows: pd.DataFrame) -> dict[Name, list[int]]:
    """Return every name that a correction may use -> places of its images."""
    by_name: defaultdict[Name, list[int]] = defaultdict(list)
    columns = (rows[column] for column in ("path", "patient", "bone", "study"))
    for place, (path, patient, bone, study) in enumerate(zip(*columns, strict=True)):
        for name in (*_name_image(path), ("study", f"{patient}/{bone}/{study}")):
            by_name[name].append(place)
    return dict(by_name)


def _name_image(path: str) -> list[Name]:
    """Name an image by its path and, where that is one of MURA's, by its study's folder."""
    parts = describe_path(path)
    return [("path", path)] + ([("study", parts["folder"])] if parts else [])


def _name_left_out(paths: Iterable[str]) -> set[Name]:
    return {name for path in paths for name in _name_image(path)}


def _name_target(correction: Correction) -> Name:
    if correction.path:
        return "path", correction.path
    study = correction.study.rstrip("/")
    parts = describe_path(f"{study}/any")
    return "study", parts["folder"] if parts else study
