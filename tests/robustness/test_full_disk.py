"""A full disk: a small file system for the run directory, filled to the last byte."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_helpers import ROOT, User, assert_same_results, make_user, read_journal, wait_until, write_images
from robustness.faults import MODES, OPTIONS, assert_whole

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="a small file system needs root"),
]

FILL_BEFORE = """
import sys
from pathlib import Path
import orchestrator.pipeline as pipeline
from orchestrator.cli import run_command

step = getattr(pipeline, sys.argv[1])

def fill_first(*arguments, **keywords):
    with open(sys.argv[2], "wb") as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
                ballast.flush()
        except OSError:
            pass
    return step(*arguments, **keywords)

setattr(pipeline, sys.argv[1], fill_first)
sys.exit(run_command(sys.argv[3:]))
"""
"""run_study.py on a disk that fills just before one of its steps."""


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    return make_user(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def disk(user: User) -> Iterator[Path]:
    """A file system of 160 MB; the cache and Ray's folder are on another one."""
    disk = user.home / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "none", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture(scope="module")
def options(user: User) -> tuple[object, ...]:
    images = write_images(user.home / "images")
    return ("--data", images, *OPTIONS, *MODES["no early stopping"], "--recipes", "linear_probe")


def fill(disk: Path) -> Path:
    """Fill a disk to the last byte; return the file that fills it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(2**20)):
                pass
        except OSError:
            pass
    return ballast


def find_failures(text: str) -> list[str]:
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("failed:")]


def test_a_run_waits_for_a_disk_that_fills_during_the_search_and_then_reports_it(
    user: User, disk: Path, options: tuple[object, ...]
) -> None:
    """The first time, space is freed in time; the second time it is not, and the run ends with one line."""
    run_dir, whole = disk / "run", user.home / "whole"
    with user.start(sys.executable, ROOT / "run_study.py", "--all-bones", "--run-dir", run_dir, *options) as driver:
        wait_until(lambda: len(read_journal(run_dir)) >= 20, "some epochs", timeout_s=200)
        ballast = fill(disk)
        num_lines = len(read_journal(run_dir))
        with pytest.raises(AssertionError, match="waited"):
            # The last page of the journal's file still has room for some lines.
            wait_until(lambda: len(read_journal(run_dir)) > num_lines + 10, "epochs", timeout_s=8)
        ballast.unlink()
        wait_until(lambda: len(read_journal(run_dir)) > num_lines + 20, "the run to go on", timeout_s=60)
        fill(disk)
        wait_until(lambda: driver.poll() is not None, "the run to give up", timeout_s=200)
        assert driver.returncode == 1
        (line,) = find_failures(user.log.read_text())
    assert "No space left on device" in line
    assert (
        f"free disk space or repair the disk. Resume with: python run_study.py --all-bones --run-dir {run_dir} " in line
    )
    old = (run_dir / "journal.jsonl").read_bytes()
    ballast.unlink()

    user.run_study("--run-dir", run_dir, *options)
    assert (run_dir / "journal.jsonl").read_bytes().startswith(old[: old.rfind(b"\n") + 1])
    assert_whole(run_dir)
    user.run_study("--run-dir", whole, *options)
    assert_same_results(whole, run_dir)


@pytest.mark.parametrize("step", ["evaluate", "render_report"])
def test_a_disk_that_is_full_when_the_report_is_written_is_reported_in_one_line(
    user: User, disk: Path, options: tuple[object, ...], step: str
) -> None:
    run_dir, whole = disk / "run", user.home / "whole"
    for name in ("report.json", "report.html"):
        (run_dir / name).unlink()
    shutil.rmtree(run_dir / "bundle")
    shutil.rmtree(run_dir / "figures")
    ballast = disk / "ballast"
    command = (sys.executable, "-c", FILL_BEFORE, step, ballast, "--all-bones", "--run-dir", run_dir, *options)
    done = user.call(*command)
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = find_failures(done.stderr)
    assert line == done.stderr.strip()
    assert "No space left on device" in line
    assert not list(run_dir.rglob("*.part"))
    ballast.unlink()
    user.run_study("--run-dir", run_dir, *options)
    assert_same_results(whole, run_dir)
    assert (run_dir / "report.html").stat().st_size > 10_000
