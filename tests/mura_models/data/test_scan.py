"""Scanning images on disks and file servers that fail for a while."""

import errno
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mura_models.data import scan
from mura_models.data.scan import Listing, check_files
from mura_models.errors import StorageError
from mura_models.storage import StorageFault

SERVER_GONE = (errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN)


@pytest.fixture
def listing(tmp_path):
    """List twenty images."""
    names = [f"{number:02}.png" for number in range(20)]
    for number, name in enumerate(names):
        Image.fromarray(np.full((20, 30), number, np.uint8)).save(tmp_path / name)
    return Listing(table=pd.DataFrame({"path": names, "file": [str(tmp_path / name) for name in names]}, dtype="str"))


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    for module in ("mura_models.storage", "mura_models.data.scan"):
        monkeypatch.setattr(f"{module}.RETRY_EVERY_S", 0.001)


@pytest.fixture
def _short_patience(monkeypatch):
    for patience in ("RETRY_TIMEOUT_S", "DISK_PATIENCE_S"):
        monkeypatch.setattr(f"mura_models.data.scan.{patience}", 0.5)


def break_images(monkeypatch, number, *, names=None, num_refusals=10**9, ask="read_bytes"):
    """Make reading these images, or all, fail so many times each."""
    original = getattr(Path, ask)
    refused = Counter()

    def refuse(path, **options):
        if path.suffix == ".png" and (names is None or path.name in names) and refused[path] < num_refusals:
            refused[path] += 1
            raise OSError(number, os.strerror(number))
        return original(path, **options)

    monkeypatch.setattr(Path, ask, refuse)


@pytest.mark.parametrize("number", [*SERVER_GONE, errno.EIO])
@pytest.mark.parametrize("ask", ["stat", "read_bytes"])
def test_good_images_of_a_server_that_fails_briefly_stay_in_the_data(listing, monkeypatch, number, ask):
    whole = check_files(listing)
    break_images(monkeypatch, number, num_refusals=2, ask=ask)
    found = check_files(listing)
    assert found.quarantine.empty
    pd.testing.assert_frame_equal(found.table, whole.table)


@pytest.mark.usefixtures("_short_patience")
@pytest.mark.parametrize("number", SERVER_GONE)
def test_a_server_that_stays_away_ends_the_scan_in_one_line_without_a_path(listing, monkeypatch, number):
    break_images(monkeypatch, number, names=["07.png"])
    with pytest.raises(StorageError) as caught:
        check_files(listing)
    assert str(caught.value) == (f"an image's file cannot be read: {os.strerror(number)}; repair its disk or server")


@pytest.mark.usefixtures("_short_patience")
def test_a_bad_sector_costs_its_image_alone(listing, monkeypatch):
    break_images(monkeypatch, errno.EIO, names=["03.png", "11.png"])
    found = check_files(listing)
    assert found.quarantine["path"].tolist() == ["03.png", "11.png"]
    assert set(found.quarantine["reason"]) == {"file cannot be read: Input/output error"}
    assert len(found.table) == 18


@pytest.mark.usefixtures("_short_patience")
def test_a_disk_full_of_bad_sectors_is_waited_for_once(listing, monkeypatch):
    break_images(monkeypatch, errno.EIO)
    begun = time.monotonic()
    assert len(check_files(listing).quarantine) == 20
    assert time.monotonic() - begun < 5


def test_an_image_that_may_not_be_read_is_excluded_at_once(listing, monkeypatch):
    monkeypatch.setattr("mura_models.data.scan.RETRY_TIMEOUT_S", 3600)
    break_images(monkeypatch, errno.EACCES, names=["03.png"])
    found = check_files(listing)
    assert found.quarantine["reason"].tolist() == ["file cannot be read: Permission denied"]


def test_a_server_that_comes_back_slowly_loses_no_image(listing, monkeypatch):
    """The timeout counts the time without success, not the time to read the images that succeed."""
    monkeypatch.setattr("mura_models.data.scan.DISK_PATIENCE_S", 0.3)
    read_facts, num_reads = scan.read_facts, Counter()

    def read_slowly(file):
        num_reads[file] += 1
        if num_reads[file] == 1:
            return scan.FileFacts("file cannot be read: Input/output error", fault=StorageFault.IO_ERROR)
        time.sleep(0.05)
        return read_facts(file)

    monkeypatch.setattr("mura_models.data.scan.read_facts", read_slowly)
    assert check_files(listing).quarantine.empty
