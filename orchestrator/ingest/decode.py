"""Decode once, embed once, on the cluster: images and embeddings into the cache of the driver.

The driver reads the files and sends their bytes, so that no worker needs the driver's disk; a worker decodes, resizes
and sends back one small array. On the dashboard its tasks are called `decode_images`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
import torch

from mura_models.data.cache import CachedArray, Part, cache_key, open_cached, write_cached
from mura_models.data.images import decode_image
from mura_models.data.preprocessing import resize_image
from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.errors import ConfigError, ImageError, RunError, StorageError
from mura_models.networks.backbones import Backbone, load_backbone
from mura_models.networks.runtimes import RuntimeChoice, choose_runtime
from mura_models.storage import is_transient, retry
from orchestrator.cluster.task_pool import IMAGES_PER_TASK, run_bounded, split_rows
from orchestrator.ingest.embed import OnProgress, embed_all
from orchestrator.run.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """The images, their embeddings and how they came about."""

    images: CachedArray
    """uint8 [n, S, S]"""
    embeddings: CachedArray
    """float16 [n, V, D]"""
    backbone: Backbone
    choice: RuntimeChoice
    num_decoded: int
    num_embedded: int
    failures: dict[str, str]
    """Digest of a file that could not be decoded -> why."""


def ingest(
    config: RunConfig,
    manifest: pd.DataFrame,
    *,
    cache: Path,
    has_gpus: bool,
    begun_with: RuntimeChoice | None,
    on_progress: OnProgress,
) -> Ingested:
    """Decode and embed what the cache does not hold yet; on GPUs where trials run on GPUs.

    Raises ConfigError where the embeddings would differ from what the run's trials were given (`begun_with`).
    """
    backbone = load_backbone(config.backbone)  # what is wrong with it is said before hours of decoding
    choice = (choose_gpu_runtime(backbone.name) if has_gpus else None) or choose_runtime(backbone.name, "cpu")
    check_same_device(choice, begun_with)
    images, num_decoded = decode_all(manifest, config.preprocessing, cache=cache, on_progress=on_progress)
    embeddings, choice, num_embedded = embed_all(
        images,
        images.digests,
        config.preprocessing,
        backbone,
        choice,
        cache=cache / "embeddings",
        on_progress=on_progress,
    )
    return Ingested(
        images=images,
        embeddings=embeddings,
        backbone=backbone,
        choice=choice,
        num_decoded=num_decoded,
        num_embedded=num_embedded,
        failures=images.failures,
    )


def check_same_device(choice: RuntimeChoice, begun_with: RuntimeChoice | None) -> None:
    """Raise ConfigError where a run was begun on another device or in another precision.

    Its trials would be compared on embeddings that are not the same. The runtime may differ: an ONNX export that fails
    has torch in its place.
    """
    if begun_with and (begun_with.device, begun_with.precision) != (choice.device, choice.precision):
        raise ConfigError(
            f"this run began with embeddings made on {begun_with.device} in {begun_with.precision}, here it would be "
            f"{choice.device} in {choice.precision}: continue it on machines like those, or give --fresh"
        )


def decode_all(
    manifest: pd.DataFrame, preprocessing: Preprocessing, *, cache: Path, on_progress: OnProgress
) -> tuple[CachedArray, int]:
    """Return the store of these files, and how many were decoded for it."""
    if decoded := find_decoded(manifest, preprocessing, cache=cache):
        return decoded, 0
    files = manifest.drop_duplicates("digest").sort_values("digest")
    digests = list(files["digest"])
    folder = name_images(cache, preprocessing, digests)
    preprocessing_ref = ray.put(preprocessing)

    def submit(part: pd.DataFrame) -> Any:
        paths = [Path(file) for file in part["file"]]
        named = [(digest, path.suffix.lower()) for digest, path in zip(part["digest"], paths, strict=True)]
        contents = [read_again(path, digest) for path, digest in zip(paths, part["digest"], strict=True)]
        return decode_images.remote(named, contents, preprocessing_ref)

    def produce(left: Sequence[str]) -> Iterator[Part]:
        num_done = len(digests) - len(left)
        rows = files[files["digest"].isin(left)]
        for names, images, failed in run_bounded(submit, split_rows(rows, IMAGES_PER_TASK)):
            num_done += len(names) + len(failed)
            on_progress("decode", num_done, len(digests))
            yield names, images, failed

    size_px = preprocessing.image_size_px
    return write_cached(folder, digests, produce, row_shape=(size_px, size_px), dtype="uint8"), len(digests)


def find_decoded(manifest: pd.DataFrame, preprocessing: Preprocessing, *, cache: Path) -> CachedArray | None:
    """Return the decoded images of these files if the cache holds all of them."""
    return open_cached(name_images(cache, preprocessing, sorted(set(manifest["digest"]))))


def read_again(path: Path, digest: str) -> bytes:
    """Read a file that the scan has read, waiting for its disk. Raises RunError where it is gone or changed."""

    def read() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            text = f"an image cannot be read any more ({error.strerror}); once it can, the same command continues"
            raise (StorageError if is_transient(error) else RunError)(text) from error

    content = retry(read)
    if hashlib.sha256(content).hexdigest() != digest:
        raise RunError("an image was changed after the data was scanned; the same command scans anew")
    return content


def name_images(cache: Path, preprocessing: Preprocessing, digests: Sequence[str]) -> Path:
    """Name the store of the images of these files; `digests` sorted."""
    return cache / "store" / cache_key([preprocessing.key(), *digests])


@ray.remote(num_cpus=1)  # type: ignore[untyped-decorator]
def decode_images(
    named: list[tuple[str, str]], contents: list[bytes], preprocessing: Preprocessing
) -> tuple[list[str], np.ndarray, dict[str, str]]:
    """Decode and resize files given as (digest, suffix) and bytes: digests and images [B, S, S], and what failed."""
    images, names, failed = [], [], {}
    for (digest, suffix), content in zip(named, contents, strict=True):
        try:
            images.append(resize_image(decode_image(content, suffix), preprocessing))
            names.append(digest)
        except ImageError as error:
            failed[digest] = str(error)
    size_px = preprocessing.image_size_px
    images_BHW = np.stack(images) if images else np.zeros((0, size_px, size_px), np.uint8)
    return names, images_BHW, failed


def choose_gpu_runtime(backbone_name: str) -> RuntimeChoice | None:
    """Say what runs a backbone on the cluster's GPU nodes; None where torch finds no CUDA on them."""

    def look_for_cuda() -> RuntimeChoice | None:
        return choose_runtime(backbone_name, "cuda") if torch.cuda.is_available() else None

    choice: RuntimeChoice | None = ray.get(ray.remote(num_cpus=0, num_gpus=1, max_calls=1)(look_for_cuda).remote())
    return choice
