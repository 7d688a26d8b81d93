"""A look at machine and cluster before a run: what would keep it from its end is said at its start."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd

from mura_models.errors import ConfigError, WeightsError
from mura_models.networks.backbones import check_backbone, find_download, load_backbone
from orchestrator.cluster.connection import get_dashboard_url, list_metrics_endpoints, resolve_address
from orchestrator.cluster.resources import share_cluster
from orchestrator.preflight.disk_usage import examine_disk
from orchestrator.preflight.findings import Finding, from_error, ok, problem, raise_first_problem, warning
from orchestrator.preflight.node_checks import check_dashboard_port, check_node, check_requirements
from orchestrator.preflight.node_facts import (
    ask_nodes,
    find_install,
    find_port_holder,
    list_installed,
    list_requirements,
    try_download,
)
from orchestrator.preflight.ray_token import find_token_facts, judge_tokens
from orchestrator.progress import Monitor
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.run.execution import ExecutionOptions
from orchestrator.search.plan import Plan

RAY = "Ray:"
"""What findings about Ray's address are about."""


def check_machine(
    config: RunConfig,
    execution: ExecutionOptions,
    manifest: pd.DataFrame,
    plan: Plan,
    *,
    rundir: RunDir,
    progress: Monitor,
) -> None:
    """Check this machine before Ray is started or joined. Log warnings; raise ConfigError for the first error."""
    is_local = resolve_address(execution) is None
    _settle(examine_machine(config, execution), progress)
    _settle(examine_disk(config, manifest, plan, rundir, starts_ray=is_local), progress)


def check_cluster(execution: ExecutionOptions, folder: Path, progress: Monitor) -> None:
    """Check the cluster that was joined: whether a trial fits, and each node's way to `folder`, the run directory.

    Log its addresses and warnings; raise ConfigError for the first error.
    """
    progress.say(f"dashboard: {get_dashboard_url()} (print its token: ray get-auth-token)")
    progress.say(f"metrics: {' '.join(list_metrics_endpoints())}")
    _settle(examine_cluster(execution, folder), progress)


def _settle(findings: Iterable[Finding], monitor: Monitor) -> None:
    findings = list(findings)
    for finding in findings:
        if finding.level == "warning":
            monitor.say(f"warning: {finding}")
    raise_first_problem(findings)


def examine_machine(config: RunConfig, execution: ExecutionOptions) -> Iterator[Finding]:
    """Look at this machine before Ray is started or joined: packages, token, dashboard, weights."""
    here, installed = find_install(), list_installed()
    yield ok("python", here.python)
    clashes = check_requirements(list_requirements(), installed)
    built_for = f"built for CUDA {here.torch_cuda}" if here.torch_cuda else "built for CPUs"
    versions = ", ".join(f"{package} {version}" for package, version in here.versions.items())
    yield from clashes or [ok("packages", f"{versions} go together; torch is {built_for}")]
    try:
        address = resolve_address(execution)
    except ConfigError as error:
        yield from_error(RAY, error, remedy="correct or unset it")
    else:
        yield from judge_tokens(find_token_facts(execution))
        if address is None:
            yield check_dashboard_port(find_port_holder())
    yield examine_weights(config)


def examine_weights(config: RunConfig) -> Finding:
    """Load the backbone's weights, or ask whether they can be fetched; nothing is."""
    spec = config.backbone
    what = f"weights {spec.weights} of {spec.name}:"
    try:
        check_backbone(spec, config.preprocessing.image_size_px)
        url = find_download(spec)
        if url is None:
            return ok(what, load_backbone(spec).weights_source)
    except WeightsError as error:
        return from_error("weights", error, remedy="give another --weights")
    except ConfigError as error:
        return from_error("backbone", error, remedy="give another --backbone")
    host = urlsplit(url).hostname
    remedy = "fetch them on a machine that can and give --weights FILE, or give --weights random"
    is_there, reason = try_download(url)
    if is_there:
        return ok(what, f"will be fetched from {host}")
    if is_there is None:
        return warning(what, f"not here yet, and {host} does not say that it has them ({reason})", remedy)
    return problem(what, f"not here yet, and {host} does not give them ({reason})", remedy)


def examine_cluster(execution: ExecutionOptions, folder: Path) -> Iterator[Finding]:
    """Look at the cluster that was joined: its nodes, their way to this folder, and whether a trial fits."""
    here = find_install()
    try:
        share = share_cluster(execution)
    except ConfigError as error:
        yield problem("trial:", str(error), "give --cpus-per-trial and --gpus-per-trial that one of them has")
        return
    yield ok("trial:", f"a node has the CPUs ({share.num_cpus:g}) and GPUs ({share.num_gpus:g}) that one asks for")
    for node in ask_nodes(folder.resolve()):
        yield from check_node(node, here, uses_gpus=share.num_gpus > 0)
