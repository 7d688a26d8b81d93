"""Images -> embeddings in Ray tasks, by the frozen backbone or by one that was trained here, cached by content.

On the dashboard these tasks are called `embed_images`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from mura_models.data.cache import CachedArray, Part, embeddings_entry, open_cached, write_cached
from mura_models.data.preprocessing import VIEWS
from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.inference.embed import IMAGES_PER_TASK, OnProgress
from mura_models.networks.backbones import Backbone
from mura_models.networks.embeddings import embed_views, embedding_key
from mura_models.networks.runtimes import Embedder, RuntimeChoice, prepare_model
from orchestrator.cluster.task_pool import run_bounded, split_range

IMAGES_PER_GPU_TASK = 2048
"""Enough to outweigh the start of CUDA in a new process (chosen by us)."""


def embed_all(
    images: CachedArray,
    digests: Sequence[str],
    preprocessing: Preprocessing,
    backbone: Backbone,
    choice: RuntimeChoice,
    *,
    views: Sequence[tuple[bool, bool]] = VIEWS,
    cache: Path,
    on_progress: OnProgress,
) -> tuple[CachedArray, RuntimeChoice, int]:
    """Return the embeddings of these images under each view, what ran the backbone, and how many were embedded now."""
    wanted = sorted(set(digests))

    def entry(choice: RuntimeChoice) -> Path:
        return embeddings_entry(cache, embedding_key(preprocessing, backbone, choice), wanted, views)

    if cached := open_cached(entry(choice)):
        return cached, choice, 0
    model, choice = prepare_model(backbone, choice, preprocessing.image_size_px)
    if cached := open_cached(entry(choice)):  # of an earlier export that failed, too
        return cached, choice, 0
    key = embedding_key(preprocessing, backbone, choice)
    model_ref = ray.put(model)

    def produce(left: Sequence[str]) -> Iterator[Part]:
        num_done = len(wanted) - len(left)
        parts = _embed_in_parts(images.array, images.find_rows(left), model_ref, key=key, choice=choice, views=views)
        for rows, embeddings_BVD in parts:
            num_done += len(rows)
            on_progress("embed", num_done, len(wanted))
            yield left[rows.start : rows.stop], embeddings_BVD, {}

    row_shape = (len(views), backbone.num_features)
    embeddings = write_cached(entry(choice), wanted, produce, row_shape=row_shape, dtype="float16")
    return embeddings, choice, len(wanted)


def _embed_in_parts(
    images_NHW: np.ndarray,
    array_rows: np.ndarray,
    model_ref: Any,
    *,
    key: str,
    choice: RuntimeChoice,
    views: Sequence[tuple[bool, bool]],
) -> Iterator[tuple[range, np.ndarray]]:
    """Embed the images in these rows, one task per part; yield ranges of `array_rows` and float16 [B, V, D]."""
    task, images_per_task = (ON_GPU, IMAGES_PER_GPU_TASK) if choice.device == "cuda" else (ON_CPU, IMAGES_PER_TASK)

    def submit(rows: range) -> Any:
        images_BHW = images_NHW[array_rows[rows.start : rows.stop]]
        return task.remote(rows, images_BHW, [model_ref], key, choice, views=views)

    return run_bounded(submit, split_range(len(array_rows), images_per_task))


def embed_images(
    rows: range,
    images_BHW: np.ndarray,
    model: list[Any],
    key: str,
    choice: RuntimeChoice,
    *,
    views: Sequence[tuple[bool, bool]],
) -> tuple[range, np.ndarray]:
    """Return `rows` and the embeddings of the images under each view, float16 [B, V, D]. `model`: a reference to it."""
    return rows, embed_views(images_BHW, _open_embedder(key, model[0], choice), views=views)


ON_CPU = ray.remote(num_cpus=1)(embed_images)
ON_GPU = ray.remote(num_cpus=1, num_gpus=1, max_calls=1)(embed_images)
"""In a new process each time: one that is kept would hold GPU memory that trials need."""


def _open_embedder(key: str, model_ref: Any, choice: RuntimeChoice) -> Embedder:
    """Open the model once per worker process; Ray keeps the process for the next tasks."""
    if key not in _opened:
        _opened.clear()
        _opened[key] = Embedder(ray.get(model_ref), choice, num_threads=1)
    return _opened[key]


_opened: dict[str, Embedder] = {}
