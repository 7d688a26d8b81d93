"""The manifest CSV: any set of radiographs, described by a table."""

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mura_models.data.folds import assign_folds
from mura_models.data.safe_read import explain, read_file
from mura_models.data.scan import Listing
from mura_models.errors import DataError

REQUIRED = ("path", "bone", "patient", "study", "label")
LABELS = {"0": 0, "0.0": 0, "normal": 0, "negative": 0, "1": 1, "1.0": 1, "abnormal": 1, "positive": 1}
SPLITS = ("train", "test", "dev")
SPLIT_PARTS = 5  # without a split column, one part in five of the patients is the test split
SPLIT_SEED = 0
MAX_TABLE_BYTES = 2**28  # chosen by us: MURA's longest is 4 MB
_MEASURED = ["file", "digest", "width", "height", "mode"]  # read from the files, never from the table
_CONTRADICTING = (
    "label",
    "split",
)  # an image with two of these is no duplicate but a contradiction: scan.py rules on it
_BREAKS = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"  # what would break a line of the terminal, or worse


def list_csv(path: Path) -> Listing:
    """List the rows of a manifest CSV, with `file`, `label`, `split` and `fold` typed.

    Raises DataError where it is no table, or lacks a column.
    """
    listing = read_table(path)
    missing = [column for column in REQUIRED if column not in listing.rows]
    if missing:
        found = ", ".join(listing.rows.columns)
        raise DataError(f"{path}: no column {', '.join(missing)} (found: {found}); needed are {', '.join(REQUIRED)}")
    if "split" in listing.rows:
        listing = listing.leave_out(_find_bad_cells(listing.rows, (*REQUIRED, "split")))
        return _drop_duplicates(replace(listing, rows=_type_columns(listing.rows, path)), *_CONTRADICTING)
    listing = listing.leave_out(_find_bad_cells(listing.rows, REQUIRED))
    listing = _drop_duplicates(
        replace(listing, rows=_type_columns(listing.rows.assign(split="train"), path)), *_CONTRADICTING
    )
    if listing.rows.empty:
        return listing
    return replace(listing, rows=_split_patients(listing.rows, path)).add_notes(
        f"{path.name} has no split column: one patient in {SPLIT_PARTS} is taken for test (seed {SPLIT_SEED})"
    )


def list_csv_for_prediction(path: Path) -> Listing:
    """List the rows of a CSV in which only `path` is needed; a column that is empty throughout is absent.

    `label` is nullable where some rows have none.
    """
    listing = read_table(path)
    if "path" not in listing.rows:
        raise DataError(f"{path}: no column path (found: {', '.join(listing.rows.columns)})")
    return type_for_prediction(listing, path.parent)


def type_for_prediction(listing: Listing, folder: Path) -> Listing:
    """Convert cells of text to the types of a manifest, and add `file` if there is no such column.

    folder: what a relative `path` is relative to.
    """
    listing = listing.leave_out(_find_bad_cells(listing.rows, ("path",), check_values=False))
    rows = listing.rows
    if "file" not in rows:
        rows = rows.assign(file=_find_files(rows["path"], folder))
    for column in ("bone", "patient", "study", "split", "fold", "label"):
        if column in rows:
            rows[column] = rows[column].mask(rows[column] == "")
            if rows[column].isna().all():
                rows = rows.drop(columns=column)
    if "label" in rows:
        labels = rows["label"].str.lower().map(LABELS).astype("Int8")
        rows["label"] = labels if labels.hasnans else labels.astype(np.int8)
    return _drop_duplicates(replace(listing, rows=rows))


EMPTY = ("", "nan", "na", "n/a", "none", "null")
"""What programs write for a value that is not there; no patient is called so."""


def read_text(path: Path) -> tuple[str, tuple[str, ...]]:
    """Return a file's text and notes on how it was read: UTF-8, or else Latin-1."""
    try:
        data = read_file(path, max_bytes=MAX_TABLE_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({explain(error)}); a CSV in UTF-8 is needed") from error
    if b"\0" in data:
        raise DataError(f"{path}: not a text file; a CSV in UTF-8 is needed")
    try:
        return data.decode("utf-8-sig"), ()
    except UnicodeDecodeError:
        return data.decode("latin-1"), (f"{path.name} is not UTF-8: read as Latin-1",)


def split_lines(text: str) -> list[str]:
    """Return the lines that are not blank, stripped. Unlike `splitlines`, keeps names whole that hold other breaks."""
    return [line.strip() for line in io.StringIO(text, newline=None) if line.strip()]


def read_cells(path: Path) -> tuple[list[str], list[list[str]], tuple[str, ...]]:
    """Read a CSV with comma, semicolon or tab: its header in lower case, its rows, and notes on how it was read.

    Every cell is stripped; a row may be shorter or longer than the header. Raises DataError for a table without rows.
    """
    text, notes = read_text(path)
    cells = parse_cells(path, text)
    if not cells:
        raise DataError(f"{path}: empty; a header and rows below it are needed")
    header = [name.strip().lower() for name in cells[0]]
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise DataError(f"{path}: column {twice[0]} is named twice in the header; name each once")
    rows = [[cell.strip() for cell in row] for row in cells[1:]]
    if not rows:
        raise DataError(f"{path}: no rows below the header")
    return header, rows, notes


def parse_cells(path: Path, text: str) -> list[list[str]]:
    """Cut a table into the cells of its rows, blank ones left out.

    Raises DataError for a quote that is opened and never closed, since it would swallow the rows below it.
    """
    first_line = text.lstrip().splitlines()[:1]
    delimiter = max(",;\t", key=(first_line or [""])[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows, line = [], 1
    try:
        for row in reader:
            line = reader.line_num + 1
            if any(row):
                rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV ({error}, in the row that begins in line {line})") from None
    return rows


def read_table(path: Path) -> Listing:
    """Read a CSV as text. Rows with more cells than the header are left out, columns without a name are ignored.

    Raises DataError for a table without rows.
    """
    header, rows, notes = read_cells(path)
    padded = [row[: len(header)] + [""] * (len(header) - len(row)) for row in rows]
    table = pd.DataFrame(padded, columns=header, dtype="str")
    if "" in table and (table[[""]] != "").any(axis=None):
        notes = (*notes, f"{path.name} has cells below a header without a name: ignored")
    table = table.drop(columns=["", *_MEASURED], errors="ignore")
    if "path" not in table:
        return Listing(rows=table, notes=notes)
    return Listing(rows=table, notes=notes).leave_out(
        ["more cells than the header" if any(row[len(header) :]) else "" for row in rows]
    )


def _find_bad_cells(rows: pd.DataFrame, needed: Iterable[str], *, check_values: bool = True) -> NDArray[Any]:
    """Return a reason for every row with a cell that cannot be, naming the column."""
    wrong: list[tuple[pd.Series[bool], str | pd.Series[str]]] = [
        (rows[column].str.lower().isin(EMPTY), f"column {column} is empty") for column in needed
    ]
    if check_values:
        names = ("bone", "patient", "study")
        wrong += [(rows[name].str.contains(_BREAKS), f"column {name} holds a control character") for name in names]
        wrong.append((~rows["label"].str.lower().isin(LABELS), "label '" + rows["label"] + "' is not 0 or 1"))
    if check_values and "split" in rows:
        is_known = rows["split"].str.lower().isin(SPLITS)
        wrong.append((~is_known, "split '" + rows["split"] + "' is not train, test or dev"))
    if check_values and "fold" in rows:
        is_number = rows["fold"].str.fullmatch(r"(-1|[0-9]{1,4})(\.0)?|")
        wrong.append((~is_number, "fold '" + rows["fold"] + "' is not a whole number"))
    reasons = np.full(len(rows), "", dtype=object)
    for is_wrong, reason in reversed(wrong):
        reasons = np.where(is_wrong, reason, reasons)
    return reasons


def _type_columns(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Bring the cells, all checked, to the manifest's types; a dev row is train, fold 0."""
    split = rows["split"].str.lower()
    given = pd.to_numeric(rows["fold"].replace("", "-1")) if "fold" in rows else pd.Series(-1, index=rows.index)
    fold = np.select([split == "dev", split == "test"], [0, -1], given)
    return rows.assign(
        file=_find_files(rows["path"], path.parent),
        label=rows["label"].str.lower().map(LABELS).astype(np.int8),
        split=split.replace("dev", "train"),
        fold=fold.astype(np.int16),
    )


def _find_files(paths: "pd.Series[str]", folder: Path) -> "pd.Series[str]":
    root = folder.absolute()
    return pd.Series([os.path.normpath(root / path) for path in paths], index=paths.index, dtype="str")


def _drop_duplicates(listing: Listing, *also: str) -> Listing:
    """Leave out a file that was named before; with other cells in `also` it is another row."""
    return listing.leave_out(np.where(listing.rows.duplicated(["file", *also]), "duplicate row", ""))


def _split_patients(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Take one patient in five for test, spread over bones and labels."""
    if rows["patient"].nunique() < SPLIT_PARTS:
        raise DataError(
            f"{path}: no split column, and {rows['patient'].nunique()} patients are too few to take a test split; "
            f"add a column split (train or test), or at least {SPLIT_PARTS} patients"
        )
    parts = assign_folds(rows.assign(fold=-1), num_folds=SPLIT_PARTS, seed=SPLIT_SEED)
    is_test = parts == 0
    return rows.assign(split=np.where(is_test, "test", "train"), fold=np.where(is_test, np.int16(-1), rows["fold"]))
