"""The bundle: an assembly on disk, deployable. JSON and safetensors alone: nothing in it is ever executed.

    bundle.json           classes, preprocessing, backbone, runtime, models with calibration, sha256 of the other files
    backbone.safetensors  the frozen network
    heads.safetensors     router and served models

No patient id and no path of the training machine is in it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from mura_models.assembly import AbnormalityModel, Assembly
from mura_models.backbones import Backbone, BackboneSpec, load_backbone
from mura_models.calibration import Calibration
from mura_models.errors import BundleError, MuraError
from mura_models.heads import Heads, HeadSettings
from mura_models.preprocessing import Preprocessing
from mura_models.runtimes import RuntimeChoice

SCHEMA = 1
INDEX, BACKBONE, HEADS = "bundle.json", "backbone.safetensors", "heads.safetensors"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """All that turns a film into a prediction."""

    assembly: Assembly
    backbone: Backbone
    preprocessing: Preprocessing
    choice: RuntimeChoice
    """What ran the backbone in training."""
    notes: Mapping[str, str]
    """For people: what it was trained on and by which version."""


def write_bundle(bundle: Bundle, folder: Path) -> None:
    """Write the bundle's files into `folder`, which must exist; the index comes last."""
    assembly, backbone = bundle.assembly, bundle.backbone
    heads = {name: model.heads for name, model in assembly.models.items()}
    if assembly.router is not None:
        heads["router"] = assembly.router
    tensors = {f"{name}#{key}": t for name, part in heads.items() for key, t in part.state_dict().items()}
    contents = {
        BACKBONE: save({key: t.detach().cpu().contiguous() for key, t in backbone.module.state_dict().items()}),
        HEADS: save({key: t.detach().cpu().contiguous() for key, t in tensors.items()}),
    }
    index = {
        "schema": SCHEMA,
        "notes": dict(bundle.notes),
        "classes": list(assembly.classes),
        "preprocessing": asdict(bundle.preprocessing),
        "backbone": {"name": backbone.name, "weights": backbone.weights_source, "digest": backbone.weights_digest},
        "runtime": asdict(bundle.choice),
        "router": asdict(assembly.router.settings) if assembly.router else None,
        "models": {name: _describe(model) for name, model in assembly.models.items()},
        "serving": dict(assembly.serving),
        "sha256": {name: _digest(content) for name, content in contents.items()},
    }
    index["digest"] = _digest_index(index)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / INDEX).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_bundle(folder: Path) -> Bundle:
    """Read and verify a bundle. Raises BundleError where it is missing, damaged or of another version."""
    index = _read_index(folder)
    try:
        for name, expected in index["sha256"].items():
            if _digest(_read_file(folder / name)) != expected:
                raise BundleError(f"{folder / name}: not the file that was written (sha256 differs); copy it again")
        bundle = _build(index, folder)
        _check_serving(bundle.assembly)
    except BundleError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError, MuraError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(f"{folder}: its parts do not fit together ({reason}); copy it again") from error
    return bundle


def _check_serving(assembly: Assembly) -> None:
    if set(assembly.serving) != set(assembly.classes):
        raise BundleError(f"serving {sorted(assembly.serving)}: must name each of {sorted(assembly.classes)}")
    unknown = set(assembly.serving.values()) - set(assembly.models)
    if unknown:
        raise BundleError(f"serving names {min(unknown)}: not among the models of the bundle")


def _build(index: dict[str, Any], folder: Path) -> Bundle:
    tensors = load(_read_file(folder / HEADS))
    models = {
        name: AbnormalityModel(
            target=part["target"],
            recipe=part["recipe"],
            heads=_build_heads(part["head"], tensors, name),
            calibration=Calibration(**part["calibration"]),
        )
        for name, part in index["models"].items()
    }
    backbone = load_backbone(BackboneSpec(name=index["backbone"]["name"], weights=str(folder / BACKBONE)))
    backbone.weights_source = index["backbone"]["weights"]
    if backbone.weights_digest != index["backbone"]["digest"]:
        raise BundleError("the backbone is another one")
    return Bundle(
        assembly=Assembly(
            classes=tuple(index["classes"]),
            router=_build_heads(index["router"], tensors, "router") if index["router"] else None,
            models=models,
            serving=index["serving"],
        ),
        backbone=backbone,
        preprocessing=Preprocessing(**index["preprocessing"]),
        choice=RuntimeChoice(**index["runtime"]),
        notes=index["notes"],
    )


def _describe(model: AbnormalityModel) -> dict[str, Any]:
    return {
        "target": model.target,
        "recipe": model.recipe,
        "head": asdict(model.heads.settings),
        "calibration": asdict(model.calibration),
    }


def _build_heads(settings: dict[str, Any], tensors: dict[str, torch.Tensor], name: str) -> Heads:
    heads = Heads(HeadSettings(**settings))
    prefix = f"{name}#"
    heads.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
    return heads.eval()


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads(_read_file(folder / INDEX))
        schema = index["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder / INDEX}: not a bundle's index ({error})") from error
    if schema != SCHEMA:
        raise BundleError(f"{folder}: a bundle of schema {schema}; this version reads schema {SCHEMA}")
    if index.pop("digest", None) != _digest_index(index):
        raise BundleError(f"{folder / INDEX}: not as it was written (its digest differs); copy it again")
    return index


def _digest_index(index: dict[str, Any]) -> str:
    return _digest(json.dumps(index, sort_keys=True).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); give the folder that a run wrote") from error
