import hashlib
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mura_models.data.dataset import patient_codes, read_dataset, read_predict_input, study_codes
from mura_models.errors import DataError

HEADER = "path,bone,patient,study,label,split"
ROWS = [
    "a.png,hand,007,s1,0,train",
    "b.png,hand,008,s2,1,train",
    "c.png,hand,009,s3,0,test",
    "d.png,hand,010,s4,1,test",
]


@pytest.fixture
def folder(tmp_path):
    """Eight images, a.png to h.png, each with its own bytes."""
    folder = tmp_path / "clinic"
    folder.mkdir()
    for number, name in enumerate("abcdefgh"):
        Image.fromarray(np.full((20, 30), number, np.uint8)).save(folder / f"{name}.png")
    return folder


def write(folder, header, rows, name="manifest.csv", encoding="utf-8"):
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
    return path


def reasons(dataset):
    return dict(zip(dataset.quarantine["path"], dataset.quarantine["reason"], strict=True))


def test_a_csv_becomes_a_manifest(folder):
    seen = []
    path = write(folder, HEADER, ROWS)
    dataset = read_dataset(path, on_progress=lambda done, total: seen.append((done, total)))
    manifest = dataset.manifest
    assert (dataset.name, dataset.kind, dataset.is_phantom) == ("clinic", "csv", False)
    assert manifest["patient"].tolist() == ["007", "008", "009", "010"]
    assert manifest["label"].tolist() == [0, 1, 0, 1]
    assert manifest[["label", "fold"]].dtypes.tolist() == [np.int8, np.int16]
    assert manifest["digest"].iloc[0] == hashlib.sha256((folder / "a.png").read_bytes()).hexdigest()
    assert manifest[["width", "height", "mode"]].iloc[0].tolist() == [30, 20, "L"]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert read_dataset(write(folder, HEADER, ROWS, "second.csv")).name == "clinic-second"


def test_absolute_paths_and_extra_columns_are_carried(folder, tmp_path):
    rows = [f"{folder}/{row},x{number}" for number, row in enumerate(ROWS)]
    dataset = read_dataset(write(tmp_path, f"{HEADER},scanner", rows))
    assert dataset.manifest["scanner"].tolist() == ["x0", "x1", "x2", "x3"]
    assert dataset.manifest["file"].iloc[0] == str(folder / "a.png")


def test_a_manifest_that_was_written_can_be_read_again(folder):
    first = read_dataset(write(folder, HEADER, ROWS))
    first.manifest.to_csv(folder / "manifest.csv", index=False)
    second = read_dataset(folder / "manifest.csv")
    assert second.fingerprint() == first.fingerprint()
    pd.testing.assert_frame_equal(second.manifest, first.manifest)


def test_latin_1_is_read_with_a_note(folder):
    (folder / "a.png").rename(folder / "größe.png")
    dataset = read_dataset(write(folder, HEADER, ["größe.png,hand,7,s1,0,train", *ROWS[1:]], encoding="latin-1"))
    assert dataset.quarantine.empty
    assert dataset.notes == ("manifest.csv is not UTF-8: read as Latin-1",)


@pytest.mark.parametrize("words", [("0", "1"), ("0.0", "1.0"), ("normal", "Abnormal"), ("NEGATIVE", "positive")])
def test_labels_come_in_several_words(folder, words):
    rows = [row.replace(f",{code},t", f",{words[code]},t") for row in ROWS for code in (0, 1) if f",{code},t" in row]
    assert read_dataset(write(folder, HEADER, rows)).manifest["label"].tolist() == [0, 1, 0, 1]


def test_equal_study_names_of_two_patients_are_two_studies(folder):
    rows = [row.replace(",s1,", ",1,").replace(",s2,", ",1,") for row in ROWS]
    dataset = read_dataset(write(folder, HEADER, rows))
    assert dataset.quarantine.empty
    assert len(set(study_codes(dataset.manifest))) == 4


def test_dev_is_train_in_fold_0(folder):
    rows = [*ROWS, "e.png,hand,011,s5,0,dev"]
    last = read_dataset(write(folder, HEADER, rows)).manifest.iloc[-1]
    assert (last["split"], last["fold"]) == ("train", 0)


def test_given_folds_are_kept(folder):
    folds = ["3", "", "1", "2.0"]
    rows = [f"{row},{fold}" for row, fold in zip(ROWS, folds, strict=True)] + ["e.png,hand,7,s9,0,train,first"]
    dataset = read_dataset(write(folder, f"{HEADER},fold", rows))
    assert dataset.manifest["fold"].tolist() == [3, -1, -1, -1]  # test rows have none
    assert reasons(dataset) == {"e.png": "fold 'first' is not a whole number"}


@pytest.mark.parametrize("fold", ["\uff13", "\u0663"])
def test_a_fold_in_digits_of_another_script_is_excluded(folder, fold):
    dataset = read_dataset(
        write(folder, f"{HEADER},fold", [*(f"{row}," for row in ROWS), f"e.png,hand,7,s9,0,train,{fold}"])
    )
    assert reasons(dataset) == {"e.png": f"fold '{fold}' is not a whole number"}


def test_without_a_split_column_one_patient_in_five_is_test(tmp_path):
    rows = []
    for number in range(100):
        Image.new("L", (20, 20), number).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{('hand', 'hip')[number % 2]},p{number // 2},s{number},{number // 4 % 2}")
    dataset = read_dataset(write(tmp_path, "path,bone,patient,study,label", rows))
    manifest = dataset.manifest
    test = manifest[manifest["split"] == "test"]
    assert len(test) == 20
    assert test.groupby(["bone", "label"]).size().tolist() == [5, 5, 5, 5]
    assert not set(test["patient"]) & set(manifest["patient"][manifest["split"] == "train"])
    assert "no split column" in dataset.notes[0]
    again = read_dataset(write(tmp_path, "path,bone,patient,study,label", rows[::-1]))
    assert again.fingerprint() == dataset.fingerprint()


def test_a_path_that_is_not_there_is_refused(tmp_path):
    for read in (read_dataset, read_predict_input):
        with pytest.raises(DataError, match="no such file or folder"):
            read(tmp_path / "nowhere")


def test_prediction_needs_only_paths(folder):
    dataset = read_predict_input(write(folder, "path", ["a.png", "gone.png", "b.png"]))
    assert dataset.manifest["path"].tolist() == ["a.png", "b.png"]
    assert set(dataset.manifest) == {"path", "file", "digest", "width", "height", "mode"}
    assert reasons(dataset) == {"gone.png": "missing file"}
    assert study_codes(dataset.manifest).tolist() == [0, 1]


def test_prediction_does_not_check_labels_and_splits(folder):
    dataset = read_predict_input(write(folder, HEADER, [*ROWS, "e.png,hip,009,s3,,holdout", "f.png,,,,1,train"]))
    assert len(dataset.manifest) == 6
    assert dataset.manifest["label"].isna().tolist() == [False] * 4 + [True, False]
    assert dataset.manifest["label"].dropna().tolist() == [0, 1, 0, 1, 1]


def test_a_plain_folder_can_be_predicted(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "x.PNG").write_bytes((folder / "a.png").read_bytes())
    (folder / "._a.png").write_bytes(b"junk")
    (folder / "readme.txt").write_text("hello")
    dataset = read_predict_input(folder)
    assert dataset.kind == "folder"
    assert dataset.manifest["path"].tolist() == [*(f"{name}.png" for name in "abcd"), "deep/x.PNG"] + [
        f"{name}.png" for name in "efgh"
    ]
    assert dataset.notes == (f"1 files of other kinds in {folder} are ignored",)


def test_no_link_out_of_a_folder_to_predict_is_followed_and_each_is_listed(folder, tmp_path):
    Image.fromarray(np.full((20, 30), 99, np.uint8)).save(tmp_path / "secret.png")
    (tmp_path / "other").mkdir()
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "in.png").symlink_to(folder / "a.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "linked").symlink_to(tmp_path / "other")
    os.mkfifo(folder / "pipe.png")
    dataset = read_predict_input(folder)
    assert dataset.manifest["path"].tolist() == sorted([*(f"{name}.png" for name in "abcdefgh"), "in.png"])
    assert reasons(dataset) == {
        "out.png": "link out of the data folder",
        "linked": "link to a folder",
        "gone.png": "missing file",
        "pipe.png": "not a file",
    }


def test_a_name_that_is_not_utf_8_is_excluded_with_a_reason(folder):
    """No table could contain it."""
    os.rename(folder / "a.png", os.fsencode(folder) + b"/gr\xf6\xdfe.png")  # noqa: PTH104, a Path holds no bytes
    dataset = read_predict_input(folder)
    assert len(dataset.manifest) == 7
    assert reasons(dataset) == {r"gr\udcf6\udcdfe.png": "name is not UTF-8"}


def test_a_list_without_a_header_can_be_predicted(folder):
    path = folder / "list.csv"
    path.write_text("a.png\nb.png\na.png\n")
    dataset = read_predict_input(path)
    assert dataset.manifest["path"].tolist() == ["a.png", "b.png"]
    assert reasons(dataset) == {"a.png": "duplicate row"}


def test_an_empty_folder_cannot_be_predicted(tmp_path):
    with pytest.raises(DataError, match="no image that can be read"):
        read_predict_input(tmp_path)


def test_codes_keep_unknown_rows_apart():
    frame = pd.DataFrame(
        {"patient": ["p", "p", "q", None, None, "p"], "study": ["1", "1", "1", None, "2", None], "bone": "hand"}
    )
    assert study_codes(frame).tolist() == [0, 0, 1, 2, 3, 4]
    assert patient_codes(frame).tolist() == [0, 0, 1, 2, 3, 0]
    assert patient_codes(frame[["study"]]).tolist() == [0, 1, 2, 3, 4, 5]
    assert study_codes(frame[["study"]]).tolist() == [0, 0, 0, 1, 2, 3]
