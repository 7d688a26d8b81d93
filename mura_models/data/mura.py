"""Reads the MURA v1.1 tree: its four CSVs, or its folder names if a CSV is missing.

Pranav Rajpurkar et al., "MURA: Large Dataset for Abnormality Detection in Musculoskeletal Radiographs", 2017,
https://arxiv.org/abs/1712.06957; the data: https://stanfordmlgroup.github.io/competitions/mura/
"""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mura_models.data.csv_manifest import LABELS, parse_cells, read_text, split_lines
from mura_models.data.images import READERS
from mura_models.data.mura_counts import MURA_COUNTS, MURA_PATIENTS
from mura_models.data.safe_read import NOT_TEXT, explain, is_text, to_text
from mura_models.data.scan import LINK_OUTSIDE, Listing, is_junk, leads_outside
from mura_models.errors import DataError

SPLITS = {"train": "train", "valid": "test"}  # the published validation split is our test split
MASKS = "masks"  # the phantom writes them next to its tree
_TWO_LABELS = "study carries two labels"
_PATH = re.compile(
    r"(?:^|/)(?P<split>train|valid)/XR_(?P<bone>[^/]+)/(?P<patient>patient[^/]+)"
    r"/(?P<number>study[^/_]+)(?:_(?P<label>positive|negative))?/(?P<name>[^/]+)$"
)


def find_tree(folder: Path) -> Path | None:
    """Return the MURA tree that `folder` is or contains, under any name, or None.

    Raises DataError if it contains several.
    """
    if _is_tree(folder):
        return folder
    try:
        children = sorted(child for child in folder.iterdir() if child.is_dir() and not is_junk(child.name))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({explain(error)}); give a folder that you may read") from None
    children = [child for child in children if child.name != MASKS or not is_phantom_tree(child)]
    trees = [child for child in children if _is_tree(child)]
    if len(trees) > 1:
        raise DataError(f"{folder} holds {len(trees)} MURA trees: name one of {', '.join(t.name for t in trees)}")
    return trees[0] if trees else None


def _is_tree(folder: Path) -> bool:
    try:
        return any(
            (folder / f"{split}_image_paths.csv").is_file() or any((folder / split).glob("XR_*/patient*"))
            for split in SPLITS
        )
    except PermissionError:  # such as a disk's `lost+found`
        return False


def is_phantom_tree(root: Path) -> bool:
    """Return whether the tree was written by the phantom generator."""
    return (root.parent / "phantom.json").is_file()


def list_mura(root: Path) -> Listing:
    """List the images of a MURA tree with their labels and splits; only the CSVs are opened.

    Paths and labels come from the CSVs, or from the folder names if a CSV is missing.
    """
    notes: list[str] = []
    found: list[dict[str, Any]] = []
    for split in SPLITS:
        paths = _list_paths(root, split, notes)
        labels = _read_labels(root, split, notes)
        rows = [_make_row(path, split, labels) for path in paths]
        num_conflicts = sum(row["conflict"] for row in rows)
        if num_conflicts:
            notes.append(f"{split}: {num_conflicts} images are in a folder of the other label: the CSV is trusted")
        found += rows
    columns = ["path", "relative", "bone", "patient", "study", "label", "split", "folder", "reason"]
    listing = Listing(table=pd.DataFrame(found, columns=columns), notes=tuple(notes))
    listing = listing.exclude(listing.table["reason"].tolist())
    return _finish(listing, root)


def _finish(listing: Listing, root: Path) -> Listing:
    """Add files and types to the table, and exclude what can be excluded by its names alone."""
    table = listing.table
    real_root = os.path.realpath(root)
    files = [os.path.join(root.absolute(), relative) for relative in table["relative"]]  # noqa: PTH118, 40,005 of them
    folders = table.groupby(["split", "study"])["folder"].transform("nunique")
    outside = np.array([leads_outside(file, real_root) for file in files], dtype=bool)
    reasons = np.select(
        [table["relative"].duplicated(), outside, folders > 1],
        ["duplicate row", LINK_OUTSIDE, _TWO_LABELS],
        "",
    )
    typed = table.assign(file=pd.Series(files, dtype="str"), label=table["label"].astype(np.int8), fold=np.int16(-1))
    kept = ["path", "file", "bone", "patient", "study", "label", "split", "fold"]
    return Listing(table=typed[kept], quarantine=listing.quarantine, notes=listing.notes).exclude(reasons)


def parse_path(path: str) -> dict[str, str] | None:
    """Return split, bone, patient, study and, if named, label of one of MURA's paths; None for any other path."""
    match = _PATH.search(path)
    if match is None:
        return None
    parts = match.groupdict(default="")
    return {
        "relative": match[0].lstrip("/"),
        "folder": match[0].lstrip("/").rpartition("/")[0],
        "split": parts["split"],
        "bone": parts["bone"].lower(),
        "patient": parts["patient"],
        "study": f"{parts['patient']}/XR_{parts['bone']}/{parts['number']}",
        "label": parts["label"],
    }


def _make_row(path: str, split: str, labels: dict[str, str] | None) -> dict[str, Any]:
    """Return the row of a path, with a `reason` if it is to be excluded."""
    if not is_text(path):
        return {"path": to_text(path), "reason": NOT_TEXT, "conflict": False}
    parts = parse_path(path)
    if parts is None or parts["split"] != split:
        return {"path": path, "reason": f"not a path of MURA's {split} images", "conflict": False}
    by_folder = parts["label"]
    label = by_folder if labels is None else labels.get(parts["folder"], by_folder)
    code = LABELS.get(label.lower(), -1)
    reason = "" if code >= 0 else _label_reason(label)
    conflict = not reason and by_folder != "" and code != LABELS[by_folder]
    return {**parts, "path": path, "label": code, "split": SPLITS[split], "reason": reason, "conflict": conflict}


def _label_reason(label: str) -> str:
    if label == _TWO_LABELS:
        return label
    return f"label '{label}' is not 0 or 1" if label else "no label"


def _list_paths(root: Path, split: str, notes: list[str]) -> list[str]:
    """List the images of a split from its CSV, or from its folder if there is none."""
    on_disk = _list_folder(root, split)
    table = root / f"{split}_image_paths.csv"
    if not table.is_file():
        notes.append(f"{table.name} is missing: the images are listed from the folders")
        return [f"MURA-v1.1/{relative}" for relative in on_disk]
    text, encoding_notes = read_text(table)
    notes += encoding_notes
    paths = [line.strip('"') for line in split_lines(text)]
    listed = {parts["relative"] for path in paths if (parts := parse_path(path))}
    num_unlisted = len(set(on_disk) - listed)
    if num_unlisted:
        notes.append(f"{num_unlisted} {split} images on the disk are not in {table.name}: ignored")
    return paths


def _list_folder(root: Path, split: str) -> list[str]:
    """List the images below a split's folder, sorted, as paths from the root with `/`."""
    found = (root / split).glob("XR_*/patient*/study*/*")
    images = [image for image in found if image.suffix.lower() in READERS and not is_junk(image.name)]
    return sorted(image.relative_to(root).as_posix() for image in images)


def _read_labels(root: Path, split: str, notes: list[str]) -> dict[str, str] | None:
    """Return study folder -> label from the CSV, or None if there is no CSV."""
    table = root / f"{split}_labeled_studies.csv"
    if not table.is_file():
        notes.append(f"{table.name} is missing: the labels are taken from the folder names")
        return None
    text, encoding_notes = read_text(table)
    notes += encoding_notes
    labels: dict[str, str] = {}
    for row in parse_cells(table, text):
        parts = parse_path(row[0].strip().rstrip("/") + "/any") if len(row) > 1 else None
        if parts is not None:
            label = row[1].strip()
            is_second = labels.setdefault(parts["folder"], label) != label
            labels[parts["folder"]] = _TWO_LABELS if is_second else label
    return labels


def compare_counts(table: pd.DataFrame) -> str:
    """Return one line on whether patients, studies and images are as many as in MURA v1.1."""
    published: Counter[str] = Counter()
    for split, bones in MURA_COUNTS.items():
        published[f"{split} patients"] = MURA_PATIENTS[split]
        for bone, (studies, images) in bones.items():
            published[f"{split} studies"] += sum(studies)
            published[f"{split} images"] += sum(images)
            for name, num_images in zip(("negative", "positive"), images, strict=True):
                published[f"{split} {bone[3:].lower()} {name} images"] = num_images
    counted = _count_rows(table)
    names = [*published, *(name for name in counted if name not in published)]
    wrong = [
        f"{name} {counted[name]:,} (published {published[name]:,})"
        for name in names
        if counted[name] != published[name]
    ]
    if not wrong:
        return "counts match MURA v1.1"
    rest = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    return f"counts differ from MURA v1.1: {'; '.join(wrong[:4])}{rest}"


def _count_rows(table: pd.DataFrame) -> Counter[str]:
    counted: Counter[str] = Counter()
    for published_split, split in SPLITS.items():
        part = table[table["split"] == split]
        counted[f"{published_split} patients"] = part["patient"].nunique()
        counted[f"{published_split} studies"] = part["study"].nunique()
        counted[f"{published_split} images"] = len(part)
        for bone, label in zip(part["bone"], part["label"], strict=True):
            counted[f"{published_split} {bone} {'positive' if label else 'negative'} images"] += 1
    return counted
