"""The test set is opened here, once, for all systems: predictions.parquet, and every test figure made from it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from mura_models.data.dataset import patient_codes, study_codes
from mura_models.evaluation.bootstrap import compare, compare_mean_of_groups, summarize
from mura_models.evaluation.metrics import Scored, confusion, macro_f1, mean_of_groups, to_studies
from mura_models.inference.assembly import Assembly, Features
from orchestrator.run.names import BASELINE, SELECTED_ORACLE, SELECTED_ROUTED, SearchId, SystemId, specialist_target
from orchestrator.run.report_schema import (
    Comparison,
    RocCurve,
    RocPanel,
    RouterFigures,
    SystemFigures,
    Unit,
    UnitFigures,
)

COMPARED_METRICS = ("auroc", "kappa")
UNITS: tuple[Unit, ...] = ("study", "image")


def predict_test(assembly: Assembly, test: pd.DataFrame, features: Features, recipes: Sequence[str]) -> pd.DataFrame:
    """Return one row per test image: each system's `p_<system>` and `threshold_<system>`, and the selected answer."""
    studies = study_codes(test)
    routing = assembly.route(features, studies)
    true_bones = pd.Categorical(test["bone"], categories=list(assembly.classes)).codes.astype(np.int64)
    rows = np.arange(len(test))
    probabilities = {name: model.predict_proba(features, rows) for name, model in assembly.models.items()}
    predictions = test[["path", "bone", "patient", "study", "label"]].reset_index(drop=True)
    predictions["bone_predicted"] = assembly.decode_bones(routing.bones, routing.p_bone)
    predictions["p_bone"] = routing.p_bone
    predictions["bone_predicted_by_image"] = assembly.decode_bones(routing.image_bones, routing.p_bone)
    for system, selected in list_systems(assembly, recipes).items():
        bones = routing.bones if system.routing == "routed" else true_bones
        p_N, threshold_N = assembly.predict_from_probabilities(probabilities, bones, selected)
        predictions[f"p_{system}"] = p_N
        predictions[f"threshold_{system}"] = threshold_N
    predictions.insert(7, "p_abnormal", predictions[f"p_{SELECTED_ROUTED}"])
    is_abnormal = predictions["p_abnormal"] >= predictions[f"threshold_{SELECTED_ROUTED}"]
    predictions.insert(8, "prediction", is_abnormal.astype(np.int8))
    return predictions


def list_systems(assembly: Assembly, recipes: Sequence[str]) -> dict[SystemId, dict[str, str]]:
    """Return every system, with the model that answers for each bone."""
    systems: dict[SystemId, dict[str, str]] = {}
    for recipe in recipes:
        baseline = str(SearchId(BASELINE, recipe))
        if baseline not in assembly.models:
            continue
        systems[SystemId("baseline", recipe)] = dict.fromkeys(assembly.classes, baseline)
        own = {bone: str(SearchId(specialist_target(bone), recipe)) for bone in assembly.classes}
        if any(name in assembly.models for name in own.values()):
            selected = {bone: name if name in assembly.models else baseline for bone, name in own.items()}
            systems[SystemId("specialists", recipe, "oracle")] = selected
            if assembly.can_route:
                systems[SystemId("specialists", recipe, "routed")] = selected
    systems[SELECTED_ORACLE] = systems[SELECTED_ROUTED] = dict(assembly.selected)
    return systems


def read_systems(predictions: pd.DataFrame) -> list[SystemId]:
    """Return the systems that the columns of predictions.parquet name."""
    columns = [str(column) for column in predictions]
    return [SystemId.parse(column.removeprefix("threshold_")) for column in columns if column.startswith("threshold_")]


def score_systems(
    predictions: pd.DataFrame, bones_without_specialist: Mapping[SystemId, Sequence[str]]
) -> dict[str, SystemFigures]:
    """Return report.json's `systems`: overall, mean of bones, and by true bone; image and study level."""
    bones = {unit: unit_bones(predictions, unit) for unit in UNITS}
    systems = {}
    for system in read_systems(predictions):
        by_unit = to_units(predictions, system)
        systems[str(system)] = SystemFigures(
            overall=_summarize_units(by_unit, {unit: np.ones(len(bones[unit]), bool) for unit in UNITS}),
            mean_of_bones=mean_of_groups(by_unit["study"], bones["study"]),
            mean_of_bones_by_image=mean_of_groups(by_unit["image"], bones["image"]),
            by_bone={
                bone: _summarize_units(by_unit, {unit: bones[unit] == bone for unit in UNITS})
                for bone in sorted(set(predictions["bone"]))
            },
            bones_without_specialist=bones_without_specialist.get(system, ()),
        )
    return systems


def score_router(predictions: pd.DataFrame, classes: Sequence[str]) -> dict[Unit, RouterFigures]:
    """Return the router's macro F1, accuracy and confusion (one row per true bone) by image and by study."""
    by_study = predictions.iloc[np.unique(study_codes(predictions), return_index=True)[1]]
    parts: dict[Unit, tuple[pd.DataFrame, str]] = {
        "image": (predictions, "bone_predicted_by_image"),
        "study": (by_study, "bone_predicted"),
    }
    figures = {}
    for unit, (rows, column) in parts.items():
        true = pd.Categorical(rows["bone"], categories=list(classes)).codes.astype(np.int64)
        named = pd.Categorical(rows[column], categories=list(classes)).codes.astype(np.int64)
        figures[unit] = RouterFigures(
            macro_f1=macro_f1(true, named, len(classes)),
            accuracy=float((true == named).mean()),
            confusion=confusion(true, named, len(classes)).tolist(),
        )
    return figures


def compare_systems(
    predictions: pd.DataFrame,
    pairs: Sequence[tuple[SystemId, SystemId]],
    *,
    bones_without_specialist: Mapping[SystemId, Sequence[str]],
    unfair: Collection[SystemId] = (),
) -> list[Comparison]:
    """Return report.json's `comparisons`: the mean of bones first (the headline), then pooled, then bone by bone.

    unfair: systems whose models were trained by other settings than their references.
    """
    units = {system: to_units(predictions, system) for system in {system for pair in pairs for system in pair}}
    bones = {unit: unit_bones(predictions, unit) for unit in UNITS}
    return [
        comparison
        for system, reference in pairs
        for unit in UNITS
        for metric in COMPARED_METRICS
        for comparison in _compare_pair(
            (units[system][unit], units[reference][unit]),
            bones[unit],
            bones_without_specialist.get(system, ()),
            {
                "system": str(system),
                "reference": str(reference),
                "unit": unit,
                "metric": metric,
                "is_fair": system not in unfair,
            },
        )
    ]


def _compare_pair(
    pair: tuple[Scored, Scored], bones: np.ndarray, without: Sequence[str], named: dict[str, Any]
) -> list[Comparison]:
    """Compare two systems in one unit and metric: over bones, pooled, and bone by bone."""
    (a, b), metric = pair, named["metric"]
    over = {"bone": None, "is_zero_by_design": False} | named
    mean = compare_mean_of_groups(a, b, bones, metric=metric)
    rows = [
        Comparison(scope="mean_of_bones", **over, **mean),
        Comparison(scope="pooled", **over, **compare(a, b, metric=metric)),
    ]
    for bone in sorted(set(bones)):
        mine = bones == bone
        paired = compare(a.subset(mine), b.subset(mine), metric=metric)
        # A routing error makes a difference even where the baseline answers.
        is_zero = bone in without and paired["difference"] == 0 and not any(paired["ci95"] or ())
        rows.append(Comparison(scope="bone", bone=str(bone), is_zero_by_design=is_zero, **named, **paired))
    return rows


def list_pairs(systems: Sequence[SystemId], best_baseline: SystemId) -> list[tuple[SystemId, SystemId]]:
    """Return the pairs to compare: specialists and their recipe's baseline, the selected system and the best one."""
    pairs = [(system, SystemId("baseline", system.recipe)) for system in systems if system.kind == "specialists"]
    return [
        *pairs,
        (SELECTED_ROUTED, best_baseline),
        (SELECTED_ORACLE, best_baseline),
        (SELECTED_ROUTED, SELECTED_ORACLE),
    ]


def compute_roc(predictions: pd.DataFrame, systems: Sequence[SystemId]) -> list[RocPanel]:
    """Return report.json's `roc`: curves by image, all bones first; a bone with one label on test has none."""
    parts = [(None, predictions), *((str(bone), rows) for bone, rows in predictions.groupby("bone"))]
    panels = []
    for bone, rows in parts:
        if rows["label"].nunique() < 2:
            continue
        curves = {}
        for system in systems:
            false_rate, true_rate, _ = roc_curve(rows["label"], rows[f"p_{system}"])
            curves[str(system)] = RocCurve(false_positive_rate=false_rate.tolist(), sensitivity=true_rate.tolist())
        num_abnormal = int(rows["label"].sum())
        panels.append(
            RocPanel(bone=bone, num_normal=len(rows) - num_abnormal, num_abnormal=num_abnormal, curves=curves)
        )
    return panels


def to_units(predictions: pd.DataFrame, system: SystemId) -> dict[Unit, Scored]:
    """Return a system's test rows by image and by study; studies in the order of `unit_bones`."""
    images = Scored(
        labels=predictions["label"].to_numpy(np.int64),
        p_abnormal=predictions[f"p_{system}"].to_numpy(np.float64),
        thresholds=predictions[f"threshold_{system}"].to_numpy(np.float64),
        patients=patient_codes(predictions),
    )
    return {"image": images, "study": to_studies(images, study_codes(predictions))}


def unit_bones(predictions: pd.DataFrame, unit: Unit) -> np.ndarray:
    """Return the true bone of each row of a unit."""
    bones = predictions["bone"].to_numpy(dtype=str)
    if unit == "image":
        return bones
    return bones[np.unique(study_codes(predictions), return_index=True)[1]]


def _summarize_units(by_unit: Mapping[Unit, Scored], masks: Mapping[Unit, np.ndarray]) -> UnitFigures:
    parts = {unit: by_unit[unit].subset(masks[unit]) for unit in UNITS}
    return UnitFigures(
        num_images=len(parts["image"].labels),
        num_studies=len(parts["study"].labels),
        image=summarize(parts["image"]),
        study=summarize(parts["study"]),
    )
