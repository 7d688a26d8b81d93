"""The store: every film of a data set decoded and resized once, in one memory-mapped array, in the cache.

A row is known by the digest of its file's bytes, so labels, splits and the order of the rows may change without a film
being decoded again, and a film that occurs twice is decoded once. Embeddings lie beside in the same manner.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class CachedArray:
    """An array with a row a digest; `failures` says why a digest has none."""

    rows: np.ndarray
    """Memory-mapped, read-only: films uint8 [n, S, S], or embeddings float16 [n, O, D]."""
    digests: tuple[str, ...]
    """Sorted."""
    failures: dict[str, str]

    def find(self, digests: Iterable[str]) -> np.ndarray:
        """Give the rows of these digests. Raises KeyError for one that is not there."""
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
    index = folder / "index.json"
    if not index.exists():
        return None
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        rows = np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None  # damaged: it is made anew
    return CachedArray(rows=rows, digests=tuple(content["digests"]), failures=content["failures"])


def write_cached(
    folder: Path,
    digests: Sequence[str],
    parts: Iterable[tuple[Sequence[str], np.ndarray]],
    *,
    row_shape: tuple[int, ...],
    dtype: str,
    failures: dict[str, str],
) -> CachedArray:
    """Fill an entry from parts as they come, each (digests, rows), in any order; whole or not at all.

    A digest may fail while the parts come: it is then in `failures`, which is read at the end, and leaves no row.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        places = {digest: row for row, digest in enumerate(sorted(digests))}
        shape = (len(places), *row_shape)
        rows = np.lib.format.open_memmap(aside / "all.npy", mode="w+", dtype=np.dtype(dtype), shape=shape)
        awaited = set(places)
        for names, content in parts:
            rows[[places[name] for name in names]] = content
            awaited.difference_update(names)
        missing = awaited - set(failures)
        if missing:
            raise ValueError(f"{len(missing)} rows never came, {min(missing)} among them")
        kept = [digest for digest in places if digest not in failures]
        _keep_rows(aside, rows, [places[digest] for digest in kept])
        index = {"schema": SCHEMA, "digests": kept, "failures": failures}
        (aside / "index.json").write_text(json.dumps(index), encoding="utf-8")
        if folder.exists():  # another run was faster, or the entry is damaged: ours is whole
            shutil.rmtree(folder)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    entry = open_cached(folder)
    assert entry is not None
    return entry


def _keep_rows(folder: Path, rows: np.memmap, kept: list[int]) -> None:
    """Make `rows.npy` of the rows that are kept: all of them, unless a film failed."""
    rows.flush()
    if len(kept) == len(rows):
        (folder / "all.npy").rename(folder / "rows.npy")
        return
    shape = (len(kept), *rows.shape[1:])
    compact = np.lib.format.open_memmap(folder / "rows.npy", mode="w+", dtype=rows.dtype, shape=shape)
    for new, old in enumerate(kept):
        compact[new] = rows[old]
    compact.flush()
    (folder / "all.npy").unlink()
