"""The cache: decoded images or embeddings of a data set in one memory-mapped array, written whole or not at all.

A row is found by the digest of its file's bytes. Labels, splits and the order of the manifest may therefore change
without an image being decoded again, and an image that occurs twice is decoded once.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mura_models.data.preprocessing import VIEWS
from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.storage import (
    UNFINISHED,
    atomic_write,
    hold_lock,
    remove_unfinished,
    replace_folder,
    storage_errors,
    temporary_sibling,
)

SCHEMA = 1
ARRAY, INDEX = "rows.npy", "index.json"
"""The files of a finished entry."""
FULL_ARRAY, COMPACT_ARRAY, LOG = "all.npy", "kept.npy", "done.jsonl"
"""The files of an unfinished entry: with a row per digest, without the rows of failures, and the rows that are done."""

ABANDONED_AFTER_S = 7 * 24 * 3600.0
"""An unfinished entry that was not changed for so long is removed (chosen by us)."""

SAVE_EVERY_S = 10.0
"""A writer that is killed loses at most about this much work (chosen by us)."""


@dataclass(frozen=True, kw_only=True)
class CachedArray:
    """An array with one row per digest."""

    array: np.ndarray
    """Memory-mapped, read-only: images uint8 [N, S, S], or embeddings float16 [N, views, D]."""
    digests: tuple[str, ...]
    """SHA-256 of the file behind each row, sorted."""
    failures: dict[str, str]
    """Digest -> reason, for the files that have no row."""

    def find_rows(self, digests: Iterable[str]) -> np.ndarray:
        """Return the row number of each digest. Raises KeyError for a digest that has none."""
        numbers = {digest: row for row, digest in enumerate(self.digests)}
        return np.array([numbers[digest] for digest in digests], dtype=np.int64)


def cache_key(parts: Iterable[str]) -> str:
    """Return the name of a cache entry, made from all that decides its content."""
    digest = hashlib.sha256(f"schema {SCHEMA}\n".encode())
    for part in parts:
        digest.update(part.encode() + b"\n")
    return digest.hexdigest()[:32]


def open_cached(folder: Path) -> CachedArray | None:
    """Open a finished cache entry, or return None if there is none or it is damaged."""
    index = folder / INDEX
    if not index.exists():
        return None
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        array = np.load(folder / ARRAY, mmap_mode="r", allow_pickle=False)
        entry = CachedArray(array=array, digests=tuple(content["digests"]), failures=content["failures"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged: it is written again
    return entry if len(array) == len(entry.digests) else None


Part = tuple[Sequence[str], np.ndarray, Mapping[str, str]]
"""Digests, their rows, and digest -> reason for those that have no row."""


def write_cached(
    folder: Path,
    digests: Sequence[str],
    produce: Callable[[Sequence[str]], Iterable[Part]],
    *,
    row_shape: tuple[int, ...],
    dtype: str,
) -> CachedArray:
    """Write a cache entry and return it, or continue one that a stopped writer left. It appears whole or not at all.

    produce: given the digests that are missing, yields parts in any order.

    Raises StorageError if the disk is full or fails, ValueError if `produce` leaves a digest out.
    """
    with storage_errors(folder), _open_unfinished(folder) as unfinished:
        if not _is_finished(unfinished, digests, row_shape, dtype):
            entry = _UnfinishedEntry(unfinished, digests, row_shape, dtype)
            for part in produce(entry.missing):
                entry.add(*part)
            if entry.missing:
                raise ValueError(f"{len(entry.missing)} rows were not produced, among them {entry.missing[0]}")
            entry.finish()
        _publish(unfinished, folder)
    written = open_cached(folder)
    assert written is not None
    return written


@contextmanager
def _open_unfinished(folder: Path) -> Iterator[Path]:
    """Yield the folder of the unfinished entry, locked; a new one if another run has it or the disk has no locks."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder.parent, older_than_s=ABANDONED_AFTER_S)
    with hold_lock(folder.with_name(f".{folder.name}.lock"), waits=False) as is_alone:
        if is_alone:
            shared = folder.with_name(f".{folder.name}{UNFINISHED}")
            shared.mkdir(exist_ok=True)
            yield shared
        else:
            with temporary_sibling(folder) as own:
                yield own


class _UnfinishedEntry:
    """A cache entry that is being written. The rows of the digests in LOG are on the disk."""

    def __init__(self, folder: Path, digests: Sequence[str], row_shape: tuple[int, ...], dtype: str) -> None:
        self._folder = folder
        self._row_numbers = {digest: row for row, digest in enumerate(sorted(digests))}
        self._array = _open_array(folder, (len(self._row_numbers), *row_shape), dtype)
        self._log = folder / LOG
        self._failures: dict[str, str] = {}
        self._missing = dict.fromkeys(self._row_numbers)
        self._unsaved: list[tuple[list[str], dict[str, str]]] = []
        self._saved_at = time.monotonic()
        for names, failures in _read_log(self._log):
            self._mark_done(names, failures)

    @property
    def missing(self) -> list[str]:
        """The digests with neither row nor failure, sorted."""
        return list(self._missing)

    def add(self, names: Sequence[str], content: np.ndarray, failures: Mapping[str, str]) -> None:
        """Add a part; every few seconds, all parts so far are saved to the disk."""
        self._array[[self._row_numbers[name] for name in names]] = content
        self._mark_done(names, failures)
        self._unsaved.append((list(names), dict(failures)))
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self._save()

    def _mark_done(self, names: Iterable[str], failures: Mapping[str, str]) -> None:
        self._failures.update(failures)
        for name in (*names, *failures):
            self._missing.pop(name, None)

    def _save(self) -> None:
        self._array.flush()  # before the log lists the rows
        with self._log.open("a", encoding="utf-8") as log:
            log.writelines(json.dumps(part) + "\n" for part in self._unsaved)
            log.flush()
            os.fsync(log.fileno())
        self._unsaved.clear()
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """Write the index and the array. The array appears last, and with it the entry is finished."""
        self._save()
        kept = [digest for digest in self._row_numbers if digest not in self._failures]
        index = {"schema": SCHEMA, "digests": kept, "failures": self._failures}
        (self._folder / ARRAY).unlink(missing_ok=True)  # of a finished entry that was damaged
        with atomic_write(self._folder / INDEX) as partial:
            partial.write_text(json.dumps(index), encoding="utf-8")
        source = self._folder / FULL_ARRAY
        if len(kept) < len(self._array):
            source = self._folder / COMPACT_ARRAY
            compact = create_array(source, (len(kept), *self._array.shape[1:]), self._array.dtype.str)
            for row, digest in enumerate(kept):
                compact[row] = self._array[self._row_numbers[digest]]
            compact.flush()
            del compact
        del self._array  # Windows cannot rename a file that is mapped
        source.rename(self._folder / ARRAY)


def _is_finished(unfinished: Path, digests: Sequence[str], row_shape: tuple[int, ...], dtype: str) -> bool:
    """Return whether a writer was stopped after it had finished the entry and before it was published."""
    entry = open_cached(unfinished)
    return (
        entry is not None
        and {*entry.digests, *entry.failures} == set(digests)
        and entry.array.shape[1:] == row_shape
        and entry.array.dtype == np.dtype(dtype)
    )


def _publish(unfinished: Path, folder: Path) -> None:
    """Move the finished entry to its place, over a damaged one or one that another run has written meanwhile."""
    for path in unfinished.iterdir():
        if path.name not in (INDEX, ARRAY):
            path.unlink()
    replace_folder(unfinished, folder)


def _read_log(path: Path) -> list[tuple[list[str], dict[str, str]]]:
    """Return the parts that a stopped writer saved, up to a line that was cut short."""
    parts = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            names, failures = json.loads(line)
        except ValueError:
            break
        parts.append((names, failures))
    return parts


def _open_array(folder: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    """Open the array that a stopped writer left, or create one."""
    path = folder / FULL_ARRAY
    try:
        array = np.lib.format.open_memmap(path, mode="r+")
        fits = array.shape == shape and array.dtype == np.dtype(dtype)
    except (OSError, ValueError):
        fits = False
    if fits:
        _allocate(path)  # its writer may have been killed before this
        return array
    (folder / LOG).unlink(missing_ok=True)  # it is about another array
    return create_array(path, shape, dtype)


def create_array(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    """Create a memory-mapped array, fully allocated. Raises OSError, and leaves no file, if the disk is full."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    try:
        _allocate(path)
    except OSError:
        path.unlink()
        raise
    return array


def _allocate(path: Path) -> None:
    """Allocate all blocks of a file: on a full disk, a write to a map of a sparse file kills the process."""
    if hasattr(os, "posix_fallocate"):  # neither macOS nor Windows has it
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def cache_root() -> Path:
    """Return the folder of images, embeddings and phantoms: `$XDG_CACHE_HOME/mura`, else `~/.cache/mura`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mura"


def images_entry(cache: Path, preprocessing: Preprocessing, digests: Sequence[str]) -> Path:
    """Return the cache entry of the images of these files; `digests` must be sorted."""
    return cache / "store" / cache_key([preprocessing.key(), *digests])


def embeddings_entry(
    folder: Path, key: str, digests: Sequence[str], views: Sequence[tuple[bool, bool]] = VIEWS
) -> Path:
    """Return the entry of these images' embeddings; `digests` must be sorted and unique, `key` an `embedding_key`."""
    return folder / cache_key([key, *([] if views == VIEWS else [repr(views)]), *digests])
