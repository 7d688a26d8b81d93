"""A run, step by step; a step whose output is there is not run again."""

import shutil

from mura_models.data.cache_folders import cache_root
from mura_models.data.dataset import DataSet
from mura_models.errors import ConfigError, RunError
from orchestrator.cluster.connection import connect_ray
from orchestrator.cluster.resources import choose_trial_resources
from orchestrator.evaluation.report_data import evaluate
from orchestrator.ingest.decode import ingest
from orchestrator.ingest.manifest import finish_manifest
from orchestrator.ingest.overview import explore_data
from orchestrator.ingest.record import read_runtime, record_ingest
from orchestrator.preflight.disk import forecast_disk
from orchestrator.preflight.findings import format_bytes
from orchestrator.preflight.run_checks import check_cluster, check_machine
from orchestrator.progress import Monitor
from orchestrator.report import render_report
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir, choose_rundir
from orchestrator.run.execution import ExecutionOptions
from orchestrator.run.files import read_json, write_table
from orchestrator.run.provenance import check_finished, open_run
from orchestrator.search.checkpoint_store import start_checkpoint_store
from orchestrator.search.context import RunContext
from orchestrator.search.plan import Plan, make_plan
from orchestrator.search.stages import train_stages


def run(config: RunConfig, execution: ExecutionOptions, dataset: DataSet, monitor: Monitor) -> RunDir:
    """Do whatever of the run is not done yet and return its directory.

    Raises UserError for what the user can mend, RunError for a part that failed.
    """
    plan = make_plan(config, dataset.manifest)  # what cannot be planned is said before anything is decoded
    rundir = choose_rundir(config, execution, dataset)
    with rundir.lock():
        open_run(rundir, config, dataset)
        rundir.remove_unfinished()
        monitor.say(f"run directory: {rundir.root}")
        if rundir.report_json.exists():
            monitor.say("this run is finished: nothing is trained (--fresh starts anew beside it)")
            check_finished(rundir)
        else:
            check_machine(config, execution, dataset.manifest, plan, rundir=rundir, progress=monitor)
            with connect_ray(execution):
                check_cluster(execution, rundir.root, monitor)
                work = prepare(config, execution, dataset, rundir, monitor)
                evaluate(work, train_stages(work, start_checkpoint_store(rundir)))
        shutil.rmtree(rundir.embeddings, ignore_errors=True)
        render_report(rundir)
    return rundir


def prepare(
    config: RunConfig, execution: ExecutionOptions, dataset: DataSet, rundir: RunDir, monitor: Monitor
) -> RunContext:
    """Decode, embed, cut folds, describe the data and plan: all that comes before training."""
    share = choose_trial_resources(execution)
    ingested = ingest(
        config,
        dataset.manifest,
        cache=cache_root(),
        has_gpus=share.num_gpus > 0,
        begun_with=read_runtime(rundir),
        on_progress=monitor.on_progress,
    )
    record_ingest(ingested, rundir)
    manifest = finish_manifest(config, dataset, ingested, rundir)
    explore_data(config, dataset, manifest, ingested.images, rundir)
    monitor.say(f"data: {rundir.data_html.resolve()}")
    plan = make_plan(config, manifest)
    settle_plan(plan, rundir)
    say_plan(plan, monitor)
    return RunContext(
        config=config,
        dataset=dataset,
        manifest=manifest,
        plan=plan,
        ingested=ingested,
        rundir=rundir,
        share=share,
        monitor=monitor,
    )


def check_searches(rundir: RunDir) -> None:
    """Raise RunError where a search of a finished run failed."""
    failed = read_json(rundir.report_json)["run"]["failed_searches"]
    if failed:
        raise RunError("; ".join(failed.values()) + f"; the rest is in {rundir.report_html}")


def settle_plan(plan: Plan, rundir: RunDir) -> None:
    """Write plan.csv, or check that the one there is this plan.

    Raises ConfigError where another version of this program planned otherwise: its trials cannot be continued.
    """
    table = plan.to_table()
    if not rundir.plan.exists():
        write_table(rundir.plan, table)
    elif rundir.plan.read_text(encoding="utf-8") != table.to_csv(index=False):
        raise ConfigError(f"{rundir.plan}: planned by another version of this program; --fresh starts anew beside it")


def say_plan(plan: Plan, monitor: Monitor) -> None:
    """Say how much there is to train, and which bones get no specialist."""
    for bone, reason in plan.untrainable.items():
        monitor.say(f"no specialist for {bone}: {reason}")
    monitor.say(f"{len(plan.trials)} trials in {len(plan.searches)} searches")


def forecast(config: RunConfig, dataset: DataSet, monitor: Monitor) -> None:
    """Plan on the scan alone and say what the run would cost; decodes and trains nothing."""
    plan = make_plan(config, dataset.manifest)
    table = plan.to_table()
    say_plan(plan, monitor)
    columns = ["search", "lr_schedule", "lr", "backbone_lr_factor", "weight_decay", "sampling", "num_epochs"]
    monitor.say(table[[*columns, "steps_per_epoch", "forecast_s"]].to_string(index=False))
    num_images = dataset.manifest["digest"].nunique()
    monitor.say(f"at full length {table['forecast_s'].sum():.0f} s of one CPU core")
    if config.replicate_seeds:
        replicates_s = config.replicate_seeds * table.groupby("search")["forecast_s"].max().sum()
        monitor.say(f"and {config.replicate_seeds} replicates of each winner {replicates_s:.0f} s")
    monitor.say(f"{num_images} images to decode and embed, unless cached")
    needs = forecast_disk(config, dataset.manifest, plan)
    monitor.say("disk: up to " + ", ".join(f"{format_bytes(need.num_bytes)} for {need.purpose}" for need in needs))
