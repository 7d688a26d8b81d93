"""Where the cache stores decoded images and embeddings. Runs and the Python API share its entries."""

import os
from collections.abc import Sequence
from pathlib import Path

from mura_models.data.cache import cache_key
from mura_models.data.preprocessing import VIEWS
from mura_models.data.preprocessing_settings import Preprocessing


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
