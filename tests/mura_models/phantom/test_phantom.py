"""The phantom reads like MURA, is reproducible, and its label shows in nothing but the findings."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from factories import list_names
from PIL import Image
from sklearn.metrics import roc_auc_score

from mura_models.data.mura_counts import MURA_COUNTS
from mura_models.errors import ConfigError
from mura_models.phantom import write_phantom
from mura_models.phantom.counts import plan_studies
from mura_models.phantom.study import BUILDERS, write_study

TINY = 0.002


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a whole phantom of the smallest size."""
    folder = tmp_path_factory.mktemp("phantom") / "tiny"
    write_phantom(folder, scale=TINY, workers=2)
    return folder


@pytest.fixture(scope="module")
def studies(root: Path) -> pd.DataFrame:
    """Read both study tables and split the paths into their parts."""
    tables = []
    for split in ("train", "valid"):
        table = pd.read_csv(root / f"MURA-v1.1/{split}_labeled_studies.csv", names=["path", "label"])
        tables.append(table.assign(split=split))
    table = pd.concat(tables, ignore_index=True)
    parts = r"(?P<folder>\w+)/(?P<bone>XR_[A-Z]+)/(?P<patient>patient\d{5})/study\d+_(?P<word>\w+)"
    return table.join(table["path"].str.extract(rf"^MURA-v1\.1/{parts}/$"))


def test_tables_and_folders_agree(root: Path, studies: pd.DataFrame) -> None:
    assert (studies["folder"] == studies["split"]).all()
    assert (studies["word"] == studies["label"].map({1: "positive", 0: "negative"})).all()
    listed = [
        line
        for split in ("train", "valid")
        for line in (root / f"MURA-v1.1/{split}_image_paths.csv").read_text().splitlines()
    ]
    on_disk = [path.relative_to(root).as_posix() for path in root.glob("MURA-v1.1/*/*/*/*/*")]
    assert sorted(listed) == sorted(on_disk)
    assert {path.rsplit("/", 1)[0] + "/" for path in listed} == set(studies["path"])
    projections = Counter(path.rsplit("/", 1)[0] for path in listed)
    assert min(projections.values()) >= 1
    assert max(projections.values()) <= 4


def test_every_bone_has_enough_studies_to_train_and_test(studies: pd.DataFrame) -> None:
    counts = studies.groupby(["split", "bone", "label"]).size().unstack("split")
    assert len(counts) == 14
    assert counts["valid"].min() >= 15
    assert counts["train"].min() >= 4


def test_no_patient_is_in_both_splits_and_some_have_several_bones(studies: pd.DataFrame) -> None:
    assert studies.groupby("patient")["split"].nunique().max() == 1
    assert studies.groupby("patient")["bone"].nunique().max() > 1


def test_full_size_has_the_counts_of_mura() -> None:
    planned = plan_studies(1.0, seed=0)
    images: Counter[tuple[str, str, int]] = Counter()
    studies: Counter[tuple[str, str, int]] = Counter()
    for study in planned:
        images[study.split, study.bone, study.label] += study.num_projections
        studies[study.split, study.bone, study.label] += 1
    for split, by_bone in MURA_COUNTS.items():
        for bone, (num_studies, num_images) in by_bone.items():
            assert tuple(studies[split, bone, label] for label in (0, 1)) == num_studies
            assert tuple(images[split, bone, label] for label in (0, 1)) == num_images
    assert sum(images.values()) == 40_005
    patients = {split: {s.patient for s in planned if s.split == split} for split in ("train", "valid")}
    assert {split: len(ids) for split, ids in patients.items()} == {"train": 11_184, "valid": 783}
    assert len({study.folder for study in planned}) == len(planned)


def test_the_number_of_projections_hardly_predicts_the_label() -> None:
    planned = plan_studies(0.2, seed=0)
    labels, projections = [s.label for s in planned], [s.num_projections for s in planned]
    # MURA's own image counts make it 0.55; a model sees one image at a time.
    assert abs(roc_auc_score(labels, projections) - 0.5) < 0.1


def test_images_vary_as_in_mura_independent_of_the_label(root: Path) -> None:
    rows = []
    for path in sorted(root.glob("MURA-v1.1/*/*/*/*/*.png"))[::2]:
        with Image.open(path) as image:
            brightness = np.asarray(image.convert("L").reduce(8)).mean()
            rows.append(("positive" in path.parent.name, image.mode, *image.size, brightness))
    images = pd.DataFrame(rows, columns=["label", "mode", "width", "height", "brightness"])
    sizes = images[["width", "height"]]
    assert sizes.min(axis=None) >= 89
    assert sizes.max(axis=None) == 512
    assert (images["width"] > images["height"]).any()
    assert (images["width"] < images["height"]).any()
    assert set(images["mode"]) == {"L", "RGB"}
    for shortcut in (images["mode"] == "RGB", images["width"], images["height"], images["brightness"]):
        assert abs(roc_auc_score(images["label"], shortcut) - 0.5) < 0.1


def test_masks_are_next_to_the_tree_for_abnormal_studies_only(root: Path, studies: pd.DataFrame) -> None:
    assert {path.name for path in root.iterdir()} == {"MURA-v1.1", "masks", "phantom.json"}
    masks = list(root.glob("masks/*/*/*/*/*.png"))
    masked = {f"MURA-v1.1/{path.parent.relative_to(root / 'masks').as_posix()}/" for path in masks}
    assert masked == set(studies.loc[studies["label"] == 1, "path"])
    num_abnormal_images = len(list(root.glob("MURA-v1.1/*/*/*/*_positive/*.png")))
    assert len(masks) < num_abnormal_images  # some projections do not show the finding
    for path in masks[:20]:
        with (
            Image.open(path) as mask,
            Image.open(root / "MURA-v1.1" / path.relative_to(root / "masks")) as image,
        ):
            assert mask.size == image.size
            assert set(np.unique(mask)) == {0, 255}


def test_the_label_changes_nothing_outside_the_finding(tmp_path: Path) -> None:
    study = next(s for s in plan_studies(TINY, seed=0) if s.bone == "XR_HUMERUS" and s.label == 1)
    write_study(tmp_path, 0, study)
    normal = replace(study, label=0)
    write_study(tmp_path, 0, normal)
    mask = np.asarray(Image.open(tmp_path / "masks" / study.folder / "image1.png")) > 0
    images = [
        np.asarray(Image.open(tmp_path / "MURA-v1.1" / s.folder / "image1.png").convert("L"), dtype=float)
        for s in (study, normal)
    ]
    difference = np.abs(images[0] - images[1])
    assert difference[mask].mean() > 4 * difference[~mask].mean()


def test_same_seed_same_bytes_for_any_number_of_workers(root: Path, tmp_path: Path) -> None:
    planned = plan_studies(TINY, seed=0)
    for bone in BUILDERS:
        for label in (0, 1):
            study = next(s for s in planned if (s.bone, s.label) == (bone, label))
            write_study(tmp_path, 0, study)
    for path in (p for p in tmp_path.rglob("*.png")):
        assert path.read_bytes() == (root / path.relative_to(tmp_path)).read_bytes()
    study = next(s for s in planned if s.num_projections > 1)
    write_study(tmp_path / "other seed", 1, study)
    first = f"MURA-v1.1/{study.folder}/image1.png"
    assert (tmp_path / "other seed" / first).read_bytes() != (root / first).read_bytes()


def test_a_finished_phantom_is_left_alone(root: Path) -> None:
    before = (root / "phantom.json").stat().st_mtime_ns
    progress: list[tuple[int, int]] = []
    tree = write_phantom(root, scale=TINY, on_progress=lambda done, total: progress.append((done, total)))
    assert tree == root / "MURA-v1.1"
    assert (root / "phantom.json").stat().st_mtime_ns == before
    assert progress == []
    record = json.loads((root / "phantom.json").read_text())
    assert record["synthetic"] is True
    assert record["valid"]["images"] == len(list(root.glob("MURA-v1.1/valid/*/*/*/*.png")))
    assert min(record["findings"].values()) > 0


def test_progress_reaches_the_total_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert 0 < done <= total
        raise StopError

    with pytest.raises(StopError):
        write_phantom(tmp_path / "phantom", scale=TINY, workers=1, on_progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def few_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the phantom to three studies."""
    monkeypatch.setattr("mura_models.phantom.generate.plan_studies", lambda scale, seed: plan_studies(TINY, 0)[:3])


@pytest.mark.usefixtures("few_studies")
def test_of_two_runs_at_once_one_writes_the_phantom_and_the_other_waits(tmp_path: Path) -> None:
    """The second is started before the first is done; it neither draws an image nor replaces the first's files."""
    drawn: list[int] = []

    def write_second() -> Path:
        return write_phantom(
            tmp_path / "phantom", scale=TINY, workers=1, on_progress=lambda done, _: drawn.append(done)
        )

    with ThreadPoolExecutor(1) as pool:
        second: list[Future[Path]] = []

        def start_second(done: int, total: int) -> None:
            if not second:
                second.append(pool.submit(write_second))

        tree = write_phantom(tmp_path / "phantom", scale=TINY, workers=1, on_progress=start_second)
        written = tree.stat().st_ino
        assert second[0].result(timeout=60) == tree
    assert drawn == []
    assert tree.stat().st_ino == written
    assert list_names(tmp_path) == ["phantom"]


@pytest.mark.usefixtures("few_studies")
def test_a_phantom_can_be_written_to_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", refuse)
    assert write_phantom(tmp_path / "phantom", scale=TINY, workers=1).is_dir()
    assert list_names(tmp_path) == ["phantom"]


KILLED = """
import os, signal, sys
from pathlib import Path
from mura_models.phantom import write_phantom

write_phantom(Path(sys.argv[1]), scale=0.002, workers=1, on_progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.usefixtures("few_studies")
def test_what_a_killed_generator_left_is_removed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "phantom"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert "phantom" not in list_names(tmp_path)
    assert list_names(tmp_path) != []
    write_phantom(tmp_path / "phantom", scale=TINY, workers=1)
    assert list_names(tmp_path) == ["phantom"]


@pytest.mark.parametrize("scale", [0.0, -0.1, 1.5, float("nan")])
def test_a_scale_out_of_range_is_one_clear_line(tmp_path: Path, scale: float) -> None:
    with pytest.raises(ConfigError, match=r"scale=.*: must be above 0 and at most 1"):
        write_phantom(tmp_path / "phantom", scale=scale)


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds other files"):
        write_phantom(tmp_path, scale=TINY)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
