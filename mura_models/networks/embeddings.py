"""Images -> embeddings under the views of the paper's augmentations, so that no epoch needs the backbone again."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mura_models.data.preprocessing import VIEWS, apply_view, autocontrast_changes
from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.networks.backbones import Backbone
from mura_models.networks.runtimes import Embedder, RuntimeChoice

FLOAT16_MAX = float(np.finfo(np.float16).max)


def embed_views(
    images_BHW: NDArray[np.uint8],
    embedder: Embedder,
    *,
    views: Sequence[tuple[bool, bool]] = VIEWS,
    batch_size: int | None = None,
) -> NDArray[np.float16]:
    """Embed images under each (flip, autocontrast): float16 [B, len(views), D], clipped to float16's range.

    batch_size: at 256 px, by default the embedder's; larger images go in smaller batches, for the same memory.
    """
    num_images, height_px, width_px = images_BHW.shape
    embeddings_BVD = np.empty((num_images, len(views), embedder.num_features), dtype=np.float16)
    batch_size = batch_size or embedder.batch_size
    step = min(batch_size, max(1, batch_size * 256 * 256 // (height_px * width_px)))
    for start in range(0, num_images, step):
        batch = slice(start, start + step)
        batch_BHW = torch.from_numpy(np.array(images_BHW[batch])).to(embedder.device)
        embeddings_BVD[batch] = _embed_batch(batch_BHW, embedder, views)
    return embeddings_BVD


def embedding_key(preprocessing: Preprocessing, backbone: Backbone, choice: RuntimeChoice) -> str:
    """Return a cache key of all that decides an embedding except the image: equal keys, equal numbers."""
    parts = [preprocessing.key(), backbone.name, backbone.weights_digest[:16], choice.key(), "float16"]
    return "_".join(parts)


def _embed_batch(
    images_BHW: torch.Tensor, embedder: Embedder, views: Sequence[tuple[bool, bool]]
) -> NDArray[np.float16]:
    embeddings_BVD = np.empty((len(images_BHW), len(views), embedder.num_features), dtype=np.float16)
    changes_B = autocontrast_changes(images_BHW)
    for index, (flip, autocontrast) in enumerate(views):
        rows_B = torch.ones_like(changes_B)
        if autocontrast and (flip, False) in views[:index]:
            # If autocontrast changes nothing, the image was embedded already.
            embeddings_BVD[:, index] = embeddings_BVD[:, views.index((flip, False))]
            rows_B = changes_B
        if rows_B.any():
            features_BD = embedder(apply_view(images_BHW[rows_B], flip, autocontrast))
            embeddings_BVD[rows_B.cpu().numpy(), index] = np.clip(features_BD, -FLOAT16_MAX, FLOAT16_MAX)
    return embeddings_BVD
