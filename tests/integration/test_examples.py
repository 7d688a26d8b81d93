"""The scripts in examples/, run as their docstrings describe."""

import sys
from pathlib import Path

import numpy as np
import pytest
from factories import write_small_bundle
from PIL import Image
from ray_helpers import ROOT, User, make_user

EXAMPLES = ROOT / "examples"


@pytest.fixture
def user(tmp_path: Path) -> User:
    return make_user(tmp_path / "user")


def run_example(user: User, name: str, *arguments: object) -> str:
    """Run an example and return what it prints."""
    done = user.call(sys.executable, EXAMPLES / name, *arguments, timeout_s=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_prints_how_to_run_it(user: User, path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60
    done = user.call(sys.executable, path)
    assert done.returncode == 1
    assert f"python examples/{path.name}" in done.stderr


def test_a_folder_is_predicted(user: User, tmp_path: Path) -> None:
    bundle, images = tmp_path / "bundle", tmp_path / "images"
    bundle.mkdir()
    images.mkdir()
    write_small_bundle(bundle)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 60), np.uint8)).save(images / name)
    (images / "broken.png").write_bytes(b"not an image")
    lines = run_example(user, "predict_with_bundle.py", bundle, images).splitlines()
    assert lines[0] == "bones: elbow, hand, wrist"
    assert [line.split(":")[0] for line in lines[1:]] == ["a.png", "b.png", "excluded"]


def test_an_error_of_a_prediction_is_one_line(user: User, tmp_path: Path) -> None:
    done = user.call(sys.executable, EXAMPLES / "predict_with_bundle.py", tmp_path, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_clinics_csv_becomes_a_report_and_its_run_can_be_read(user: User, tmp_path: Path) -> None:
    clinic = tmp_path / "clinic"
    printed = run_example(user, "clinic_csv.py", clinic)
    assert "auroc" in printed
    assert (clinic / "run" / "report.html").exists()
    figure = tmp_path / "figure.svg"
    assert "'difference'" in run_example(user, "read_run.py", clinic / "run", figure)
    assert "<svg" in figure.read_text()
