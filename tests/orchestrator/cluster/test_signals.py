"""Signals that ask a run to end, at whatever moment they come."""

import os
import signal
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mura_models.errors import StorageError
from orchestrator.cli import guard, resumable
from orchestrator.cluster.signals import Interrupted, ignore_signals, interruptible, keep_signal_handlers
from orchestrator.progress import Progress


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_its_exit_code(number, exit_code):
    with pytest.raises(Interrupted) as caught, interruptible():
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == exit_code


def test_a_signal_while_ray_starts_ends_the_run_as_any_other():
    """Ray sets a handler that leaves with exit code 15 before it does anything else."""
    with pytest.raises(Interrupted) as caught, interruptible(), keep_signal_handlers():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 143


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_a_library_tells_as_a_keyboard_interrupt_keeps_its_exit_code(number, exit_code):
    """As Ray does where its own code waits."""

    def wait():
        try:
            os.kill(os.getpid(), number)
        except Interrupted:
            raise KeyboardInterrupt from None

    assert guard(wait) == exit_code


def test_what_a_library_sets_is_undone_when_it_has_started():
    with interruptible():
        ours = signal.getsignal(signal.SIGTERM)
        with keep_signal_handlers():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is ours


def test_an_exit_that_no_signal_asked_for_stays_one():
    with pytest.raises(SystemExit), keep_signal_handlers():
        sys.exit(3)


def test_a_clean_up_is_not_cut_short():
    with interruptible(), ignore_signals():
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("options", "resumed"),
    [
        ("--all-bones", "--all-bones --run-dir runs/a"),
        ("--fresh --all-bones", "--all-bones --run-dir runs/a"),
        ("--all-bones --run-dir runs/a", "--all-bones --run-dir runs/a"),
        ("--all-bones --fresh --run-dir runs/b", "--all-bones --run-dir runs/b --run-dir runs/a"),
    ],
)
def test_what_stops_a_run_is_reported_with_the_command_that_resumes_it(options, resumed, capsys):
    words = ("python", "run_study.py", *options.split())

    def stop():
        with resumable(words, Path("runs/a")):
            os.kill(os.getpid(), signal.SIGTERM)

    def fail():
        with resumable(words, Path("runs/a")):
            raise StorageError("run.json: cannot be written")

    def wait():
        with resumable(words, Path("runs/a")):
            raise KeyboardInterrupt  # as Ray, where its own code waits

    for interrupted, exit_code in ((stop, 143), (wait, 130)):
        assert guard(interrupted) == exit_code
        assert capsys.readouterr().err == f"Interrupted. Resume with: python run_study.py {resumed}\n"
    assert guard(fail) == 1
    assert capsys.readouterr().err == (
        f"failed: run.json: cannot be written. Resume with: python run_study.py {resumed}\n"
    )


def test_a_signal_before_the_run_directory_is_known_is_reported_without_one(capsys):
    assert guard(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 143
    assert capsys.readouterr().err == "Interrupted. Run the same command again to resume.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full is Linux's")
def test_a_terminal_that_is_a_file_on_a_full_disk_ends_no_run():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        progress = Progress(Console(file=full))
        for _ in range(3):
            progress.log("a line" * 4000)
