"""The store: every image of a data set decoded and resized once, in one memory-mapped array, in the cache.

A row is known by the digest of its file's bytes, so labels, splits and the order of the rows may change without an
image being decoded again, and an image that occurs twice is decoded once. Embeddings lie beside in the same manner.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mura_models.storage import (
    UNFINISHED,
    atomic_write,
    remove_unfinished,
    replace_folder,
    storage_errors,
    temporary_sibling,
)

SCHEMA = 1
ROWS, INDEX = "rows.npy", "index.json"
"""The files of a finished entry."""

ABANDONED_S = 7 * 24 * 3600.0
"""An entry in the making that nobody has touched for so long is removed (chosen by us)."""

SAVE_EVERY_S = 10.0
"""A writer that is killed loses at most about this much work (chosen by us)."""


@dataclass(frozen=True, kw_only=True)
class CachedArray:
    """An array with a row a digest; `failures` says why a digest has none."""

    rows: np.ndarray
    """Memory-mapped, read-only: images uint8 [n, S, S], or embeddings float16 [n, V, D]."""
    digests: tuple[str, ...]
    """Sorted."""
    failures: dict[str, str]

    def find(self, digests: Iterable[str]) -> np.ndarray:
        """Return the rows of these digests. Raises KeyError for one that is not there."""
        places = {digest: row for row, digest in enumerate(self.digests)}
        return np.array([places[digest] for digest in digests], dtype=np.int64)


def name_content(parts: Iterable[str]) -> str:
    """Name a cache entry by all that decides its content."""
    digest = hashlib.sha256(f"schema {SCHEMA}\n".encode())
    for part in parts:
        digest.update(part.encode() + b"\n")
    return digest.hexdigest()[:32]


def open_cached(folder: Path) -> CachedArray | None:
    """Open a finished entry of the cache; None where there is none that can be read."""
    index = folder / INDEX
    if not index.exists():
        return None
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        rows = np.load(folder / ROWS, mmap_mode="r", allow_pickle=False)
        entry = CachedArray(rows=rows, digests=tuple(content["digests"]), failures=content["failures"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged: it is made anew
    return entry if len(rows) == len(entry.digests) else None


Part = tuple[Sequence[str], np.ndarray, Mapping[str, str]]
"""Digests, their rows, and digest -> why for those that have none."""


def write_cached(
    folder: Path,
    digests: Sequence[str],
    produce: Callable[[Sequence[str]], Iterable[Part]],
    *,
    row_shape: tuple[int, ...],
    dtype: str,
) -> CachedArray:
    """Fill an entry and give it; it is there whole or not at all.

    produce: given the digests that are left, yields parts as they come, in any order. Where a writer was stopped, the
        next one goes on with what is left.

    Raises StorageError where the disk is full or fails, ValueError where a row never came.
    """
    with storage_errors(folder), _making(folder) as making:
        if not _is_finished(making, digests, row_shape, dtype):
            filling = _Filling(making, digests, row_shape, dtype)
            for names, content, failed in produce(filling.left):
                filling.take(names, content, failed)
            if filling.left:
                raise ValueError(f"{len(filling.left)} rows never came, {filling.left[0]} among them")
            filling.finish()
        _publish(making, folder)
    entry = open_cached(folder)
    assert entry is not None
    return entry


@contextmanager
def _making(folder: Path) -> Iterator[Path]:
    """Open the entry in the making, alone; where another run is at it, or locks do not exist, make one of our own."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder.parent, older_than_s=ABANDONED_S)
    shared = folder.with_name(f".{folder.name}{UNFINISHED}")
    shared.mkdir(exist_ok=True)
    handle = os.open(shared, os.O_RDONLY)
    try:
        if _lock(handle, shared):
            yield shared
        else:
            with temporary_sibling(folder) as own:
                yield own
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> bool:
    """Take the lock of a folder, which dies with this process; False where it is taken, or the folder was published."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(handle).st_ino == folder.stat().st_ino
    except OSError:
        return False


class _Filling:
    """An entry in the making. What is in `done.jsonl` has its rows on the disk."""

    def __init__(self, folder: Path, digests: Sequence[str], row_shape: tuple[int, ...], dtype: str) -> None:
        self._folder = folder
        self._places = {digest: row for row, digest in enumerate(sorted(digests))}
        self._rows = _open_rows(folder / "all.npy", (len(self._places), *row_shape), dtype)
        self._log = folder / "done.jsonl"
        self._failures: dict[str, str] = {}
        self._left = dict.fromkeys(self._places)
        self._unsaved: list[tuple[list[str], dict[str, str]]] = []
        self._saved_at = time.monotonic()
        for names, failed in _read_log(self._log):
            self._settle(names, failed)

    @property
    def left(self) -> list[str]:
        """The digests with neither row nor failure, sorted."""
        return list(self._left)

    def take(self, names: Sequence[str], content: np.ndarray, failed: Mapping[str, str]) -> None:
        """Take in a part; every few seconds what came is made safe from a kill."""
        self._rows[[self._places[name] for name in names]] = content
        self._settle(names, failed)
        self._unsaved.append((list(names), dict(failed)))
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self._save()

    def _settle(self, names: Iterable[str], failed: Mapping[str, str]) -> None:
        self._failures.update(failed)
        for name in (*names, *failed):
            self._left.pop(name, None)

    def _save(self) -> None:
        self._rows.flush()  # before the log says that it is there
        with self._log.open("a", encoding="utf-8") as log:
            log.writelines(json.dumps(part) + "\n" for part in self._unsaved)
            log.flush()
            os.fsync(log.fileno())
        self._unsaved.clear()
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """Make the array and the index that readers open; the array appears last, and with it the entry is finished."""
        self._save()
        kept = [digest for digest in self._places if digest not in self._failures]
        index = {"schema": SCHEMA, "digests": kept, "failures": self._failures}
        (self._folder / ROWS).unlink(missing_ok=True)  # of a finished entry that was damaged
        with atomic_write(self._folder / INDEX) as partial:
            partial.write_text(json.dumps(index), encoding="utf-8")
        _keep_rows(self._folder, self._rows, [self._places[digest] for digest in kept])


def _is_finished(making: Path, digests: Sequence[str], row_shape: tuple[int, ...], dtype: str) -> bool:
    """Return whether a writer was stopped after it had finished the entry, and before others could open it."""
    entry = open_cached(making)
    return (
        entry is not None
        and {*entry.digests, *entry.failures} == set(digests)
        and entry.rows.shape[1:] == row_shape
        and entry.rows.dtype == np.dtype(dtype)
    )


def _publish(making: Path, folder: Path) -> None:
    """Make the entry what others open, in place of a damaged one or of one that another run was faster with."""
    for path in making.iterdir():
        if path.name not in (INDEX, ROWS):
            path.unlink()
    replace_folder(making, folder)


def _read_log(path: Path) -> list[tuple[list[str], dict[str, str]]]:
    """Return the parts that a stopped writer had made safe; a last line cut short counts as none."""
    parts = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            names, failed = json.loads(line)
        except ValueError:
            break
        parts.append((names, failed))
    return parts


def _open_rows(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    """Open the array that a stopped writer left, else make one."""
    try:
        rows = np.lib.format.open_memmap(path, mode="r+")
        is_ours = rows.shape == shape and rows.dtype == np.dtype(dtype)
    except (OSError, ValueError):
        is_ours = False
    if is_ours:
        _take_room(path)  # its writer may have been killed before it had
        return rows
    path.with_name("done.jsonl").unlink(missing_ok=True)  # it speaks of another array
    return make_rows(path, shape, dtype)


def make_rows(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    """Make a mapped array with all of its room on the disk. Raises OSError, and leaves no file, where that is short."""
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    try:
        _take_room(path)
    except OSError:
        path.unlink()
        raise
    return rows


def _take_room(path: Path) -> None:
    """Take all of a file's room: where the disk is full, a write to a map of a file with holes kills the process."""
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _keep_rows(folder: Path, rows: np.memmap, kept: list[int]) -> None:
    """Make the array of the rows that are kept: all of them, unless an image failed."""
    array = folder / "all.npy"
    if len(kept) < len(rows):
        array = folder / "kept.npy"
        compact = make_rows(array, (len(kept), *rows.shape[1:]), rows.dtype.str)
        for new, old in enumerate(kept):
            compact[new] = rows[old]
        compact.flush()
    array.rename(folder / ROWS)
