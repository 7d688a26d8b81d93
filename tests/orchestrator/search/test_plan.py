"""The plan: the same chances for every target, the paper's settings among them, written before anything is trained."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from factories import make_manifest

from mura_models.data.folds import assign_folds
from mura_models.errors import ConfigError, DataError
from mura_models.training.finetune_settings import FinetuneSettings
from mura_models.training.lr_schedules import LR_SCHEDULES
from orchestrator.run.config import RECIPES, RunConfig
from orchestrator.run.names import BONE_TASK
from orchestrator.run.presets import paper
from orchestrator.search.plan import make_plan
from orchestrator.search.search_space import LR_RANGE, WEIGHT_DECAY_RANGE

CONFIG = RunConfig(num_trials=7, num_folds=3)
POINT = ["lr_schedule", "lr", "weight_decay", "lr_boundary", "lr_final_factor", "seed", "num_epochs", "steps_per_epoch"]


def plan_table(config=CONFIG, manifest=None):
    """Return plan.csv."""
    return make_plan(config, make_manifest() if manifest is None else manifest).to_table()


def list_points(table, search):
    """Return what the trials of a search try, in the order of their names."""
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


@pytest.mark.parametrize("num_trials", [1, 2, 3, 4, 5, 6, 7, 8, 12])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rates", [{}, {"first_lr": 0.001, "specialist_lr": 0.01}])
def test_every_search_tries_as_many_schedules_as_it_can(num_trials, seed, rates):
    config = RunConfig(recipes=("linear_probe", "mlp_probe", "intermediate_task", "finetune"), **rates)
    config = replace(config, num_folds=3, num_trials=num_trials, finetune_trials=num_trials, seed=seed)
    tried = plan_table(config).groupby("search")["lr_schedule"].nunique()
    assert set(tried) == {min(num_trials, len(LR_SCHEDULES))}


def test_the_schedules_that_few_trials_try_differ_by_seed_and_not_by_target():
    tables = [plan_table(replace(FINETUNE, finetune_trials=3, seed=seed)) for seed in range(10)]
    tried = set()
    for table in tables:
        by_search = [list_points(table, f"{t}/finetune") for t in ("baseline", "specialist:hand", "router")]
        assert by_search[0] == by_search[1] == by_search[2]
        tried.add(tuple(point[0] for point in by_search[0]))
    assert len(tried) > 5
    assert {name for names in tried for name in names} == set(LR_SCHEDULES)


def test_a_fresh_seed_draws_other_points():
    assert list_points(plan_table(), "baseline/mlp_probe") != list_points(
        plan_table(RunConfig(num_trials=7, num_folds=3, seed=1)), "baseline/mlp_probe"
    )


def test_trials_that_take_longest_start_first():
    forecasts = plan_table()["estimated_s"]
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
    message = "40 normal and 3 abnormal images in train: a specialist needs 20 of each"
    assert plan.untrainable == {"wrist": message}


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


def test_a_specialist_and_the_baseline_are_trained_by_the_same_number_of_steps():
    assert plan_table()["steps_per_epoch"].nunique() == 1


def test_a_planned_trial_has_the_runs_settings():
    config = RunConfig(num_trials=1, num_folds=3, activation="none", sampling=("balanced_bones",), metric="kappa")
    plan = make_plan(config, make_manifest())
    by_search = {trial.search: trial.settings for trial in plan.trials}
    specialist, router = by_search["specialist:hand/mlp_probe"], by_search["router/linear_probe"]
    assert (specialist.activation, specialist.sampling, specialist.metric) == ("none", "balanced_bones", "kappa")
    assert (specialist.lr, specialist.lr_schedule.name, specialist.patience_epochs) == (0.001, "constant", 4)
    assert router.metric == "macro_f1"


def test_without_early_stopping_no_trial_has_patience():
    config = RunConfig(num_trials=1, num_folds=3, early_stopping=False)
    plan = make_plan(config, make_manifest())
    assert {trial.settings.patience_epochs for trial in plan.trials} == {None}


def test_a_bone_in_one_fold_has_no_specialist():
    """A head would have none of its rows to learn from."""
    manifest = make_manifest()
    manifest.loc[(manifest["bone"] == "hand") & (manifest["split"] == "train"), "fold"] = 0
    plan = make_plan(RunConfig(num_folds=3), manifest)
    assert "one fold" in plan.untrainable["hand"]
    assert not any(trial.target == "specialist:hand" for trial in plan.trials)


@pytest.mark.parametrize("recipe", ["mlp_probe", "finetune"])
@pytest.mark.parametrize("given", ["nothing", "dev rows of one bone", "everything"])
def test_a_plan_before_the_folds_are_cut_is_the_plan_after(recipe, given):
    """As a dry run on a CSV with dev rows for one bone."""
    config = RunConfig(num_trials=2, num_folds=3, recipes=(recipe,))
    manifest = make_manifest()
    if given != "everything":
        is_kept = (given == "dev rows of one bone") & (manifest["bone"] == "hand") & (manifest["fold"] == 0)
        manifest["fold"] = manifest["fold"].where(is_kept, -1)
    cut = manifest.assign(fold=assign_folds(manifest, num_folds=3, seed=config.seed))
    before, after = make_plan(config, manifest), make_plan(config, cut)
    assert before == after
    if recipe == "mlp_probe":
        assert set(before.untrainable) == {"wrist"}


def plan_by_search(config, manifest=None):
    """Return a planned trial of each search, the first."""
    plan = make_plan(config, make_manifest() if manifest is None else manifest)
    return {search: plan.of_search(search)[0] for search in plan.searches}


PAPER = replace(paper(), num_folds=3)  # the small manifest has three


def test_the_papers_plan_has_all_of_its_systems_and_the_proposed_one():
    assert set(plan_by_search(PAPER)) == {
        "baseline/linear_probe",  # 3.1
        "baseline/mlp_probe",  # 3.2
        "router/finetune",  # 3.3: names the bone ...
        "baseline/intermediate_task",  # ... and then stands still
        "specialist:elbow/mlp_probe",  # 3.4a
        "specialist:hand/mlp_probe",
        "specialist:elbow/two_stage_probe",  # 3.4b
        "specialist:hand/two_stage_probe",
        "baseline/two_stage_probe",  # its fair partner
        "router/linear_probe",
    }


def test_the_papers_global_models_are_trained_in_passes_over_all_images():
    trials = plan_by_search(PAPER)
    passes = math.ceil(157 * 2 / 3 / 64)  # train images, a third held out, batches of 64
    for search in ("baseline/linear_probe", "baseline/mlp_probe", "baseline/intermediate_task", "router/finetune"):
        trial = trials[search]
        assert (trial.settings.num_epochs, trial.settings.steps_per_epoch, trial.settings.patience_epochs) == (
            10,
            max(4, passes),
            4,
        ), search
        assert (trial.settings.lr_schedule.name, trial.settings.lr, trial.settings.weight_decay) == (
            "constant",
            0.001,
            0.0,
        ), search
        assert trial.settings.sampling == "balanced_bones"


def test_the_papers_specialists_are_trained_in_steps_that_nothing_stops():
    trials = plan_by_search(PAPER)
    first, second = trials["specialist:hand/mlp_probe"], trials["specialist:hand/two_stage_probe"]
    assert first.settings.num_steps == 1000
    assert (first.settings.lr_schedule.name, first.settings.lr) == ("constant", 0.01)
    assert second.settings.num_steps == 2000
    assert [
        second.settings.lr_schedule.rate(second.settings.lr, step, 2000) for step in (0, 999, 1000, 1999)
    ] == pytest.approx([0.01, 0.01, 0.001, 0.001])
    assert first.settings.patience_epochs is second.settings.patience_epochs is None
    assert (first.settings.grace_epochs, second.settings.grace_epochs) == (
        first.settings.num_epochs,
        second.settings.num_epochs,
    )


def test_the_fair_partner_of_the_papers_specialists_has_their_schedule_and_as_many_steps():
    trials = plan_by_search(PAPER)
    points = [
        replace(trials[f"{target}/two_stage_probe"], id=None, num_images=0, estimated_s=0)
        for target in ("baseline", "specialist:hand", "specialist:elbow")
    ]
    assert points[0] == points[1] == points[2]


@pytest.mark.parametrize(
    ("recipe", "stage", "depends_on"),
    [
        ("linear_probe", 1, None),
        ("two_stage_probe", 1, None),
        ("finetune", 2, None),
        ("intermediate_task", 3, BONE_TASK),
    ],
)
def test_what_stands_on_the_bone_task_comes_after_it(recipe, stage, depends_on):
    config = RunConfig(num_trials=1, num_folds=3, recipes=(recipe,))
    trial = plan_by_search(config)[f"baseline/{recipe}"]
    assert (trial.stage, trial.depends_on) == (stage, depends_on)


def test_with_one_bone_there_is_no_bone_task():
    plan = make_plan(PAPER, make_manifest({"hand": (30, 30)}))
    assert not {search for search in plan.searches if "intermediate" in search or "router" in search}


FINETUNE = RunConfig(num_folds=3, recipes=("finetune",), finetune_trials=5, finetune_epochs=10)


def test_whole_networks_are_searched_alike_for_every_target():
    plan = make_plan(FINETUNE, make_manifest())
    table = plan.to_table()
    searches = ["specialist:elbow/finetune", "specialist:hand/finetune", "baseline/finetune", "router/finetune"]
    assert set(table["search"]) == {*searches, "router/linear_probe"}
    for search in searches:
        assert list_points(table, search) == list_points(table, "baseline/finetune")
        factors = table[table["search"] == search].sort_values("trial")["backbone_lr_factor"].tolist()
        assert factors == [1.0, 0.3, 0.1, 1.0, 0.3]
    drawn = table[table["search"] == "baseline/finetune"].sort_values("trial").iloc[1:]
    assert drawn["lr"].between(*LR_RANGE["finetune"]).all()


def test_a_backbones_rate_that_is_asked_for_is_that_of_every_trial():
    config = replace(FINETUNE, finetune=FinetuneSettings(backbone_lr_factor=0.5))
    trials = make_plan(config, make_manifest()).of_search("baseline/finetune")
    assert {trial.to_row()["backbone_lr_factor"] for trial in trials} == {0.5}
    assert {trial.settings.finetune.backbone_lr_factor for trial in trials} == {0.5}


@pytest.mark.parametrize(("num_steps", "num_epochs", "per_epoch"), [(480, 12, 40), (7, 3, 3), (2, 4, 1)])
def test_a_budget_in_steps_is_spread_over_the_epochs(num_steps, num_epochs, per_epoch):
    config = replace(FINETUNE, finetune_steps=num_steps, finetune_epochs=num_epochs, recipes=RECIPES)
    config = replace(config, num_steps=num_steps, num_epochs=num_epochs)
    trials = plan_by_search(config)
    for search in ("baseline/finetune", "specialist:hand/finetune", "baseline/mlp_probe", "specialist:hand/mlp_probe"):
        assert (trials[search].settings.num_epochs, trials[search].settings.steps_per_epoch) == (
            num_epochs,
            per_epoch,
        ), search


def test_no_trial_is_stopped_before_its_warm_up_is_over():
    config = replace(FINETUNE, finetune_trials=40, finetune_epochs=20, grace_fraction=0.1)
    plan = make_plan(config, make_manifest())
    schedules = {trial.name: trial.settings for trial in plan.of_search("baseline/finetune")}
    assert {trial.lr_schedule.name for trial in schedules.values()} == set(LR_SCHEDULES)
    for trial in schedules.values():
        num_steps = trial.num_epochs * trial.steps_per_epoch
        first_rung = trial.grace_epochs * trial.steps_per_epoch
        rates = [trial.lr_schedule.rate(trial.lr, step, num_steps) for step in range(num_steps)]
        if trial.lr_schedule.name in ("warmup_cosine", "one_cycle"):
            assert max(rates) == pytest.approx(max(rates[: first_rung + 1]), rel=0.02)
        else:
            assert trial.grace_epochs == 2


def test_no_trial_is_stopped_before_its_backbone_is_trained():
    config = replace(FINETUNE, finetune=FinetuneSettings(freeze_backbone_epochs=6))
    assert plan_by_search(config)["baseline/finetune"].settings.grace_epochs == 6
    assert plan_by_search(config)["router/linear_probe"].settings.grace_epochs == 7  # of 16


def test_several_policies_against_imbalance_are_tried_in_turn_by_every_search():
    policies = ("plain", "balanced_bones_labels", "weighted_labels")
    config = RunConfig(num_trials=7, num_folds=3, sampling=policies, recipes=("mlp_probe", "two_stage_probe"))
    table = make_plan(config, make_manifest()).to_table().sort_values("trial")
    for search in ("baseline/mlp_probe", "specialist:hand/mlp_probe"):
        tried = table[table["search"] == search]["sampling"].tolist()
        assert tried == [policies[number % 3] for number in range(7)]
    for search in ("baseline/two_stage_probe", "specialist:hand/two_stage_probe"):
        assert table[table["search"] == search]["sampling"].tolist() == list(policies)


def test_a_bone_that_fold_0_cannot_evaluate_has_no_specialist_if_fold_0_is_dev():
    manifest = make_manifest()
    of_hand = (manifest["bone"] == "hand") & (manifest["split"] == "train")
    manifest.loc[of_hand & (manifest["label"] == 1) & (manifest["fold"] == 0), "fold"] = 1
    assert "specialist:hand/mlp_probe" in make_plan(CONFIG, manifest).searches
    assert (
        "fold 0, on which specialists are evaluated, lacks a label" in make_plan(FINETUNE, manifest).untrainable["hand"]
    )
    manifest.loc[of_hand & (manifest["label"] == 1), "fold"] = 0
    assert "all but fold 0" in make_plan(FINETUNE, manifest).untrainable["hand"]


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize(("config", "evaluated"), [(FINETUNE, "finetune"), (PAPER, "linear_probe, mlp_probe")])
def test_a_baseline_that_fold_0_cannot_evaluate_is_refused_before_it_is_trained(config, evaluated, label):
    manifest = make_manifest()
    is_train = manifest["split"] == "train"
    manifest.loc[is_train & (manifest["label"] == label) & (manifest["fold"] == 0), "fold"] = 1
    message = (
        rf"^fold 0 has (\d+ normal and 0|0 normal and \d+) abnormal images: to evaluate {evaluated}.* on fold 0 only.*"
    )
    with pytest.raises(DataError, match=message + "change --folds or the dev rows"):
        make_plan(config, manifest)
    manifest.loc[is_train & (manifest["label"] == label), "fold"] = 0
    with pytest.raises(DataError, match="all but fold 0 has"):
        make_plan(config, manifest)
    assert "baseline/mlp_probe" in make_plan(CONFIG, manifest).searches  # every fold evaluates it


def test_policies_and_rates_of_the_backbone_are_tried_in_every_pair():
    config = replace(FINETUNE, finetune_trials=9, sampling=("plain", "balanced_bones", "weighted_labels"))
    trials = make_plan(config, make_manifest()).of_search("baseline/finetune")
    assert len({(trial.settings.sampling, trial.settings.finetune.backbone_lr_factor) for trial in trials}) == 9
