"""Bad manifests, labels and splits: name -> the error, or a function that damages the clinic."""

import os
from collections.abc import Callable
from pathlib import Path

from robustness.bad_input import COLUMNS, Clinic, Rejection

Case = Rejection | Callable[[Clinic], dict[str, str]]

HEADER = ",".join(COLUMNS)
TWO_LABELS, TWO_SPLITS = "same image under two labels", "same image also in test"


def rejected(text: str, make: Callable[[Clinic], object]) -> Rejection:
    """Return a case of a manifest that cannot be used as a whole."""
    return Rejection(text=text, make=make)


def written(change: Callable[[Clinic], str | bytes]) -> Callable[[Clinic], dict[str, str]]:
    """Return a case of a table in another format that is read correctly."""

    def make(clinic: Clinic) -> dict[str, str]:
        clinic.write(change(clinic))
        return {}

    return make


def row(reason: str, path: str = "bad.png", **cells: str) -> Callable[[Clinic], dict[str, str]]:
    """Return a case of a row with a bad cell; its image is valid."""

    def make(clinic: Clinic) -> dict[str, str]:
        clinic.add_valid(path, **cells)
        return {path: reason}

    return make


def named(path: str, **cells: str) -> Callable[[Clinic], dict[str, str]]:
    """Return a case of a valid image with an unusual name or unusual cells."""

    def make(clinic: Clinic) -> dict[str, str]:
        clinic.add_valid(path, **cells)
        return {}

    return make


def set_cells(clinic: Clinic, of_split: str, **cells: str) -> None:
    """Change these cells in all rows of a split."""
    for each in clinic.rows:
        if each["split"] == of_split:
            each.update(cells)


def drop_column(*columns: str) -> Callable[[Clinic], object]:
    return lambda clinic: clinic.write(clinic.to_csv(columns=tuple(c for c in COLUMNS if c not in columns)))


def replace_manifest(place: Callable[[Path], object]) -> Callable[[Clinic], object]:
    """Return a function that puts something else in place of the manifest."""
    return lambda clinic: place(clinic.manifest)


def add_column(name: str, cell: str) -> Callable[[Clinic], object]:
    def make(clinic: Clinic) -> None:
        set_cells(clinic, "train", **{name: cell})
        clinic.write(clinic.to_csv(columns=(*COLUMNS, name)))

    return make


def write_given_folds(clinic: Clinic) -> None:
    """Put two rows of one patient into different folds."""
    for number, each in enumerate(clinic.rows[:2]):
        each |= {"patient": "p", "study": str(number), "fold": str(number)}
    clinic.write(clinic.to_csv(columns=(*COLUMNS, "fold")))


def list_again(clinic: Clinic, path: str) -> dict[str, str]:
    """List the first image again under another path."""
    clinic.add(path, None, **{column: clinic.rows[0][column] for column in COLUMNS[1:]})
    return {path: "duplicate row"}


def name_elsewhere(clinic: Clinic) -> dict[str, str]:
    path = r"C:\images\a.png"
    clinic.add(path, None)
    return {path: "missing file"}


def copy_image(excluded: dict[str, str], original: str = "0.png", **cells: str) -> Callable[[Clinic], dict[str, str]]:
    """Return a case of a copy of an image, in a row with these cells."""

    def make(clinic: Clinic) -> dict[str, str]:
        clinic.add("copy.png", (clinic.folder / original).read_bytes(), clinic.pixels[original][0], **cells)
        return excluded

    return make


def contradict(clinic: Clinic) -> dict[str, str]:
    """List the first image twice, as normal and as abnormal."""
    clinic.add("./0.png", None, patient="other", label="1")
    return {"0.png": TWO_LABELS, "./0.png": TWO_LABELS}


def split_study(clinic: Clinic) -> dict[str, str]:
    for label in "01":
        clinic.add_valid(f"view{label}.png", patient="q", label=label)
    return dict.fromkeys(("view0.png", "view1.png"), "study carries two labels")


def leak_patient(clinic: Clinic) -> dict[str, str]:
    clinic.add_valid("leak.png", study="2", patient=clinic.rows[-1]["patient"])
    return {"leak.png": "patient also in test"}


def name_outside(clinic: Clinic) -> dict[str, str]:
    """List images of another folder by `..`, by absolute path and by link: a CSV may name any file."""
    clinic.add_valid("../elsewhere/a.png")
    clinic.add_valid(f"{clinic.folder.parent}/elsewhere/b.png")
    clinic.add_valid("../elsewhere/c.png")
    (clinic.folder / "link.png").symlink_to("../elsewhere/c.png")
    clinic.pixels["link.png"] = clinic.pixels["../elsewhere/c.png"]
    clinic.rows[-1]["path"] = "link.png"
    return {}


def add_ragged_rows(clinic: Clinic) -> dict[str, str]:
    clinic.add_valid("few.png")
    clinic.add_valid("many.png")
    table = clinic.to_csv().splitlines()
    table[-2:] = ["few.png,hand,p12,1", "many.png,hand,p13,1,0,train,more,cells"]
    clinic.write("\n".join(table))
    return {"few.png": "column label is empty", "many.png": "more cells than the header"}


def add_measured_columns(clinic: Clinic) -> str:
    """Write columns that are measured, so the table's values must be ignored, and one that is passed through."""
    for each in clinic.rows:
        each |= {"digest": "0", "width": "-1", "mode": "X", "scanner": "A"}
    return clinic.to_csv(columns=(*COLUMNS, "digest", "width", "mode", "scanner"))


def add_unnamed_columns(clinic: Clinic) -> str:
    """Write a table with the index column of pandas and the empty last columns of a spreadsheet."""
    lines = clinic.to_csv().splitlines()
    return "\n".join(f"{number if number >= 0 else ''},{line},," for number, line in enumerate(lines, start=-1))


def call_wrist_hip(clinic: Clinic) -> dict[str, str]:
    """Add a bone that occurs only in test."""
    clinic.add_valid("hip.png", bone="hip", split="test", label="1")
    return {"hip.png": "bone not in train"}


def add_latin_1(clinic: Clinic) -> bytes:
    clinic.add_valid("größe.png")
    return clinic.to_csv().encode("latin-1")


def use_words(clinic: Clinic) -> str:
    """Write labels and splits in other words, upper and lower case."""
    text = clinic.to_csv().replace(",0,train", ",Normal,TRAIN").replace(",1,train", ",abnormal,Train")
    return text.replace(",0,test", ",0.0,Test").replace(",1,test", ",POSITIVE,TEST")


def assign_patients(rows: list[dict[str, str]], num_patients: int) -> None:
    """Assign the rows to this many patients, one study per row."""
    for number, each in enumerate(rows):
        each |= {"patient": f"p{number % num_patients}", "study": str(number)}


def write_fold_x(clinic: Clinic) -> dict[str, str]:
    clinic.add_valid("bad.png", fold="x")
    clinic.write(clinic.to_csv(columns=(*COLUMNS, "fold")))
    return {"bad.png": "fold 'x' is not a whole number"}


MANIFESTS: dict[str, Case] = {
    # The table as a whole.
    "no file": Rejection(text="nowhere.csv: no such file or folder; give", options=("--data", "nowhere.csv")),
    "zero bytes in the table": rejected("manifest.csv: empty; a header", lambda clinic: clinic.write(b"")),
    "blank lines alone": rejected("manifest.csv: empty; a header", lambda clinic: clinic.write("\n \n\n")),
    "header alone": rejected("no rows below the header", lambda clinic: clinic.write(HEADER + "\n")),
    "no column label": rejected("no column label (found: path, bone, patient, study, split)", drop_column("label")),
    "no column path": rejected("no column path (found: bone,", drop_column("path")),
    "no header": rejected("no column path, bone", lambda clinic: clinic.write(clinic.to_csv().partition("\n")[2])),
    "a column twice": rejected(
        "column bone is named twice", lambda clinic: clinic.write(clinic.to_csv().replace("study", "bone", 1))
    ),
    "UTF-16": rejected("not a text file", lambda clinic: clinic.write(clinic.to_csv().encode("utf-16"))),
    "a workbook": rejected("not a text file", lambda clinic: clinic.write(b"PK\x03\x04\0\0\0\0")),
    "meaningless bytes": rejected("manifest.csv: no", lambda clinic: clinic.write(bytes(range(128, 256)) * 9 + b"\n1")),
    "100,000 characters in the header": rejected(" ... ", lambda clinic: clinic.write("x" * 10**5 + "\na\n")),
    "a null character in a path": rejected(
        "not a text file", lambda clinic: clinic.write(clinic.to_csv().replace("0.png", "0\0.png"))
    ),
    "JSON": rejected("not a CSV", lambda clinic: clinic.write('[{"path": "a.png",\n"label": 0}]')),
    "a quote that is never closed": rejected(
        "not a CSV (unexpected end of data, in the row that begins in line 3)",
        lambda clinic: clinic.write(clinic.to_csv().replace("\n1.png", '\n"1.png')),
    ),
    "a quote that is closed in a later row": rejected(
        "in the row that begins in line 3)",
        lambda clinic: clinic.write(clinic.to_csv().replace("\n1.png", '\n"1.png').replace("5.png", 'a"5.png')),
    ),
    "a folder as manifest": rejected("not a MURA folder", replace_manifest(Path.mkdir)),
    "a pipe as manifest": rejected("cannot be read (not a regular file)", replace_manifest(os.mkfifo)),
    "a device as manifest": Rejection(text="/dev/zero: cannot be read", options=("--data", "/dev/zero")),
    "a link to nothing as manifest": rejected(
        "no such file or folder", replace_manifest(lambda path: path.symlink_to("gone"))
    ),
    "a link to itself as manifest": rejected(
        "manifest.csv: Too many", replace_manifest(lambda path: path.symlink_to(path))
    ),
    "a table of 1 GB": rejected(
        "cannot be read (1000000000 bytes",
        lambda clinic: (clinic.write(), os.truncate(clinic.manifest, 10**9)),
    ),
    "a name of 5,000 characters": Rejection(text="File name too long", options=("--data", "x" * 5000)),
    "a line break in a name": Rejection(text=r"no\nwhere: no such file", options=("--data", "no\nwhere")),
    "missing $MURA_DATA": Rejection(
        text="MURA_DATA=/nowhere/mura: no such file or folder",
        instead=("--all-bones", "--dry-run"),
        environment={"MURA_DATA": "/nowhere/mura"},
    ),
    "byte-order mark": written(lambda clinic: b"\xef\xbb\xbf" + clinic.to_csv().encode()),
    "semicolons": written(lambda clinic: clinic.to_csv(delimiter=";")),
    "tabs": written(lambda clinic: clinic.to_csv(delimiter="\t")),
    "Windows line ends": written(lambda clinic: clinic.to_csv(line_end="\r\n")),
    "old Mac line ends": written(lambda clinic: clinic.to_csv(line_end="\r")),
    "blank lines between": written(lambda clinic: clinic.to_csv(line_end="\n\n") + ",,,,,\n"),
    "spaces around cells": written(lambda clinic: clinic.to_csv().replace(",", " , ")),
    "columns in capitals and another order": written(
        lambda clinic: clinic.to_csv(columns=COLUMNS[::-1]).replace("label,study", "Label,STUDY")
    ),
    "columns without a name": written(add_unnamed_columns),
    "columns that are measured": written(add_measured_columns),
    "Latin-1": written(add_latin_1),
    "labels and splits in words": written(use_words),
    # Rows.
    "too few and too many cells": add_ragged_rows,
    "label 2": row("label '2' is not 0 or 1", label="2"),
    "label yes": row("label 'yes' is not 0 or 1", label="yes"),
    "label 0.5": row("label '0.5' is not 0 or 1", label="0.5"),
    "no label": row("column label is empty", label=""),
    "label NaN": row("column label is empty", label="NaN"),
    "no patient": row("column patient is empty", patient=""),
    "patient NaN": row("column patient is empty", patient="nan"),
    "study null": row("column study is empty", study="null"),
    "bone N/A": row("column bone is empty", bone="N/A"),
    "no split": row("column split is empty", split=""),
    "unknown split": row("split 'holdout' is not train, test or dev", split="holdout"),
    "line break in a bone": row("column bone holds a control character", bone="ha\nnd"),
    "escape sequence in a patient": row("column patient holds a control character", patient="p\x1b[2J"),
    "the same row twice": lambda clinic: list_again(clinic, "./0.png"),
    "the same row twice, by an absolute path": lambda clinic: list_again(clinic, str(clinic.folder / "0.png")),
    "a path of another machine": name_elsewhere,
    "absolute paths, .. and links": name_outside,
    "spaces in a path": named("left hand/view 1.png"),
    "quotes in a path": named('a "b", c\'s.png'),
    "emoji in a path": named("🦴.png"),
    "line break in a path": named("two\nlines.png"),
    "a formula in a path": named("=1+1.png"),
    "semicolons in a path": named("a;b;c;d;e;f;g;h.png"),
    "250 characters in a path": named("x" * 246 + ".png"),
    "a slash in a bone": named("odd.png", bone="手/été"),
    "2,000 characters in a bone": named("odd.png", bone="b" * 2000),
    # Labels.
    "one class in train": rejected(
        "every train image has label 0: both 0 and 1", lambda clinic: set_cells(clinic, "train", label="0")
    ),
    "a study with two labels": split_study,
    "a row that contradicts another": contradict,
    "an image under two labels": copy_image({"0.png": TWO_LABELS, "copy.png": TWO_LABELS}, label="1"),
    "an image under two labels in test": copy_image(
        {"8.png": TWO_LABELS, "copy.png": TWO_LABELS}, original="8.png", split="test", label="1"
    ),
    # Splits.
    "a patient in train and test": leak_patient,
    "an image in train and test": copy_image({"0.png": TWO_SPLITS}, split="test"),
    "an image in train and test under two labels": copy_image({"0.png": TWO_SPLITS}, split="test", label="1"),
    "an image twice in train": copy_image({}),
    "a bone in test that train lacks": call_wrist_hip,
    "no test rows": rejected("no usable test image", lambda clinic: set_cells(clinic, "test", split="train")),
    "no train rows": rejected("no usable train image", lambda clinic: set_cells(clinic, "train", split="test")),
    "one patient": rejected("most often: patient also in test (8)", lambda clinic: assign_patients(clinic.rows, 1)),
    "one patient in train": rejected(
        "1 train patients without a given fold for 2 folds (those who share an image count as one): ask for fewer "
        "folds",
        lambda clinic: assign_patients(clinic.rows[:8], 1),
    ),
    "four patients and no split": rejected(
        "no split column, and 4 patients are too few",
        lambda clinic: (assign_patients(clinic.rows, 4), drop_column("split")(clinic)),
    ),
    "fold x": write_fold_x,
    "a fold that does not exist": rejected("fold 9 is given: with 2 folds, 0 to 1 exist", add_column("fold", "9")),
    "a patient in two folds": rejected("patient 'p' has folds 0 and 1", write_given_folds),
    "more folds than patients": Rejection(text="each needs at least one per fold", options=("--folds", "9")),
    "more folds than patients, but enough images": Rejection(
        text="3 train patients without a given fold for 4 folds",
        options=("--folds", "4"),
        make=lambda clinic: assign_patients(clinic.rows[:8], 3),
    ),
}
