"""`mura.embed`: one row per image, cached as by a run."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import mura_models as mura
from mura_models.data.cache import embeddings_entry, open_cached, write_cached
from mura_models.data.images import decode_image
from mura_models.data.preprocessing import VIEWS, resize_image
from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.errors import ConfigError, DataError, RunError
from mura_models.inference import embed as embed_module
from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.networks.backbones import load_backbone
from mura_models.networks.embeddings import embed_views, embedding_key
from mura_models.networks.runtimes import Embedder, choose_runtime, prepare_model

NETWORK = "test_efficientnet"  # timm's own for tests: 0.4 MB
NAMES = [f"{number}.png" for number in range(6)]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data set of six images, the last of which has the pixels of the first."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (80, 60), np.uint8)).save(tmp_path / name)
    (tmp_path / NAMES[-1]).write_bytes((tmp_path / NAMES[0]).read_bytes())
    rows = pd.DataFrame({"path": NAMES, "bone": "hand", "patient": NAMES, "study": "s", "label": [0, 1] * 3})
    rows.loc[5, ["patient", "label"]] = [NAMES[0], 0]
    rows.assign(split=["train"] * 2 + ["test"] * 2 + ["train"] * 2).to_csv(tmp_path / "rows.csv", index=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return mura.read_dataset("rows.csv")


def embed(images, **options):
    """Embed by the small network at 64 px."""
    return mura.embed(
        images, **{"backbone": NETWORK, "weights": "random", "image_size_px": 64, "device": "cpu"} | options
    )


def embed_directly(paths, views=VIEWS):
    """Return what the parts of a run give: float16 [N, views, D]."""
    preprocessing = Preprocessing(image_size_px=64)
    backbone = load_backbone(BackboneSpec(name=NETWORK, weights="random"))
    images_NHW = np.stack([resize_image(decode_image(path.read_bytes(), ".png"), preprocessing) for path in paths])
    embedder = Embedder(*prepare_model(backbone, choose_runtime(NETWORK, "cpu"), 64))
    return embed_views(images_NHW, embedder, views=views)


def test_rows_are_those_of_the_manifest_and_bits_those_of_a_run(data, tmp_path, one_thread):
    features_ND = embed(data)
    assert features_ND.dtype == np.float32
    assert features_ND.shape == (6, 256)
    expected = embed_directly([tmp_path / name for name in data.manifest["path"]])[:, 0]
    assert np.array_equal(features_ND, expected.astype(np.float32))
    first, last = (list(data.manifest["path"]).index(name) for name in (NAMES[0], NAMES[-1]))
    assert np.array_equal(features_ND[first], features_ND[last])
    assert len(np.unique(features_ND, axis=0)) == 5


def test_paths_get_the_rows_of_the_data_set_in_their_order(data):
    by_manifest = dict(zip(data.manifest["path"], embed(data), strict=True))
    features_ND = embed(reversed(NAMES))
    assert np.array_equal(features_ND, np.stack([by_manifest[name] for name in reversed(NAMES)]))


def test_a_second_call_reads_the_cache(data, monkeypatch):
    first = embed(data)
    monkeypatch.setattr(embed_module, "decode_batch", None)
    monkeypatch.setattr(embed_module, "embed_views", None)
    assert np.array_equal(embed(data), first)


def test_the_embeddings_of_a_run_are_used(data, tmp_path):
    """A run's entry has all four views, the plain one first."""
    embed(data)  # decodes the images
    backbone = load_backbone(BackboneSpec(name=NETWORK, weights="random"))
    key = embedding_key(Preprocessing(image_size_px=64), backbone, choose_runtime(NETWORK, "cpu"))
    digests = sorted(set(data.manifest["digest"]))
    folder = embeddings_entry(tmp_path / "cache" / "mura" / "embeddings", key, digests)
    assert open_cached(folder) is None
    marked_NVD = np.full((len(digests), 4, 256), 7, np.float16)
    write_cached(folder, digests, lambda left: [(left, marked_NVD, {})], row_shape=(4, 256), dtype="float16")
    assert (embed(data) == 7).all()


def test_a_folder_for_the_cache_can_be_given(data, tmp_path):
    embed(data, cache_dir=str(tmp_path / "mine"))
    assert {path.name for path in (tmp_path / "mine").iterdir()} >= {"store", "embeddings"}
    assert not (tmp_path / "cache").exists()


def test_images_that_cannot_be_used_are_nan_and_counted(data, tmp_path, caplog):
    (tmp_path / "cut.png").write_bytes((tmp_path / NAMES[1]).read_bytes()[:-200])
    features_ND = embed([NAMES[0], "gone.png", "cut.png"])
    assert np.isnan(features_ND).all(axis=1).tolist() == [False, True, True]
    assert "2 of 3 images cannot be used" in caplog.text


def test_nothing_to_embed_is_a_data_error(data):
    with pytest.raises(DataError, match="no image can be used"):
        embed(["gone.png"])


def test_an_image_that_was_changed_since_the_scan_is_a_run_error(data, tmp_path):
    (tmp_path / NAMES[2]).write_bytes((tmp_path / NAMES[1]).read_bytes())
    with pytest.raises(RunError, match="changed after the data was scanned"):
        embed(data)


@pytest.mark.parametrize("wrong", [{"backbone": "no_such"}, {"image_size_px": 8}, {"resize": "crop"}, {"weights": ""}])
def test_options_that_cannot_be_are_config_errors(data, wrong):
    with pytest.raises(ConfigError):
        embed(data, **wrong)


def test_the_process_keeps_its_number_of_threads(data):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        embed(data)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_progress_is_reported(data):
    calls = []
    embed(data, on_progress=lambda *call: calls.append(call))
    assert calls == [("decode", 5, 5), ("embed", 5, 5)]
