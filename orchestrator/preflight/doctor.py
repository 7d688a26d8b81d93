"""`mura doctor`: what a run would find, told without one."""

from collections.abc import Iterator
from pathlib import Path

from mura_models.data.dataset import DataSet
from mura_models.errors import ConfigError, UserError, WeightsError
from orchestrator.cluster.connection import connect_ray, resolve_address
from orchestrator.preflight.disk_forecast import find_existing
from orchestrator.preflight.disk_usage import examine_disk, need_of_ray, weigh
from orchestrator.preflight.findings import Finding, from_error, ok
from orchestrator.preflight.ray_token import TOKEN
from orchestrator.preflight.run_checks import RAY, examine_cluster, examine_machine
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import choose_rundir
from orchestrator.run.execution import ExecutionOptions
from orchestrator.search.plan import make_plan


def examine(config: RunConfig, execution: ExecutionOptions, dataset: DataSet | None) -> Iterator[Finding]:
    """Look at everything, a run's data and disk too where it is known; give findings as they come."""
    findings = list(examine_machine(config, execution))
    yield from findings
    troubled = {finding.what for finding in findings if finding.level == "problem"}
    is_local = RAY not in troubled and resolve_address(execution) is None
    folder = execution.run_dir or Path("runs")
    if dataset is None:
        yield ok("disk:", "what a run needs is not forecast without --data")
        yield from weigh([need_of_ray()] if is_local else [])
    else:
        try:
            rundir = choose_rundir(config, execution, dataset)
            plan = make_plan(config, dataset.manifest)
            folder = rundir.root
            yield from examine_disk(config, dataset.manifest, plan, rundir, starts_ray=is_local)
        except WeightsError:
            yield ok("disk:", "what a run needs is not forecast without its weights")
        except UserError as error:
            yield from_error("run:", error, remedy="mend it in the data or the options")
    if troubled & {TOKEN, RAY}:
        return  # Ray would wait for 20 seconds, to say less
    try:
        with connect_ray(execution):
            yield from examine_cluster(execution, find_existing(folder))
    except ConfigError as error:
        yield from_error(RAY, error, remedy="see that it runs, and that --address is its head's HOST:PORT")
