"""Small stand-ins that the fast tests share: a manifest, its embeddings, the rows of a search and trained heads."""

import errno
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mura_models.data.dataset import patient_codes, study_codes
from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.evaluation.calibration import Calibration
from mura_models.inference.assembly import FROZEN, AbnormalityModel, Assembly, Network, Router
from mura_models.inference.bundle import Bundle
from mura_models.inference.bundle_files import write_bundle
from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.networks.backbones import load_backbone
from mura_models.networks.heads import Heads, HeadSettings
from mura_models.networks.runtimes import RuntimeChoice
from mura_models.training.loop import TrialSettings
from mura_models.training.search_data import SearchData

SYSTEM_NAMES = (
    "baseline_linear_probe",
    "baseline_mlp_probe",
    "specialists_mlp_probe_oracle",
    "specialists_mlp_probe_routed",
    "selected_oracle",
    "selected_routed",
)
"""The systems of a run with both probes, in the report's order."""
NUM_FEATURES, NUM_VIEWS, NUM_FOLDS = 6, 4, 3
COUNTS = {"elbow": (34, 26), "hand": (24, 30), "wrist": (40, 3)}
"""Bone -> normal and abnormal train images; the wrist has too few for a specialist."""


def list_names(folder):
    """Return the names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


def make_manifest(counts=COUNTS, *, num_test=12):
    """Return a manifest with folds, `counts` images in train and `num_test` a bone and label in test."""
    rows = []
    for bone, of_label in counts.items():
        for label in (0, 1):
            for split, num_images in (("train", of_label[label]), ("test", num_test)):
                for number in range(num_images):
                    who = f"{split}-{bone}-{label}-{2 * number // 3}"  # one or two images per study
                    fold = 2 * number // 3 % NUM_FOLDS if split == "train" else -1
                    rows.append((f"{who}/{number}.png", bone, who, "study1", label, split, fold))
    table = pd.DataFrame(rows, columns=["path", "bone", "patient", "study", "label", "split", "fold"])
    return table.assign(file=table["path"], digest=[f"{row:064x}" for row in range(len(table))])


def make_features(manifest, *, seed=0):
    """Draw embeddings [N, V, D], float16: bones differ much, labels a little."""
    shape = (len(manifest), NUM_VIEWS, NUM_FEATURES)
    features_NVD = np.random.default_rng(seed).normal(size=shape)
    bones = pd.factorize(manifest["bone"], sort=True)[0]
    features_NVD[:, :, 0] += manifest["label"].to_numpy()[:, None]
    features_NVD[np.arange(len(manifest)), :, 1 + bones % 3] += 4
    return features_NVD.astype(np.float16)


def make_probe_data(target="baseline", *, manifest=None, seed=0):
    """Return the rows of one search: `baseline`, `router` or a bone's."""
    manifest = make_manifest() if manifest is None else manifest
    train = manifest[manifest["split"] == "train"].reset_index(drop=True)
    bones = train["bone"].to_numpy(dtype=str)
    classes = tuple(sorted(set(bones)))
    rows = np.flatnonzero((bones == target) | (target in ("baseline", "router")))
    labels = np.searchsorted(classes, bones) if target == "router" else train["label"].to_numpy(np.int64)
    return SearchData(
        features_NVD=make_features(train, seed=seed),
        rows=rows,
        labels=labels[rows],
        folds=train["fold"].to_numpy(np.int64)[rows],
        studies=study_codes(train)[rows],
        patients=patient_codes(train)[rows],
        bones=bones[rows],
        held_out=tuple(range(NUM_FOLDS)),
        bone_classes=classes if target == "router" else None,
    )


def make_settings(**changes):
    """Return the settings of a trial of milliseconds."""
    small = {"head": "mlp", "lr": 0.01, "num_epochs": 4, "steps_per_epoch": 3, "batch_size": 16}
    return TrialSettings(**small | {"hidden_size": 5, "grace_epochs": 4, "seed": 7} | changes)


def make_heads(*, num_outputs=1, kind="linear", num_features=NUM_FEATURES, seed=0):
    """Return heads with random weights and a standardization that is not the identity."""
    shape = {"num_heads": NUM_FOLDS, "num_features": num_features, "num_outputs": num_outputs, "hidden_size": 5}
    heads = Heads(HeadSettings(kind=kind, **shape), seed=seed)
    for weight in heads.weights:
        weight.data *= 4  # so that answers differ
    drawn = torch.Generator().manual_seed(seed)
    size = (NUM_FOLDS, num_features)
    heads.standardize_by(torch.randn(size, generator=drawn), 1 + torch.rand(size, generator=drawn))
    return heads.eval()


def make_model(target, recipe="mlp_probe", *, num_features=NUM_FEATURES, seed=0, temperature=1.5, threshold=0.55):
    """Return a model of abnormality with random weights."""
    calibration = Calibration(temperature=temperature, threshold=threshold)
    kind = "linear" if recipe == "linear_probe" else "mlp"
    networks = (Network(backbone=FROZEN, heads=make_heads(kind=kind, num_features=num_features, seed=seed)),)
    return AbnormalityModel(target=target, recipe=recipe, networks=networks, calibration=calibration)


def wrap_features(features_ND):
    """Return embeddings as an assembly asks for them, by the one backbone there is."""

    def find_features(backbone, rows):
        assert backbone == FROZEN
        return features_ND[rows]

    return find_features


def make_assembly(
    classes=("elbow", "hand", "wrist"),
    *,
    specialists=("elbow", "hand"),
    selected=("hand",),
    num_features=NUM_FEATURES,
):
    """Return a router, both baselines and some specialists; those in `selected` answer for their bone."""
    size = {"num_features": num_features}
    models = [
        make_model("baseline", "linear_probe", seed=1, threshold=0.6, **size),
        make_model("baseline", seed=2, **size),
    ]
    models += [
        make_model(f"specialist:{bone}", seed=10 + number, temperature=0.8, threshold=0.5 + number / 5, **size)
        for number, bone in enumerate(specialists)
    ]
    selected = {bone: f"specialist:{bone}/mlp_probe" if bone in selected else "baseline/mlp_probe" for bone in classes}
    return Assembly(
        classes=classes,
        router=Router(
            recipe="linear_probe",
            networks=(Network(backbone=FROZEN, heads=make_heads(num_outputs=len(classes), seed=3, **size)),),
        ),
        models={model.name: model for model in models},
        selected=selected,
    )


def write_small_bundle(folder):
    """Write a bundle of a network of 0.4 MB with random weights, which predicts an image in milliseconds."""
    backbone = load_backbone(BackboneSpec(name="test_efficientnet", weights="random", seed=3))
    bundle = Bundle(
        assembly=make_assembly(num_features=backbone.num_features).keep_selected(),
        backbones={FROZEN: backbone},
        preprocessing=Preprocessing(image_size_px=64),
        choice=RuntimeChoice(runtime="torch", precision="float32", device="cpu"),
        notes={},
    )
    write_bundle(bundle, folder)


def fail_to_read(monkeypatch, num_times):
    """Make the first reads fail as if a file server were gone."""
    read_bytes, left = Path.read_bytes, iter(range(num_times))

    def read(path):
        if next(left, None) is not None:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr("mura_models.storage.RETRY_EVERY_S", 0.001)
