"""Films -> embeddings on the cluster, by the frozen backbone or by one that was trained here, cached by content.

On the dashboard the tasks are called `embed_images`.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from mura_models.data.cache import CachedArray, Part, name_content, open_cached, write_cached
from mura_models.data.preprocessing import OUTCOMES, Preprocessing
from mura_models.networks.backbones import Backbone
from mura_models.networks.embeddings import embed_outcomes, embedding_key
from mura_models.networks.runtimes import Embedder, RuntimeChoice, prepare_model
from orchestrator.cluster.task_pool import FILMS_PER_TASK, run_bounded, split_range

FILMS_PER_GPU_TASK = 2048
"""Enough to make up for a process that starts CUDA (chosen by us)."""

OnProgress = Callable[[str, int, int], None]
"""Called with what is done ("decode", "embed"), how many films of how many."""


def embed_films(
    films: CachedArray,
    digests: Sequence[str],
    preprocessing: Preprocessing,
    backbone: Backbone,
    choice: RuntimeChoice,
    *,
    outcomes: Sequence[tuple[bool, bool]] = OUTCOMES,
    cache: Path,
    on_progress: OnProgress,
) -> tuple[CachedArray, RuntimeChoice, int]:
    """Give the embeddings of these films under each outcome, what ran the backbone, and how many were embedded."""
    wanted = sorted(set(digests))

    def name_folder(choice: RuntimeChoice) -> Path:
        key = embedding_key(preprocessing, backbone, choice)
        return name_embeddings(cache, key, wanted, outcomes)

    if cached := open_cached(name_folder(choice)):
        return cached, choice, 0
    model, choice = prepare_model(backbone, choice, preprocessing.image_size_px)
    if cached := open_cached(name_folder(choice)):  # the export failed before, too
        return cached, choice, 0
    key = embedding_key(preprocessing, backbone, choice)
    model_ref = ray.put(model)

    def produce(left: Sequence[str]) -> Iterator[Part]:
        num_done = len(wanted) - len(left)
        parts = _embed_in_parts(films.rows, films.find(left), model_ref, key=key, choice=choice, outcomes=outcomes)
        for rows, embeddings_BOD in parts:
            num_done += len(rows)
            on_progress("embed", num_done, len(wanted))
            yield left[rows.start : rows.stop], embeddings_BOD, {}

    row_shape = (len(outcomes), backbone.num_features)
    embeddings = write_cached(name_folder(choice), wanted, produce, row_shape=row_shape, dtype="float16")
    return embeddings, choice, len(wanted)


def name_embeddings(
    cache: Path, key: str, digests: Sequence[str], outcomes: Sequence[tuple[bool, bool]] = OUTCOMES
) -> Path:
    """Name the entry of these films' embeddings; `digests` sorted, and none twice."""
    return cache / name_content([key, *([] if outcomes == OUTCOMES else [repr(outcomes)]), *digests])


def _embed_in_parts(
    films_NHW: np.ndarray,
    places: np.ndarray,
    model_ref: Any,
    *,
    key: str,
    choice: RuntimeChoice,
    outcomes: Sequence[tuple[bool, bool]],
) -> Iterator[tuple[range, np.ndarray]]:
    """Embed the films at these places, a task a part; give parts of `places` and float16 [B, O, D] as they come."""
    task, films_per_task = (ON_GPU, FILMS_PER_GPU_TASK) if choice.device == "cuda" else (ON_CPU, FILMS_PER_TASK)

    def submit(rows: range) -> Any:
        films_BHW = films_NHW[places[rows.start : rows.stop]]
        return task.remote(rows, films_BHW, [model_ref], key, choice, outcomes=outcomes)

    return run_bounded(submit, split_range(len(places), films_per_task))


def embed_images(
    rows: range,
    films_BHW: np.ndarray,
    model: list[Any],
    key: str,
    choice: RuntimeChoice,
    *,
    outcomes: Sequence[tuple[bool, bool]],
) -> tuple[range, np.ndarray]:
    """Embed films under each outcome: float16 [B, O, D]. `model` holds the reference to it, fetched once."""
    return rows, embed_outcomes(films_BHW, _open_embedder(key, model[0], choice), outcomes=outcomes)


ON_CPU = ray.remote(num_cpus=1)(embed_images)
ON_GPU = ray.remote(num_cpus=1, num_gpus=1, max_calls=1)(embed_images)
"""In a process of its own each time: one that stayed would keep its GPU's memory from the trials."""


def _open_embedder(key: str, model_ref: Any, choice: RuntimeChoice) -> Embedder:
    """Open the model once a worker process; Ray keeps the process for the next tasks."""
    if key not in _opened:
        _opened.clear()
        _opened[key] = Embedder(ray.get(model_ref), choice, num_threads=1)
    return _opened[key]


_opened: dict[str, Embedder] = {}
