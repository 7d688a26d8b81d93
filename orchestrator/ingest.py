"""Decode once, embed once, on the cluster: films and embeddings into the cache of the driver.

The driver reads the files and sends their bytes, so that no worker needs the driver's disk; a worker decodes, resizes
and sends back one small array. Tasks carry telling names on the dashboard: `decode_images`, `embed_images`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
import torch

from mura_models.backbones import Backbone, load_backbone
from mura_models.data.images import decode_image
from mura_models.data.store import CachedArray, name_content, open_cached, write_cached
from mura_models.embeddings import embed_outcomes, embedding_key
from mura_models.errors import ImageError
from mura_models.preprocessing import OUTCOMES, Preprocessing, resize_image
from mura_models.runtimes import Embedder, RuntimeChoice, choose_runtime, prepare_model
from orchestrator.config import RunConfig

FILMS_PER_TASK = 64
MIN_UNDER_WAY = 8
"""Tasks waiting at least, so that an autoscaler with no node yet has something to start one for."""

OnProgress = Callable[[str, int, int], None]
"""Called with what is done ("decode", "embed"), how many films of how many."""


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """The films, their embeddings and how they came about."""

    films: CachedArray
    """uint8 [n, S, S]"""
    embeddings: CachedArray
    """float16 [n, O, D]"""
    backbone: Backbone
    choice: RuntimeChoice
    num_decoded: int
    num_embedded: int
    failures: dict[str, str]
    """Digest of a file that could not be decoded -> why."""


def ingest(
    config: RunConfig, manifest: pd.DataFrame, *, cache: Path, has_gpus: bool, on_progress: OnProgress
) -> Ingested:
    """Decode and embed what the cache does not hold yet; on GPUs where trials run on GPUs."""
    films, num_decoded = decode_films(manifest, config.preprocessing, cache=cache, on_progress=on_progress)
    backbone = load_backbone(config.backbone)
    choice = choose_runtime(backbone.name, find_device() if has_gpus else "cpu")
    embeddings, choice, num_embedded = embed_films(
        films, config.preprocessing, backbone, choice, cache=cache, on_progress=on_progress
    )
    return Ingested(
        films=films,
        embeddings=embeddings,
        backbone=backbone,
        choice=choice,
        num_decoded=num_decoded,
        num_embedded=num_embedded,
        failures=films.failures,
    )


def decode_films(
    manifest: pd.DataFrame, preprocessing: Preprocessing, *, cache: Path, on_progress: OnProgress
) -> tuple[CachedArray, int]:
    """Give the store of these files, and how many were decoded for it."""
    files = manifest.drop_duplicates("digest").sort_values("digest")
    digests = list(files["digest"])
    folder = cache / "store" / name_content([preprocessing.key(), *digests])
    if cached := open_cached(folder):
        return cached, 0
    failures: dict[str, str] = {}
    preprocessing_ref = ray.put(preprocessing)

    def submit(part: pd.DataFrame) -> Any:
        paths = [Path(file) for file in part["file"]]
        named = [(digest, path.suffix.lower()) for digest, path in zip(part["digest"], paths, strict=True)]
        contents = [path.read_bytes() for path in paths]
        return decode_images.remote(named, contents, preprocessing_ref)

    def collect() -> Iterator[tuple[list[str], np.ndarray]]:
        num_done = 0
        for names, films, failed in run_bounded(submit, split_rows(files, FILMS_PER_TASK)):
            failures.update(failed)
            num_done += len(names) + len(failed)
            on_progress("decode", num_done, len(digests))
            if names:
                yield names, films

    size_px = preprocessing.image_size_px
    store = write_cached(folder, digests, collect(), row_shape=(size_px, size_px), dtype="uint8", failures=failures)
    return store, len(digests)


def embed_films(
    films: CachedArray,
    preprocessing: Preprocessing,
    backbone: Backbone,
    choice: RuntimeChoice,
    *,
    cache: Path,
    on_progress: OnProgress,
) -> tuple[CachedArray, RuntimeChoice, int]:
    """Give the embeddings of all films under the four outcomes, what ran the backbone, and how many were embedded."""

    def name_folder(choice: RuntimeChoice) -> Path:
        return cache / "embeddings" / name_content([embedding_key(preprocessing, backbone, choice), *films.digests])

    if cached := open_cached(name_folder(choice)):
        return cached, choice, 0
    model, choice = prepare_model(backbone, choice, preprocessing.image_size_px)
    if cached := open_cached(name_folder(choice)):  # the export failed before, too
        return cached, choice, 0
    model_ref = ray.put(model)
    key = embedding_key(preprocessing, backbone, choice)
    task = embed_images.options(num_cpus=1, num_gpus=1 if choice.device == "cuda" else 0)

    def submit(rows: range) -> Any:
        return task.remote(rows, films.rows[rows.start : rows.stop], [model_ref], key, choice)

    def collect() -> Iterator[tuple[Sequence[str], np.ndarray]]:
        num_done = 0
        for rows, embeddings_BOD in run_bounded(submit, split_range(len(films.digests), FILMS_PER_TASK)):
            num_done += len(rows)
            on_progress("embed", num_done, len(films.digests))
            yield films.digests[rows.start : rows.stop], embeddings_BOD

    embeddings = write_cached(
        name_folder(choice),
        films.digests,
        collect(),
        row_shape=(len(OUTCOMES), backbone.num_features),
        dtype="float16",
        failures={},
    )
    return embeddings, choice, len(films.digests)


@ray.remote(num_cpus=1)  # type: ignore[untyped-decorator]
def decode_images(
    named: list[tuple[str, str]], contents: list[bytes], preprocessing: Preprocessing
) -> tuple[list[str], np.ndarray, dict[str, str]]:
    """Decode and resize files given as (digest, suffix) and bytes: digests and films [B, S, S], and what failed."""
    films, names, failed = [], [], {}
    for (digest, suffix), content in zip(named, contents, strict=True):
        try:
            films.append(resize_image(decode_image(content, suffix), preprocessing))
            names.append(digest)
        except ImageError as error:
            failed[digest] = str(error)
    size_px = preprocessing.image_size_px
    films_BHW = np.stack(films) if films else np.zeros((0, size_px, size_px), np.uint8)
    return names, films_BHW, failed


@ray.remote(num_cpus=1)  # type: ignore[untyped-decorator]
def embed_images(
    rows: range, films_BHW: np.ndarray, model: list[Any], key: str, choice: RuntimeChoice
) -> tuple[range, np.ndarray]:
    """Embed films under the four outcomes: float16 [B, O, D]. `model` holds the reference to it, fetched once."""
    return rows, embed_outcomes(films_BHW, _open_embedder(key, model[0], choice))


def _open_embedder(key: str, model_ref: Any, choice: RuntimeChoice) -> Embedder:
    """Open the model once a worker process; Ray keeps the process for the next tasks."""
    if key not in _opened:
        _opened.clear()
        _opened[key] = Embedder(ray.get(model_ref), choice, num_threads=1)
    return _opened[key]


_opened: dict[str, Embedder] = {}


def find_device() -> Any:
    """Say where the cluster's GPU nodes embed: on a CPU where torch finds no CUDA on them."""
    has_cuda = ray.remote(torch.cuda.is_available).options(name="look_for_cuda", num_cpus=0, num_gpus=1)
    return "cuda" if ray.get(has_cuda.remote()) else "cpu"


def run_bounded(submit: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
    """Submit a task a part and yield results as they come, with no more under way than keeps every worker busy."""
    under_way: list[Any] = []
    for part in parts:
        if len(under_way) >= max(MIN_UNDER_WAY, 2 * int(ray.cluster_resources().get("CPU", 0))):
            done, under_way = ray.wait(under_way, num_returns=1)
            yield ray.get(done[0])
        under_way.append(submit(part))
    while under_way:
        done, under_way = ray.wait(under_way, num_returns=1)
        yield ray.get(done[0])


def split_rows(table: pd.DataFrame, size: int) -> Iterator[pd.DataFrame]:
    """Cut a table into parts of at most `size` rows."""
    return (table.iloc[part.start : part.stop] for part in split_range(len(table), size))


def split_range(length: int, size: int) -> Iterator[range]:
    """Cut 0..length into ranges of at most `size`."""
    return (range(start, min(start + size, length)) for start in range(0, length, size))
