"""`Bundle.predict` for every form of input, and `mura predict`, which writes its table into a file."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from factories import write_small_bundle
from PIL import Image

import mura_models as mura
from mura_models.errors import BundleError, DataError, SettingError
from mura_models.inference.predict import predict_files

ANSWERS = ["bone_predicted", "p_bone", "p_abnormal", "prediction"]
NAMES = ["a.png", "b.png", "c.png", "d.png"]


@pytest.fixture(scope="module")
def bundle_dir(tmp_path_factory):
    """A bundle on disk, small enough to predict in milliseconds."""
    folder = tmp_path_factory.mktemp("bundle")
    write_small_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(bundle_dir):
    """The same in memory."""
    return mura.load_bundle(str(bundle_dir))


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder of four images and a file that is none, as the working directory."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (80, 60), np.uint8)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_predicted_and_the_excluded_file_is_listed(bundle, images):
    table = bundle.predict(images)
    assert list(table) == ["path", *ANSWERS]
    assert list(table["path"]) == NAMES
    assert table["p_abnormal"].between(0, 1).all()
    assert set(table["bone_predicted"]) <= set(bundle.assembly.classes)
    (excluded,) = table.attrs["excluded"]
    assert excluded["path"] == "broken.png"
    assert excluded["reason"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is mapped")
def test_scratch_files_are_removed_when_they_are_mapped_no_longer(bundle, images, monkeypatch):
    """Windows would refuse it before."""
    is_mapped = []
    cleanup = tempfile.TemporaryDirectory.cleanup

    def watch(folder):
        is_mapped.append(folder.name in Path("/proc/self/maps").read_text())
        cleanup(folder)

    monkeypatch.setattr(tempfile.TemporaryDirectory, "cleanup", watch)
    bundle.predict(images)
    assert is_mapped
    assert not any(is_mapped)


def test_files_a_csv_and_a_data_frame_get_the_answers_of_the_folder(bundle, images):
    answers = bundle.predict("./")[ANSWERS]
    rows = pd.DataFrame({"path": NAMES, "bone": "hand", "patient": list("wxyz"), "study": "s", "label": [0, 1, 0, 1]})
    rows.to_csv("rows.csv", index=False)
    alone = pd.concat([bundle.predict(name)[ANSWERS] for name in NAMES], ignore_index=True)
    described = ["path", "bone", "patient", "study", "label"]
    for given, known in (
        (NAMES, ["path"]),
        ([images / name for name in NAMES], ["path"]),
        ("rows.csv", described),
        (rows, described),
        (rows.assign(path=["1", "2", "3", "4"], file=[str(images / name) for name in NAMES]), described),
    ):
        table = bundle.predict(given)
        assert list(table) == [*known, *ANSWERS]
        pd.testing.assert_frame_equal(table[ANSWERS], answers, check_exact=True)
    pd.testing.assert_frame_equal(alone, answers, rtol=1e-4)  # batches of one


def test_a_data_frame_keeps_what_it_says_of_each_image(bundle, images):
    rows = pd.DataFrame({"path": NAMES, "label": [0, 1, None, 1], "patient": [7, 7, 8, 9]}, index=[5, 3, 8, 1])
    table = bundle.predict(rows)
    assert table["label"].tolist() == [0, 1, pd.NA, 1]
    assert table["patient"].tolist() == ["7", "7", "8", "9"]
    assert list(table.index) == [0, 1, 2, 3]
    flags = bundle.predict(pd.DataFrame({"path": NAMES, "label": [False, True, False, True]}))
    assert flags["label"].tolist() == [0, 1, 0, 1]


def test_images_of_a_study_share_their_bone(bundle, images):
    rows = pd.DataFrame({"path": NAMES, "patient": "p", "study": "s"})
    table = bundle.predict(rows)
    assert table["bone_predicted"].nunique() == 1
    assert table["p_bone"].nunique() == 1


def test_a_data_set_and_one_split_of_it(bundle, images):
    rows = pd.DataFrame({"path": NAMES, "bone": "hand", "study": "s", "label": [0, 1, 0, 1]})
    rows.assign(patient=NAMES, split=["train", "train", "test", "test"]).to_csv("rows.csv", index=False)
    data = mura.read_dataset("rows.csv")
    whole, part = bundle.predict(data), bundle.predict(data, split="test")
    assert list(whole["path"]) == NAMES
    assert list(part["path"]) == NAMES[2:]
    assert list(bundle.predict(data.manifest[data.manifest["split"] == "test"])["path"]) == NAMES[2:]


def test_a_file_listed_twice_and_one_that_is_not_there_are_excluded(bundle, images):
    table = bundle.predict(["a.png", "gone.png", images / "a.png"])
    assert list(table["path"]) == ["a.png"]
    assert table.attrs["excluded"] == [
        {"path": str(images / "a.png"), "reason": "duplicate row"},
        {"path": "gone.png", "reason": "missing file"},
    ]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("gone.png", "no image that can be read; 1 file excluded, most often: missing file"),
        ([], "no image that can be read$"),
        (["gone.png"], "no image that can be read; 1 file excluded"),
        (pd.DataFrame({"file": ["a.png"]}), r"the table has no column path \(found: file\)"),
        (pd.DataFrame({"path": []}), "no image that can be read$"),
    ],
)
def test_what_cannot_be_predicted_is_a_data_error(bundle, images, given, text):
    with pytest.raises(DataError, match=text):
        bundle.predict(given)


def test_a_split_that_is_not_there_is_refused(bundle, images):
    with pytest.raises(SettingError, match="split=dev: images has no such rows"):
        bundle.predict(NAMES, split="dev")


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
def test_mura_predict_writes_the_table_of_bundle_predict(bundle, bundle_dir, images, capsys, suffix):
    out = images / f"predictions{suffix}"
    predict_files(bundle_dir, images, out)
    table = bundle.predict(images)
    if suffix == ".json":
        written = pd.DataFrame(json.loads(out.read_text()))
        pd.testing.assert_frame_equal(written, table, check_dtype=False, rtol=1e-9)
    elif suffix == ".csv":
        read = pd.read_csv(out)
        pd.testing.assert_frame_equal(read, table, check_dtype=False, check_exact=True)
    else:
        pd.testing.assert_frame_equal(pd.read_parquet(out), table, check_dtype=False, check_exact=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("excluded: broken.png: ")
    assert lines[1:] == [f"4 images: {out}"]


def test_a_file_that_cannot_be_written_is_refused_before_the_bundle_is_read(images):
    with pytest.raises(SettingError, match=r"out=a.xlsx: must end in .csv, .parquet, .json"):
        predict_files("nowhere", images, images.__class__("a.xlsx"))


def test_no_bundle_is_a_bundle_error(tmp_path):
    with pytest.raises(BundleError, match="cannot be read"):
        mura.load_bundle(tmp_path)


def test_without_a_usable_image_every_excluded_file_is_printed(bundle_dir, images, tmp_path, capsys):
    folder = tmp_path / "truncated"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        content = (images / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="no image can be used") as raised:
        predict_files(bundle_dir, folder, tmp_path / "out.csv")
    assert [file["path"] for file in raised.value.excluded] == ["a.png", "b.png"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["excluded", "a.png"], ["excluded", "b.png"]]
    assert not (tmp_path / "out.csv").exists()
