"""The bundle on disk. It holds JSON and safetensors only: nothing in it is ever executed.

    bundle.json              classes, preprocessing, backbones, runtime, router, models with calibration, and the
                             SHA-256 of the other files
    backbone_0.safetensors   the backbones of router and models: the frozen one and those trained in the run
    heads.safetensors        the heads of router and selected models

No patient id and no path of the training machine is in it.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.data.safe_read import explain, read_file
from mura_models.errors import BundleError, MuraError
from mura_models.evaluation.calibration import Calibration
from mura_models.inference.assembly import AbnormalityModel, Assembly, Network, Router
from mura_models.inference.bundle import Bundle
from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.networks.backbones import Backbone, load_backbone
from mura_models.networks.heads import Heads, HeadSettings
from mura_models.networks.runtimes import RuntimeChoice

SCHEMA = 3
READERS = {1: "0.1", 2: "0.1"}
"""Earlier schemas, and the version of mura-study that reads them."""
INDEX, HEADS = "bundle.json", "heads.safetensors"
ROUTER = "router"
MAX_INDEX_BYTES, MAX_TENSORS_BYTES = 2**24, 2**34  # chosen by us: DenseNet-169 has 57 MB


def write_bundle(bundle: Bundle, folder: Path) -> None:
    """Write the bundle's files into `folder`, which must exist. The index is written last."""
    assembly = bundle.assembly
    parts = {name: model.networks for name, model in assembly.models.items()}
    if assembly.router is not None:
        parts[ROUTER] = assembly.router.networks
    heads = {_heads_key(name, i): network.heads for name, part in parts.items() for i, network in enumerate(part)}
    files = {key: f"backbone_{number}.safetensors" for number, key in enumerate(assembly.backbones)}
    contents = {files[key]: _save(bundle.backbones[key].module.state_dict()) for key in files}
    contents[HEADS] = _save(
        {f"{name}#{key}": t for name, part in heads.items() for key, t in part.state_dict().items()}
    )
    index = {
        "schema": SCHEMA,
        "notes": dict(bundle.notes),
        "classes": list(assembly.classes),
        "preprocessing": asdict(bundle.preprocessing),
        "backbones": {key: _backbone_to_json(bundle.backbones[key], file) for key, file in files.items()},
        "runtime": asdict(bundle.choice),
        "router": _router_to_json(assembly.router) if assembly.router else None,
        "models": {name: _model_to_json(model) for name, model in assembly.models.items()},
        "selected": dict(assembly.selected),
        "sha256": {name: _digest(content) for name, content in contents.items()},
    }
    index["digest"] = _digest_index(index)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / INDEX).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle and verify that its files are those that were written.

    Args:
        path: The folder `bundle` of a run, or a copy of it.

    Raises:
        BundleError: The bundle is missing, damaged or of another version.

    Examples:
        >>> bundle = mura.load_bundle("runs/phantom-quick/bundle")
        >>> bundle.assembly.classes
        ('elbow', 'finger', ...)
    """
    folder = Path(path)
    index = _read_index(folder)
    try:
        _check_names(index, folder)
        for name, expected in index["sha256"].items():
            if _digest(_read_file(folder / name)) != expected:
                raise BundleError(f"{folder / name}: not the file that was written (SHA-256 differs); copy it again")
        bundle = _build(index, folder)
        _check_parts(bundle)
    except BundleError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError, MuraError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(
            f"{folder}: its parts do not fit together ({reason}); copy it again, or use the version that wrote it"
        ) from error
    return bundle


def _check_names(index: dict[str, Any], folder: Path) -> None:
    """Raise BundleError if the index names a file outside the folder, one without a digest, or a pickle."""
    names = [HEADS, *(part["file"] for part in index["backbones"].values())]
    for name in [*names, *index["sha256"]]:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BundleError(f"{folder / INDEX}: names the file {name!r}; must be a .safetensors file next to it")
    unverified = set(names) - set(index["sha256"])
    if unverified:
        raise BundleError(f"{folder / INDEX}: has no sha256 of {min(unverified)}; copy the bundle again")


def _check_parts(bundle: Bundle) -> None:
    assembly = bundle.assembly
    if not assembly.classes or not all(isinstance(bone, str) and bone for bone in assembly.classes):
        raise BundleError(f"classes {list(assembly.classes)}: must name the bones, at least one")
    if set(assembly.selected) != set(assembly.classes):
        raise BundleError(f"selected {sorted(assembly.selected)}: must name each of {sorted(assembly.classes)}")
    unknown = set(assembly.selected.values()) - set(assembly.models)
    if unknown:
        raise BundleError(f"selected names {min(unknown)}: not among the models of the bundle")
    missing = set(assembly.backbones) - set(bundle.backbones)
    if missing:
        raise BundleError(f"a network uses the backbone {min(missing)}: not among the backbones of the bundle")
    for name, model in assembly.models.items():
        _check_networks(name, model.networks, num_outputs=1)
    if assembly.router is not None:
        _check_networks(ROUTER, assembly.router.networks, num_outputs=len(assembly.classes))


def _check_networks(name: str, networks: Sequence[Network], *, num_outputs: int) -> None:
    """Raise BundleError if there are none, or if their number of outputs is another."""
    if not networks or {network.heads.settings.num_outputs for network in networks} != {num_outputs}:
        raise BundleError(f"the networks of {name}: must be at least one, with {num_outputs} outputs each")


def _build(index: dict[str, Any], folder: Path) -> Bundle:
    tensors = load(_read_file(folder / HEADS))
    models = {
        name: AbnormalityModel(
            target=part["target"],
            recipe=part["recipe"],
            networks=_build_networks(part["networks"], tensors, name),
            calibration=Calibration(**part["calibration"]),
        )
        for name, part in index["models"].items()
    }
    router = None
    if index["router"]:
        networks = _build_networks(index["router"]["networks"], tensors, ROUTER)
        router = Router(recipe=index["router"]["recipe"], networks=networks)
    return Bundle(
        assembly=Assembly(classes=tuple(index["classes"]), router=router, models=models, selected=index["selected"]),
        backbones={key: _build_backbone(part, folder) for key, part in index["backbones"].items()},
        preprocessing=Preprocessing(**index["preprocessing"]),
        choice=RuntimeChoice(**index["runtime"]),
        notes=index["notes"],
    )


def _build_backbone(part: dict[str, Any], folder: Path) -> Backbone:
    backbone = load_backbone(BackboneSpec(name=part["name"], weights=str(folder / part["file"])))
    backbone.weights_source = part["weights"]
    if backbone.weights_digest != part["digest"]:
        raise BundleError("a backbone has other weights")
    return backbone


def _build_networks(parts: list[dict[str, Any]], tensors: dict[str, torch.Tensor], name: str) -> tuple[Network, ...]:
    return tuple(
        Network(backbone=part["backbone"], heads=_build_heads(part["head"], tensors, _heads_key(name, number)))
        for number, part in enumerate(parts)
    )


def _build_heads(settings: dict[str, Any], tensors: dict[str, torch.Tensor], name: str) -> Heads:
    prefix = f"{name}#"
    own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    checked = HeadSettings(**settings)
    _check_heads(checked, own, name)
    heads = Heads(checked)
    heads.load_state_dict(own)
    return heads.eval()


def _check_heads(settings: HeadSettings, tensors: Mapping[str, torch.Tensor], name: str) -> None:
    """Raise BundleError if tensors are not finite, or not of the sizes in the index.

    Called before heads are built: forged sizes in an index could fill memory.
    """
    hidden = [settings.hidden_size] if settings.kind == "mlp" else []
    widths = [settings.num_features, *hidden, settings.num_outputs]
    expected = {f"weights.{layer}": (settings.num_heads, *pair) for layer, pair in enumerate(pairwise(widths))}
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items() if key.startswith("weights.")}
    if expected != found:
        raise BundleError(f"the head of {name}: its file holds {found}, its index says {expected}; copy it again")
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise BundleError(f"the head of {name}: holds NaN or infinite values; copy it again")


def _heads_key(name: str, number: int) -> str:
    return f"{name}#{number}"


def _backbone_to_json(backbone: Backbone, file: str) -> dict[str, str]:
    source, digest = backbone.weights_source, backbone.weights_digest
    return {"name": backbone.name, "weights": source, "digest": digest, "file": file}


def _networks_to_json(networks: Sequence[Network]) -> list[dict[str, Any]]:
    return [{"backbone": network.backbone, "head": asdict(network.heads.settings)} for network in networks]


def _router_to_json(router: Router) -> dict[str, Any]:
    return {"recipe": router.recipe, "networks": _networks_to_json(router.networks)}


def _model_to_json(model: AbnormalityModel) -> dict[str, Any]:
    return {
        "target": model.target,
        "recipe": model.recipe,
        "networks": _networks_to_json(model.networks),
        "calibration": asdict(model.calibration),
    }


def _save(tensors: Mapping[str, torch.Tensor]) -> bytes:
    content: bytes = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
    return content


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads(_read_file(folder / INDEX, max_bytes=MAX_INDEX_BYTES))
        schema = index["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{folder / INDEX}: not a bundle's index ({error})") from error
    if schema != SCHEMA:
        older = f", which mura-study {READERS[schema]} reads" if schema in (*READERS,) else ""
        raise BundleError(f"{folder}: a bundle of schema {schema}{older}; this version reads schema {SCHEMA}")
    if index.pop("digest", None) != _digest_index(index):
        raise BundleError(f"{folder / INDEX}: changed after it was written (its digest differs); copy it again")
    return index


def _digest_index(index: dict[str, Any]) -> str:
    return _digest(json.dumps(index, sort_keys=True).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_file(path: Path, *, max_bytes: int = MAX_TENSORS_BYTES) -> bytes:
    try:
        return read_file(path, max_bytes=max_bytes)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({explain(error)}); must be the folder bundle/ of a run") from error
