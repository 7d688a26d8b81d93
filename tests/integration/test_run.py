"""`python run_study.py` and `mura predict` as a new user runs them: real files, real Ray, separate processes."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from factories import SYSTEM_NAMES
from PIL import Image
from ray_helpers import (
    BIN,
    BONES,
    ROOT,
    TINY,
    User,
    make_user,
    read_journal,
    read_json,
    save_image,
    wait_until,
    write_images,
)
from report_factories import check_report

from orchestrator.cli import main, run_command

METRICS = {"kappa", "kappa_at_half", "accuracy", "auroc", "f1", "sensitivity", "specificity"}
SYSTEMS = set(SYSTEM_NAMES)
SEARCHES = {
    "specialist:elbow/mlp_probe",
    "specialist:wrist/mlp_probe",
    "baseline/linear_probe",
    "baseline/mlp_probe",
    "router/linear_probe",
}


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    return make_user(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def images(user: User) -> Path:
    """A manifest of 192 images."""
    return write_images(user.home / "images-of-two-bones")


@pytest.fixture(scope="module")
def finished(user: User, images: Path) -> Path:
    """The directory of a finished run."""
    run_dir = user.home / "first"
    user.run_study("--data", images, "--run-dir", run_dir, *TINY)
    return run_dir


@pytest.fixture(scope="module")
def finished_again(user: User, images: Path, finished: Path) -> Path:
    """The same run by the same user in another directory."""
    run_dir = user.home / "second"
    user.run_study("--data", images, "--run-dir", run_dir, *TINY)
    return run_dir


def test_a_run_writes_every_table_with_the_columns_of_the_contract(finished: Path) -> None:
    plan = pd.read_csv(finished / "plan.csv")
    assert list(plan)[:9] == [
        *("stage", "depends_on", "search", "target", "recipe", "trial", "lr_schedule", "lr", "weight_decay"),
    ]
    assert plan["trial"].is_unique
    assert set(plan["search"]) == SEARCHES
    assert set(plan.groupby("search").size()) == {2}

    trials = pd.read_parquet(finished / "trials.parquet")
    expected = {"search", "trial", "epoch", "lr", "train_loss", "train_accuracy", "dev_loss", "dev_auroc", "state"}
    assert expected <= set(trials)
    assert set(trials["trial"]) == set(plan["trial"])
    assert not trials.duplicated(["trial", "epoch"]).any()

    assert list(pd.read_csv(finished / "quarantine.csv")) == ["path", "reason"]


def test_a_run_writes_a_prediction_for_every_test_image(finished: Path, images: Path) -> None:
    predictions = pd.read_parquet(finished / "predictions.parquet")
    expected = ["path", "bone", "patient", "study", "label", "bone_predicted", "p_bone", "p_abnormal", "prediction"]
    assert list(predictions)[:9] == expected
    assert {f"p_{system}" for system in SYSTEMS} <= set(predictions)
    table = pd.read_csv(images)
    assert set(predictions["path"]) == set(table["path"][table["split"] == "test"])
    assert predictions["p_abnormal"].between(0, 1).all()
    assert set(predictions["prediction"]) <= {0, 1}


def test_a_run_writes_a_report_with_the_keys_of_the_contract(finished: Path) -> None:
    report = read_json(finished / "report.json")
    check_report(report)
    assert report["schema"] == 2
    assert {"run", "data", "router", "systems", "selected", "comparisons"} <= set(report)
    assert report["run"]["images_decoded"] == report["run"]["images_embedded"] == 192
    assert report["router"]["classes"] == list(BONES)
    assert all({"macro_f1", "accuracy", "confusion"} <= set(report["router"][unit]) for unit in ("image", "study"))
    assert set(report["systems"]) == SYSTEMS
    for system in report["systems"].values():
        assert set(system["by_bone"]) == set(BONES)
        for measured in (system["overall"], *system["by_bone"].values()):
            assert measured["num_images"] > measured["num_studies"] > 0
            for unit in ("image", "study"):
                assert set(measured[unit]) == METRICS
                assert all({"value", "ci95"} <= set(estimate) for estimate in measured[unit].values())
    for entry in (report["selected"], read_json(finished / "selected.json")["selected"]):
        assert set(entry) == set(BONES)
        for selected in entry.values():
            expected = {"target", "recipe", "trial", "lr_schedule", "lr", "dev", "threshold", "temperature", "reason"}
            assert set(selected) == expected
    for comparison in report["comparisons"]:
        assert {"system", "reference", "bone", "unit", "metric", "difference", "ci95", "p"} <= set(comparison)
        assert {comparison["system"], comparison["reference"]} <= SYSTEMS


def test_a_run_shows_its_data_before_it_trains(finished: Path) -> None:
    exploration = read_json(finished / "exploration.json")
    assert exploration["overall"] | {"num_images": 192, "modes": {"L": 192}} == exploration["overall"]
    assert exploration["data"] == read_json(finished / "report.json")["data"]
    assert "192 images of 2 bones" in (finished / "data.html").read_text(encoding="utf-8")
    assert (finished / "data.html").stat().st_mtime_ns < (finished / "plan.csv").stat().st_mtime_ns


def test_neither_bundle_nor_report_names_a_patient_or_a_folder(finished: Path, images: Path) -> None:
    words = {*pd.read_csv(images)["patient"], str(images.parent), str(finished)}
    pages = [finished / name for name in ("report.json", "report.html", "exploration.json", "data.html")]
    for path in (*pages, *(finished / "bundle").iterdir()):
        content = path.read_bytes()
        assert not [word for word in words if word.encode() in content], path.name


def test_the_same_command_again_does_nothing(user: User, images: Path, finished: Path) -> None:
    before = fingerprint(finished)
    done = user.run_study("--data", images, "--run-dir", finished, *TINY)
    assert "finished" in done.stdout
    assert "dashboard" not in done.stdout  # Ray was not even started
    assert fingerprint(finished) == before


def test_a_second_run_decodes_and_embeds_nothing(finished_again: Path) -> None:
    run = read_json(finished_again / "report.json")["run"]
    assert (run["images_decoded"], run["images_embedded"]) == (0, 0)


def test_a_run_leaves_no_process_behind(user: User, finished_again: Path) -> None:
    wait_until(lambda: not user.processes(), "Ray to be gone")


def test_two_runs_have_the_same_manifest_folds_plan_and_epochs(finished: Path, finished_again: Path) -> None:
    assert (finished / "plan.csv").read_bytes() == (finished_again / "plan.csv").read_bytes()
    pd.testing.assert_frame_equal(*(pd.read_parquet(run / "manifest.parquet") for run in (finished, finished_again)))
    first, second = (index_epochs(run) for run in (finished, finished_again))
    common = first.keys() & second.keys()
    assert {trial for trial, _ in common} == set(pd.read_csv(finished / "plan.csv")["trial"])
    assert all(first[epoch] == second[epoch] for epoch in common)


def test_predict_in_another_process_returns_the_runs_own_test_predictions(
    user: User, images: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.parquet"
    done = user.call(
        *(BIN / "mura", "predict", "--bundle", finished / "bundle", "--data", images, "--out", out, "--split", "test")
    )
    assert done.returncode == 0, done.stderr
    answers, own = pd.read_parquet(out).set_index("path"), pd.read_parquet(finished / "predictions.parquet")
    own = own.set_index("path")
    assert set(answers.index) == set(own.index)
    answers = answers.loc[own.index]
    assert np.abs(answers["p_abnormal"] - own["p_abnormal"]).max() <= 1e-3
    assert (answers["bone_predicted"] == own["bone_predicted"]).all()
    columns = ["bone", "patient", "study", "label"]
    assert list(answers)[:4] == columns
    assert (answers[columns].astype(str) == own[columns].astype(str)).all(axis=None)


@pytest.mark.parametrize(
    ("suffix", "read"), [("csv", pd.read_csv), ("parquet", pd.read_parquet), ("json", pd.read_json)]
)
def test_predict_needs_only_paths(
    suffix: str, read: Callable[[Path], pd.DataFrame], images: Path, finished: Path, tmp_path: Path
) -> None:
    own = pd.read_parquet(finished / "predictions.parquet")
    lone = own[~own.duplicated(["patient", "study"], keep=False)].head(
        5
    )  # a study of one image is routed in the same way
    table = images.parent / f"only-paths-{suffix}.csv"
    lone[["path"]].to_csv(table, index=False)
    out = tmp_path / f"answers.{suffix}"
    assert main(["predict", "--bundle", str(finished / "bundle"), "--data", str(table), "--out", str(out)]) == 0
    answers = read(out)
    assert list(answers) == ["path", "bone_predicted", "p_bone", "p_abnormal", "prediction"]
    assert list(answers["path"]) == list(lone["path"])
    np.testing.assert_allclose(answers["p_abnormal"], lone["p_abnormal"], atol=1e-3)


def test_predict_reads_a_folder_and_names_the_files_that_it_excludes(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    for number, bone in enumerate(BONES):
        save_image(folder / "ward" / f"{number}.png", bone, 0, np.random.default_rng(number))
    (folder / "ward" / "broken.png").write_bytes(b"not an image")
    out = tmp_path / "answers.csv"
    assert main(["predict", "--bundle", str(finished / "bundle"), "--data", str(folder), "--out", str(out)]) == 0
    assert list(pd.read_csv(out)["path"]) == ["ward/0.png", "ward/1.png"]
    assert "ward/broken.png: not an image" in capsys.readouterr().out


def test_the_directory_of_another_run_is_refused_in_one_line(
    images: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mistakes that need no finished run are in test_bad_input.py."""
    options = ["--all-bones", *TINY, "--seed", "1", "--run-dir", str(finished), "--data", str(images)]
    assert run_command(options) == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert "seed is 0 there" in line
    assert "dashboard" not in output.out  # reported before Ray starts, not after an hour of decoding


def test_a_mistake_in_a_process_of_its_own_shows_no_traceback(user: User) -> None:
    done = user.call(sys.executable, ROOT / "run_study.py", "--all-bones", "--data", "nowhere.csv")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_an_address_without_a_cluster_is_reported_within_a_minute(user: User, images: Path) -> None:
    options = ("--all-bones", "--data", images, "--run-dir", user.home / "nowhere", "--address", "127.0.0.1:1")
    done = user.call(sys.executable, ROOT / "run_study.py", *options, timeout_s=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--address 127.0.0.1:1: no Ray cluster answers there" in line


@pytest.mark.slow
def test_every_defect_of_a_mura_folder_is_in_the_quarantine(user: User, tmp_path: Path) -> None:
    root = tmp_path / "MURA (copy)"  # its tables still name MURA-v1.1
    expected = write_defective_mura(root)
    run_dir = tmp_path / "run"
    done = user.run_study("--data", root, "--run-dir", run_dir, *TINY)
    quarantine = pd.read_csv(run_dir / "quarantine.csv").set_index("path")["reason"]
    assert set(quarantine.index) == set(expected)
    for path, reason in expected.items():
        assert reason in quarantine[path], path
    assert "counts differ from MURA v1.1" in done.stdout
    report = read_json(run_dir / "report.json")
    assert report["data"]["quarantined"]["total"] == len(expected)
    assert set(report["run"]["bones_without_specialist"]) == set(BONES)  # too few images, which is reported
    assert {selected["target"] for selected in report["selected"].values()} == {"baseline"}


def write_defective_mura(root: Path) -> dict[str, str]:
    """Write a MURA folder of a few studies with one defect of every kind; return path in the tables -> reason."""
    rng = np.random.default_rng(3)
    studies: dict[str, list[tuple[str, int]]] = {"train": [], "valid": []}
    images: dict[str, list[str]] = {"train": [], "valid": []}

    def add(split: str, bone: str, patient: int, label: int, study: int = 1) -> str:
        folder = f"{split}/XR_{bone.upper()}/patient{patient:05d}/study{study}_{('negative', 'positive')[label]}"
        studies[split].append((folder, label))
        images[split].append(f"{folder}/image1.png")
        save_image(root / folder / "image1.png", bone, label, rng)
        return f"{folder}/image1.png"

    for split, start, num in (("train", 0, 16), ("valid", 500, 8)):
        for number in range(num):
            for offset, bone in enumerate(BONES):
                add(split, bone, start + 100 * offset + number, number % 2)
    reasons = {}
    whole = (root / add("train", "wrist", 900, 0)).read_bytes()
    missing, truncated, empty, text = (add("train", "wrist", 901 + number, 0) for number in range(4))
    (root / missing).unlink()
    (root / truncated).write_bytes(whole[: len(whole) // 2])
    (root / empty).write_bytes(b"")
    (root / text).write_text("these are not pixels")
    huge = add("valid", "elbow", 910, 1)
    Image.new("1", (12_000, 12_000)).save(root / huge)
    two_labels = [add("train", "elbow", 920, label) for label in (0, 1)]
    leak = add("train", "elbow", 500, 1, study=2)  # patient 500 is also in valid
    reasons |= {missing: "missing", truncated: "truncated", empty: "zero bytes", text: "not an image"}
    reasons |= {huge: "too large", leak: "patient also in test"} | dict.fromkeys(two_labels, "two labels")

    (root / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (root / Path(leak).parent / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (root / Path(leak).parent / "._image1.png").write_bytes(b"\0\5\26\7")
    for split, labeled in studies.items():
        table = "".join(f"MURA-v1.1/{folder}/,{label}\n" for folder, label in labeled)
        (root / f"{split}_labeled_studies.csv").write_text(table)
        (root / f"{split}_image_paths.csv").write_text("".join(f"MURA-v1.1/{path}\n" for path in images[split]))
    return {f"MURA-v1.1/{path}": reason for path, reason in reasons.items()}


def index_epochs(run_dir: Path) -> dict[tuple[str, int], dict[str, float]]:
    """Return (trial, epoch) -> metrics."""
    return {(line["trial"], line["epoch"]): line["metrics"] for line in read_journal(run_dir)}


def fingerprint(folder: Path) -> dict[str, tuple[int, str]]:
    """Return name -> time and digest of every file except the lock and the page, which is rendered again."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", "report.html") and path.parent.name != "figures"
    }
