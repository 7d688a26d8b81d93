import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as transforms
from PIL import Image

from mura_models.data.preprocessing import VIEWS
from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.errors import ConfigError
from mura_models.networks import runtimes
from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.networks.backbones import Backbone, load_backbone
from mura_models.networks.embeddings import embed_views, embedding_key
from mura_models.networks.runtimes import Embedder, RuntimeChoice, choose_runtime, export_onnx, prepare_model

TORCH_FLOAT32 = RuntimeChoice(runtime="torch", precision="float32", device="cpu")
TORCH_BFLOAT16 = RuntimeChoice(runtime="torch", precision="bfloat16", device="cpu")
ONNX_FLOAT32 = RuntimeChoice(runtime="onnxruntime", precision="float32", device="cpu")
SIZE_PX = 96


class CountingEmbedder:
    """Stand in for an Embedder: an image's feature is its mean times a factor; keeps count of the images it saw."""

    num_features = 1
    batch_size = 4
    device = torch.device("cpu")

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.num_seen = 0

    def __call__(self, images_BHW: torch.Tensor) -> np.ndarray:
        self.num_seen += len(images_BHW)
        return images_BHW.float().mean(dim=(1, 2))[:, None].numpy() * self.factor


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Draw seven images; the third and the last span 0 to 255, so that autocontrast leaves them as they are."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(30, 200, (6, 6), dtype=np.uint8)) for _ in range(7)]
    stack = np.stack([np.asarray(image.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC)) for image in images])
    stack[[2, 6], 0, :2] = 0, 255
    return stack


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return load_backbone(BackboneSpec())


@pytest.fixture(scope="module")
def onnx_embedder(lite0: Backbone) -> Embedder:
    return Embedder(export_onnx(lite0, SIZE_PX), ONNX_FLOAT32)


def relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize(("index", "view"), list(enumerate(VIEWS)))
def test_each_view_is_the_embedding_of_the_augmented_image(
    images: np.ndarray, onnx_embedder: Embedder, index: int, view: tuple[bool, bool]
) -> None:
    augmented = torch.from_numpy(images)[:, None]
    if view[0]:
        augmented = torch.stack([transforms.horizontal_flip(image) for image in augmented])
    if view[1]:
        augmented = torch.stack([transforms.autocontrast(image) for image in augmented])
    expected_BD = onnx_embedder(augmented[:, 0]).astype(np.float16)

    embeddings_BVD = embed_views(images, onnx_embedder)

    assert embeddings_BVD.shape == (7, 4, 1280)
    assert np.array_equal(embeddings_BVD[:, index], expected_BD)


def test_an_embedding_does_not_depend_on_its_batch(images: np.ndarray, onnx_embedder: Embedder) -> None:
    together = embed_views(images, onnx_embedder, batch_size=7)

    assert np.array_equal(embed_views(images, onnx_embedder, batch_size=3), together)
    alone = np.concatenate([embed_views(image[None], onnx_embedder) for image in images])
    assert np.array_equal(alone, together)


def test_a_image_that_autocontrast_leaves_alone_is_embedded_once(images: np.ndarray) -> None:
    embedder = CountingEmbedder()

    embed_views(images, embedder)

    assert embedder.num_seen == 7 * 4 - 2 * 2


def test_one_view_alone_can_be_asked_for(images: np.ndarray) -> None:
    every_BVD = embed_views(images, CountingEmbedder())

    for index, view in enumerate(VIEWS):
        only_BVD = embed_views(images, CountingEmbedder(), views=[view])
        assert np.array_equal(only_BVD[:, 0], every_BVD[:, index])


def test_values_beyond_float16_are_clipped_and_no_images_give_no_rows(images: np.ndarray) -> None:
    assert (embed_views(images, CountingEmbedder(1e6)) == 65504).all()
    assert (embed_views(images, CountingEmbedder(-1e6)) == -65504).all()
    assert embed_views(images[:0], CountingEmbedder()).shape == (0, 4, 1)


def test_onnx_runtime_gives_torchs_float32_features(
    images: np.ndarray, lite0: Backbone, onnx_embedder: Embedder
) -> None:
    images_BHW = torch.from_numpy(images)

    difference_BD = onnx_embedder(images_BHW) - Embedder(lite0, TORCH_FLOAT32)(images_BHW)

    assert np.abs(difference_BD).max() <= 1e-4


@pytest.mark.parametrize("image_size_px", [65, 90])
def test_the_export_is_exact_at_sizes_whose_padding_is_uneven(lite0: Backbone, image_size_px: int) -> None:
    shape = (3, image_size_px, image_size_px)
    images_BHW = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    onnx = Embedder(export_onnx(lite0, image_size_px), ONNX_FLOAT32)

    assert np.abs(onnx(images_BHW) - Embedder(lite0, TORCH_FLOAT32)(images_BHW)).max() <= 1e-4


@pytest.mark.parametrize(
    ("name", "weights", "bound"), [("efficientnet_lite0", "imagenet", 0.1), ("resnet18", "random", 0.01)]
)
def test_bfloat16_stays_near_float32(images: np.ndarray, name: str, weights: str, bound: float) -> None:
    backbone = load_backbone(BackboneSpec(name=name, weights=weights))
    images_BHW = torch.from_numpy(images)

    rough_BD, exact_BD = (Embedder(backbone, choice)(images_BHW) for choice in (TORCH_BFLOAT16, TORCH_FLOAT32))

    assert rough_BD.dtype == np.float32
    assert 0 < relative_difference(rough_BD, exact_BD) < bound


def test_the_runtime_suits_backbone_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "has_native_bfloat16", lambda device: True)
    assert choose_runtime("efficientnet_lite0", "cpu") == ONNX_FLOAT32
    assert choose_runtime("resnet18", "cpu") == TORCH_BFLOAT16
    assert choose_runtime("convnext_atto", "cpu") == ONNX_FLOAT32
    assert choose_runtime("efficientnet_lite0", "cuda").key() == "torch-bfloat16-cuda"

    monkeypatch.setattr(runtimes, "has_native_bfloat16", lambda device: False)
    assert choose_runtime("resnet18", "cpu") == ONNX_FLOAT32
    assert choose_runtime("efficientnet_lite0", "cuda").key() == "torch-float32-cuda"


def test_a_network_without_onnx_export_runs_in_torch(images: np.ndarray) -> None:
    class Spectrum(torch.nn.Module):
        def forward(self, images_B3HW: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(images_B3HW.mean(dim=1))

    backbone = Backbone(name="spectrum", module=Spectrum(), num_features=SIZE_PX, weights_source="", weights_digest="")

    model, choice = prepare_model(backbone, ONNX_FLOAT32, SIZE_PX)

    assert choice == TORCH_FLOAT32
    assert embed_views(images, Embedder(model, choice)).shape == (7, 4, SIZE_PX)


@pytest.mark.parametrize(
    ("runtime", "precision", "device"),
    [("onnxruntime", "bfloat16", "cpu"), ("onnxruntime", "float32", "cuda"), ("openvino", "float32", "cpu")],
)
def test_impossible_runtimes_are_refused(runtime: str, precision: str, device: str) -> None:
    with pytest.raises(ConfigError):
        RuntimeChoice(runtime=runtime, precision=precision, device=device)


def test_whatever_changes_an_embedding_changes_its_key(lite0: Backbone) -> None:
    plain = Preprocessing()
    keys = {
        embedding_key(plain, lite0, ONNX_FLOAT32),
        embedding_key(plain, lite0, TORCH_BFLOAT16),
        embedding_key(replace(plain, resize="pad"), lite0, ONNX_FLOAT32),
        embedding_key(plain, replace(lite0, weights_digest="0" * 64), ONNX_FLOAT32),
        embedding_key(plain, replace(lite0, name="resnet18"), ONNX_FLOAT32),
    }

    assert len(keys) == 5


def test_embedding_prints_nothing_and_leaves_no_file_behind(tmp_path):
    """ONNX Runtime sends telemetry by default; there are patients' images here."""
    code = (
        "import torch\n"
        "from mura_models.networks.backbone_spec import BackboneSpec\n"
        "from mura_models.networks.backbones import load_backbone\n"
        "from mura_models.networks.runtimes import Embedder, RuntimeChoice, prepare_model\n"
        "choice = RuntimeChoice(runtime='onnxruntime', precision='float32', device='cpu')\n"
        "model, choice = prepare_model(load_backbone(BackboneSpec()), choice, 64)\n"
        "Embedder(model, choice)(torch.zeros(1, 64, 64, dtype=torch.uint8))\n"
    )
    environment = os.environ | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    assert list(tmp_path.iterdir()) == []
