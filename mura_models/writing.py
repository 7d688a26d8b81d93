"""Files that appear whole or not at all, on disks that may be full or fail for a while."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from mura_models.errors import StorageError

Result = TypeVar("Result")

PATIENCE_S = 60.0
"""How long a write may fail before it is given up: a file server's restart, somebody making room (chosen by us)."""

RETRY_EVERY_S = 1.0

UNFINISHED = ".part"
"""Suffix of what is being written; its name begins with a dot."""

_TROUBLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.ENOTCONN, errno.EHOSTDOWN, errno.EACCES, errno.EPERM),
}
"""What a disk or a file server says that is full, gone or broken; none of it is a mistake of this program."""


def is_storage_trouble(error: OSError) -> bool:
    """Tell a disk's fault from a program's."""
    return error.errno in _TROUBLE


@contextmanager
def told_as_storage_error(path: Path, what: str = "written") -> Iterator[None]:
    """Turn a disk's fault while `path` is `what` (written, read) into a StorageError of one line."""
    try:
        yield
    except OSError as error:
        if not is_storage_trouble(error):
            raise
        raise StorageError(
            f"{path}: cannot be {what} ({error.strerror}); mend that or make room, and the same command continues"
        ) from error


def write_patiently(write: Callable[[], Result], path: Path, *, patience_s: float = PATIENCE_S) -> Result:
    """Write, again and again while the disk is full or fails. Raises StorageError when patience is over.

    write: does nothing by halves: it may be called anew after it failed.
    """
    return _try_patiently(write, path, "written", patience_s)


def read_patiently(path: Path, *, patience_s: float = PATIENCE_S) -> bytes:
    """Read a file, again and again while its disk fails. Raises StorageError when patience is over."""
    return _try_patiently(path.read_bytes, path, "read", patience_s)


def _try_patiently(act: Callable[[], Result], path: Path, what: str, patience_s: float) -> Result:
    end = time.monotonic() + patience_s
    while True:
        try:
            with told_as_storage_error(path, what):
                return act()
        except StorageError:
            if time.monotonic() >= end:
                raise
            time.sleep(min(RETRY_EVERY_S, max(0.0, end - time.monotonic())))


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; it becomes `path` when the block ends well, else it vanishes.

    Raises StorageError where the disk is full or fails.
    """
    with told_as_storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=UNFINISHED)
        os.close(handle)
        aside = Path(name)
        try:
            yield aside
            _flush(aside)
            aside.chmod(0o644)
            aside.replace(path)
            _flush(path.parent)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a folder beside `path` to fill; it becomes `path` when the block ends well, else it vanishes.

    Raises StorageError where the disk is full or fails.
    """
    with told_as_storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=UNFINISHED))
        try:
            yield aside
            replace_folder(aside, path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def replace_folder(aside: Path, path: Path) -> None:
    """Make a filled folder beside `path` become `path`, once all of it is on the disk."""
    for file in aside.rglob("*"):
        _flush(file)
    _flush(aside)
    aside.chmod(0o755)
    if path.exists():
        shutil.rmtree(path)
    aside.replace(path)
    _flush(path.parent)


def remove_unfinished(folder: Path, *, older_than_s: float = 0.0) -> None:
    """Remove what writers that were killed left in this folder; those below it may be somebody else's."""
    for left in list(folder.glob(f".*{UNFINISHED}")):
        try:
            is_old = time.time() - left.stat().st_mtime >= older_than_s
        except FileNotFoundError:  # its writer has just finished
            continue
        if is_old and left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        elif is_old:
            left.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Have a file's content, or a folder's list of names, on the disk before anything that builds on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
