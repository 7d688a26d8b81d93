"""Files that appear whole or not at all, on disks that may be full or fail for a while."""

import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from mura_models.errors import StorageError

Result = TypeVar("Result")

RETRY_TIMEOUT_S = 60.0
"""How long a write may fail before it is given up: a file server's restart, somebody making room (chosen by us)."""

RETRY_EVERY_S = 1.0

UNFINISHED = ".part"
"""Suffix of what is being written; its name begins with a dot."""

_SERVER_TROUBLE = {
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN),
    *(errno.ENODEV, errno.ENXIO, errno.EREMOTEIO),
}
_TROUBLE = {
    *_SERVER_TROUBLE,
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
}
"""What a disk or a file server says that is full, gone or broken; none of it is a mistake of this program."""


def is_storage_trouble(error: OSError) -> bool:
    """Tell a disk's fault from a program's."""
    return error.errno in _TROUBLE


def is_disk_trouble(error: OSError) -> bool:
    """Tell what may be over in a moment, where a file is read, from a file that is gone or forbidden."""
    return is_server_trouble(error) or error.errno == errno.EIO


def is_server_trouble(error: OSError) -> bool:
    """Tell a file server or a disk that is gone from a fault of one file; EIO may be either."""
    return error.errno in _SERVER_TROUBLE


@contextmanager
def storage_errors(path: Path, what: str = "written") -> Iterator[None]:
    """Turn a disk's fault while `path` is `what` (written, read) into a StorageError of one line."""
    try:
        yield
    except OSError as error:
        if not is_storage_trouble(error):
            raise
        raise StorageError(
            f"{path}: cannot be {what} ({error.strerror}); mend that or make room, and the same command continues"
        ) from error


def retry_write(write: Callable[[], Result], path: Path, *, patience_s: float = RETRY_TIMEOUT_S) -> Result:
    """Write, again and again while the disk is full or fails. Raises StorageError when patience is over.

    write: does nothing by halves: it may be called anew after it failed.
    """

    def write_once() -> Result:
        with storage_errors(path):
            return write()

    return retry(write_once, patience_s=patience_s)


def read_patiently(path: Path, *, patience_s: float = RETRY_TIMEOUT_S) -> bytes:
    """Read a file, again and again while its disk fails. Raises StorageError when patience is over."""

    def read_once() -> bytes:
        with storage_errors(path, "read"):
            return path.read_bytes()

    return retry(read_once, patience_s=patience_s)


def retry(act: Callable[[], Result], *, patience_s: float = RETRY_TIMEOUT_S) -> Result:
    """Act, again and again while that raises StorageError. Raises it when patience is over."""
    end = time.monotonic() + patience_s
    while True:
        try:
            return act()
        except StorageError:
            if time.monotonic() >= end:
                raise
            time.sleep(min(RETRY_EVERY_S, max(0.0, end - time.monotonic())))


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Return a path beside `path` to write to; it becomes `path` when the block ends well, else it vanishes.

    A new file has the permissions that the user's umask leaves, one that is replaced keeps its own.

    Raises StorageError where the disk is full or fails.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = _read_mode(path)
        partial = _name_aside(path)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600))
        try:
            yield partial
            _flush(partial)
            if mode is not None:
                partial.chmod(mode)
            partial.replace(path)
            _flush(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Return a folder beside `path` to fill; it becomes `path` when the block ends well, else it vanishes.

    Its permissions are as those of `whole_file`. Raises StorageError where the disk is full or fails.
    """
    with storage_errors(path), temporary_sibling(path) as partial:
        yield partial
        replace_folder(partial, path)


@contextmanager
def temporary_sibling(path: Path) -> Iterator[Path]:
    """Return a new folder beside `path`; what is still there when the block ends vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _name_aside(path)
    partial.mkdir(0o777 if _read_mode(path) is None else 0o700)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(partial: Path, path: Path) -> None:
    """Make a filled folder beside `path` become `path`, once all of it is on the disk."""
    for file in partial.rglob("*"):
        _flush(file)
    _flush(partial)
    mode = _read_mode(path)
    if mode is not None:
        partial.chmod(mode)
        shutil.rmtree(path)
    partial.replace(path)
    _flush(path.parent)


def _name_aside(path: Path) -> Path:
    """Make up a name beside `path` that nobody else has."""
    return path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}{UNFINISHED}")


def _read_mode(path: Path) -> int | None:
    """Return the permissions of what is to be replaced; None where nothing is."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None


def remove_unfinished(folder: Path, *, older_than_s: float = 0.0) -> None:
    """Remove what writers that were killed left in this folder; those below it may be somebody else's.

    older_than_s: leave alone what was changed in so many seconds, or holds a file that was.
    """
    for left in list(folder.glob(f".*{UNFINISHED}")):
        try:
            is_old = time.time() - _find_last_change(left) >= older_than_s
        except FileNotFoundError:  # its writer has just finished
            continue
        if is_old and left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        elif is_old:
            left.unlink(missing_ok=True)


def _find_last_change(path: Path) -> float:
    """Return the time of the last change: a folder's own time tells nothing of what is written to its files."""
    return max(part.stat().st_mtime for part in (path, *path.rglob("*")))


def _flush(path: Path) -> None:
    """Have a file's content, or a folder's list of names, on the disk before anything that builds on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
