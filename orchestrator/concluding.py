"""The end of a run: winners and served models from dev, the bundle, then test, then report.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mura_models.assembly import Assembly
from mura_models.bundle import Bundle, write_bundle
from mura_models.data.manifest import DataSet
from mura_models.training import ProbeData
from orchestrator.aggregate import (
    ROUTER,
    Served,
    Winner,
    assemble,
    choose_serving,
    crown_winners,
    describe_choice,
    describe_served,
    find_best_baseline,
)
from orchestrator.config import RunConfig
from orchestrator.describing import describe_data, describe_training
from orchestrator.ingest import Ingested
from orchestrator.plan import Plan
from orchestrator.provenance import SCHEMA, find_version
from orchestrator.results import compare_systems, list_pairs, name_systems, predict_test, score_router, score_systems
from orchestrator.rundir import Journal, RunDir, read_json, whole_folder, write_json, write_table


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What dev decided."""

    winners: dict[str, Winner]
    failed: dict[str, str]
    """Search -> why it has no winner."""
    served: dict[str, Served]
    """By bone."""
    assembly: Assembly


def conclude(
    *,
    config: RunConfig,
    dataset: DataSet,
    plan: Plan,
    manifest: pd.DataFrame,
    ingested: Ingested,
    data: Mapping[str, ProbeData],
    rundir: RunDir,
) -> None:
    """Write everything from trials.parquet to report.json."""
    journal = Journal(rundir.journal)
    write_table(rundir.trials, journal.to_table())
    bones = sorted(set(manifest.loc[manifest["split"] == "train", "bone"]))
    outcome = decide(config, plan, journal, data, bones=bones, rundir=rundir)
    write_json(rundir.served, describe_served(outcome.served, outcome.winners, outcome.failed))
    save_bundle(config, dataset, ingested, outcome, rundir)
    remove_losers(rundir, {winner.trial.trial for winner in outcome.winners.values()})
    predictions = open_test(config, manifest, ingested, outcome.assembly)
    write_table(rundir.predictions, predictions)
    best_baseline = find_best_baseline(outcome.winners).trial.recipe
    pairs = list_pairs(name_systems(predictions), f"baseline_{best_baseline}")
    report = {
        "schema": SCHEMA,
        "run": read_json(rundir.run_json)
        | read_json(rundir.ingest)
        | describe_training(plan, journal, ingested, outcome.failed)
        | {"audit": {"asked": 0, "trials": []} if config.early_stopping else None, "refits": {}},
        "data": describe_data(dataset, manifest, pd.read_csv(rundir.quarantine)),
        "router": describe_router(outcome, predictions, bones),
        "systems": score_systems(predictions),
        "served": {
            bone: describe_choice(choice, outcome.winners[choice.model]) for bone, choice in outcome.served.items()
        },
        "comparisons": compare_systems(predictions, pairs),
        "paper": None,
    }
    write_json(rundir.report_json, report)


def decide(
    config: RunConfig,
    plan: Plan,
    journal: Journal,
    data: Mapping[str, ProbeData],
    *,
    bones: Sequence[str],
    rundir: RunDir,
) -> Outcome:
    """Choose winners and served models on dev alone."""
    winners, failed = crown_winners(
        config, plan, journal.lines, data, lambda trial: rundir.checkpoint(trial).read_bytes()
    )
    can_route = len(bones) == 1 or ROUTER in winners
    served = choose_serving(config, plan, winners, data, bones, can_route=can_route)
    serving = {bone: choice.model for bone, choice in served.items()}
    return Outcome(winners=winners, failed=failed, served=served, assembly=assemble(winners, serving, bones))


def describe_router(outcome: Outcome, predictions: pd.DataFrame, bones: Sequence[str]) -> dict[str, Any] | None:
    """Give report.json's `router`: its test figures, its recipe and the dev macro F1 of those it was chosen among."""
    if outcome.assembly.router is None:
        return None
    winner = outcome.winners[ROUTER]
    chosen = {"recipe": winner.trial.recipe, "candidates": {winner.trial.recipe: winner.score}}
    return score_router(predictions, bones) | chosen


def save_bundle(config: RunConfig, dataset: DataSet, ingested: Ingested, outcome: Outcome, rundir: RunDir) -> None:
    """Write the bundle, whole: the router and the models that serve a bone."""
    with whole_folder(rundir.bundle) as aside:
        write_bundle(
            Bundle(
                assembly=outcome.assembly.keep_served(),
                backbone=ingested.backbone,
                preprocessing=config.preprocessing,
                choice=ingested.choice,
                notes={"data": dataset.name, "version": find_version()},
            ),
            aside,
        )


def open_test(config: RunConfig, manifest: pd.DataFrame, ingested: Ingested, assembly: Assembly) -> pd.DataFrame:
    """Let every system answer for the test images: the one place where test rows are used."""
    test = manifest[manifest["split"] == "test"].reset_index(drop=True)
    features_ND = ingested.embeddings.rows[ingested.embeddings.find(test["digest"]), 0]
    return predict_test(assembly, test, features_ND, config.recipes)


def remove_losers(rundir: RunDir, winners: set[str]) -> None:
    """Delete the checkpoints that no winner needs."""
    kept = {rundir.checkpoint(trial) for trial in winners}
    for path in rundir.checkpoints.iterdir():
        if path not in kept:
            path.unlink()
