"""Decode and embed every image once, in Ray tasks; the results go into the cache of the driver.

The driver reads the files and sends their bytes, so that no worker needs the driver's disk; a worker decodes, resizes
and returns one small array. On the dashboard these tasks are called `decode_images`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import ray
import torch

from mura_models.data.cache import CachedArray, Part, images_entry, open_cached, write_cached
from mura_models.data.decode import decode_batch, read_scanned
from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.errors import ConfigError
from mura_models.inference.embed import IMAGES_PER_TASK, OnProgress
from mura_models.networks.backbones import Backbone, load_backbone
from mura_models.networks.runtimes import RuntimeChoice, choose_runtime
from orchestrator.cluster.task_pool import run_bounded, split_rows
from orchestrator.ingest.embed import embed_all
from orchestrator.run.config import RunConfig

DECODE_IMAGES = ray.remote(num_cpus=1)(decode_batch).options(name="decode_images")


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """The images, their embeddings and how they were made."""

    images: CachedArray
    """uint8 [n, S, S]"""
    embeddings: CachedArray
    """float16 [n, V, D]"""
    backbone: Backbone
    choice: RuntimeChoice
    num_decoded: int
    num_embedded: int
    failures: dict[str, str]
    """Digest of a file that could not be decoded -> reason."""


def ingest(
    config: RunConfig,
    manifest: pd.DataFrame,
    *,
    cache: Path,
    has_gpus: bool,
    begun_with: RuntimeChoice | None,
    on_progress: OnProgress,
) -> Ingested:
    """Decode and embed what the cache does not hold yet; on GPUs if trials run on GPUs.

    begun_with: what made the embeddings on which trials of this run may have been trained. Raises ConfigError if they
        would be made otherwise now.
    """
    backbone = load_backbone(config.backbone)  # raises before hours of decoding
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
    """Raise ConfigError if a run was begun on another device or in another precision.

    Its trials would be compared on different embeddings. The runtime may differ: torch replaces an ONNX export that
    fails.
    """
    if begun_with and (begun_with.device, begun_with.precision) != (choice.device, choice.precision):
        raise ConfigError(
            f"this run began with embeddings made on {begun_with.device} in {begun_with.precision}, here it would be "
            f"{choice.device} in {choice.precision}; resume it on such machines, or start a new run with --fresh"
        )


def decode_all(
    manifest: pd.DataFrame, preprocessing: Preprocessing, *, cache: Path, on_progress: OnProgress
) -> tuple[CachedArray, int]:
    """Return the decoded images of these files, and how many were decoded now."""
    if decoded := find_decoded(manifest, preprocessing, cache=cache):
        return decoded, 0
    files = manifest.drop_duplicates("digest").sort_values("digest")
    digests = list(files["digest"])
    folder = images_entry(cache, preprocessing, digests)
    preprocessing_ref = ray.put(preprocessing)

    def submit(part: pd.DataFrame) -> Any:
        paths = [Path(file) for file in part["file"]]
        named = [(digest, path.suffix.lower()) for digest, path in zip(part["digest"], paths, strict=True)]
        contents = [read_scanned(path, digest) for path, digest in zip(paths, part["digest"], strict=True)]
        return DECODE_IMAGES.remote(named, contents, preprocessing_ref)

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
    return open_cached(images_entry(cache, preprocessing, sorted(set(manifest["digest"]))))


def choose_gpu_runtime(backbone_name: str) -> RuntimeChoice | None:
    """Return what runs a backbone on the cluster's GPU nodes; None if torch finds no CUDA on them."""

    def choose() -> RuntimeChoice | None:
        return choose_runtime(backbone_name, "cuda") if torch.cuda.is_available() else None

    choice: RuntimeChoice | None = ray.get(ray.remote(num_cpus=0, num_gpus=1, max_calls=1)(choose).remote())
    return choice
