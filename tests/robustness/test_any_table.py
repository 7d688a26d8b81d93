"""Properties of any table and any split, tested with hypothesis."""

import csv
import io
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mura_models.data.csv_manifest import LABELS, REQUIRED, SPLITS, list_csv, list_csv_for_prediction, read_table
from mura_models.data.folds import assign_folds
from mura_models.data.scan import Listing, apply_rules
from mura_models.errors import DataError

DIALECTS = ((csv.QUOTE_ALL, "\n"), (csv.QUOTE_ALL, "\r\n"), (csv.QUOTE_ALL, "\r"), (csv.QUOTE_MINIMAL, "\r\n"))
"""How tables are written: quoting and line ends."""
STUDY = ["patient", "bone", "study"]

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
likely = st.sampled_from(["", "nan", "0", "1", "2", *LABELS, *SPLITS, "a.png", "hand", "a,b", 'a"b', "a;b\tc", "\n"])
cells = texts | likely


@st.composite
def draw_tables(draw):
    """Draw a header, rows of the same width, and the bytes of a CSV with them."""
    extra = draw(st.lists(st.sampled_from(["split", "fold", "scanner", "größe"]), unique=True, max_size=4))
    header = draw(st.permutations([*REQUIRED, *extra]))
    rows = draw(st.lists(st.lists(cells, min_size=len(header), max_size=len(header)), min_size=1, max_size=6))
    quoting, line_end = draw(st.sampled_from(DIALECTS))
    buffer = io.StringIO()
    delimiter = draw(st.sampled_from(",;\t"))
    csv.writer(buffer, delimiter=delimiter, quoting=quoting, lineterminator=line_end).writerows([header, *rows])
    return header, rows, buffer.getvalue().encode(draw(st.sampled_from(["utf-8", "utf-8-sig"])))


def read(content, reader):
    """Read these bytes from a file with `reader`; return None if it rejects them in one line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.csv"
        path.write_bytes(content)
        try:
            return reader(path)
        except DataError as error:
            assert len(str(error).splitlines()) == 1
            return None


@settings(max_examples=60, deadline=None)
@given(draw_tables())
def test_the_cells_of_a_table_are_read_as_they_were_written(table):
    header, rows, content = table
    written = [[cell.strip() for cell in row] for row in rows if any(row)]
    listing = read(content, read_table)
    if not written:
        assert listing is None
        return
    assert list(listing.table) == header
    assert listing.table.to_numpy().tolist() == written
    assert listing.quarantine.empty


@settings(max_examples=60, deadline=None)
@given(draw_tables())
def test_every_row_of_a_table_is_kept_or_excluded_with_a_reason(table):
    header, rows, content = table
    paths = sorted(row[header.index("path")].strip() for row in rows if any(row))
    for reader in (list_csv, list_csv_for_prediction):
        listing = read(content, reader)
        if listing is not None:
            assert sorted([*listing.table["path"], *listing.quarantine["path"]]) == paths
            assert (listing.quarantine["reason"] != "").all()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="replace")))
def test_any_bytes_are_a_table_or_rejected_in_one_line(content):
    for reader in (list_csv, list_csv_for_prediction):
        assert isinstance(read(b"path,bone,patient,study,label\n" + content, reader), Listing | None)
        assert isinstance(read(content, reader), Listing | None)


images = st.fixed_dictionaries(
    {
        "digest": st.integers(0, 20).map(str),
        "patient": st.integers(0, 12).map(str),
        "bone": st.sampled_from(["hand", "wrist", "hip"]),
        "study": st.sampled_from(["1", "2"]),
        "label": st.integers(0, 1),
        "split": st.sampled_from(["train", "train", "test"]),
    }
)


def apply(rows):
    """Apply the rules to drawn rows, which are identified by path."""
    return apply_rules(Listing(table=rows), study_columns=STUDY)


@settings(max_examples=40, deadline=None)
@given(st.lists(images, min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_the_rules_leave_no_leak_and_lose_no_row_in_any_order(drawn, random):
    rows = pd.DataFrame(drawn).assign(path=[f"{number}.png" for number in range(len(drawn))], fold=-1)
    listing = apply(rows)
    kept = listing.table
    assert sorted([*kept["path"], *listing.quarantine["path"]]) == sorted(rows["path"])
    sides = {split: kept[kept["split"] == split] for split in ("train", "test")}
    for column in ("patient", "digest"):
        assert not set(sides["train"][column]) & set(sides["test"][column])
    assert set(sides["test"]["bone"]) <= set(sides["train"]["bone"])
    for columns in (STUDY, ["digest"]):
        assert (kept.groupby(columns)["label"].nunique() <= 1).all()
    shuffled = random.sample(range(len(rows)), len(rows))
    assert set(apply(rows.iloc[shuffled].reset_index(drop=True)).table["path"]) == set(kept["path"])


def count_groups(rows):
    """Count the patients; patients who share images count as one."""
    groups = []
    for patient, digest in zip(rows["patient"], rows["digest"], strict=True):
        group = {("patient", patient), ("image", digest)}
        touching = [other for other in groups if other & group]
        groups = [other for other in groups if not other & group] + [group.union(*touching)]
    return len(groups)


@settings(max_examples=50, deadline=None)
@given(st.lists(images, min_size=1, max_size=40), st.integers(2, 4), st.randoms(use_true_random=False))
def test_folds_are_the_same_in_any_order_and_contain_each_patient_and_image_once(drawn, num_folds, random):
    rows = pd.DataFrame(drawn).assign(path=[f"{number}.png" for number in range(len(drawn))], fold=-1)
    kept = apply(rows).table
    is_train = (kept["split"] == "train").to_numpy()
    if count_groups(kept[is_train]) < num_folds:
        with pytest.raises(DataError, match="ask for fewer folds"):
            assign_folds(kept, num_folds=num_folds, seed=1)
        return
    folds = assign_folds(kept, num_folds=num_folds, seed=1)
    assert set(folds[is_train]) == set(range(num_folds))
    assert (folds[~is_train] == -1).all()
    for column in ("patient", "digest"):
        assert (pd.Series(folds[is_train]).groupby(kept[column][is_train].to_numpy()).nunique() == 1).all()
    order = random.sample(range(len(kept)), len(kept))
    assert np.array_equal(assign_folds(kept.iloc[order], num_folds=num_folds, seed=1), folds[order])


@settings(max_examples=50, deadline=None)
@given(st.lists(images, min_size=5, max_size=40), st.randoms(use_true_random=False))
def test_the_default_split_puts_every_patient_on_one_side_in_any_order(drawn, random):
    table = pd.DataFrame(drawn).assign(path=[f"{number}.png" for number in range(len(drawn))])
    table = table[list(REQUIRED)]
    listing = read(table.to_csv(index=False).encode(), list_csv)
    if table["patient"].nunique() < 5:
        assert listing is None
        return
    assert len(listing.table) == len(table)
    assert set(listing.table["split"]) == {"train", "test"}
    assert (listing.table.groupby("patient")["split"].nunique() == 1).all()
    shuffled = table.iloc[random.sample(range(len(table)), len(table))]
    again = read(shuffled.to_csv(index=False).encode(), list_csv)
    sides, sides_again = (
        dict(zip(found.table["path"], found.table["split"], strict=True)) for found in (listing, again)
    )
    assert sides == sides_again
