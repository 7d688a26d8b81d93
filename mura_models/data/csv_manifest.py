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
SPLIT_PARTS = 5  # without a split column, a fifth of the patients is the test split
SPLIT_SEED = 0
MAX_TABLE_BYTES = 2**28  # chosen by us: MURA's longest is 4 MB
_MEASURED = ["file", "digest", "width", "height", "mode"]  # read from the files, never from the table
_CONTRADICTING = (
    "label",
    "split",
)  # an image with two of these is no duplicate but a contradiction: scan.py rules on it
_BREAKS = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"  # what would break a line of the terminal, or worse


def list_csv(path: Path) -> Listing:
    """List the images of a manifest CSV, with `file`, `label`, `split` and `fold` typed.

    Raises DataError if it is not a table or lacks a column.
    """
    listing = read_table(path)
    missing = [column for column in REQUIRED if column not in listing.table]
    if missing:
        found = ", ".join(listing.table.columns)
        raise DataError(f"{path}: no column {', '.join(missing)} (found: {found}); needed are {', '.join(REQUIRED)}")
    if "split" in listing.table:
        listing = listing.exclude(_find_bad_cells(listing.table, (*REQUIRED, "split")))
        return _drop_duplicates(replace(listing, table=_type_columns(listing.table, path)), *_CONTRADICTING)
    listing = listing.exclude(_find_bad_cells(listing.table, REQUIRED))
    listing = _drop_duplicates(
        replace(listing, table=_type_columns(listing.table.assign(split="train"), path)), *_CONTRADICTING
    )
    if listing.table.empty:
        return listing
    return replace(listing, table=_split_patients(listing.table, path)).add_notes(
        f"{path.name} has no split column: one patient in {SPLIT_PARTS} is taken for test (seed {SPLIT_SEED})"
    )


def list_csv_for_prediction(path: Path) -> Listing:
    """List the images of a CSV in which only `path` is required; an empty column is dropped.

    `label` is nullable if some images have none.
    """
    listing = read_table(path)
    if "path" not in listing.table:
        raise DataError(f"{path}: no column path (found: {', '.join(listing.table.columns)})")
    return type_for_prediction(listing, path.parent)


def type_for_prediction(listing: Listing, folder: Path) -> Listing:
    """Convert cells of text to the types of a manifest, and add `file` if there is no such column.

    folder: what a relative `path` is relative to.
    """
    listing = listing.exclude(_find_bad_cells(listing.table, ("path",), check_values=False))
    table = listing.table
    if "file" not in table:
        table = table.assign(file=_resolve_files(table["path"], folder))
    for column in ("bone", "patient", "study", "split", "fold", "label"):
        if column in table:
            table[column] = table[column].mask(table[column] == "")
            if table[column].isna().all():
                table = table.drop(columns=column)
    if "label" in table:
        labels = table["label"].str.lower().map(LABELS).astype("Int8")
        table["label"] = labels if labels.hasnans else labels.astype(np.int8)
    return _drop_duplicates(replace(listing, table=table))


EMPTY = ("", "nan", "na", "n/a", "none", "null")
"""What programs write for a missing value; no patient has such an id."""


def read_text(path: Path) -> tuple[str, tuple[str, ...]]:
    """Return the text of a file, read as UTF-8 or else as Latin-1, and notes for the user."""
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
    """Return the lines that are not blank, stripped. Unlike `splitlines`, do not split at rarer breaks within names."""
    return [line.strip() for line in io.StringIO(text, newline=None) if line.strip()]


def read_cells(path: Path) -> tuple[list[str], list[list[str]], tuple[str, ...]]:
    """Read a CSV with comma, semicolon or tab: return its header in lower case, its rows, and notes for the user.

    Cells are stripped; a row may be shorter or longer than the header. Raises DataError for a table without rows.
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
    """Split a table into the cells of its rows, without blank rows.

    Raises DataError for a quote that is not closed, since it would swallow the rows below it.
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
    """Read a CSV as text. Rows with more cells than the header are excluded, columns without a name are ignored.

    Raises DataError for a table without rows.
    """
    header, rows, notes = read_cells(path)
    padded = [row[: len(header)] + [""] * (len(header) - len(row)) for row in rows]
    table = pd.DataFrame(padded, columns=header, dtype="str")
    if "" in table and (table[[""]] != "").any(axis=None):
        notes = (*notes, f"{path.name} has cells below a header without a name: ignored")
    table = table.drop(columns=["", *_MEASURED], errors="ignore")
    if "path" not in table:
        return Listing(table=table, notes=notes)
    return Listing(table=table, notes=notes).exclude(
        ["more cells than the header" if any(row[len(header) :]) else "" for row in rows]
    )


def _find_bad_cells(table: pd.DataFrame, needed: Iterable[str], *, check_values: bool = True) -> NDArray[Any]:
    """Return the reason, with the column, for every row with an invalid cell; "" for the others."""
    wrong: list[tuple[pd.Series[bool], str | pd.Series[str]]] = [
        (table[column].str.lower().isin(EMPTY), f"column {column} is empty") for column in needed
    ]
    if check_values:
        names = ("bone", "patient", "study")
        wrong += [(table[name].str.contains(_BREAKS), f"column {name} holds a control character") for name in names]
        wrong.append((~table["label"].str.lower().isin(LABELS), "label '" + table["label"] + "' is not 0 or 1"))
    if check_values and "split" in table:
        is_known = table["split"].str.lower().isin(SPLITS)
        wrong.append((~is_known, "split '" + table["split"] + "' is not train, test or dev"))
    if check_values and "fold" in table:
        is_number = table["fold"].str.fullmatch(r"(-1|[0-9]{1,4})(\.0)?|")
        wrong.append((~is_number, "fold '" + table["fold"] + "' is not a whole number"))
    reasons = np.full(len(table), "", dtype=object)
    for is_wrong, reason in reversed(wrong):
        reasons = np.where(is_wrong, reason, reasons)
    return reasons


def _type_columns(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Convert checked cells to the manifest's types; a dev row becomes train, fold 0."""
    split = table["split"].str.lower()
    given = pd.to_numeric(table["fold"].replace("", "-1")) if "fold" in table else pd.Series(-1, index=table.index)
    fold = np.select([split == "dev", split == "test"], [0, -1], given)
    return table.assign(
        file=_resolve_files(table["path"], path.parent),
        label=table["label"].str.lower().map(LABELS).astype(np.int8),
        split=split.replace("dev", "train"),
        fold=fold.astype(np.int16),
    )


def _resolve_files(paths: "pd.Series[str]", folder: Path) -> "pd.Series[str]":
    root = folder.absolute()
    return pd.Series([os.path.normpath(root / path) for path in paths], index=paths.index, dtype="str")


def _drop_duplicates(listing: Listing, *also: str) -> Listing:
    """Exclude a file that was listed before, unless its cells in `also` differ."""
    return listing.exclude(np.where(listing.table.duplicated(["file", *also]), "duplicate row", ""))


def _split_patients(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Take one patient in five for test, spread over bones and labels."""
    if table["patient"].nunique() < SPLIT_PARTS:
        raise DataError(
            f"{path}: no split column, and {table['patient'].nunique()} patients are too few to take a test split; "
            f"add a column split (train or test), or at least {SPLIT_PARTS} patients"
        )
    parts = assign_folds(table.assign(fold=-1), num_folds=SPLIT_PARTS, seed=SPLIT_SEED)
    is_test = parts == 0
    return table.assign(split=np.where(is_test, "test", "train"), fold=np.where(is_test, np.int16(-1), table["fold"]))
