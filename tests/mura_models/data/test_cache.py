"""The cache of images and embeddings: one row per file digest, written whole or not at all."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from factories import list_names

from mura_models.data.cache import cache_key, open_cached, write_cached
from mura_models.errors import StorageError

DIGESTS = ("cc", "aa", "dd", "bb")


def make_rows(digests):
    """Return the row of each digest: its position in DIGESTS, so that a misplaced row is noticed."""
    return np.array([np.full((2, 3), DIGESTS.index(digest)) for digest in digests], np.uint8)


def write(folder, parts=(("aa", "cc"), ("dd", "bb")), failures=None):
    """Write an entry from parts, in the order in which workers finish; the first reports the failures."""
    reported = [failures or {}, *[{}] * len(parts)]

    def produce(left):
        assert sorted(left) == sorted(DIGESTS)
        for part, failed in zip(parts or [()], reported, strict=False):
            yield part, make_rows(part) if part else np.zeros((0, 2, 3), np.uint8), failed

    return write_cached(folder, DIGESTS, produce, row_shape=(2, 3), dtype="uint8")


@pytest.mark.parametrize("parts", [[DIGESTS], [("bb",), ("cc", "aa"), ("dd",)], [("dd", "bb"), ("aa", "cc")]])
def test_a_row_is_found_by_its_digest_whatever_order_it_came_in(tmp_path, parts):
    written = write(tmp_path / "images", parts)
    for entry in (written, open_cached(tmp_path / "images")):
        assert entry.digests == ("aa", "bb", "cc", "dd")
        asked = ["dd", "aa", "dd"]  # an image that occurs twice is there once
        assert np.array_equal(entry.array[entry.find_rows(asked)], make_rows(asked))


def test_rows_are_on_the_disk_and_read_only(tmp_path):
    rows = write(tmp_path / "images").array
    assert isinstance(rows, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        rows[0] = 9


def test_an_image_that_fails_leaves_a_reason_and_no_row(tmp_path):
    write(tmp_path / "images", parts=[("dd", "aa"), ("bb",)], failures={"cc": "truncated"})
    entry = open_cached(tmp_path / "images")
    assert entry.digests == ("aa", "bb", "dd")
    assert entry.failures == {"cc": "truncated"}
    assert np.array_equal(entry.array[entry.find_rows(["dd", "bb"])], make_rows(["dd", "bb"]))
    with pytest.raises(KeyError):
        entry.find_rows(["cc"])


def test_an_entry_of_failures_alone_is_remembered(tmp_path):
    entry = write(tmp_path / "images", parts=[()], failures=dict.fromkeys(DIGESTS, "not an image"))
    assert entry.array.shape == (0, 2, 3)
    assert open_cached(tmp_path / "images").failures == dict.fromkeys(DIGESTS, "not an image")


def stop_after(parts, *, by):
    """Yield these parts, then fail like a writer that is stopped."""
    for part in parts:
        yield part, make_rows(part), {}
    raise by


@pytest.mark.parametrize("end", [RuntimeError("worker lost"), KeyboardInterrupt()])
def test_a_writer_that_is_stopped_leaves_no_entry_and_the_next_goes_on(tmp_path, monkeypatch, end):
    monkeypatch.setattr("mura_models.data.cache.SAVE_EVERY_S", -1)
    shape = {"row_shape": (2, 3), "dtype": "uint8"}
    with pytest.raises(type(end)):
        write_cached(tmp_path / "images", DIGESTS, lambda left: stop_after([("aa",), ("dd",)], by=end), **shape)
    assert open_cached(tmp_path / "images") is None
    asked = []

    def produce(left):
        asked.append(left)
        yield left, make_rows(left), {}

    entry = write_cached(tmp_path / "images", DIGESTS, produce, **shape)
    assert asked == [["bb", "cc"]]
    assert np.array_equal(entry.array, make_rows(entry.digests))
    assert list_names(tmp_path) == ["images"]
    assert list_names(tmp_path / "images") == ["index.json", "rows.npy"]


def test_of_a_stopped_writers_log_only_whole_lines_count(tmp_path, monkeypatch):
    monkeypatch.setattr("mura_models.data.cache.SAVE_EVERY_S", -1)
    shape = {"row_shape": (2, 3), "dtype": "uint8"}
    with pytest.raises(RuntimeError):
        stopped = stop_after([("aa",), ("dd",)], by=RuntimeError())
        write_cached(tmp_path / "images", DIGESTS, lambda left: stopped, **shape)
    log = tmp_path / ".images.part" / "done.jsonl"
    log.write_bytes(log.read_bytes()[:-4])
    entry = write_cached(tmp_path / "images", DIGESTS, lambda left: [(left, make_rows(left), {})], **shape)
    assert np.array_equal(entry.array, make_rows(entry.digests))


def raise_no_space(handle, start, num_bytes):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def leave_sparse_array(folder):
    """Leave what a writer leaves that is killed before it has allocated its array."""
    folder.mkdir()
    np.lib.format.open_memmap(folder / "all.npy", mode="w+", dtype=np.uint8, shape=(4, 64, 64))
    assert (folder / "all.npy").stat().st_blocks * 512 < 4 * 64 * 64


needs_allocation = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="macOS has no posix_fallocate")


@needs_allocation
def test_an_array_that_is_not_allocated_is_never_written_to(tmp_path, monkeypatch):
    """On a full disk, a write to a map of a sparse file kills the process."""
    array = tmp_path / ".images.part" / "all.npy"
    shape = {"row_shape": (64, 64), "dtype": "uint8"}

    def produce(left):
        assert array.stat().st_blocks * 512 >= 4 * 64 * 64
        yield left, np.ones((4, 64, 64), np.uint8), {}

    leave_sparse_array(array.parent)
    monkeypatch.setattr("os.posix_fallocate", raise_no_space)
    with pytest.raises(StorageError, match="No space left on device"):
        write_cached(tmp_path / "images", DIGESTS, produce, **shape)
    monkeypatch.undo()
    assert write_cached(tmp_path / "images", DIGESTS, produce, **shape).array.all()


@needs_allocation
def test_an_array_that_cannot_be_allocated_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("os.posix_fallocate", raise_no_space)
    with pytest.raises(StorageError, match="No space left on device"):
        write(tmp_path / "images")
    assert list_names(tmp_path / ".images.part") == []


def fail_at_index(monkeypatch):
    """Make the disk full when the index is written."""
    monkeypatch.setattr(Path, "write_text", lambda path, *args, **kwargs: raise_no_space(None, 0, 0))


def fail_at_rename(monkeypatch):
    """Make the disk full when the array is renamed."""
    monkeypatch.setattr(Path, "rename", lambda path, target: raise_no_space(None, 0, 0))


def fail_at_publishing(monkeypatch):
    """Make the disk full when the finished entry is published."""
    monkeypatch.setattr("mura_models.data.cache.replace_folder", lambda partial, path: raise_no_space(None, 0, 0))


@pytest.mark.parametrize("failures", [{}, {"cc": "truncated"}])
@pytest.mark.parametrize("fail", [fail_at_index, fail_at_rename, fail_at_publishing])
def test_no_row_is_produced_again_if_the_last_steps_fail(tmp_path, monkeypatch, fail, failures):
    parts = [("aa", "dd"), ("bb",) if failures else ("bb", "cc")]
    asked = []
    fail(monkeypatch)
    with pytest.raises(StorageError):
        write(tmp_path / "images", parts, failures)
    monkeypatch.undo()

    def produce(left):
        asked.extend(left)
        yield left, make_rows(left).reshape(-1, 2, 3), {}

    entry = write_cached(tmp_path / "images", DIGESTS, produce, row_shape=(2, 3), dtype="uint8")
    assert asked == []
    assert entry.failures == failures
    assert entry.digests == tuple(digest for digest in sorted(DIGESTS) if digest not in failures)
    assert np.array_equal(entry.array, make_rows(entry.digests))
    assert list_names(tmp_path) == ["images"]
    assert list_names(tmp_path / "images") == ["index.json", "rows.npy"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is mapped")
@pytest.mark.parametrize("failures", [{}, {"cc": "truncated"}])
def test_no_file_is_renamed_while_it_is_mapped(tmp_path, monkeypatch, failures):
    """Windows would refuse it."""
    renamed = []

    def watch(name):
        rename = getattr(Path, name)

        def check(path, *args):
            renamed.append(path.name)
            handles = [str(handle.readlink()) for handle in Path("/proc/self/fd").iterdir() if handle.is_symlink()]
            assert str(path) not in Path("/proc/self/maps").read_text()
            assert not any(file.startswith(str(path)) for file in handles)
            return rename(path, *args)

        monkeypatch.setattr(Path, name, check)

    watch("rename")
    watch("replace")
    write(tmp_path / "images", [("aa", "dd"), ("bb",) if failures else ("bb", "cc")], failures)
    assert ".images.part" in renamed
    assert ("kept.npy" if failures else "all.npy") in renamed


def test_two_writers_at_once_do_not_disturb_each_other(tmp_path):
    shape = {"row_shape": (2, 3), "dtype": "uint8"}

    def produce(left):
        inner = write_cached(tmp_path / "images", DIGESTS, lambda names: [(names, make_rows(names), {})], **shape)
        assert np.array_equal(inner.array, make_rows(inner.digests))
        yield left, make_rows(left), {}

    entry = write_cached(tmp_path / "images", DIGESTS, produce, **shape)
    assert np.array_equal(entry.array, make_rows(entry.digests))
    assert list_names(tmp_path) == ["images"]


def test_a_row_that_was_not_produced_is_no_black_image(tmp_path):
    with pytest.raises(ValueError, match="cc"):
        write(tmp_path / "images", parts=[("aa", "bb", "dd")])
    assert open_cached(tmp_path / "images") is None


def test_writing_again_replaces_the_entry(tmp_path):
    write(tmp_path / "images", failures={"cc": "truncated"})
    assert write(tmp_path / "images").failures == {}
    assert list_names(tmp_path) == ["images"]


def test_a_damaged_entry_counts_as_none_and_is_written_again(tmp_path):
    write(tmp_path / "images")
    rows = tmp_path / "images" / "rows.npy"
    os.truncate(rows, rows.stat().st_size - 5)
    assert open_cached(tmp_path / "images") is None
    assert len(write(tmp_path / "images").digests) == 4


def test_half_precision_embeddings_come_back_to_the_bit(tmp_path):
    rows = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float16)
    write_cached(tmp_path / "e", ["b", "a"], lambda left: [(("b", "a"), rows, {})], row_shape=(4, 8), dtype="float16")
    entry = open_cached(tmp_path / "e")
    assert entry.array.dtype == np.float16
    assert np.array_equal(entry.array[entry.find_rows(["b", "a"])], rows)


def test_an_entry_is_named_by_all_that_decides_its_content():
    names = {cache_key(parts) for parts in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], ["a"], [])}
    assert len(names) == 6
    assert cache_key(iter(["a", "b"])) == cache_key(["a", "b"])
