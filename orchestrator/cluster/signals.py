"""Ctrl-C and SIGTERM: the run ends where it is, its workers with it, and says how to go on."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells have it."""
        return 128 + self.number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted in the main thread when a signal asks for an end."""
    asked = [signal.SIGINT]

    def end(number: int, frame: FrameType | None) -> NoReturn:
        asked.append(signal.Signals(number))
        raise Interrupted(number)

    with _handled_by(end):
        try:
            yield
        except Interrupted:
            raise
        except KeyboardInterrupt:  # which Ray raises in place of ours where it was waiting
            raise Interrupted(asked[-1]) from None


@contextmanager
def ignore_signals() -> Iterator[None]:
    """Let no signal cut a short clean-up short."""
    with _handled_by(signal.SIG_IGN):
        yield


@contextmanager
def keep_signal_handlers() -> Iterator[None]:
    """Undo what a library does to the handlers: Ray's leaves by itself, with the signal's number as exit code."""
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
            if handler_before is not None:  # None: set by something that is not Python
                signal.signal(number, handler_before)
