"""Bad input, case by case: one line and exit code 2, a row of the quarantine, or read correctly."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from robustness.bad_files import FILES
from robustness.bad_images import IMAGES
from robustness.bad_input import Clinic, Rejection, check_rows, time_limit
from robustness.bad_manifests import MANIFESTS
from robustness.bad_options import OPTIONS

from orchestrator.cli import main, run_command

CASES: dict[str, Rejection | Callable[[Clinic], dict[str, str]]] = IMAGES | MANIFESTS | OPTIONS | FILES


@pytest.fixture
def clinic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clinic:
    """A clinic in the working directory, and a Ray that must not be started."""

    def start(*_: object) -> None:
        raise AssertionError("Ray was started")

    (tmp_path / "clinic").mkdir()
    monkeypatch.chdir(tmp_path / "clinic")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MURA_DATA", raising=False)
    monkeypatch.setattr("orchestrator.pipeline.connect_ray", start)
    return Clinic(tmp_path / "clinic").fill()


def test_no_case_hides_another() -> None:
    assert len(CASES) == sum(map(len, (IMAGES, MANIFESTS, OPTIONS, FILES))) >= 50


@pytest.mark.parametrize("name", CASES)
def test_bad_input(
    name: str, clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    with time_limit():
        if isinstance(case, Rejection):
            for variable, value in case.environment.items():
                monkeypatch.setenv(variable, value)
            check_rejection(case, clinic, capsys)
        else:
            excluded = case(clinic)
            if not os.path.lexists(clinic.manifest):
                clinic.write()
            check_rows(clinic, excluded)


def check_rejection(case: Rejection, clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the command: one line with the text, exit code 2, and Ray was not started."""
    case.make(clinic)
    if not os.path.lexists(clinic.manifest):
        clinic.write()
    usual = ("--all-bones", "--dry-run", "--folds", "2", "--data", "manifest.csv")
    command = list(case.instead or usual + case.options)
    try:
        code = main(command[1:]) if command[0] == "mura" else run_command(command)
    except SystemExit as end:  # argparse raises it
        code = end.code
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert line.startswith("error: ")
    assert case.text in line
    assert code == 2
    assert "dashboard" not in output.out
    assert not ray.is_initialized()
    assert not (clinic.folder / case.not_made).exists()
