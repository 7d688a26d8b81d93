"""Atomic writes, locks, and retries on disks that may be full or fail for a while."""

import errno
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import TypeVar

from filelock import BaseFileLock, FileLock, Timeout

from mura_models.errors import StorageError

Result = TypeVar("Result")

RETRY_TIMEOUT_S = 60.0
"""How long a failing write is retried: time to restart a file server or to free space (chosen by us)."""

RETRY_EVERY_S = 1.0

UNFINISHED = ".part"
"""Suffix of files and folders that are being written; their names begin with a dot."""


class StorageFault(Enum):
    """What failed if an OSError is the fault of the storage and not of this program."""

    SERVER_GONE = "server gone"
    """A file server or a disk is not there, perhaps for a while."""
    IO_ERROR = "I/O error"
    """EIO: a bad sector, or a server that is gone."""
    NOT_WRITABLE = "not writable"
    """Full, over quota, read-only or forbidden."""


# By name: Windows and macOS lack some of them.
_ERRNO_NAMES = {
    StorageFault.SERVER_GONE: "ESTALE ETIMEDOUT ENOTCONN EHOSTDOWN ENODEV ENXIO EREMOTEIO",
    StorageFault.IO_ERROR: "EIO",
    StorageFault.NOT_WRITABLE: "ENOSPC EDQUOT EROFS EACCES EPERM",
}
_FAULTS = {
    getattr(errno, name): fault
    for fault, names in _ERRNO_NAMES.items()
    for name in names.split()
    if hasattr(errno, name)
}
NO_LOCKS = {
    getattr(errno, name) for name in ("ENOSYS", "ENOLCK", "EOPNOTSUPP", "ENOTSUP", "EINVAL") if hasattr(errno, name)
}


def classify_fault(error: OSError) -> StorageFault | None:
    """Return the storage fault behind an error, or None if the error is not the storage's."""
    return _FAULTS.get(error.errno) if error.errno is not None else None


def is_transient(error: OSError) -> bool:
    """Return whether reading the same file may succeed in a moment: not if it is missing or forbidden."""
    return classify_fault(error) in (StorageFault.SERVER_GONE, StorageFault.IO_ERROR)


@contextmanager
def storage_errors(path: Path, what: str = "written") -> Iterator[None]:
    """Raise a StorageError of one line in place of an OSError that is the storage's fault.

    what: what is done to `path`: "written" or "read".
    """
    try:
        yield
    except OSError as error:
        if classify_fault(error) is None:
            raise
        raise StorageError(
            f"{path}: cannot be {what} ({error.strerror}); free disk space or repair the disk"
        ) from error


def retry_write(write: Callable[[], Result], path: Path, *, timeout_s: float = RETRY_TIMEOUT_S) -> Result:
    """Write, and retry while the disk is full or fails. Raises StorageError after `timeout_s`.

    write: leaves nothing half-written if it fails, so that it can be called again.
    """

    def write_once() -> Result:
        with storage_errors(path):
            return write()

    return retry(write_once, timeout_s=timeout_s)


def retry_read(path: Path, *, timeout_s: float = RETRY_TIMEOUT_S) -> bytes:
    """Read a file, and retry while its disk fails. Raises StorageError after `timeout_s`."""

    def read_once() -> bytes:
        with storage_errors(path, "read"):
            return path.read_bytes()

    return retry(read_once, timeout_s=timeout_s)


def retry(action: Callable[[], Result], *, timeout_s: float = RETRY_TIMEOUT_S) -> Result:
    """Call `action` until it raises no StorageError. Raises the last one after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            return action()
        except StorageError:
            if time.monotonic() >= end:
                raise
            time.sleep(min(RETRY_EVERY_S, max(0.0, end - time.monotonic())))


@contextmanager
def hold_lock(path: Path, *, waits: bool = True, on_wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock file `path`, which is free again once this process ends; yield whether it is held.

    It is not held if the disk has no locks or, unless `waits`, if another process holds it.

    on_wait: called before another process is waited for.

    Raises OSError if the file cannot be made.
    """
    with tempfile.TemporaryFile(dir=path.parent):  # raises at once; filelock would retry without end
        pass
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    if not _acquire(lock, waits, on_wait):
        yield False
        return
    try:
        yield True
    finally:
        with suppress(PermissionError):  # Windows removes it on release
            path.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: BaseFileLock, waits: bool, on_wait: Callable[[], None] | None) -> bool:
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not waits:
                return False
            if on_wait is not None:
                on_wait()
            lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        Path(lock.lock_file).unlink(missing_ok=True)
        return False
    return True


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path` to write to; it replaces `path` if the block succeeds, else it is removed.

    A new file has the permissions that the user's umask leaves; a replaced file keeps its own.

    Raises StorageError if the disk is full or fails.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = _read_mode(path)
        partial = _temporary_path(path)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600))
        try:
            yield partial
            _fsync(partial)
            if mode is not None:
                partial.chmod(mode)
            partial.replace(path)
            _fsync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path` to fill; it replaces `path` if the block succeeds, else it is removed.

    Permissions are as in `atomic_write`. Raises StorageError if the disk is full or fails.
    """
    with storage_errors(path), temporary_sibling(path) as partial:
        yield partial
        replace_folder(partial, path)


@contextmanager
def temporary_sibling(path: Path) -> Iterator[Path]:
    """Yield a new folder next to `path`; it is removed when the block ends, unless it was moved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _temporary_path(path)
    partial.mkdir(0o777 if _read_mode(path) is None else 0o700)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(partial: Path, path: Path) -> None:
    """Move a filled folder to `path` in place of what is there, once all of it is on the disk."""
    for file in partial.rglob("*"):
        _fsync(file)
    _fsync(partial)
    mode = _read_mode(path)
    if mode is not None:
        partial.chmod(mode)
        shutil.rmtree(path)
    partial.replace(path)
    _fsync(path.parent)


def remove_unfinished(folder: Path, *, older_than_s: float = 0.0) -> None:
    """Remove what killed writers left in this folder, but not in the folders below it, which may be another program's.

    older_than_s: keep what was changed within so many seconds, or holds a file that was.
    """
    for left in list(folder.glob(f".*{UNFINISHED}")):
        try:
            is_old = time.time() - _last_change(left) >= older_than_s
        except FileNotFoundError:  # its writer has just finished
            continue
        if is_old and left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        elif is_old:
            left.unlink(missing_ok=True)


def _temporary_path(path: Path) -> Path:
    """Return an unused path next to `path`."""
    return path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}{UNFINISHED}")


def _read_mode(path: Path) -> int | None:
    """Return the permissions of the file or folder at `path`, or None if there is none."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None


def _last_change(path: Path) -> float:
    """Return the time of the last change in a folder: writing to its files does not change the folder's own time."""
    return max(part.stat().st_mtime for part in (path, *path.rglob("*")))


def _fsync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    is_windows = os.name == "nt"
    if is_windows and path.is_dir():  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDWR if is_windows else os.O_RDONLY)  # Windows flushes only what it may write to
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
