"""Known label errors, given as a CSV."""

import io
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mura_models.data.dataset import read_dataset
from mura_models.errors import DataError
from orchestrator.ingest.dataset import open_dataset
from orchestrator.ingest.overview import summarize_data
from orchestrator.progress import Progress

HEADER = "path,bone,patient,study,label,split"
ROWS = [
    "a.png,hand,007,s1,0,train",
    "b.png,hand,008,s2,1,train",
    "c.png,hand,008,s2,1,train",
    "d.png,hand,009,s3,0,test",
    "e.png,hand,010,s4,1,test",
    "f.png,hand,011,s5,0,train",
]
MURA = {
    "train/XR_HUMERUS/patient00001/study1_positive": 2,
    "train/XR_HUMERUS/patient00002/study1_negative": 1,
    "train/XR_HUMERUS/patient00003/study1_positive": 1,
    "valid/XR_HUMERUS/patient00011/study1_positive": 1,
    "valid/XR_HUMERUS/patient00012/study1_negative": 1,
}


@pytest.fixture
def manifest(tmp_path):
    """Five studies, six images; patient 008 has two images in one study."""
    folder = tmp_path / "clinic"
    folder.mkdir()
    for number, name in enumerate("abcdef"):
        Image.fromarray(np.full((20, 30), number, np.uint8)).save(folder / f"{name}.png")
    (folder / "manifest.csv").write_text("\n".join([HEADER, *ROWS]) + "\n")
    return folder / "manifest.csv"


@pytest.fixture
def mura(tmp_path):
    """A MURA tree without its CSVs."""
    root = tmp_path / "MURA-v1.1"
    for study, num_images in MURA.items():
        (root / study).mkdir(parents=True)
        for number in range(num_images):
            image_HW = np.full((20, 20), 10 * len(list(root.rglob("*.png"))), np.uint8)
            Image.fromarray(image_HW).save(root / study / f"image{number + 1}.png")
    return root


def correct(data, *lines, header="path,study,label,source"):
    """Read a data set with the corrections in these lines."""
    file = data.parent / "corrections.csv"
    file.write_text("\n".join([header, *lines]) + "\n")
    return read_dataset(data, corrections=file)


def labels(dataset):
    return dict(zip(dataset.manifest["path"], dataset.manifest["label"], strict=True))


def test_a_path_and_a_study_are_corrected_and_counted(manifest):
    before = read_dataset(manifest)
    dataset = correct(manifest, "a.png,,1,second reader", ",008/hand/s2,0,ward round", "d.png,,0,ward round")
    assert labels(dataset) == labels(before) | {"a.png": 1, "b.png": 0, "c.png": 0}
    assert dataset.manifest["label"].dtype == np.int8
    assert asdict(summarize_data(dataset, dataset.manifest, dataset.quarantine).corrections) == {
        "file": "corrections.csv",
        "num_rows": 3,
        "images_changed": 3,
        "images_unchanged": 1,
        "by_source": {"second reader": 1, "ward round": 2},
    }


def test_corrected_labels_make_another_run_and_unchanged_ones_the_same(manifest):
    before = read_dataset(manifest)
    assert correct(manifest, "a.png,,1,reader").fingerprint() != before.fingerprint()
    unchanged = correct(manifest, "a.png,,0,reader")
    assert unchanged.fingerprint() == before.fingerprint()
    assert (unchanged.corrections.images_changed, unchanged.corrections.images_unchanged) == (0, 1)


def test_without_a_file_nothing_is_corrected(manifest):
    dataset = read_dataset(manifest)
    assert dataset.corrections is None
    assert summarize_data(dataset, dataset.manifest, dataset.quarantine).corrections is None


def test_one_corrected_image_of_several_leaves_its_study_with_two_labels(manifest):
    dataset = correct(manifest, "b.png,,0,reader", "a.png,,1,reader")
    assert dict(dataset.quarantine.to_numpy()) == dict.fromkeys(["b.png", "c.png"], "study carries two labels")
    assert correct(manifest, ",008/hand/s2,0,reader", "a.png,,1,reader").quarantine.empty


def test_correcting_every_image_of_a_study_keeps_it(manifest):
    dataset = correct(manifest, "b.png,,0,x", "c.png,,0,x", "a.png,,1,x")
    assert dataset.quarantine.empty
    assert dataset.corrections.images_changed == 3


@pytest.mark.parametrize(
    "study",
    [
        "train/XR_HUMERUS/patient00001/study1_positive",
        "train/XR_HUMERUS/patient00001/study1_positive/",
        "MURA-v1.1/train/XR_HUMERUS/patient00001/study1_positive",
        "MURA-v1.1/train/XR_HUMERUS/patient00001/study1_positive/",
    ],
)
def test_a_study_of_mura_is_named_by_its_folder(mura, study):
    dataset = correct(mura, f"{study},0,paper", header="study,label,source")
    changed = {path for path, label in labels(dataset).items() if label == 0 and "positive" in path}
    assert changed == {
        f"MURA-v1.1/train/XR_HUMERUS/patient00001/study1_positive/image{number}.png" for number in (1, 2)
    }
    assert dataset.quarantine.empty


def test_a_table_that_lists_muras_images_takes_its_folders_too(mura):
    rows = [f"{path.relative_to(mura.parent)}" for path in sorted(mura.rglob("*.png"))]
    table = mura.parent / "manifest.csv"
    split = {"train": "train", "valid": "test"}
    lines = [f"{row},humerus,{row.split('/')[3]},1,{int('positive' in row)},{split[row.split('/')[1]]}" for row in rows]
    table.write_text("\n".join([HEADER, *lines]) + "\n")
    dataset = correct(table, ",train/XR_HUMERUS/patient00001/study1_positive,0,paper")
    assert dataset.corrections.images_changed == 2


def test_a_corrected_image_that_cannot_be_read_is_no_mistake(manifest):
    (manifest.parent / "f.png").write_bytes(b"")
    dataset = correct(manifest, "f.png,,1,reader", "d.png,,1,reader")
    assert (dataset.corrections.num_rows, dataset.corrections.images_changed) == (2, 1)


def test_labels_corrected_before_the_rules_can_leave_nothing_to_learn(manifest):
    with pytest.raises(DataError, match="every train image has label 0"):
        correct(manifest, ",008/hand/s2,0,reader")


def test_spreadsheets_and_quoted_sources_are_understood(manifest):
    dataset = correct(manifest, 'a.png;abnormal;"Smith; 2020"', header="\ufeffPath;Label;Source")
    assert dataset.corrections.by_source == {"Smith; 2020": 1}


@pytest.mark.parametrize(
    ("header", "lines", "match"),
    [
        ("path,label", ["a.png,1"], r"no column source \(found: path, label\)"),
        ("path,source", ["a.png,x"], "no column label"),
        ("image,label,source", ["a.png,1,x"], "no column path or study"),
        ("path,label,source", ["a.png,2,x"], "row 1: label '2' is not 0 or 1"),
        ("path,label,source", ["a.png,,x"], "row 1: label '' is not 0 or 1"),
        ("path,label,source", ["b.png,1,x", "a.png,1,"], "row 2: source is empty"),
        ("path,label,source", ["a.png,1,n/a"], "row 1: source is empty"),
        ("path,label,source", ["a.png,1,Smith, 2020"], "row 1 has more cells than the header"),
        ("path,label,source", ["gone.png,1,x"], "row 1: path 'gone.png' matches no image"),
        ("path,study,label,source", [",008/hand/s9,1,x"], "row 1: study '008/hand/s9' matches no image"),
        ("path,study,label,source", ["a.png,007/hand/s1,1,x"], "row 1: path 'a.png' and study '007/hand/s1' are both"),
        ("path,study,label,source", [",,1,x"], "row 1: neither path nor study"),
        (
            "path,label,source",
            ["a.png,1,x", "a.png,0,y"],
            "rows 1 and 2 contradict each other: path 'a.png' is 1, path 'a.png' is 0",
        ),
        (
            "path,study,label,source",
            [",008/hand/s2,0,x", "c.png,,1,y"],
            "rows 1 and 2 contradict each other: study '008/hand/s2' is 0, path 'c.png' is 1",
        ),
        ("path,label,source", [], "no rows"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(manifest, header, lines, match):
    with pytest.raises(DataError, match=match) as caught:
        correct(manifest, *lines, header=header)
    assert "\n" not in str(caught.value)
    assert "corrections.csv" in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.csv", "clinic"])
def test_a_file_that_cannot_be_read_is_one_line(manifest, name):
    file = manifest.parent.parent / name
    with pytest.raises(DataError, match=f"{name}: cannot be read"):
        read_dataset(manifest, corrections=file)


def test_the_terminal_reports_what_was_corrected(manifest):
    (manifest.parent / "fixes.csv").write_text("path,label,source\na.png,1,x\nd.png,0,x\n")
    console = Console(width=80, record=True, file=io.StringIO())
    open_dataset(manifest, Progress(console), manifest.parent / "fixes.csv")
    expected = "note: labels corrected by fixes.csv: 1 images changed, 1 were labeled so already"
    assert expected in console.export_text()
