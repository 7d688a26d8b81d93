"""Signals that ask a run to end, at whatever moment they come."""

import os
import signal
import sys
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli import guard
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


def test_where_the_same_command_would_not_continue_it_is_said(capsys):
    def stop():
        os.kill(os.getpid(), signal.SIGTERM)

    assert guard(stop) == 143
    assert capsys.readouterr().err == "stopped: the same command continues from here\n"
    assert guard(stop, is_fresh=True) == 143
    assert capsys.readouterr().err == (
        "stopped: the same command continues from here, with this run's directory as --run-dir in place of --fresh\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full is Linux's")
def test_a_terminal_that_is_a_file_on_a_full_disk_ends_no_run():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        progress = Progress(Console(file=full))
        for _ in range(3):
            progress.log("a line" * 4000)
