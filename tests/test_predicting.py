"""What `mura predict` does without a bundle's networks."""

import errno
import os
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mura_models.errors import StorageError
from mura_models.preprocessing import Preprocessing
from orchestrator.predicting import decode_files

BUNDLE = SimpleNamespace(preprocessing=Preprocessing(image_size_px=64))
pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="macOS has no posix_fallocate")


@pytest.fixture
def manifest(tmp_path):
    """List eight films, all but two of them gone since."""
    names = [f"{name}.png" for name in "abcdefgh"]
    for name in names[-2:]:
        Image.fromarray(np.full((80, 80), 200, np.uint8)).save(tmp_path / name)
    return pd.DataFrame({"path": names, "file": [str(tmp_path / name) for name in names]})


def test_films_are_written_where_their_room_on_the_disk_is_taken(tmp_path, manifest):
    """Where the disk fills, a write to a map of a file with holes kills the process."""
    films_NHW, failures = decode_files(BUNDLE, manifest, tmp_path / "films")
    assert (tmp_path / "films").stat().st_blocks * 512 >= len(manifest) * 64 * 64
    assert films_NHW.shape == (2, 64, 64)
    assert (films_NHW == 200).all()
    assert failures == dict.fromkeys(manifest["path"][:-2], "file cannot be read: No such file or directory")


def test_a_disk_without_room_for_the_films_is_one_line(tmp_path, manifest, monkeypatch):
    def refuse_room(handle, start, num_bytes):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", refuse_room)
    with pytest.raises(StorageError, match=r"films: cannot be written \(No space left on device\)"):
        decode_files(BUNDLE, manifest, tmp_path / "films")
