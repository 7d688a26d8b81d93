"""Writing on disks that are full or fail for a while."""

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Event

import numpy as np
import pytest
from factories import list_names
from PIL import Image

from mura_models.errors import ConfigError, StorageError
from mura_models.storage import UNFINISHED, atomic_directory, atomic_write, hold_lock, remove_unfinished, retry_write
from orchestrator.run.files import read_json
from orchestrator.run.journal import JournalWriter, read_journal


class FailingDisk:
    """Fails so many times, then succeeds."""

    def __init__(self, num_refusals, number=errno.ENOSPC):
        self.left = num_refusals
        self.number = number

    def __call__(self):
        if self.left:
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number))
        return "written"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr("mura_models.storage.RETRY_EVERY_S", 0.001)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EROFS, errno.EDQUOT])
def test_writing_is_retried_while_storage_fails(tmp_path, number):
    assert retry_write(FailingDisk(5, number), tmp_path / "x", timeout_s=30) == "written"


def test_retries_have_an_end(tmp_path):
    begun = time.monotonic()
    with pytest.raises(
        StorageError,
        match=r"x: cannot be written \(No space left on device\); free disk space or repair the disk$",
    ):
        retry_write(FailingDisk(10**9), tmp_path / "x", timeout_s=0.05)
    assert time.monotonic() - begun < 5


def test_a_mistake_of_the_program_is_not_retried(tmp_path):
    with pytest.raises(OSError, match="Bad file descriptor"):
        retry_write(FailingDisk(1, errno.EBADF), tmp_path / "x", timeout_s=30)


@pytest.mark.parametrize("whole", [atomic_write, atomic_directory])
def test_a_full_disk_is_one_line_and_leaves_nothing_behind(tmp_path, whole):
    with pytest.raises(StorageError) as caught, whole(tmp_path / "x"):
        FailingDisk(1)()
    assert len(str(caught.value).splitlines()) == 1
    assert list_names(tmp_path) == []


def test_a_lock_that_is_held_is_refused_or_waited_for(tmp_path):
    lock, is_waiting = tmp_path / ".lock", Event()

    def wait_for_it():
        with hold_lock(lock, on_wait=is_waiting.set) as is_held:
            return is_held

    with ThreadPoolExecutor(1) as pool:
        with hold_lock(lock) as first, hold_lock(lock, waits=False) as second:
            third = pool.submit(wait_for_it)
            assert is_waiting.wait(timeout=60)
            assert (first, second, third.done()) == (True, False, False)
        assert third.result(timeout=60)
    assert list_names(tmp_path) == []


LOCKED = """
import os, signal, sys
from pathlib import Path
from mura_models.storage import hold_lock

with hold_lock(Path(sys.argv[1])) as is_held:
    assert is_held
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    done = subprocess.run([sys.executable, "-c", LOCKED, tmp_path / ".lock"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list_names(tmp_path) == [".lock"]
    with hold_lock(tmp_path / ".lock", waits=False) as is_held:
        assert is_held
    assert list_names(tmp_path) == []


PORTABLE = """
import errno, os, sys

sys.modules["fcntl"] = None
del os.posix_fallocate, errno.EREMOTEIO

import warnings
warnings.simplefilter("ignore")  # filelock: without fcntl and outside Windows, a lock is a file that exists

from pathlib import Path
import mura_models.inference.predict, mura_models.phantom
from mura_models.data.cache import create_array
from mura_models.data.dataset import read_predict_input
from mura_models.storage import atomic_write, hold_lock

folder = Path(sys.argv[1])
assert len(read_predict_input(folder).manifest) == 1
assert create_array(folder / "array", (1, 2), "uint8").shape == (1, 2)
with atomic_write(folder / "text") as partial, hold_lock(folder / ".lock") as is_held:
    assert is_held
    partial.write_text("written")
assert not (folder / ".lock").exists()
"""


def test_prediction_needs_nothing_that_windows_lacks(tmp_path):
    Image.fromarray(np.full((20, 30), 9, np.uint8)).save(tmp_path / "a.png")
    subprocess.run([sys.executable, "-c", PORTABLE, tmp_path], check=True)
    assert list_names(tmp_path) == ["a.png", "array", "text"]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / f".trial.abc{UNFINISHED}").write_text("half")
    (tmp_path / f".bundle.abc{UNFINISHED}").mkdir()
    (tmp_path / f".bundle.abc{UNFINISHED}" / "bundle.json").write_text("half")
    (tmp_path / "report.json").write_text("{}")
    remove_unfinished(tmp_path, older_than_s=3600)
    assert len(list_names(tmp_path)) == 3
    remove_unfinished(tmp_path)
    assert list_names(tmp_path) == ["report.json"]


def test_what_is_still_being_written_is_not_removed(tmp_path):
    """Appending to a file does not change its folder's own time."""
    folders = [tmp_path / f".{name}{UNFINISHED}" for name in ("abandoned", "alive")]
    for folder in folders:
        folder.mkdir()
        (folder / "done.jsonl").write_text("one\n")
    (tmp_path / f".file{UNFINISHED}").write_text("half")
    for path in (*tmp_path.rglob("*.jsonl"), *tmp_path.iterdir()):
        os.utime(path, (0, 0))
    with (folders[1] / "done.jsonl").open("a") as log:
        log.write("two\n")
    remove_unfinished(tmp_path, older_than_s=3600)
    assert list_names(tmp_path) == [folders[1].name]


def test_a_line_that_was_half_written_is_written_again(tmp_path, monkeypatch):
    """The disk takes five bytes and is full; once there is space, the line is there once, after the one before."""
    journal = JournalWriter(tmp_path / "journal.jsonl")
    journal.append(search="s", trial="a", epoch=1, metrics={}, state="RUNNING")
    write, calls = os.write, count()

    def fill(handle, content):
        call = next(calls)
        if call == 0:
            return write(handle, content[:5])
        if call == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, content)

    monkeypatch.setattr("os.write", fill)
    journal.append(search="s", trial="a", epoch=2, metrics={}, state="RUNNING")
    monkeypatch.undo()
    assert [line.epoch for line in read_journal(journal.path)] == [1, 2]
    assert journal.path.read_bytes().count(b"\n") == 2


def test_a_journal_that_cannot_be_written_is_as_it_was(tmp_path, monkeypatch):
    journal = JournalWriter(tmp_path / "journal.jsonl")
    journal.append(search="s", trial="a", epoch=1, metrics={}, state="RUNNING")
    monkeypatch.setattr("os.fsync", lambda handle: FailingDisk(1)())
    monkeypatch.setattr("mura_models.storage.RETRY_TIMEOUT_S", 0.0)
    with pytest.raises(StorageError):
        retry_write(lambda: journal._write(b"{}\n"), journal.path, timeout_s=0)
    monkeypatch.undo()
    assert [line.epoch for line in journal.lines] == [1]
    journal.append(search="s", trial="a", epoch=2, metrics={}, state="COMPLETE")
    assert [line.epoch for line in read_journal(journal.path)] == [1, 2]


@pytest.mark.parametrize("content", ["", "{", "\0\0\0", '{"a": 1}{'])
def test_a_damaged_file_of_the_run_is_named_in_one_line(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ConfigError, match=r"run\.json: damaged .*; give another --run-dir, or --fresh"):
        read_json(tmp_path / "run.json")


def test_a_damaged_line_of_the_journal_is_named_by_its_number(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = JournalWriter(path)
    for epoch in (1, 2, 3):
        journal.append(search="s", trial="a", epoch=epoch, metrics={}, state="RUNNING")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b'"epoch": 2', b'"epo\0h": 2"') + lines[2])
    with pytest.raises(ConfigError, match="line 2 is damaged"):
        read_journal(path)
