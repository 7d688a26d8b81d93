"""Embed images by a frozen backbone, with the cache that runs use: `mura.embed`."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from mura_models.data.cache import (
    CachedArray,
    Part,
    cache_root,
    embeddings_entry,
    images_entry,
    open_cached,
    write_cached,
)
from mura_models.data.dataset import DataSet
from mura_models.data.decode import decode_batch, read_scanned
from mura_models.data.preprocessing import VIEWS
from mura_models.data.preprocessing_settings import Preprocessing, ResizeMode
from mura_models.data.scan import read_facts
from mura_models.errors import DataError
from mura_models.inference.predict_input import FilePath
from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.networks.backbones import Backbone, load_backbone
from mura_models.networks.embeddings import embed_views, embedding_key
from mura_models.networks.runtimes import Device, Embedder, RuntimeChoice, choose_runtime, prepare_model

IMAGES_PER_TASK = 64
"""Decoded or embedded together; in a run by one Ray task."""
PLAIN = VIEWS[:1]

OnProgress: TypeAlias = Callable[[str, int, int], None]
"""Called with the step ("decode" or "embed"), the images done and the images in all."""

logger = logging.getLogger(__name__)


def embed(
    images: DataSet | Iterable[FilePath],
    *,
    backbone: str = "efficientnet_lite0",
    weights: str = "imagenet",
    image_size_px: int = 256,
    resize: ResizeMode = "stretch",
    device: Device | None = None,
    cache_dir: FilePath | None = None,
    on_progress: OnProgress | None = None,
) -> npt.NDArray[np.float32]:
    """Embed images by a frozen backbone, without augmentation. Each image is decoded and embedded once.

    Args:
        images: A `DataSet` of `read_dataset`, or paths of image files.
        backbone: efficientnet_lite0, resnet18, resnet50, densenet169 or a model of timm.
        weights: imagenet, random, or the path of a .pt, .pth or .safetensors file.
        image_size_px: Side of the square images that the backbone sees, 16 to 1024.
        resize: How an image becomes square: stretch, or pad (keeps the aspect ratio, on black).
        device: cpu or cuda; by default cuda if there is one.
        cache_dir: Where images and embeddings are cached, as by a run; by default `$XDG_CACHE_HOME/mura`, else
            `~/.cache/mura`. A run on the same data set, settings and kind of device shares the cache.
        on_progress: Called with "decode" or "embed", the number of images done and of all images.

    Returns:
        float32 [N, D], one row per row of `images.manifest`, or per path in the order given. A row is NaN if the image
        cannot be read or decoded; the number of these is logged as a warning.

    Raises:
        ConfigError: An option is out of range, or the backbone is unknown or does not take this image size.
        WeightsError: The weights cannot be loaded.
        DataError: No image can be used.
        RunError: An image was changed since it was scanned, or is gone.
        StorageError: The disk of the cache is full or fails.

    Examples:
        >>> data = mura.read_dataset("manifest.csv")
        >>> features = mura.embed(data)
        >>> features.shape  # (images, 1280)
    """
    preprocessing = Preprocessing(image_size_px=image_size_px, resize=resize)
    loaded = load_backbone(BackboneSpec(name=backbone, weights=weights))
    choice = choose_runtime(backbone, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    files = images.manifest[["digest", "file"]] if isinstance(images, DataSet) else _scan_files(images)
    cache = Path(cache_dir) if cache_dir is not None else cache_root()
    report = on_progress or (lambda _what, _done, _total: None)
    decoded = _decode_all(files.dropna(), preprocessing, cache, report)
    if not decoded.digests:
        raise DataError("no image can be used")
    embedded = _embed_all(
        decoded,
        preprocessing=preprocessing,
        backbone=loaded,
        choice=choice,
        folder=cache / "embeddings",
        report=report,
    )
    has_row = files["digest"].isin(embedded.digests).to_numpy()
    if not has_row.all():
        logger.warning("%d of %d images cannot be used: their embeddings are NaN", (~has_row).sum(), len(has_row))
    features_ND = np.full((len(files), loaded.num_features), np.nan, np.float32)
    features_ND[has_row] = embedded.array[embedded.find_rows(files["digest"][has_row]), 0]
    return features_ND


def _scan_files(paths: Iterable[FilePath]) -> pd.DataFrame:
    """Return `digest` and `file` per path; the digest is missing if the file cannot be used."""
    files = [os.path.abspath(path) for path in paths]  # noqa: PTH100
    with ThreadPoolExecutor() as pool:
        digests = [facts.digest or None for facts in pool.map(read_facts, files)]
    return pd.DataFrame({"digest": digests, "file": files}, dtype="str")


def _decode_all(files: pd.DataFrame, preprocessing: Preprocessing, cache: Path, report: OnProgress) -> CachedArray:
    unique = files.drop_duplicates("digest").sort_values("digest")
    digests = list(unique["digest"])
    folder = images_entry(cache, preprocessing, digests)
    if cached := open_cached(folder):
        return cached
    paths = {digest: Path(file) for digest, file in zip(unique["digest"], unique["file"], strict=True)}

    def decode(part: Sequence[str]) -> Part:
        contents = [read_scanned(paths[digest], digest) for digest in part]
        return decode_batch([(digest, paths[digest].suffix.lower()) for digest in part], contents, preprocessing)

    def produce(missing: Sequence[str]) -> Iterator[Part]:
        return _run_threads(decode, missing, "decode", len(digests), report)

    size_px = preprocessing.image_size_px
    return write_cached(folder, digests, produce, row_shape=(size_px, size_px), dtype="uint8")


def _embed_all(
    images: CachedArray,
    *,
    preprocessing: Preprocessing,
    backbone: Backbone,
    choice: RuntimeChoice,
    folder: Path,
    report: OnProgress,
) -> CachedArray:
    """Return the embeddings of all images under the plain view, which comes first if the entry has more."""
    digests = images.digests

    def entries(choice: RuntimeChoice) -> list[Path]:
        key = embedding_key(preprocessing, backbone, choice)
        return [embeddings_entry(folder, key, digests, views) for views in (VIEWS, PLAIN)]

    if cached := _open_any(entries(choice)):
        return cached
    model, choice = prepare_model(backbone, choice, preprocessing.image_size_px)
    if cached := _open_any(entries(choice)):  # the backbone could not be exported, and the choice is another
        return cached
    num_threads = os.cpu_count() if choice.device == "cpu" else 1
    with _threads_restored():
        embedder = Embedder(model, choice, num_threads=1)  # as in a run; threads share it

        def embed_part(part: Sequence[str]) -> Part:
            return part, embed_views(images.array[images.find_rows(part)], embedder, views=PLAIN), {}

        def produce(missing: Sequence[str]) -> Iterator[Part]:
            return _run_threads(embed_part, missing, "embed", len(digests), report, num_threads=num_threads)

        row_shape = (len(PLAIN), backbone.num_features)
        return write_cached(entries(choice)[-1], digests, produce, row_shape=row_shape, dtype="float16")


def _open_any(folders: Sequence[Path]) -> CachedArray | None:
    return next((entry for folder in folders if (entry := open_cached(folder))), None)


def _run_threads(
    work: Callable[[Sequence[str]], Part],
    digests: Sequence[str],
    what: str,
    total: int,
    report: OnProgress,
    *,
    num_threads: int | None = None,
) -> Iterator[Part]:
    """Yield the results of parts of the digests, with one round of all threads in memory."""
    parts = [digests[start : start + IMAGES_PER_TASK] for start in range(0, len(digests), IMAGES_PER_TASK)]
    num_threads = num_threads or os.cpu_count() or 1
    num_done = total - len(digests)
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(parts), num_threads):
            for part, done in zip(parts[start:], pool.map(work, parts[start : start + num_threads]), strict=False):
                num_done += len(part)
                report(what, num_done, total)
                yield done


@contextmanager
def _threads_restored() -> Iterator[None]:
    """Restore torch's number of threads, which an `Embedder` sets for the whole process."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
