"""Images -> embeddings for an assembly, without Ray and without a cache that outlives the call."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mura_models.data.cache import create_array
from mura_models.data.images import decode_image
from mura_models.data.preprocessing import VIEWS, resize_image
from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.errors import ImageError
from mura_models.inference.assembly import Network
from mura_models.networks.backbones import Backbone
from mura_models.networks.embeddings import embed_views
from mura_models.networks.runtimes import Embedder, RuntimeChoice, choose_runtime, prepare_model
from mura_models.storage import storage_errors

IMAGES_PER_BATCH = 64


def decode_files(
    manifest: pd.DataFrame, preprocessing: Preprocessing, array_file: Path
) -> tuple[np.ndarray, dict[str, str]]:
    """Return the images that can be used, uint8 [N, S, S] in `array_file`, and path -> reason for the others.

    Raises StorageError if the disk has no room for them.
    """
    size_px = preprocessing.image_size_px
    with storage_errors(array_file):
        images_NHW = create_array(array_file, (len(manifest), size_px, size_px), "uint8")
    failures: dict[str, str] = {}

    def open_image(path: str, file: str) -> np.ndarray | None:
        try:
            return resize_image(decode_image(Path(file).read_bytes(), Path(file).suffix.lower()), preprocessing)
        except ImageError as error:
            failures[path] = str(error)
        except OSError as error:  # it was there when the files were listed
            failures[path] = f"file cannot be read: {error.strerror}"
        return None

    num_used = 0
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(manifest), IMAGES_PER_BATCH):
            part = manifest.iloc[start : start + IMAGES_PER_BATCH]
            for image in pool.map(open_image, part["path"], part["file"]):
                if image is not None:
                    images_NHW[num_used] = image
                    num_used += 1
    return images_NHW[:num_used], failures


@dataclass(frozen=True, kw_only=True, eq=False)
class _SharedFeatures:
    """The embeddings by one backbone, as far as they were asked for."""

    features_ND: np.ndarray
    is_computed_N: np.ndarray


class LazyFeatures:
    """The images' embeddings, computed when an assembly asks for them; one backbone is loaded at a time.

    Each backbone embeds an image once. Embeddings that several networks share are stored in files in `scratch`, so
    that memory use does not grow with their number.
    """

    def __init__(
        self,
        images_NHW: np.ndarray,
        *,
        networks: Sequence[Network],
        backbones: Mapping[str, Backbone],
        choice: RuntimeChoice,
        scratch: Path,
    ) -> None:
        self._images_NHW = images_NHW
        self._backbones = backbones
        self._choice = choice
        self._scratch = scratch
        num_networks = Counter(network.backbone for network in networks)
        self._shared_keys = [backbone for backbone, number in num_networks.items() if number > 1]
        self._shared: dict[str, _SharedFeatures] = {}
        self._loaded: tuple[str, Embedder] | None = None

    def __call__(self, backbone: str, rows: np.ndarray) -> np.ndarray:
        """Return the embeddings of these rows' images: float16 [len(rows), D]. Raises StorageError on a full disk."""
        if backbone not in self._shared_keys:
            return self._embed(backbone, rows)
        shared = self._open_shared(backbone)
        missing = rows[~shared.is_computed_N[rows]]
        for start in range(0, len(missing), IMAGES_PER_BATCH):
            part = missing[start : start + IMAGES_PER_BATCH]
            shared.features_ND[part] = self._embed(backbone, part)
            shared.is_computed_N[part] = True
        return np.asarray(shared.features_ND[rows])

    def _open_shared(self, backbone: str) -> _SharedFeatures:
        if backbone not in self._shared:
            file = self._scratch / f"embeddings_{self._shared_keys.index(backbone)}"
            num_images, num_features = len(self._images_NHW), self._backbones[backbone].num_features
            with storage_errors(file):
                features_ND = create_array(file, (num_images, num_features), "float16")
            self._shared[backbone] = _SharedFeatures(features_ND=features_ND, is_computed_N=np.zeros(num_images, bool))
        return self._shared[backbone]

    def _embed(self, backbone: str, rows: np.ndarray) -> np.ndarray:
        embedder = self._load(backbone)
        features = [np.zeros((0, embedder.num_features), np.float16)]
        for start in range(0, len(rows), IMAGES_PER_BATCH):
            images_BHW = self._images_NHW[rows[start : start + IMAGES_PER_BATCH]]
            features.append(embed_views(images_BHW, embedder, views=VIEWS[:1])[:, 0])
        return np.concatenate(features)

    def _load(self, key: str) -> Embedder:
        if self._loaded is None or self._loaded[0] != key:
            backbone = self._backbones[key]
            model, choice = prepare_model(backbone, choose_here(self._choice, backbone), self._images_NHW.shape[1])
            self._loaded = key, Embedder(model, choice, num_threads=torch.get_num_threads())
        return self._loaded[1]


def choose_here(trained_with: RuntimeChoice, backbone: Backbone) -> RuntimeChoice:
    """Return the runtime of training if this machine has its device, else the fastest one here."""
    if trained_with.device == "cpu" or torch.cuda.is_available():
        return trained_with
    return choose_runtime(backbone.name, "cpu")
