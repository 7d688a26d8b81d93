"""The plan: the same chances for every target, the paper's settings among them, written before anything is trained."""

from itertools import pairwise

import numpy as np
import pytest
from conftest import make_manifest

from mura_models.errors import ConfigError, DataError
from mura_models.lr_schedules import LR_SCHEDULES
from orchestrator.config import RunConfig
from orchestrator.plan import make_plan
from orchestrator.points import LR_RANGE, WEIGHT_DECAY_RANGE

CONFIG = RunConfig(num_trials=7, num_folds=3)
POINT = ["lr_schedule", "lr", "weight_decay", "boundary", "final_factor", "seed", "num_epochs", "updates_per_epoch"]


def plan_table(config=CONFIG, manifest=None):
    """Give plan.csv."""
    return make_plan(config, make_manifest() if manifest is None else manifest).to_table()


def list_points(table, search):
    """Give what the trials of a search try, in the order of their names."""
    return table[table["search"] == search].sort_values("trial")[POINT].to_numpy().tolist()


def test_every_bone_both_baselines_and_the_router_are_searched():
    assert set(plan_table()["search"]) == {
        "specialist:elbow/mlp_probe",
        "specialist:hand/mlp_probe",
        "baseline/linear_probe",
        "baseline/mlp_probe",
        "router/linear_probe",
    }


@pytest.mark.parametrize("num_trials", [1, 2, 3, 12])
def test_every_search_has_the_same_number_of_trials_under_names_of_their_own(num_trials):
    table = plan_table(RunConfig(num_trials=num_trials, num_folds=3))
    assert set(table["search"].value_counts()) == {num_trials}
    assert table["trial"].is_unique


@pytest.mark.parametrize("num_trials", [2, 3, 12])
@pytest.mark.parametrize("seed", [0, 5])
def test_the_papers_settings_come_first_in_every_search(num_trials, seed):
    table = plan_table(RunConfig(num_trials=num_trials, num_folds=3, seed=seed))
    for search in set(table["search"]):
        first, second, *_ = list_points(table, search)
        assert first[:3] == ["constant", 0.001, 0.0]  # 3.2
        assert second[:5] == ["step", 0.01, 0.0, 0.5, 0.1]  # 3.4a, then 3.4b


def test_all_targets_of_a_recipe_try_the_same_points():
    table = plan_table()
    baseline = list_points(table, "baseline/mlp_probe")
    assert list_points(table, "specialist:elbow/mlp_probe") == baseline
    assert list_points(table, "specialist:hand/mlp_probe") == baseline
    assert list_points(table, "router/linear_probe") == list_points(table, "baseline/linear_probe")


def test_points_are_drawn_within_their_ranges_over_all_schedules():
    table = plan_table(RunConfig(num_trials=26, num_folds=3))
    for recipe in ("linear_probe", "mlp_probe"):
        low, high = LR_RANGE[recipe]
        drawn = table[(table["search"] == f"baseline/{recipe}")].sort_values("trial").iloc[2:]
        assert set(drawn["lr_schedule"]) == set(LR_SCHEDULES)
        assert drawn["lr"].between(low, high).all()
        assert drawn["weight_decay"].between(*WEIGHT_DECAY_RANGE[recipe]).all()
        in_halves = np.histogram(np.log(drawn["lr"]), bins=2, range=np.log((low, high)))[0]
        assert in_halves.tolist() == [12, 12]  # spread over the range, not clustered


def test_a_fresh_seed_draws_other_points():
    assert list_points(plan_table(), "baseline/mlp_probe") != list_points(
        plan_table(RunConfig(num_trials=7, num_folds=3, seed=1)), "baseline/mlp_probe"
    )


def test_trials_that_take_longest_start_first():
    forecasts = plan_table()["forecast_s"]
    assert all(before >= after for before, after in pairwise(forecasts))
    assert forecasts.iloc[0] > forecasts.iloc[-1]


def test_the_plan_is_the_same_for_any_order_of_rows():
    shuffled = make_manifest().sample(frac=1, random_state=3)
    assert plan_table().equals(plan_table())
    assert plan_table(manifest=shuffled).equals(plan_table())


def test_the_test_split_changes_no_plan():
    manifest = make_manifest(num_test=3)
    manifest.loc[manifest["split"] == "test", "label"] = 0
    assert plan_table(manifest=manifest).equals(plan_table())


def test_a_bone_with_too_few_images_of_a_label_has_no_specialist_and_a_reason():
    plan = make_plan(CONFIG, make_manifest())
    told = "40 normal and 3 abnormal images in train: a specialist needs 20 of each"
    assert plan.untrainable == {"wrist": told}


@pytest.mark.parametrize(("num_abnormal", "is_trained"), [(19, False), (20, True)])
def test_twenty_images_of_each_label_are_enough(num_abnormal, is_trained):
    plan = make_plan(CONFIG, make_manifest({"elbow": (40, num_abnormal), "hand": (30, 30)}))
    assert ("specialist:elbow/mlp_probe" in plan.searches) is is_trained


def test_a_bone_of_one_label_has_no_specialist():
    plan = make_plan(CONFIG, make_manifest({"elbow": (40, 0), "hand": (30, 30)}))
    assert "40 normal and 0 abnormal" in plan.untrainable["elbow"]


def test_bones_asked_for_alone_get_specialists_and_the_rest_stays():
    config = RunConfig(num_trials=3, num_folds=3, bones=("hand",))
    plan, full = make_plan(config, make_manifest()), make_plan(RunConfig(num_trials=3, num_folds=3), make_manifest())
    assert set(full.searches) - set(plan.searches) == {"specialist:elbow/mlp_probe"}
    assert plan.untrainable == {"elbow": "not among --bones", "wrist": "not among --bones"}
    assert list_points(plan.to_table(), "baseline/mlp_probe") == list_points(full.to_table(), "baseline/mlp_probe")
    router = next(trial for trial in plan.trials if trial.target == "router")
    assert router.num_images == 157  # all bones


def test_a_bone_that_the_data_does_not_have_is_refused_with_those_it_has():
    with pytest.raises(ConfigError, match="bones=skull: not in the data, which has elbow, hand, wrist"):
        make_plan(RunConfig(num_folds=3, bones=("hand", "skull")), make_manifest())


def test_one_bone_alone_needs_no_router():
    plan = make_plan(CONFIG, make_manifest({"hand": (30, 30)}))
    assert set(plan.searches) == {"specialist:hand/mlp_probe", "baseline/mlp_probe", "baseline/linear_probe"}


def test_train_without_both_labels_is_refused():
    with pytest.raises(DataError, match="60 normal and 0 abnormal"):
        make_plan(CONFIG, make_manifest({"elbow": (30, 0), "hand": (30, 0)}))


def test_a_specialist_and_the_baseline_are_trained_by_the_same_number_of_updates():
    assert plan_table()["updates_per_epoch"].nunique() == 1


def test_a_planned_trial_has_the_runs_settings():
    config = RunConfig(num_trials=1, num_folds=3, activation="none", sampling=("balanced_bones",), metric="kappa")
    plan = make_plan(config, make_manifest())
    by_search = {trial.search: trial.settings(config) for trial in plan.trials}
    specialist, router = by_search["specialist:hand/mlp_probe"], by_search["router/linear_probe"]
    assert (specialist.activation, specialist.sampling, specialist.metric) == ("none", "balanced_bones", "kappa")
    assert (specialist.lr, specialist.lr_schedule.name, specialist.patience_epochs) == (0.001, "constant", 4)
    assert router.metric == "macro_f1"


def test_without_early_stopping_no_trial_has_patience():
    config = RunConfig(num_trials=1, num_folds=3, early_stopping=False)
    plan = make_plan(config, make_manifest())
    assert {trial.settings(config).patience_epochs for trial in plan.trials} == {None}


def test_a_bone_in_one_fold_has_no_specialist():
    """A head would have none of its rows to learn from."""
    manifest = make_manifest()
    manifest.loc[(manifest["bone"] == "hand") & (manifest["split"] == "train"), "fold"] = 0
    plan = make_plan(RunConfig(), manifest)
    assert "one fold" in plan.untrainable["hand"]
    assert not any(trial.target == "specialist:hand" for trial in plan.trials)
