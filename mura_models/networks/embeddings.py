"""Films -> embeddings under the outcomes of the paper's augmentations: no epoch needs the backbone again."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mura_models.data.preprocessing import OUTCOMES, Preprocessing, apply_outcome, autocontrast_changes
from mura_models.networks.backbones import Backbone
from mura_models.networks.runtimes import Embedder, RuntimeChoice

FLOAT16_MAX = float(np.finfo(np.float16).max)


def embed_outcomes(
    images_BHW: NDArray[np.uint8],
    embedder: Embedder,
    *,
    outcomes: Sequence[tuple[bool, bool]] = OUTCOMES,
    batch_size: int | None = None,
) -> NDArray[np.float16]:
    """Embed films under each (flip, autocontrast): float16 [B, len(outcomes), D], clipped to float16's range.

    `batch_size` (the embedder's, if None) is meant at 256 px: larger films go in smaller batches, to the same
    memory.
    """
    num_films, height_px, width_px = images_BHW.shape
    embeddings_BOD = np.empty((num_films, len(outcomes), embedder.num_features), dtype=np.float16)
    batch_size = batch_size or embedder.batch_size
    step = min(batch_size, max(1, batch_size * 256 * 256 // (height_px * width_px)))
    for start in range(0, num_films, step):
        batch = slice(start, start + step)
        films_BHW = torch.from_numpy(np.array(images_BHW[batch])).to(embedder.device)
        embeddings_BOD[batch] = _embed_batch(films_BHW, embedder, outcomes)
    return embeddings_BOD


def embedding_key(preprocessing: Preprocessing, backbone: Backbone, choice: RuntimeChoice) -> str:
    """Name all that decides an embedding except the film, for a cache: equal keys, equal numbers."""
    parts = [preprocessing.key(), backbone.name, backbone.weights_digest[:16], choice.key(), "float16"]
    return "_".join(parts)


def _embed_batch(
    images_BHW: torch.Tensor, embedder: Embedder, outcomes: Sequence[tuple[bool, bool]]
) -> NDArray[np.float16]:
    embeddings_BOD = np.empty((len(images_BHW), len(outcomes), embedder.num_features), dtype=np.float16)
    changes_B = autocontrast_changes(images_BHW)
    for index, (flip, autocontrast) in enumerate(outcomes):
        rows_B = torch.ones_like(changes_B)
        if autocontrast and (flip, False) in outcomes[:index]:
            # Where autocontrast changes nothing, the film was embedded already.
            embeddings_BOD[:, index] = embeddings_BOD[:, outcomes.index((flip, False))]
            rows_B = changes_B
        if rows_B.any():
            features_BD = embedder(apply_outcome(images_BHW[rows_B], flip, autocontrast))
            embeddings_BOD[rows_B.cpu().numpy(), index] = np.clip(features_BD, -FLOAT16_MAX, FLOAT16_MAX)
    return embeddings_BOD
