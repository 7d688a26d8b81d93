import errno
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mura_models.data.dataset import read_dataset, read_predict_input, study_codes
from mura_models.data.mura import compare_counts, find_tree
from mura_models.errors import DataError
from mura_models.phantom.counts import plan_studies

BUFFER = io.BytesIO()
Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)[:, ::-1].copy() % 251).save(BUFFER, "PNG")
PNG = BUFFER.getvalue()

# What remains of a tree after the scan: two bones, both labels, four patients in train.
STUDIES = {
    "train/XR_HAND/patient00001/study1_positive": 2,
    "train/XR_HAND/patient00002/study1_negative": 3,
    "train/XR_WRIST/patient00002/study1_positive": 1,
    "train/XR_WRIST/patient00003/study1_negative": 1,
    "valid/XR_HAND/patient11185/study1_positive": 1,
    "valid/XR_WRIST/patient11186/study1_negative": 2,
}


def write_tree(root, studies=STUDIES):
    """Write a MURA tree and its four CSVs; the test chooses the name of the folder."""
    tables = {f"{split}_{kind}": "" for split in ("train", "valid") for kind in ("image_paths", "labeled_studies")}
    for study, num_images in studies.items():
        split = study.partition("/")[0]
        (root / study).mkdir(parents=True)
        tables[f"{split}_labeled_studies"] += f"MURA-v1.1/{study}/,{int(study.endswith('positive'))}\n"
        for number in range(1, num_images + 1):
            image = PNG + f"{study} {number}".encode()  # bytes after the image make it another file
            (root / study / f"image{number}.png").write_bytes(image)
            tables[f"{split}_image_paths"] += f"MURA-v1.1/{study}/image{number}.png\n"
    for name, text in tables.items():
        (root / f"{name}.csv").write_text(text)
    return root


def reasons(dataset):
    return dict(zip(dataset.quarantine["path"], dataset.quarantine["reason"], strict=True))


def append(table, *lines):
    table.write_text(table.read_text() + "".join(f"{line}\n" for line in lines))


def test_a_tree_becomes_a_manifest(tmp_path):
    dataset = read_dataset(write_tree(tmp_path / "MURA-v1.1"))
    assert (dataset.name, dataset.kind, dataset.is_phantom) == ("mura-v1.1", "mura", False)
    assert len(dataset.manifest) == 10
    assert dataset.quarantine.empty
    first = dataset.manifest.iloc[0]
    assert first["path"] == "MURA-v1.1/train/XR_HAND/patient00001/study1_positive/image1.png"
    assert first[["bone", "patient", "study", "split"]].tolist() == [
        "hand",
        "patient00001",
        "patient00001/XR_HAND/study1",
        "train",
    ]
    assert (first["label"], first["fold"], first["width"], first["height"]) == (1, -1, 20, 20)
    assert dataset.manifest["split"].value_counts().to_dict() == {"train": 7, "test": 3}
    assert len(set(study_codes(dataset.manifest))) == len(STUDIES)


@pytest.mark.parametrize("missing", ["train_image_paths", "valid_image_paths", "train_labeled_studies", "all"])
def test_folder_names_stand_in_for_each_missing_csv(tmp_path, missing):
    root = write_tree(tmp_path / "MURA-v1.1")
    whole = read_dataset(root)
    for table in root.glob("*.csv"):
        if missing in ("all", table.stem):
            table.unlink()
    dataset = read_dataset(root)
    assert dataset.fingerprint() == whole.fingerprint()
    assert sorted(dataset.manifest["path"]) == sorted(whole.manifest["path"])
    assert any("is missing" in note for note in dataset.notes)


def test_a_renamed_root_and_its_parent_are_found(tmp_path):
    root = write_tree(tmp_path / "copies" / "My X-rays")
    (tmp_path / "copies" / "__MACOSX" / "train" / "XR_HAND" / "patient00001").mkdir(parents=True)
    dataset = read_dataset(tmp_path / "copies")
    assert dataset.name == "my-x-rays"
    assert dataset.fingerprint() == read_dataset(root).fingerprint()


def test_two_trees_in_one_folder_are_refused(tmp_path):
    write_tree(tmp_path / "a")
    write_tree(tmp_path / "b")
    with pytest.raises(DataError, match="name one of a, b"):
        read_dataset(tmp_path)


def close(monkeypatch, folder):
    """Deny access to the inside of a folder, by a patch since permissions do not bind the root user."""
    stat = Path.stat

    def refuse(path, **options):
        if folder in path.parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)


def test_a_folder_that_may_not_be_entered_hides_no_tree_next_to_it(tmp_path, monkeypatch):
    write_tree(tmp_path / "MURA-v1.1")
    (tmp_path / "lost+found").mkdir()
    close(monkeypatch, tmp_path / "lost+found")
    assert find_tree(tmp_path) == tmp_path / "MURA-v1.1"


def test_a_folder_that_may_not_be_entered_is_one_line(tmp_path, monkeypatch):
    folder = tmp_path / "closed"
    write_tree(folder / "MURA-v1.1")
    close(monkeypatch, folder)
    with pytest.raises(
        DataError, match=r"closed: cannot be read \(Permission denied\); give a folder that you may read"
    ):
        find_tree(folder)


@pytest.mark.parametrize("with_tables", [True, False])
def test_files_that_desktops_leave_behind_are_no_images(tmp_path, with_tables):
    root = write_tree(tmp_path / "MURA-v1.1")
    study = root / "train/XR_HAND/patient00001/study1_positive"
    for name in (".DS_Store", "._image1.png", "Thumbs.db"):
        (study / name).write_bytes(b"junk")
    (root / "train" / ".DS_Store").write_bytes(b"junk")
    if not with_tables:
        for table in root.glob("*.csv"):
            table.unlink()
    dataset = read_dataset(root)
    assert len(dataset.manifest) == 10
    assert dataset.quarantine.empty


def test_each_defect_is_named_and_the_rest_stays(tmp_path):
    """A few studies, and each defect once."""
    root = write_tree(
        tmp_path / "MURA-v1.1",
        STUDIES
        | {
            "train/XR_HAND/patient00010/study1_positive": 8,
            "train/XR_HAND/patient00011/study1_positive": 1,
            "train/XR_HAND/patient00011/study1_negative": 1,
            "train/XR_WRIST/patient11185/study1_positive": 1,
            "valid/XR_HUMERUS/patient11187/study1_positive": 1,
        },
    )
    damaged = root / "train/XR_HAND/patient00010/study1_positive"
    (damaged / "image1.png").unlink()
    (damaged / "image2.png").write_bytes(PNG[:20])
    (damaged / "image3.png").write_bytes(b"")
    (damaged / "image4.png").write_bytes(b"no pixels")
    Image.new("1", (20000, 20000)).save(damaged / "image5.png")
    secret = tmp_path / "secret.png"
    secret.write_bytes(PNG)
    (damaged / "image6.png").unlink()
    (damaged / "image6.png").symlink_to(secret)
    (damaged / "image7.png").unlink()
    (damaged / "image7.png").symlink_to(damaged / "image8.png")
    append(root / "train_image_paths.csv", "MURA-v1.1/train/readme.png")

    dataset = read_dataset(root)
    at = "MURA-v1.1/train/XR_HAND/patient00010/study1_positive"
    assert reasons(dataset) == {
        f"{at}/image1.png": "missing file",
        f"{at}/image2.png": "truncated",
        f"{at}/image3.png": "zero bytes",
        f"{at}/image4.png": "not an image",
        f"{at}/image5.png": "too large: 20000 x 20000 px (at most 89478485 pixels)",
        f"{at}/image6.png": "link out of the data folder",
        "MURA-v1.1/train/XR_HAND/patient00011/study1_positive/image1.png": "study carries two labels",
        "MURA-v1.1/train/XR_HAND/patient00011/study1_negative/image1.png": "study carries two labels",
        "MURA-v1.1/train/XR_WRIST/patient11185/study1_positive/image1.png": "patient also in test",
        "MURA-v1.1/valid/XR_HUMERUS/patient11187/study1_positive/image1.png": "bone not in train",
        "MURA-v1.1/train/readme.png": "not a path of MURA's train images",
    }
    assert len(dataset.manifest) == 12


def test_a_folder_linked_from_elsewhere_is_excluded(tmp_path):
    root = write_tree(tmp_path / "MURA-v1.1")
    outside = write_tree(tmp_path / "other" / "MURA")
    for table in root.glob("*.csv"):
        table.unlink()
    (root / "train/XR_HAND/patient00099").symlink_to(outside / "train/XR_HAND/patient00001")
    dataset = read_dataset(root)
    assert set(reasons(dataset).values()) == {"link out of the data folder"}
    assert len(dataset.quarantine) == 2


def test_a_name_that_is_not_utf_8_is_excluded_with_a_reason(tmp_path):
    root = write_tree(tmp_path / "MURA-v1.1")
    for table in root.glob("*.csv"):
        table.unlink()
    study = root / "train/XR_HAND/patient00001/study1_positive"
    (study / "image2.png").rename(os.fsdecode(os.fsencode(study) + b"/gr\xf6\xdfe.png"))
    dataset = read_dataset(root)
    name = r"MURA-v1.1/train/XR_HAND/patient00001/study1_positive/gr\udcf6\udcdfe.png"
    assert reasons(dataset) == {name: "name is not UTF-8"}
    assert len(dataset.manifest) == 9


def test_the_csv_is_trusted_over_the_folder_name(tmp_path):
    root = write_tree(tmp_path / "MURA-v1.1")
    labels = root / "train_labeled_studies.csv"
    labels.write_text(labels.read_text().replace("patient00001/study1_positive/,1", "patient00001/study1_positive/,0"))
    dataset = read_dataset(root)
    assert dataset.manifest["label"].iloc[0] == 0
    assert any("2 images are in a folder of the other label" in note for note in dataset.notes)


def test_a_study_that_the_csv_labels_twice_is_excluded(tmp_path):
    root = write_tree(tmp_path / "MURA-v1.1")
    append(root / "train_labeled_studies.csv", "MURA-v1.1/train/XR_HAND/patient00001/study1_positive/,0")
    append(root / "valid_labeled_studies.csv", "MURA-v1.1/valid/XR_WRIST/patient11186/study1_negative/,0")
    assert list(reasons(read_dataset(root)).values()) == ["study carries two labels"] * 2


@pytest.mark.parametrize("num_studies", [len(STUDIES), 4000])
def test_a_stray_quote_swallows_no_labels(tmp_path, num_studies):
    root = write_tree(tmp_path / "MURA-v1.1")
    table = root / "train_labeled_studies.csv"
    append(table, *(f"MURA-v1.1/train/XR_HAND/patient{n:05}/study1_positive/,1" for n in range(100, 100 + num_studies)))
    lines = table.read_text().splitlines()
    lines[1] = f'"{lines[1]}'
    table.write_text("\n".join(lines))
    with pytest.raises(
        DataError, match=r"train_labeled_studies\.csv: not a CSV \(.*, in the row that begins in line 2\)"
    ):
        read_dataset(root)


def test_images_that_no_csv_lists_are_ignored_with_a_note(tmp_path):
    root = write_tree(tmp_path / "MURA-v1.1")
    (root / "train/XR_HAND/patient00001/study1_positive/image9.png").write_bytes(PNG)
    dataset = read_dataset(root)
    assert len(dataset.manifest) == 10
    assert any("1 train images on the disk are not in train_image_paths.csv" in note for note in dataset.notes)


def test_counts_are_compared_with_the_published_ones(tmp_path):
    small = read_dataset(write_tree(tmp_path / "MURA-v1.1"))
    (note,) = [note for note in small.notes if note.startswith("counts")]
    assert note.startswith("counts differ from MURA v1.1: train patients 3 (published 11,184)")
    assert "\n" not in note
    # The phantom at scale 1.0 has MURA's counts: repeat its plan as rows of a manifest.
    rows = small.manifest.iloc[:0]
    studies = [study for study in plan_studies(1.0, 0) for _ in range(study.num_projections)]
    rows = rows.reindex(range(len(studies))).assign(
        split=["train" if study.split == "train" else "test" for study in studies],
        bone=[study.bone[3:].lower() for study in studies],
        patient=[str(study.patient) for study in studies],
        study=[study.folder for study in studies],
        label=[study.label for study in studies],
    )
    assert compare_counts(rows) == "counts match MURA v1.1"
    assert "train images 36,807 (published 36,808)" in compare_counts(rows.iloc[1:])


def test_a_phantom_is_recognized_and_not_compared(tmp_path):
    root = write_tree(tmp_path / "MURA-v1.1")
    (tmp_path / "phantom.json").write_text(json.dumps({"synthetic": True}))
    dataset = read_dataset(root)
    assert dataset.is_phantom
    assert not any(note.startswith("counts") for note in dataset.notes)


def test_the_fingerprint_depends_on_what_models_learn_from(tmp_path):
    dataset = read_dataset(write_tree(tmp_path / "MURA-v1.1"))
    manifest = dataset.manifest
    shuffled = replace(dataset, manifest=manifest.sample(frac=1, random_state=0).assign(path="elsewhere", mode="P"))
    assert shuffled.fingerprint() == dataset.fingerprint()
    other = replace(dataset, manifest=manifest.assign(label=1 - manifest["label"]))
    assert other.fingerprint() != dataset.fingerprint()


def test_a_folder_that_is_no_tree_is_refused_in_one_line(tmp_path):
    (tmp_path / "holiday.png").write_bytes(PNG)
    with pytest.raises(DataError, match="not a MURA folder") as caught:
        read_dataset(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_tree_with_nothing_left_is_refused_with_the_reason(tmp_path):
    root = write_tree(tmp_path / "MURA-v1.1")
    for image in root.rglob("*.png"):
        image.write_bytes(b"")
    with pytest.raises(DataError, match=r"no usable train image; 10 files excluded, most often: zero bytes \(10\)"):
        read_dataset(root)
    for table in root.glob("*image_paths.csv"):
        table.write_text("")
    with pytest.raises(DataError, match="no usable train image"):
        read_dataset(root)


def test_a_tree_can_be_predicted_without_its_train_half(tmp_path):
    valid = {study: num for study, num in STUDIES.items() if study.startswith("valid")}
    dataset = read_predict_input(write_tree(tmp_path / "MURA-v1.1", valid))
    assert dataset.manifest["split"].tolist() == ["test"] * 3


def test_the_official_list_of_paths_can_be_predicted(tmp_path):
    root = write_tree(tmp_path / "renamed")
    dataset = read_predict_input(root / "valid_image_paths.csv")
    assert dataset.manifest["path"].iloc[0] == "MURA-v1.1/valid/XR_HAND/patient11185/study1_positive/image1.png"
    assert dataset.manifest["study"].nunique() == 2
    assert dataset.manifest["label"].tolist() == [1, 0, 0]
