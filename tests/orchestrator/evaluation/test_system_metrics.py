"""Test predictions and the figures made from them, against scikit-learn."""

from dataclasses import asdict
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from factories import SYSTEM_NAMES, make_assembly, make_features, make_manifest, wrap_features
from sklearn.metrics import (
    accuracy_score,
    auc,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    recall_score,
    roc_auc_score,
)

from mura_models.evaluation.metrics import METRICS
from orchestrator.evaluation.report_data import is_fair
from orchestrator.evaluation.system_metrics import (
    compare_systems,
    compute_roc,
    list_pairs,
    predict_test,
    read_systems,
    score_router,
    score_systems,
)
from orchestrator.run.config import RunConfig
from orchestrator.run.names import SystemId

SYSTEMS = [SystemId.parse(name) for name in SYSTEM_NAMES]
SPECIALISTS = SystemId("specialists", "mlp_probe", "oracle")
BASELINE = SystemId("baseline", "mlp_probe")
CONTRACT = ["path", "bone", "patient", "study", "label", "bone_predicted", "p_bone", "p_abnormal", "prediction"]
RECIPES = ("linear_probe", "mlp_probe")

EQUAL = RunConfig()
UNEQUAL = RunConfig(specialist_lr=0.01, specialist_probe_steps=1000)


def make_test_rows():
    """Return the test rows and their embeddings."""
    test = make_manifest()
    test = test[test["split"] == "test"].reset_index(drop=True)
    return test, make_features(test)[:, 0]


@cache
def predict():
    """Return the systems' answers for the test rows."""
    test, features_ND = make_test_rows()
    return predict_test(make_assembly(), test, wrap_features(features_ND), RECIPES)


@cache
def report():
    """Return report.json's systems."""
    return score_systems(predict(), {SPECIALISTS: ["wrist"]})


def select(system, unit, bone=None):
    """Return labels, probabilities and thresholds of a system by image or study, by pandas alone."""
    rows = predict() if bone is None else predict()[predict()["bone"] == bone]
    columns = ["label", f"p_{system}", f"threshold_{system}"]
    table = rows[columns] if unit == "image" else rows.groupby(["patient", "bone", "study"])[columns].mean()
    return table.to_numpy().T


def measure(labels, p, thresholds):
    """Compute every metric by scikit-learn."""
    named = p >= thresholds
    return {
        "kappa": cohen_kappa_score(labels, named),
        "kappa_at_half": cohen_kappa_score(labels, p >= 0.5),
        "accuracy": accuracy_score(labels, named),
        "auroc": roc_auc_score(labels, p),
        "f1": f1_score(labels, named),
        "sensitivity": recall_score(labels, named),
        "specificity": recall_score(labels, named, pos_label=0),
    }


def test_predictions_have_the_columns_that_others_read():
    columns = list(predict().columns)
    assert columns[:9] == CONTRACT
    assert {f"p_{system}" for system in SYSTEMS} | {f"threshold_{system}" for system in SYSTEMS} <= set(columns)
    assert read_systems(predict()) == SYSTEMS


def test_there_is_one_row_per_image_as_given_and_in_order():
    test, _ = make_test_rows()
    given = ["path", "bone", "patient", "study", "label"]
    pd.testing.assert_frame_equal(predict()[given], test[given])
    assert predict()["p_abnormal"].between(0, 1).all()
    assert set(predict()["prediction"]) == {0, 1}


def test_the_bundle_is_the_selected_and_routed_system():
    rows = predict()
    assert rows["p_abnormal"].equals(rows["p_selected_routed"].rename("p_abnormal"))
    assert (rows["prediction"] == (rows["p_selected_routed"] >= rows["threshold_selected_routed"])).all()


def test_the_bundle_would_answer_the_same():
    test, features_ND = make_test_rows()
    studies = pd.factorize(test["patient"])[0]
    answers = make_assembly().predict(wrap_features(features_ND), studies)
    pd.testing.assert_frame_equal(answers, predict()[list(answers.columns)])


def test_each_system_uses_the_models_of_its_name():
    _, features_ND = make_test_rows()
    assembly, rows = make_assembly(), predict()
    features, every = wrap_features(features_ND), np.arange(len(features_ND))
    probabilities = {name: model.predict_proba(features, every) for name, model in assembly.models.items()}

    def choose(bones, by_bone):
        names = [by_bone.get(bone, "baseline/mlp_probe") for bone in bones]
        return [probabilities[name][row] for row, name in enumerate(names)]

    specialists = {bone: f"specialist:{bone}/mlp_probe" for bone in ("elbow", "hand")}  # the wrist has none
    expected = {
        "baseline_linear_probe": probabilities["baseline/linear_probe"],
        "baseline_mlp_probe": probabilities["baseline/mlp_probe"],
        "specialists_mlp_probe_oracle": choose(rows["bone"], specialists),
        "specialists_mlp_probe_routed": choose(rows["bone_predicted"], specialists),
        "selected_oracle": choose(rows["bone"], assembly.selected),
        "selected_routed": choose(rows["bone_predicted"], assembly.selected),
    }
    for system, p_N in expected.items():
        assert rows[f"p_{system}"].to_numpy() == pytest.approx(p_N), system
    assert (rows["bone"] != rows["bone_predicted"]).any()  # or the routed systems were not tested


def test_a_study_is_routed_as_one_by_its_mean_probability():
    _, features_ND = make_test_rows()
    rows, assembly = predict(), make_assembly()
    logits_NC = assembly.router.networks[0].heads.mean_logit(to_tensor(features_ND)).double()
    p_NC = pd.DataFrame(logits_NC.softmax(1).numpy(), columns=list(assembly.classes))
    means = p_NC.groupby(rows["patient"]).transform("mean")
    assert rows["bone_predicted"].tolist() == means.idxmax(axis=1).tolist()
    assert rows["p_bone"].to_numpy() == pytest.approx(means.max(axis=1).to_numpy())
    assert rows["bone_predicted_by_image"].tolist() == p_NC.idxmax(axis=1).tolist()
    assert (rows["bone_predicted"] != rows["bone_predicted_by_image"]).any()


def to_tensor(features_ND):
    """Return embeddings as the heads take them."""
    return torch.from_numpy(features_ND.astype(np.float32))


@pytest.mark.parametrize("unit", ["image", "study"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_figure_is_that_of_scikit_learn(system, unit):
    figures = report()[str(system)]
    places = [("overall", None, figures.overall)] + [("bone", bone, part) for bone, part in figures.by_bone.items()]
    assert [bone for _, bone, _ in places] == [None, "elbow", "hand", "wrist"]
    for _, bone, part in places:
        labels, p, thresholds = select(system, unit, bone)
        assert (part.num_studies if unit == "study" else part.num_images) == len(labels)
        values = {metric: getattr(part, unit)[metric]["value"] for metric in METRICS}
        assert values == pytest.approx(measure(labels, p, thresholds)), bone


@pytest.mark.parametrize(("unit", "key"), [("study", "mean_of_bones"), ("image", "mean_of_bones_by_image")])
def test_the_mean_of_bones_counts_each_bone_the_same(unit, key):
    for system in SYSTEMS:
        by_bone = [measure(*select(system, unit, bone)) for bone in ("elbow", "hand", "wrist")]
        assert getattr(report()[str(system)], key) == pytest.approx(
            {m: np.mean([part[m] for part in by_bone]) for m in METRICS}
        )


def test_an_interval_holds_its_value_and_too_few_rows_have_none():
    overall = report()["selected_routed"].overall.image["auroc"]
    assert overall["ci95"][0] < overall["value"] < overall["ci95"][1]
    by_study = report()["selected_routed"].by_bone["hand"].study["auroc"]  # 8 studies per label
    assert by_study["ci95"] is None
    assert by_study["reason"] == "too few"


def test_a_bone_of_one_label_has_no_auroc_and_a_reason():
    rows = predict()
    systems = score_systems(rows[(rows["bone"] != "hand") | (rows["label"] == 0)], {})
    auroc = systems["selected_oracle"].by_bone["hand"].image["auroc"]
    assert (auroc["value"], auroc["ci95"], auroc["reason"]) == (None, None, "one class only")


@pytest.mark.parametrize(("unit", "column"), [("image", "bone_predicted_by_image"), ("study", "bone_predicted")])
def test_the_routers_figures_are_those_of_scikit_learn(unit, column):
    classes = ["elbow", "hand", "wrist"]
    rows = predict() if unit == "image" else predict().drop_duplicates(["patient", "bone", "study"])
    figures = score_router(predict(), classes)[unit]
    assert figures.macro_f1 == pytest.approx(f1_score(rows["bone"], rows[column], average="macro"))
    assert figures.accuracy == pytest.approx(accuracy_score(rows["bone"], rows[column]))
    assert figures.confusion == confusion_matrix(rows["bone"], rows[column], labels=classes).tolist()


def test_a_comparison_is_the_difference_of_the_figures():
    a, b = SPECIALISTS, BASELINE
    rows = pd.DataFrame(map(asdict, compare_systems(predict(), [(a, b)], bones_without_specialist={})))
    table = rows.set_index(["unit", "metric", "scope", "bone"]).sort_index()
    for unit in ("image", "study"):
        for metric in ("auroc", "kappa"):
            by_bone = {}
            for bone in ("elbow", "hand", "wrist"):
                first, second = (measure(*select(system, unit, bone))[metric] for system in (a, b))
                by_bone[bone] = first - second
            found = table.loc[(unit, metric)]["difference"]
            assert found.loc["bone"].to_dict() == pytest.approx(by_bone)
            assert found.loc["mean_of_bones"].item() == pytest.approx(np.mean(list(by_bone.values())))
            pooled = [measure(*select(system, unit))[metric] for system in (a, b)]
            assert found.loc["pooled"].item() == pytest.approx(pooled[0] - pooled[1])


def test_the_wrist_without_a_specialist_differs_from_its_baseline_by_nothing():
    rows = compare_systems(predict(), [(SPECIALISTS, BASELINE)], bones_without_specialist={SPECIALISTS: ["wrist"]})
    assert {row.difference for row in rows if row.bone == "wrist"} == {0.0}
    assert {row.bone for row in rows if row.is_zero_by_design} == {"wrist"}


def test_a_difference_by_routing_errors_is_not_zero_by_design():
    routed = SystemId("specialists", "mlp_probe", "routed")
    rows = compare_systems(predict(), [(routed, BASELINE)], bones_without_specialist={routed: ["wrist"]})
    of_wrist = [row for row in rows if row.bone == "wrist"]
    assert any(row.difference for row in of_wrist)
    assert not any(row.is_zero_by_design for row in of_wrist if row.difference)


@pytest.mark.parametrize(
    ("config", "system", "expected"),
    [
        (EQUAL, "specialists_mlp_probe_oracle", True),
        (UNEQUAL, "specialists_mlp_probe_routed", False),
        (UNEQUAL, "specialists_finetune_oracle", False),
        (UNEQUAL, "specialists_two_stage_probe_oracle", True),
        (UNEQUAL, "selected_routed", True),
    ],
)
def test_a_pair_is_fair_if_both_were_trained_by_the_same_settings(config, system, expected):
    assert is_fair(config, SystemId.parse(system)) is expected


def test_unfair_systems_are_marked_in_their_comparisons():
    pairs = list_pairs(SYSTEMS, BASELINE)
    rows = compare_systems(predict(), pairs[:3], bones_without_specialist={}, unfair=[SPECIALISTS])
    assert {(row.system, row.is_fair) for row in rows} == {
        (str(system), system != SPECIALISTS) for system, _ in pairs[:3]
    }


def test_roc_curves_enclose_the_auroc_and_a_bone_of_one_label_has_none():
    rows = predict()
    rows = rows[(rows["bone"] != "hand") | (rows["label"] == 0)]
    panels = compute_roc(rows, (BASELINE, SPECIALISTS))
    assert [panel.bone for panel in panels] == [None, "elbow", "wrist"]
    for panel in panels:
        images = rows if panel.bone is None else rows[rows["bone"] == panel.bone]
        assert (panel.num_normal, panel.num_abnormal) == (sum(images["label"] == 0), sum(images["label"] == 1))
        for system, curve in panel.curves.items():
            expected = roc_auc_score(images["label"], images[f"p_{system}"])
            assert auc(curve.false_positive_rate, curve.sensitivity) == pytest.approx(expected)


def test_specialists_are_compared_with_the_baseline_of_their_recipe():
    pairs = list_pairs(SYSTEMS, SystemId("baseline", "linear_probe"))
    assert [(str(system), str(reference)) for system, reference in pairs] == [
        ("specialists_mlp_probe_oracle", "baseline_mlp_probe"),
        ("specialists_mlp_probe_routed", "baseline_mlp_probe"),
        ("selected_routed", "baseline_linear_probe"),
        ("selected_oracle", "baseline_linear_probe"),
        ("selected_routed", "selected_oracle"),
    ]


def test_a_recipe_without_a_baseline_is_no_system():
    test, features_ND = make_test_rows()
    assembly = make_assembly(selected=())
    models = {name: model for name, model in assembly.models.items() if name != "baseline/linear_probe"}
    without = type(assembly)(
        classes=assembly.classes, router=assembly.router, models=models, selected=assembly.selected
    )
    assert read_systems(predict_test(without, test, wrap_features(features_ND), RECIPES)) == SYSTEMS[1:]


def test_without_any_specialist_there_are_baselines_and_the_selected_systems():
    test, features_ND = make_test_rows()
    rows = predict_test(make_assembly(specialists=(), selected=()), test, wrap_features(features_ND), RECIPES)
    assert read_systems(rows) == [system for system in SYSTEMS if system.kind != "specialists"]
    assert rows["p_selected_routed"].to_numpy() == pytest.approx(rows["p_baseline_mlp_probe"].to_numpy())
