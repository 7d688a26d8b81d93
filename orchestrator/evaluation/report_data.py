"""The end of a run: models selected on dev, the bundle, then the test set, then report.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import pandas as pd

import mura_models
from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.inference.assembly import Assembly
from mura_models.inference.bundle import Bundle
from mura_models.inference.bundle_files import write_bundle
from mura_models.networks.runtimes import RuntimeChoice
from mura_models.storage import atomic_directory
from orchestrator.evaluation.paper import Absences, compare_with_paper
from orchestrator.evaluation.selection import (
    assemble,
    list_selected_models,
    score_routers,
    select_best_baseline,
    select_best_router,
    select_models,
    winners_to_json,
)
from orchestrator.evaluation.system_metrics import (
    compare_systems,
    compute_roc,
    list_pairs,
    predict_test,
    read_systems,
    score_router,
    score_systems,
)
from orchestrator.ingest.decode import Ingested
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.run.files import read_json, write_json, write_table
from orchestrator.run.journal import JournalLine, last_lines, read_journal, to_table
from orchestrator.run.names import SELECTED_ROUTED, SystemId, specialist_target
from orchestrator.run.report_schema import (
    Audit,
    AuditedTrial,
    DataSummary,
    Replicates,
    ReportData,
    RouterSummary,
    RunSummary,
    SearchSummary,
    SelectedModel,
)
from orchestrator.search.context import EmbeddingStore, TrainData
from orchestrator.search.plan import Plan
from orchestrator.search.stages import SearchResults
from orchestrator.search.winners import Winner


def evaluate(
    config: RunConfig,
    plan: Plan,
    results: SearchResults,
    embeddings: EmbeddingStore,
    *,
    manifest: pd.DataFrame,
    data: DataSummary,
    ingested: Ingested,
    rundir: RunDir,
) -> None:
    """Write everything from trials.parquet to report.json."""
    bones = TrainData.of(manifest).bones
    lines = read_journal(rundir.journal)
    write_table(rundir.trials, to_table(lines))
    assembly, selected = select_on_dev(config, plan, results, bones)
    write_selected(rundir, selected, results)
    export_bundle(rundir, assembly, embeddings, config.preprocessing, ingested.choice, data_name=data.name)
    test = manifest[manifest["split"] == "test"].reset_index(drop=True)
    features = {key: embeddings.embed(key, test)[:, 0] for key in assembly.backbones}
    # The one place where test rows are used.
    predictions = predict_test(assembly, test, lambda key, rows: features[key][rows], config.system_recipes)
    write_table(rundir.predictions, predictions)
    best_baseline = SystemId("baseline", select_best_baseline(config, results.winners).trial.recipe)
    systems = read_systems(predictions)
    absences = Absences(plan.untrainable, results.failed)
    without = {system: list_bones_without(system, predictions, plan, results) for system in systems}
    report = ReportData(
        run=summarize_run(rundir, config, plan, lines, results, num_not_decoded=len(ingested.failures)),
        data=data,
        router=summarize_router(predictions, bones, results.winners) if assembly.router else None,
        systems=score_systems(predictions, without),
        selected=selected,
        best_baseline=str(best_baseline),
        comparisons=compare_systems(
            predictions,
            list_pairs(systems, best_baseline),
            bones_without_specialist=without,
            unfair=[system for system in systems if not is_fair(config, system)],
        ),
        roc=compute_roc(predictions, (best_baseline, SELECTED_ROUTED)),
        paper=compare_with_paper(predictions, absences) if config.compare_with_paper else None,
    )
    write_json(rundir.report_json, report.to_json())


def select_on_dev(
    config: RunConfig, plan: Plan, results: SearchResults, bones: Sequence[str]
) -> tuple[Assembly, dict[str, SelectedModel]]:
    """Select the router and the model of each bone, by dev rows alone."""
    can_route = len(bones) == 1 or select_best_router(results.winners) is not None
    choices = select_models(config, plan.untrainable, results.winners, bones, can_route=can_route)
    assembly = assemble(results.winners, {bone: choice.model for bone, choice in choices.items()}, bones)
    return assembly, list_selected_models(choices, results.winners)


def write_selected(rundir: RunDir, selected: Mapping[str, SelectedModel], results: SearchResults) -> None:
    """Write selected.json: the model of each bone, every search's winner, and the searches that failed."""
    content = {
        "selected": {bone: asdict(model) for bone, model in selected.items()},
        "winners": winners_to_json(results.winners),
        "failed": results.failed,
    }
    write_json(rundir.selected, content)


def export_bundle(
    rundir: RunDir,
    assembly: Assembly,
    embeddings: EmbeddingStore,
    preprocessing: Preprocessing,
    choice: RuntimeChoice,
    *,
    data_name: str,
) -> None:
    """Write the bundle of the selected models and their backbones, atomically."""
    bundle = Bundle(
        assembly=assembly.keep_selected(),
        backbones=embeddings.backbones,
        preprocessing=preprocessing,
        choice=choice,
        notes={"data": data_name, "version": mura_models.__version__},
    )
    with atomic_directory(rundir.bundle) as partial:
        write_bundle(bundle, partial)


def is_fair(config: RunConfig, system: SystemId) -> bool:
    """Return whether a system's models were trained as its reference's were (orchestrator/search/plan.py).

    The paper gave its specialists another learning rate, and those of 3.4a a fixed number of steps.
    """
    is_equal = config.specialist_lr is None and config.specialist_probe_steps is None
    return is_equal or system.kind != "specialists" or system.recipe == "two_stage_probe"


def list_bones_without(system: SystemId, predictions: pd.DataFrame, plan: Plan, results: SearchResults) -> list[str]:
    """List the test bones without a specialist in a system: not asked for, not trainable, or the search failed."""
    if system.kind != "specialists":
        return []
    return [
        bone
        for bone in sorted(set(predictions["bone"]))
        if bone in plan.untrainable or f"{specialist_target(bone)}/{system.recipe}" in results.failed
    ]


def summarize_router(predictions: pd.DataFrame, bones: Sequence[str], winners: Mapping[str, Winner]) -> RouterSummary:
    """Return report.json's `router`: its recipe, its test figures and the candidates' dev scores."""
    router = select_best_router(winners)
    assert router is not None
    figures = score_router(predictions, bones)
    return RouterSummary(
        classes=bones,
        image=figures["image"],
        study=figures["study"],
        recipe=router.trial.recipe,
        candidates={winners[search].trial.recipe: score for search, score in score_routers(winners).items()},
    )


def summarize_run(
    rundir: RunDir,
    config: RunConfig,
    plan: Plan,
    lines: Sequence[JournalLine],
    results: SearchResults,
    *,
    num_not_decoded: int,
) -> RunSummary:
    """Return report.json's `run`."""
    origin, ingest = read_json(rundir.run_json), read_json(rundir.ingest)
    audited = [AuditedTrial(**trial) for trial in results.audit]
    return RunSummary(
        **{name: origin[name] for name in ("config", "data_fingerprint", "versions", "git_commit")},
        **{name: ingest[name] for name in ("images_decoded", "images_embedded", "backbone", "weights", "runtime")},
        searches=summarize_searches(plan, lines),
        failed_searches=results.failed,
        bones_without_specialist=plan.untrainable,
        files_not_decoded=num_not_decoded,
        audit=Audit(asked=config.num_audited, trials=audited) if config.early_stopping else None,
        replicates={search: Replicates(**replicates) for search, replicates in results.replicates.items()},
    )


def summarize_searches(plan: Plan, lines: Sequence[JournalLine]) -> dict[str, SearchSummary]:
    """Return trials by search and final state, and the epochs that they ran."""
    ends = last_lines(lines)
    searches = {}
    for search in plan.searches:
        trials = plan.of_search(search)
        mine = [ends[trial.name] for trial in trials if trial.name in ends]  # none if its stage never ran
        states = pd.Series([line.state for line in mine]).value_counts()
        searches[search] = SearchSummary(
            trials=len(mine),
            epochs=sum(line.epoch for line in mine),
            max_epochs=trials[0].settings.num_epochs,
            steps_per_epoch=trials[0].settings.steps_per_epoch,
            states={str(state): int(n) for state, n in states.items()},
        )
    return searches
