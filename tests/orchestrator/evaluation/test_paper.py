"""The paper's figures next to ours: accuracy by image at 0.5, against scikit-learn."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from orchestrator.evaluation.paper import PAPER_SYSTEMS, Absences, compare_with_paper

SYSTEMS = [str(paper.system) for paper in PAPER_SYSTEMS]
BONES = ("elbow", "Humerus", "wrist")


def make_predictions(bones=BONES, systems=SYSTEMS, *, images_per_bone=60):
    """Draw answers of every system, each with thresholds far from 0.5."""
    generator = np.random.default_rng(3)
    bone = np.repeat(np.array(bones, dtype=object), images_per_bone)
    number = np.arange(len(bone))
    label = generator.integers(0, 2, len(bone))
    table = pd.DataFrame({"bone": bone, "patient": [f"p{n // 2}" for n in number], "label": label})
    for system in systems:
        table[f"p_{system}"] = np.clip(0.2 * label + generator.uniform(0, 0.8, len(bone)), 0, 1)
        table[f"threshold_{system}"] = 0.9
    return table


def compare(predictions, *, untrainable=None, failed=None):
    return [asdict(row) for row in compare_with_paper(predictions, Absences(untrainable or {}, failed or {}))]


def index(rows):
    """Return (system, bone in lower case or None) -> row."""
    return {(row["system"], row["bone"] and row["bone"].lower()): row for row in rows}


def test_every_figure_is_scikit_learns_at_half_whatever_the_threshold():
    predictions = make_predictions()
    rows = compare(predictions)
    assert len(rows) == 6 + 2 * len(BONES)
    for row in rows:
        images = predictions if row["bone"] is None else predictions[predictions["bone"] == row["bone"]]
        p_N = images[f"p_{row['system']}"]
        assert row["ours"]["value"] == pytest.approx(accuracy_score(images["label"], p_N >= 0.5))
        assert row["auroc"]["value"] == pytest.approx(roc_auc_score(images["label"], p_N))
        low, high = row["ours"]["ci95"]
        assert low < row["ours"]["value"] < high
        assert (row["unit"], row["metric"], row["num_images"]) == ("image", "accuracy at 0.5", len(images))


def test_published_figures_are_in_the_rows_of_the_paper():
    rows = index(compare(make_predictions()))
    published = {key: row["published"] for key, row in rows.items() if row["published"] is not None}
    assert published == {
        ("baseline_linear_probe", None): 0.6951,
        ("baseline_mlp_probe", None): 0.7217,
        ("baseline_intermediate_task", None): 0.591,
        ("specialists_mlp_probe_oracle", "humerus"): 0.7936,
        ("specialists_two_stage_probe_oracle", "humerus"): 0.8892,
    }
    sections = {system: row["section"] for (system, _), row in rows.items()}
    assert list(sections.items()) == [(str(paper.system), paper.section) for paper in PAPER_SYSTEMS]


def test_temperature_changes_no_accuracy():
    predictions = make_predictions()
    warm = predictions.copy()
    for system in SYSTEMS:
        p_N = predictions[f"p_{system}"].clip(1e-6, 1 - 1e-6)
        warm[f"p_{system}"] = 1 / (1 + np.exp(-np.log(p_N / (1 - p_N)) / 1.7))
    assert [row["ours"] for row in compare(warm)] == [row["ours"] for row in compare(predictions)]


def test_data_without_a_humerus_keeps_the_row_with_a_reason():
    rows = index(compare(make_predictions(("elbow", "wrist"))))
    row = rows["specialists_two_stage_probe_oracle", "humerus"]
    assert (row["published"], row["num_images"]) == (0.8892, 0)
    assert row["ours"] == row["auroc"] == {"value": None, "ci95": None, "reason": "no humerus in the data"}


def test_a_bone_that_the_baseline_answers_for_has_a_reason_and_no_figure():
    failed = {"specialist:elbow/mlp_probe": "specialist:elbow/mlp_probe: every trial failed"}
    rows = index(compare(make_predictions(), untrainable={"humerus": "3 abnormal images"}, failed=failed))
    for system in ("specialists_mlp_probe_oracle", "specialists_two_stage_probe_oracle"):
        row = rows[system, "humerus"]
        assert row["ours"] == row["auroc"] == {"value": None, "ci95": None, "reason": "3 abnormal images"}
        assert row["published"] is not None
    assert "every trial failed" in rows["specialists_mlp_probe_oracle", "elbow"]["ours"]["reason"]
    assert rows["specialists_two_stage_probe_oracle", "elbow"]["ours"]["value"] is not None


def test_few_rows_have_no_interval():
    row = compare(make_predictions(("wrist",), ["selected_routed"], images_per_bone=8))[-1]
    assert (row["ours"]["ci95"], row["ours"]["reason"]) == (None, "too few")


def test_a_system_that_did_not_answer_keeps_its_row_with_a_reason():
    predictions = make_predictions(systems=["baseline_mlp_probe", "selected_routed", "baseline_finetune"])
    failed = {
        "baseline/linear_probe": "baseline/linear_probe: every trial failed",
        "baseline/intermediate_task": "baseline/intermediate_task: needs router/finetune, which failed",
        "specialist:humerus/mlp_probe": "specialist:humerus/mlp_probe: every trial failed",
    }
    rows = compare(predictions, failed=failed)
    assert [row["system"] for row in rows] == SYSTEMS
    missing = {row["system"]: row for row in rows if row["ours"]["value"] is None}
    assert {system: row["ours"]["reason"] for system, row in missing.items()} == {
        "baseline_linear_probe": failed["baseline/linear_probe"],
        "baseline_intermediate_task": failed["baseline/intermediate_task"],
        "specialists_mlp_probe_oracle": failed["specialist:humerus/mlp_probe"],
        "specialists_two_stage_probe_oracle": "not trained in this run",
        "baseline_two_stage_probe": "not trained in this run",
        "specialists_two_stage_probe_routed": "not trained in this run",
    }
    assert missing["baseline_linear_probe"]["num_images"] == len(predictions)
    of_humerus = missing["specialists_two_stage_probe_oracle"]
    assert (of_humerus["bone"], of_humerus["published"], of_humerus["num_images"]) == ("Humerus", 0.8892, 60)


@pytest.mark.parametrize(
    ("failed", "reason"),
    [
        ({"router/linear_probe": "router/linear_probe: every trial failed"}, "router/linear_probe: every trial failed"),
        ({}, "no router was trained in this run"),
    ],
)
def test_without_a_router_the_proposed_system_keeps_its_row(failed, reason):
    systems = [system for system in SYSTEMS if system != "specialists_two_stage_probe_routed"]
    row = index(compare(make_predictions(systems=systems), failed=failed))["specialists_two_stage_probe_routed", None]
    assert row["ours"] == {"value": None, "ci95": None, "reason": reason}


def test_without_any_specialist_both_of_its_systems_have_the_reason():
    systems = [system for system in SYSTEMS if "two_stage" not in system or system.startswith("baseline")]
    untrainable = dict.fromkeys(BONES, "3 abnormal images")
    rows = index(compare(make_predictions(systems=systems), untrainable=untrainable))
    assert rows["specialists_two_stage_probe_oracle", "humerus"]["ours"]["reason"] == "3 abnormal images"
    assert rows["specialists_two_stage_probe_routed", None]["ours"]["reason"] == "no specialist was trained in this run"
