"""Files of the scan -> resized images, by digest."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mura_models.data.images import decode_image
from mura_models.data.preprocessing import resize_image
from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.errors import ImageError, RunError, StorageError
from mura_models.storage import is_transient, retry


def read_scanned(path: Path, digest: str) -> bytes:
    """Read a file that the scan has read, and retry while its disk fails.

    Raises StorageError if the disk keeps failing, RunError if the file is gone or was changed.
    """

    def read() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            text = f"an image cannot be read any more ({error.strerror}); make it readable again"
            raise (StorageError if is_transient(error) else RunError)(text) from error

    content = retry(read)
    if hashlib.sha256(content).hexdigest() != digest:
        raise RunError("an image was changed after the data was scanned; the same command scans the data again")
    return content


def decode_batch(
    named: Sequence[tuple[str, str]], contents: Sequence[bytes], preprocessing: Preprocessing
) -> tuple[list[str], NDArray[np.uint8], dict[str, str]]:
    """Decode and resize files given as (digest, suffix) and bytes.

    Returns the digests of the decoded images, the images [B, S, S], and digest -> reason for those that failed.
    """
    images, digests, failures = [], [], {}
    for (digest, suffix), content in zip(named, contents, strict=True):
        try:
            images.append(resize_image(decode_image(content, suffix), preprocessing))
            digests.append(digest)
        except ImageError as error:
            failures[digest] = str(error)
    size_px = preprocessing.image_size_px
    images_BHW = np.stack(images) if images else np.zeros((0, size_px, size_px), np.uint8)
    return digests, images_BHW, failures
