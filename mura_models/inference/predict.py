"""`mura predict`: a bundle answers for images, without Ray."""

import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mura_models.data.cache import create_array
from mura_models.data.dataset import read_predict_input, study_codes
from mura_models.data.images import decode_image
from mura_models.data.preprocessing import VIEWS, resize_image
from mura_models.errors import ConfigError, DataError, ImageError, to_one_line
from mura_models.inference.bundle import Bundle, read_bundle
from mura_models.networks.backbones import Backbone
from mura_models.networks.embeddings import embed_views
from mura_models.networks.runtimes import Embedder, RuntimeChoice, choose_runtime, prepare_model
from mura_models.storage import atomic_write, storage_errors

IMAGES_PER_BATCH = 64
WRITERS = (".csv", ".parquet", ".json")
KNOWN_COLUMNS = ("path", "bone", "patient", "study", "label")


def predict_files(bundle_dir: Path, data: Path, out: Path, *, split: str | None = None) -> None:
    """Write a row an image: what is known of it, the bone named, and how likely it is abnormal.

    Raises BundleError, DataError or ConfigError; images that cannot be used are named on the terminal.
    """
    check_out(out)
    bundle = read_bundle(bundle_dir)
    dataset = read_predict_input(data)
    manifest = dataset.manifest
    if split is not None:
        if "split" not in manifest or not (manifest["split"] == split).any():
            raise DataError(f"split={split}: {data} has no such rows")
        manifest = manifest[manifest["split"] == split].reset_index(drop=True)
    with tempfile.TemporaryDirectory(prefix="mura-predict-") as scratch:
        images_NHW, failures = decode_files(bundle, manifest, Path(scratch) / "images")
        used = manifest[~manifest["path"].isin(failures)].reset_index(drop=True)
        features = Embedding(bundle, images_NHW, Path(scratch))
        answers = bundle.assembly.predict(features, study_codes(used)) if len(used) else None
    for path, reason in [*dataset.quarantine.itertuples(index=False), *failures.items()]:
        print(to_one_line(f"left out: {path}: {reason}"))
    if answers is None:
        raise DataError(f"{data}: no image can be used")
    known = used[[column for column in KNOWN_COLUMNS if column in used]]
    write_predictions(pd.concat([known, answers], axis=1), out)
    print(f"{len(used)} images: {out}")


def check_out(out: Path) -> None:
    """Raise ConfigError for what cannot be written, before hours are spent on what is to be written there."""
    if out.suffix not in WRITERS:
        raise ConfigError(f"out={out}: must end in {', '.join(WRITERS)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise ConfigError(f"out={out}: is a folder; name a file")
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise ConfigError(f"out={out}: cannot be written ({error.strerror}); name another file") from None


def decode_files(bundle: Bundle, manifest: pd.DataFrame, scratch: Path) -> tuple[np.ndarray, dict[str, str]]:
    """Return the images that can be used, [N, S, S] in a file of their own, and path -> reason of the others.

    Raises StorageError where the disk has no room for them.
    """
    size_px = bundle.preprocessing.image_size_px
    with storage_errors(scratch):
        images_NHW = create_array(scratch, (len(manifest), size_px, size_px), "uint8")
    failures: dict[str, str] = {}

    def open_image(path: str, file: str) -> np.ndarray | None:
        try:
            return resize_image(decode_image(Path(file).read_bytes(), Path(file).suffix.lower()), bundle.preprocessing)
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
class _Kept:
    """The embeddings of the images by one backbone, as far as they were asked for."""

    features_ND: np.ndarray
    is_there_N: np.ndarray


class Embedding:
    """The images' plain embeddings, by whichever backbone of a bundle is asked for; one is open at a time.

    A backbone embeds an image once, however many networks stand on it: what several share is kept in files in
    `scratch`, so that memory does not grow with their number.
    """

    def __init__(self, bundle: Bundle, images_NHW: np.ndarray, scratch: Path) -> None:
        self._bundle = bundle
        self._images_NHW = images_NHW
        self._scratch = scratch
        num_networks = Counter(network.backbone for network in bundle.assembly.networks)
        self._shared = [backbone for backbone, number in num_networks.items() if number > 1]
        self._kept: dict[str, _Kept] = {}
        self._opened: tuple[str, Embedder] | None = None

    def __call__(self, backbone: str, rows: np.ndarray) -> np.ndarray:
        """Return the embeddings of these rows' images: float16 [len(rows), D]. Raises StorageError on a full disk."""
        if backbone not in self._shared:
            return self._embed(backbone, rows)
        kept = self._keep(backbone)
        left = rows[~kept.is_there_N[rows]]
        for start in range(0, len(left), IMAGES_PER_BATCH):
            part = left[start : start + IMAGES_PER_BATCH]
            kept.features_ND[part] = self._embed(backbone, part)
            kept.is_there_N[part] = True
        return np.asarray(kept.features_ND[rows])

    def _keep(self, backbone: str) -> _Kept:
        if backbone not in self._kept:
            file = self._scratch / f"embeddings_{self._shared.index(backbone)}"
            num_images, num_features = len(self._images_NHW), self._bundle.backbones[backbone].num_features
            with storage_errors(file):
                features_ND = create_array(file, (num_images, num_features), "float16")
            self._kept[backbone] = _Kept(features_ND=features_ND, is_there_N=np.zeros(num_images, bool))
        return self._kept[backbone]

    def _embed(self, backbone: str, rows: np.ndarray) -> np.ndarray:
        embedder = self._open(backbone)
        features = [np.zeros((0, embedder.num_features), np.float16)]
        for start in range(0, len(rows), IMAGES_PER_BATCH):
            images_BHW = self._images_NHW[rows[start : start + IMAGES_PER_BATCH]]
            features.append(embed_views(images_BHW, embedder, views=VIEWS[:1])[:, 0])
        return np.concatenate(features)

    def _open(self, backbone: str) -> Embedder:
        if self._opened is None or self._opened[0] != backbone:
            bundle = self._bundle
            part = bundle.backbones[backbone]
            model, choice = prepare_model(part, choose_here(bundle, part), bundle.preprocessing.image_size_px)
            self._opened = backbone, Embedder(model, choice, num_threads=torch.get_num_threads())
        return self._opened[1]


def choose_here(bundle: Bundle, backbone: Backbone) -> RuntimeChoice:
    """Run the backbone as in training where this machine can, else as it does best."""
    if bundle.choice.device == "cpu" or torch.cuda.is_available():
        return bundle.choice
    return choose_runtime(backbone.name, "cpu")


def write_predictions(predictions: pd.DataFrame, out: Path) -> None:
    """Write by suffix, whole or not at all."""
    with atomic_write(out) as partial:
        if out.suffix == ".csv":
            predictions.to_csv(partial, index=False)
        elif out.suffix == ".parquet":
            predictions.to_parquet(partial, index=False)
        else:
            predictions.to_json(partial, orient="records", indent=2)
