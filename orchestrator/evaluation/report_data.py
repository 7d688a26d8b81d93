"""The end of a run: served models from dev, the bundle, then test, then report.json."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mura_models.inference.assembly import Assembly
from mura_models.inference.bundle import Bundle
from mura_models.inference.bundle_files import write_bundle
from mura_models.storage import atomic_directory
from orchestrator.evaluation.paper import compare_with_paper
from orchestrator.evaluation.selection import (
    Selected,
    assemble,
    choose_selected,
    describe_choice,
    describe_selected,
    find_best_baseline,
    find_best_router,
    rate_routers,
)
from orchestrator.evaluation.system_metrics import (
    compare_systems,
    list_pairs,
    name_systems,
    predict_test,
    score_router,
    score_systems,
)
from orchestrator.ingest.overview import describe_data
from orchestrator.run.files import read_json, write_json, write_table
from orchestrator.run.journal import Journal
from orchestrator.run.provenance import SCHEMA, find_version
from orchestrator.search.context import RunContext
from orchestrator.search.stages import SearchResults


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What dev decided."""

    selected: dict[str, Selected]
    """By bone."""
    assembly: Assembly


def conclude(work: RunContext, trained: SearchResults) -> None:
    """Write everything from trials.parquet to report.json."""
    rundir, winners = work.rundir, trained.winners
    journal = Journal(rundir.journal)
    write_table(rundir.trials, journal.to_table())
    decision = decide(work, trained)
    write_json(rundir.selected, describe_selected(decision.selected, winners, trained.failed))
    save_bundle(work, decision.assembly)
    predictions = open_test(work, decision.assembly)
    write_table(rundir.predictions, predictions)
    best_baseline = find_best_baseline(work.config, winners).trial.recipe
    pairs = list_pairs(name_systems(predictions), f"baseline_{best_baseline}")
    report = {
        "schema": SCHEMA,
        "run": read_json(rundir.run_json) | read_json(rundir.ingest) | describe_training(work, journal, trained),
        "data": describe_data(work.dataset, work.manifest, pd.read_csv(rundir.quarantine)),
        "router": describe_router(work, predictions, trained) if decision.assembly.router else None,
        "systems": score_systems(predictions),
        "selected": {
            bone: describe_choice(choice, winners[choice.model]) for bone, choice in decision.selected.items()
        },
        "comparisons": compare_systems(predictions, pairs),
        "paper": describe_paper(work, trained, predictions) if work.config.compare_with_paper else None,
    }
    write_json(rundir.report_json, report)


def decide(work: RunContext, trained: SearchResults) -> Decision:
    """Choose the router and what serves each bone on dev alone."""
    can_route = len(work.bones) == 1 or find_best_router(trained.winners) is not None
    selected = choose_selected(work.config, work.plan.untrainable, trained.winners, work.bones, can_route=can_route)
    models = {bone: choice.model for bone, choice in selected.items()}
    return Decision(selected=selected, assembly=assemble(trained.winners, models, work.bones))


def describe_paper(work: RunContext, trained: SearchResults, predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """Return report.json's `paper`: the paper's figures beside ours."""
    return compare_with_paper(
        predictions, bones_without_specialist=work.plan.untrainable, failed_searches=trained.failed
    )


def save_bundle(work: RunContext, assembly: Assembly) -> None:
    """Write the bundle, whole: the router, the models that serve a bone and the backbones they stand on."""
    with atomic_directory(work.rundir.bundle) as partial:
        write_bundle(
            Bundle(
                assembly=assembly.keep_selected(),
                backbones=work.backbones,
                preprocessing=work.config.preprocessing,
                choice=work.ingested.choice,
                notes={"data": work.dataset.name, "version": find_version()},
            ),
            partial,
        )


def open_test(work: RunContext, assembly: Assembly) -> pd.DataFrame:
    """Let every system answer for the test images: the one place where test rows are used."""
    test = work.manifest[work.manifest["split"] == "test"].reset_index(drop=True)
    features = {key: work.embed(key, test)[:, 0] for key in assembly.backbones}

    def find_features(backbone: str, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = features[backbone][rows]
        return found

    return predict_test(assembly, test, find_features, work.config.system_recipes)


def describe_router(work: RunContext, predictions: pd.DataFrame, trained: SearchResults) -> dict[str, object]:
    """Return report.json's `router`: its test figures, which recipe it is and how the candidates stood on dev."""
    router = find_best_router(trained.winners)
    assert router is not None
    candidates = {
        trained.winners[search].trial.recipe: score for search, score in rate_routers(trained.winners).items()
    }
    return score_router(predictions, work.bones) | {"recipe": router.trial.recipe, "candidates": candidates}


def describe_training(work: RunContext, journal: Journal, trained: SearchResults) -> dict[str, Any]:
    """Say what was searched: trials by search and state, epochs run, bones without a specialist and why."""
    plan, ends = work.plan, journal.final_states()
    searches = {}
    for search in plan.searches:
        trials = plan.of_search(search)
        mine = [ends[trial.trial] for trial in trials if trial.trial in ends]  # none where its stage never ran
        states = pd.Series([line["state"] for line in mine]).value_counts()
        searches[search] = {
            "trials": len(mine),
            "epochs": sum(line["epoch"] for line in mine),
            "max_epochs": trials[0].num_epochs,
            "steps_per_epoch": trials[0].steps_per_epoch,
            "states": {state: int(n) for state, n in states.items()},
        }
    return {
        "searches": searches,
        "failed_searches": trained.failed,
        "bones_without_specialist": plan.untrainable,
        "files_not_decoded": len(work.ingested.failures),
        "audit": {"asked": work.config.num_audited, "trials": trained.audit} if work.config.early_stopping else None,
        "replicates": trained.replicates,
    }
