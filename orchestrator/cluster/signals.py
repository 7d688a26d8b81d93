"""Ctrl-C and SIGTERM end the run and its workers at once; the command line prints how to resume."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM was received."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as in shells."""
        return 128 + self.number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted in the main thread on SIGINT or SIGTERM."""
    received = [signal.SIGINT]

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        received.append(signal.Signals(number))
        raise Interrupted(number)

    with _handled_by(interrupt):
        try:
            yield
        except Interrupted:
            raise
        except KeyboardInterrupt as error:  # Ray raises it in place of ours if it was waiting
            stop = Interrupted(received[-1])
            for note in getattr(error, "__notes__", ()):
                stop.add_note(note)
            raise stop from None


@contextmanager
def ignore_signals() -> Iterator[None]:
    """Ignore signals during a short clean-up."""
    with _handled_by(signal.SIG_IGN):
        yield


@contextmanager
def keep_signal_handlers() -> Iterator[None]:
    """Restore the handlers that a library replaces: Ray's exits by itself, with the signal's number as exit code."""
    with _handled_by(None):
        try:
            yield
        except SystemExit as leaving:
            if leaving.code in SIGNALS:
                raise Interrupted(int(leaving.code)) from None
            raise


@contextmanager
def _handled_by(handler: "signal._HANDLER") -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may have handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if handler is not None:
        for number in SIGNALS:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler_before in before.items():
            if handler_before is not None:  # None: not set from Python
                signal.signal(number, handler_before)
