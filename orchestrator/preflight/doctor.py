"""`mura doctor`: the checks before a run, without the run."""

from collections.abc import Iterator
from pathlib import Path

from mura_models.data.dataset import DataSet
from mura_models.errors import ConfigError, UserError, WeightsError
from orchestrator.cluster.connection import connect_ray, resolve_address
from orchestrator.preflight.disk import find_existing, forecast_disk, inspect_disk, ray_need
from orchestrator.preflight.findings import Finding
from orchestrator.preflight.run_checks import RAY, TOKEN, inspect_cluster, inspect_machine
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import choose_rundir
from orchestrator.run.execution import ExecutionOptions
from orchestrator.search.plan import make_plan


def examine(config: RunConfig, execution: ExecutionOptions, dataset: DataSet | None) -> Iterator[Finding]:
    """Run every check and yield findings as they come; without `dataset`, the run's own disk space is not checked."""
    findings = list(inspect_machine(config, execution))
    yield from findings
    failed = {finding.subject for finding in findings if finding.level == "error"}
    needs = [ray_need()] if RAY not in failed and resolve_address(execution) is None else []
    folder = execution.run_dir or Path("runs")
    if dataset is None:
        yield Finding.ok("disk:", "what a run needs is not forecast without --data")
    else:
        try:
            rundir = choose_rundir(config, execution, dataset)
            folder = rundir.root
            plan = make_plan(config, dataset.manifest)
            needs = [*forecast_disk(config, dataset.manifest, plan, rundir), *needs]
        except WeightsError:
            yield Finding.ok("disk:", "what a run needs is not forecast without its weights")
        except UserError as error:
            yield Finding.from_error("run:", error, remedy="correct the data or the options")
    yield from inspect_disk(needs)
    if failed & {TOKEN, RAY}:
        return  # Ray would not start, or wait for 20 seconds
    try:
        with connect_ray(execution):
            yield from inspect_cluster(execution, find_existing(folder))
    except ConfigError as error:
        yield Finding.from_error(RAY, error, remedy="check that it is up, and that --address is its head's HOST:PORT")
