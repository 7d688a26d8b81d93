"""Reading files that were named by somebody else: a pipe or a device must not stop us, nor a huge file fill memory."""

import errno
import os
import stat
from pathlib import Path

from mura_models.errors import DataError

NOT_TEXT = "name is not UTF-8"
"""Why a file with such a name is left out."""


def read_file(path: Path, *, max_bytes: int) -> bytes:
    """Read a whole file that lies on a disk.

    Raises OSError, with the reason in `strerror`, also for a pipe, a socket or a device and for more than `max_bytes`.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # a folder has a reason of its own
        raise OSError(errno.EINVAL, "not a regular file")
    if status.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"{status.st_size} bytes, at most {max_bytes} are read")
    # What says that it is empty is not opened: some files of /proc never end, and some wait.
    return path.read_bytes() if status.st_size else b""


def check_is_there(path: Path, *, wanted: str) -> None:
    """Raise DataError where nothing is at `path`, or nothing that may be looked at."""
    try:
        path.stat()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file or folder; give {wanted}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise DataError(f"{path}: {explain(error)}; give {wanted}") from None


def is_text(name: str | os.PathLike[str]) -> bool:
    """Return whether a name can be written into a table: on a disk, names are bytes, and not all of them are UTF-8."""
    try:
        os.fspath(name).encode()
    except UnicodeEncodeError:
        return False
    return True


def to_text(name: str | os.PathLike[str]) -> str:
    """Write a name so that any table can hold it: bytes that are not UTF-8 as `\\udcXX`."""
    return os.fspath(name).encode(errors="backslashreplace").decode()


def explain(error: Exception) -> str:
    """Return the system's own words for why a file cannot be read, without its path."""
    return getattr(error, "strerror", None) or str(error)
