"""Test is opened here, once, for all systems alike: predictions.parquet, and from it every test figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mura_models.data.dataset import patient_codes, study_codes
from mura_models.evaluation.bootstrap import compare, compare_mean_of_groups, summarize
from mura_models.evaluation.metrics import Scored, confusion, macro_f1, mean_of_groups, to_studies
from mura_models.inference.assembly import Assembly, Features
from orchestrator.run.names import specialist_target

COMPARED_METRICS = ("auroc", "kappa")
UNITS = ("study", "image")


def predict_test(assembly: Assembly, test: pd.DataFrame, features: Features, recipes: Sequence[str]) -> pd.DataFrame:
    """Return a row a test image: every system's `p_<system>` and `threshold_<system>`, and the served answer."""
    studies = study_codes(test)
    routing = assembly.route(features, studies)
    true_bones = pd.Categorical(test["bone"], categories=list(assembly.classes)).codes.astype(np.int64)
    rows = np.arange(len(test))
    probabilities = {name: model.rate(features, rows) for name, model in assembly.models.items()}
    predictions = test[["path", "bone", "patient", "study", "label"]].reset_index(drop=True)
    predictions["bone_predicted"] = assembly.decode_bones(routing.bones, routing.p_bone)
    predictions["p_bone"] = routing.p_bone
    predictions["bone_predicted_by_image"] = assembly.decode_bones(routing.image_bones, routing.p_bone)
    for system, (selected, is_routed) in list_systems(assembly, recipes).items():
        bones = routing.bones if is_routed else true_bones
        p_N, threshold_N = assembly.answer(probabilities, bones, selected)
        predictions[f"p_{system}"] = p_N
        predictions[f"threshold_{system}"] = threshold_N
    predictions.insert(7, "p_abnormal", predictions["p_selected_routed"])
    is_abnormal = predictions["p_abnormal"] >= predictions["threshold_selected_routed"]
    predictions.insert(8, "prediction", is_abnormal.astype(np.int8))
    return predictions


def list_systems(assembly: Assembly, recipes: Sequence[str]) -> dict[str, tuple[dict[str, str], bool]]:
    """Name every system: which model answers for each bone, and whether the router names the bone."""
    systems: dict[str, tuple[dict[str, str], bool]] = {}
    for recipe in recipes:
        baseline = f"baseline/{recipe}"
        if baseline not in assembly.models:
            continue
        systems[f"baseline_{recipe}"] = (dict.fromkeys(assembly.classes, baseline), False)
        own = {bone: f"{specialist_target(bone)}/{recipe}" for bone in assembly.classes}
        if any(name in assembly.models for name in own.values()):
            selected = {bone: name if name in assembly.models else baseline for bone, name in own.items()}
            systems[f"specialists_{recipe}_oracle"] = (selected, False)
            if assembly.can_route:
                systems[f"specialists_{recipe}_routed"] = (selected, True)
    systems["selected_oracle"] = (dict(assembly.selected), False)
    systems["selected_routed"] = (dict(assembly.selected), True)
    return systems


def name_systems(predictions: pd.DataFrame) -> list[str]:
    """Read the systems off the columns of predictions.parquet."""
    columns = [str(column) for column in predictions]
    return [column.removeprefix("threshold_") for column in columns if column.startswith("threshold_")]


def score_systems(predictions: pd.DataFrame) -> dict[str, Any]:
    """Return report.json's `systems`: overall, mean of bones, and by true bone; image and study level."""
    units = {system: to_units(predictions, system) for system in name_systems(predictions)}
    bones = {unit: unit_bones(predictions, unit) for unit in UNITS}
    return {
        system: {
            "overall": _summarize_units(by_unit, {unit: np.ones(len(bones[unit]), bool) for unit in UNITS}),
            "mean_of_bones": mean_of_groups(by_unit["study"], bones["study"]),
            "mean_of_bones_by_image": mean_of_groups(by_unit["image"], bones["image"]),
            "by_bone": {
                bone: _summarize_units(by_unit, {unit: bones[unit] == bone for unit in UNITS})
                for bone in sorted(set(predictions["bone"]))
            },
        }
        for system, by_unit in units.items()
    }


def score_router(predictions: pd.DataFrame, classes: Sequence[str]) -> dict[str, Any]:
    """Return report.json's `router`: macro F1, accuracy and confusion (rows: the true bone), by image and by study."""
    by_study = predictions.iloc[np.unique(study_codes(predictions), return_index=True)[1]]
    parts = {"image": (predictions, "bone_predicted_by_image"), "study": (by_study, "bone_predicted")}
    report: dict[str, Any] = {"classes": list(classes)}
    for unit, (rows, column) in parts.items():
        true = pd.Categorical(rows["bone"], categories=list(classes)).codes.astype(np.int64)
        named = pd.Categorical(rows[column], categories=list(classes)).codes.astype(np.int64)
        report[unit] = {
            "macro_f1": macro_f1(true, named, len(classes)),
            "accuracy": float((true == named).mean()),
            "confusion": confusion(true, named, len(classes)).tolist(),
        }
    return report


def compare_systems(predictions: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return report.json's `comparisons`: the mean of bones first (the headline), then pooled, then bone by bone."""
    units = {system: to_units(predictions, system) for system in {name for pair in pairs for name in pair}}
    rows = []
    for first, second in pairs:
        for unit in UNITS:
            bones = unit_bones(predictions, unit)
            a, b = units[first][unit], units[second][unit]
            for metric in COMPARED_METRICS:
                named = {"a": first, "b": second, "unit": unit, "metric": metric}
                mean = compare_mean_of_groups(a, b, bones, metric=metric)
                rows.append(named | {"bone": None, "scope": "mean_of_bones"} | mean)
                rows.append(named | {"bone": None, "scope": "pooled"} | compare(a, b, metric=metric))
                for bone in sorted(set(bones)):
                    mine = bones == bone
                    paired = compare(a.subset(mine), b.subset(mine), metric=metric)
                    rows.append(named | {"bone": bone, "scope": "bone"} | paired)
    return rows


def list_pairs(systems: Sequence[str], best_baseline: str) -> list[tuple[str, str]]:
    """Name the comparisons: specialists against their recipe's baseline, the served system against the best one."""
    pairs = []
    for system in systems:
        if system.startswith("specialists_"):
            recipe = system.removeprefix("specialists_").rsplit("_", 1)[0]
            pairs.append((system, f"baseline_{recipe}"))
    pairs += [
        ("selected_routed", best_baseline),
        ("selected_oracle", best_baseline),
        ("selected_routed", "selected_oracle"),
    ]
    return pairs


def to_units(predictions: pd.DataFrame, system: str) -> dict[str, Scored]:
    """Return a system's test rows by image and by study; studies in the order of `unit_bones`."""
    images = Scored(
        labels=predictions["label"].to_numpy(np.int64),
        p_abnormal=predictions[f"p_{system}"].to_numpy(np.float64),
        thresholds=predictions[f"threshold_{system}"].to_numpy(np.float64),
        patients=patient_codes(predictions),
    )
    return {"image": images, "study": to_studies(images, study_codes(predictions))}


def unit_bones(predictions: pd.DataFrame, unit: str) -> np.ndarray:
    """Return the true bone of each row of a unit."""
    bones = predictions["bone"].to_numpy(dtype=str)
    if unit == "image":
        return bones
    return bones[np.unique(study_codes(predictions), return_index=True)[1]]


def _summarize_units(by_unit: Mapping[str, Scored], masks: Mapping[str, np.ndarray]) -> dict[str, Any]:
    parts = {unit: by_unit[unit].subset(masks[unit]) for unit in UNITS}
    counts = {"num_images": len(parts["image"].labels), "num_studies": len(parts["study"].labels)}
    return counts | {unit: summarize(part) for unit, part in parts.items()}
