"""Reads files that a user named: a pipe or a device must not block, nor a huge file fill the memory."""

import errno
import os
import stat
from pathlib import Path

from mura_models.errors import DataError

NOT_TEXT = "name is not UTF-8"
"""Reason for excluding a file with such a name."""


def read_file(path: Path, *, max_bytes: int) -> bytes:
    """Read a whole regular file.

    Raises OSError with the reason in `strerror`, also for a pipe, a socket, a device, or more than `max_bytes`.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # a folder gets the system's own reason
        raise OSError(errno.EINVAL, "not a regular file")
    if status.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"{status.st_size} bytes, at most {max_bytes} are read")
    # A file of size 0 is not opened: some in /proc never end, and some block.
    return path.read_bytes() if status.st_size else b""


def check_exists(path: Path, *, wanted: str) -> None:
    """Raise DataError if nothing is at `path`, or access is denied.

    wanted: what to give instead, for the message.
    """
    try:
        path.stat()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file or folder; give {wanted}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise DataError(f"{path}: {explain(error)}; give {wanted}") from None


def is_text(name: str | os.PathLike[str]) -> bool:
    """Return whether a file name can be written to a table: on a disk, names are bytes, and not all are UTF-8."""
    try:
        os.fspath(name).encode()
    except UnicodeEncodeError:
        return False
    return True


def to_text(name: str | os.PathLike[str]) -> str:
    """Return a file name that any table can hold, with bytes that are not UTF-8 as `\\udcXX`."""
    return os.fspath(name).encode(errors="backslashreplace").decode()


def explain(error: Exception) -> str:
    """Return the system's reason why a file cannot be read, without its path."""
    return getattr(error, "strerror", None) or str(error)
