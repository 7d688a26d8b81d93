"""Signals that ask a run to end, at whatever moment they come."""

import os
import signal
import sys

import pytest

from orchestrator.interrupts import Interrupted, handlers_kept, interruptible, uninterrupted


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_its_exit_code(number, exit_code):
    with pytest.raises(Interrupted) as caught, interruptible():
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == exit_code


def test_a_signal_while_ray_starts_ends_the_run_as_any_other():
    """Ray sets a handler that leaves with exit code 15 before it does anything else."""
    with pytest.raises(Interrupted) as caught, interruptible(), handlers_kept():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 143


def test_what_a_library_sets_is_undone_when_it_has_started():
    with interruptible():
        ours = signal.getsignal(signal.SIGTERM)
        with handlers_kept():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is ours


def test_an_exit_that_no_signal_asked_for_stays_one():
    with pytest.raises(SystemExit), handlers_kept():
        sys.exit(3)


def test_a_clean_up_is_not_cut_short():
    with interruptible(), uninterrupted():
        os.kill(os.getpid(), signal.SIGTERM)
