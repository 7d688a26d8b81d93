"""A run, step by step; a step whose output exists is not run again."""

import shutil

from mura_models.data.cache import cache_root
from mura_models.data.dataset import DataSet
from mura_models.errors import ConfigError, RunError
from orchestrator.cluster.connection import connect_ray
from orchestrator.cluster.resources import choose_trial_resources
from orchestrator.evaluation.report_data import evaluate
from orchestrator.ingest.decode import ingest
from orchestrator.ingest.manifest import finish_manifest
from orchestrator.ingest.overview import explore_data, summarize_data
from orchestrator.ingest.record import read_runtime, record_ingest
from orchestrator.preflight.disk import forecast_disk
from orchestrator.preflight.findings import format_bytes
from orchestrator.preflight.run_checks import check_cluster, check_machine
from orchestrator.progress import Progress
from orchestrator.report import render_data_page, render_report
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir, choose_rundir
from orchestrator.run.execution import ExecutionOptions
from orchestrator.run.files import read_json, write_table
from orchestrator.run.provenance import check_finished, open_run
from orchestrator.search.context import EmbeddingStore, TrainData
from orchestrator.search.plan import Plan, make_plan
from orchestrator.search.stages import train_stages


def run(config: RunConfig, execution: ExecutionOptions, dataset: DataSet, progress: Progress) -> RunDir:
    """Run the steps that are not done yet and return the run directory.

    Raises UserError for a mistake of the user, RunError for a part that failed.
    """
    plan = make_plan(config, dataset.manifest)  # raises before anything is decoded
    rundir = choose_rundir(config, execution, dataset)
    with rundir.lock():
        open_run(rundir, config, dataset)
        rundir.remove_unfinished()
        progress.log(f"run directory: {rundir.root}")
        if rundir.report_json.exists():
            progress.log("this run is finished: nothing is trained (start a new run with --fresh)")
            check_finished(rundir)
        else:
            check_machine(config, execution, dataset.manifest, plan, rundir=rundir, progress=progress)
            with connect_ray(execution):
                check_cluster(execution, rundir.root, progress)
                train_and_evaluate(config, execution, dataset, plan, rundir=rundir, progress=progress)
        shutil.rmtree(rundir.embeddings, ignore_errors=True)
        render_report(rundir)
    return rundir


def train_and_evaluate(
    config: RunConfig,
    execution: ExecutionOptions,
    dataset: DataSet,
    plan: Plan,
    *,
    rundir: RunDir,
    progress: Progress,
) -> None:
    """Decode and embed, plan, train, evaluate. `plan`: the one over all images of the scan."""
    resources = choose_trial_resources(execution)
    ingested = ingest(
        config,
        dataset.manifest,
        cache=cache_root(),
        has_gpus=resources.num_gpus > 0,
        begun_with=read_runtime(rundir),
        on_progress=progress.on_progress,
    )
    record_ingest(ingested, rundir)
    manifest, quarantine = finish_manifest(config, dataset, ingested.failures, rundir)
    data = summarize_data(dataset, manifest, quarantine)
    explore_data(config, data, manifest, ingested.images, rundir)
    render_data_page(rundir)
    progress.log(f"data: {rundir.data_html.resolve()}")
    if len(manifest) < len(dataset.manifest):
        plan = make_plan(config, manifest)
    settle_plan(plan, rundir)
    log_plan(plan, progress)
    embeddings = EmbeddingStore(
        ingested, config.preprocessing, cache=rundir.embeddings, on_progress=progress.on_progress
    )
    train = TrainData.of(manifest)
    results = train_stages(config, plan, train, embeddings, rundir=rundir, resources=resources, progress=progress)
    evaluate(config, plan, results, embeddings, manifest=manifest, data=data, ingested=ingested, rundir=rundir)


def check_searches(rundir: RunDir) -> None:
    """Raise RunError if a search of a finished run failed."""
    failed = read_json(rundir.report_json)["run"]["failed_searches"]
    if failed:
        raise RunError("; ".join(failed.values()) + f"; the rest is in {rundir.report_html}")


def settle_plan(plan: Plan, rundir: RunDir) -> None:
    """Write plan.csv, or check that the existing one is this plan.

    Raises ConfigError if another version of this program made another plan: its trials cannot be continued.
    """
    table = plan.to_table()
    if not rundir.plan.exists():
        write_table(rundir.plan, table)
    elif rundir.plan.read_text(encoding="utf-8") != table.to_csv(index=False):
        raise ConfigError(f"{rundir.plan}: planned by another version of this program; start a new run with --fresh")


def log_plan(plan: Plan, progress: Progress) -> None:
    """Log how much there is to train, and which bones get no specialist."""
    for bone, reason in plan.untrainable.items():
        progress.log(f"no specialist for {bone}: {reason}")
    progress.log(f"{len(plan.trials)} trials in {len(plan.searches)} searches")


def forecast(config: RunConfig, dataset: DataSet, progress: Progress) -> None:
    """Plan on the scan alone and log what the run would cost; decode and train nothing."""
    plan = make_plan(config, dataset.manifest)
    table = plan.to_table()
    log_plan(plan, progress)
    columns = ["search", "lr_schedule", "lr", "backbone_lr_factor", "weight_decay", "sampling", "num_epochs"]
    progress.log(table[[*columns, "steps_per_epoch", "estimated_s"]].to_string(index=False))
    num_images = dataset.manifest["digest"].nunique()
    progress.log(f"at full length {table['estimated_s'].sum():.0f} s of one CPU core")
    if config.replicate_seeds:
        replicates_s = config.replicate_seeds * table.groupby("search")["estimated_s"].max().sum()
        progress.log(f"and {config.replicate_seeds} replicates of each winner {replicates_s:.0f} s")
    progress.log(f"{num_images} images to decode and embed, unless cached")
    needs = forecast_disk(config, dataset.manifest, plan)
    progress.log("disk: up to " + ", ".join(f"{format_bytes(need.num_bytes)} for {need.purpose}" for need in needs))
