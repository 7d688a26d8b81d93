"""Images and embeddings of a prediction: files on a disk that may be full, and each backbone used once per image."""

import errno
import os
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mura_models.data.preprocessing import VIEWS
from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.errors import StorageError
from mura_models.evaluation.calibration import Calibration
from mura_models.inference import features as features_module
from mura_models.inference.assembly import FROZEN, AbnormalityModel, Assembly, Network, Router
from mura_models.inference.bundle import Bundle
from mura_models.inference.features import LazyFeatures, decode_files
from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.networks.backbones import load_backbone
from mura_models.networks.embeddings import embed_views
from mura_models.networks.heads import Heads, HeadSettings
from mura_models.networks.runtimes import Embedder, RuntimeChoice, prepare_model

PREPROCESSING = Preprocessing(image_size_px=64)
takes_room = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="macOS has no posix_fallocate")
NETWORK = "test_efficientnet"  # timm's own for tests: 0.4 MB
OWN = ("specialist:hand/finetune#0", "specialist:hand/finetune#1")


@pytest.fixture
def manifest(tmp_path):
    """List eight images, all but two of them gone since."""
    names = [f"{name}.png" for name in "abcdefgh"]
    for name in names[-2:]:
        Image.fromarray(np.full((80, 80), 200, np.uint8)).save(tmp_path / name)
    return pd.DataFrame({"path": names, "file": [str(tmp_path / name) for name in names]})


@takes_room
def test_images_are_written_where_their_room_on_the_disk_is_taken(tmp_path, manifest):
    """Where the disk fills, a write to a map of a file with holes kills the process."""
    images_NHW, failures = decode_files(manifest, PREPROCESSING, tmp_path / "images")
    assert (tmp_path / "images").stat().st_blocks * 512 >= len(manifest) * 64 * 64
    assert images_NHW.shape == (2, 64, 64)
    assert (images_NHW == 200).all()
    assert failures == dict.fromkeys(manifest["path"][:-2], "file cannot be read: No such file or directory")


@takes_room
def test_a_disk_without_room_for_the_images_is_one_line(tmp_path, manifest, monkeypatch):
    def refuse_room(handle, start, num_bytes):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", refuse_room)
    with pytest.raises(StorageError, match=r"images: cannot be written \(No space left on device\)"):
        decode_files(manifest, PREPROCESSING, tmp_path / "images")


def make_bundle(*, with_router=True):
    """Return a bundle of ensembles: router and baseline on the frozen backbone, one specialist on two of its own."""
    specs = {key: BackboneSpec(name=NETWORK, weights="random", seed=seed) for seed, key in enumerate((FROZEN, *OWN))}
    backbones = {key: load_backbone(spec) for key, spec in specs.items()}

    def make_networks(*keys, num_outputs=1):
        shape = {"num_heads": 2, "num_features": backbones[FROZEN].num_features, "num_outputs": num_outputs}
        settings = HeadSettings(kind="linear", **shape)
        return tuple(Network(backbone=key, heads=Heads(settings, seed=n).eval()) for n, key in enumerate(keys))

    models = [
        AbnormalityModel(
            target=target,
            recipe=recipe,
            networks=make_networks(*keys),
            calibration=Calibration(temperature=1.2, threshold=0.5),
        )
        for target, recipe, keys in (
            ("baseline", "linear_probe", (FROZEN, FROZEN, FROZEN)),
            ("specialist:hand", "finetune", OWN),
            ("specialist:hip", "linear_probe", (FROZEN,)),
        )
    ]
    names = [model.name for model in models]
    router = Router(recipe="linear_probe", networks=make_networks(FROZEN, FROZEN, num_outputs=3))
    return Bundle(
        assembly=Assembly(
            classes=("elbow", "hand", "hip"),
            router=router if with_router else None,
            models={model.name: model for model in models},
            selected=dict(zip(("elbow", "hand", "hip"), names, strict=True)),
        ),
        backbones=backbones,
        preprocessing=PREPROCESSING,
        choice=RuntimeChoice(runtime="onnxruntime", precision="float32", device="cpu"),
        notes={},
    )


def make_features(bundle, images_NHW, scratch):
    """Return the lazy embeddings as `Bundle.predict` makes them."""
    return LazyFeatures(
        images_NHW,
        networks=bundle.assembly.networks,
        backbones=bundle.backbones,
        choice=bundle.choice,
        scratch=scratch,
    )


def embed_each_time(bundle, images_NHW):
    """Return features that embed the images again on every call."""

    def find_features(key, rows):
        embedder = Embedder(*prepare_model(bundle.backbones[key], bundle.choice, 64))
        return embed_views(images_NHW[rows], embedder, views=VIEWS[:1])[:, 0]

    return find_features


def spread(bundle, images_NHW):
    """Standardize the heads by what these images give, so that answers differ from image to image."""
    rows = np.arange(len(images_NHW))
    for network in bundle.assembly.networks:
        features_ND = torch.from_numpy(embed_each_time(bundle, images_NHW)(network.backbone, rows).astype(np.float32))
        mean_KD, std_KD = (part.expand(2, -1) for part in (features_ND.mean(0), features_ND.std(0)))
        network.heads.standardize_by(mean_KD, std_KD)


@pytest.mark.parametrize("with_router", [True, False], ids=["routed", "unrouted"])
def test_a_backbone_embeds_a_image_once_and_the_answers_are_the_same_bits(
    tmp_path, monkeypatch, with_router, one_thread
):
    bundle = make_bundle(with_router=with_router)
    images_NHW = np.random.default_rng(0).integers(0, 256, (70, 8, 8), np.uint8).repeat(8, 1).repeat(8, 2)
    spread(bundle, images_NHW)
    studies = np.arange(70) // 2
    expected = bundle.assembly.predict(embed_each_time(bundle, images_NHW), studies)
    num_seen = Counter()

    def count_images(images_BHW, embedder, **options):
        num_seen[features._loaded[0]] += len(images_BHW)
        return embed_views(images_BHW, embedder, **options)

    monkeypatch.setattr(features_module, "embed_views", count_images)
    features = make_features(bundle, images_NHW, tmp_path)
    answers = bundle.assembly.predict(features, studies)
    pd.testing.assert_frame_equal(answers, expected, check_exact=True)
    num_hands = int((answers["bone_predicted"] == "hand").sum())
    assert num_seen == Counter({FROZEN: 70, OWN[0]: num_hands, OWN[1]: num_hands})
    assert not with_router or set(answers["bone_predicted"]) == {"elbow", "hand", "hip"}
    assert [path.name for path in tmp_path.iterdir()] == ["embeddings_0"]  # what only one network uses is not stored


@takes_room
def test_a_disk_without_room_for_embeddings_is_one_line(tmp_path, monkeypatch):
    def refuse_room(handle, start, num_bytes):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", refuse_room)
    with pytest.raises(StorageError, match=r"embeddings_0: cannot be written \(No space left on device\)"):
        make_features(make_bundle(), np.zeros((2, 64, 64), np.uint8), tmp_path)(FROZEN, np.arange(2))
