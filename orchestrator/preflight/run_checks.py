"""The checks before a run: what would make it fail hours later is reported at its start."""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd

from mura_models.errors import ConfigError, WeightsError
from mura_models.networks.backbones import check_backbone, find_download, load_backbone
from orchestrator.cluster.auth_token import (
    AUTH_MODE,
    find_token,
    is_readable_by_others,
    is_token_used,
    makes_token_private,
)
from orchestrator.cluster.connection import list_metrics_endpoints, resolve_address
from orchestrator.cluster.ray_private import get_dashboard_url
from orchestrator.cluster.resources import choose_trial_resources
from orchestrator.preflight.disk import forecast_disk, inspect_disk, ray_need
from orchestrator.preflight.findings import Finding, report_findings
from orchestrator.preflight.nodes import PROJECT, ask_nodes, gather_install, inspect_node
from orchestrator.progress import Progress
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.run.execution import ExecutionOptions
from orchestrator.search.plan import Plan

RAY, TOKEN = "Ray:", "token:"
"""Subjects of findings about Ray's address and Ray's token."""


def check_machine(
    config: RunConfig,
    execution: ExecutionOptions,
    manifest: pd.DataFrame,
    plan: Plan,
    *,
    rundir: RunDir,
    progress: Progress,
) -> None:
    """Check this machine before Ray is started or joined. Log warnings; raise ConfigError for the first error."""
    starts_ray = resolve_address(execution) is None
    report_findings(inspect_machine(config, execution), progress)
    needs = forecast_disk(config, manifest, plan, rundir)
    report_findings(inspect_disk([*needs, ray_need()] if starts_ray else needs), progress)


def check_cluster(execution: ExecutionOptions, folder: Path, progress: Progress) -> None:
    """Check the cluster that was joined: whether a trial fits, and each node's way to `folder`, the run directory.

    Log its addresses and warnings; raise ConfigError for the first error.
    """
    progress.log(f"dashboard: {get_dashboard_url()} (print its token: ray get-auth-token)")
    progress.log(f"metrics: {' '.join(list_metrics_endpoints())}")
    report_findings(inspect_cluster(execution, folder), progress)


def inspect_machine(config: RunConfig, execution: ExecutionOptions) -> Iterator[Finding]:
    """Check Python and packages, Ray's address and token, and the backbone's weights."""
    here = {name: version for name, version in gather_install().items() if name != PROJECT}
    yield Finding.ok("packages", ", ".join(f"{name} {version}" for name, version in here.items()))
    try:
        yield from inspect_token(resolve_address(execution))
    except ConfigError as error:
        yield Finding.from_error(RAY, error, remedy="correct or unset it")
    yield inspect_weights(config)


def inspect_token(address: str | None) -> Iterator[Finding]:
    """Check Ray's token for the cluster at `address`, or for the one that is started here (None)."""
    try:
        source = find_token(address)
    except ConfigError as error:
        yield Finding.from_error(TOKEN, error, remedy="")
        return
    if address is None and is_token_used(address):
        yield Finding.ok(TOKEN, f"the Ray started here asks for one: {source or 'in ~/.ray/auth_token, to be made'}")
    elif address is None:
        text = f"RAY_AUTH_MODE={os.environ[AUTH_MODE]}: anybody who can reach the Ray started here can run code in it"
        yield Finding.warning(TOKEN, text, "unset it, and Ray asks for a token")
    is_made_private = address is None and makes_token_private()
    if source and not is_made_private and is_readable_by_others(Path(source)):
        text = f"other users of this machine can read it ({source})"
        yield Finding.warning(TOKEN, text, f"chmod 600 {source}")


def inspect_weights(config: RunConfig) -> Finding:
    """Load the backbone's weights, or report where they will be downloaded from; nothing is downloaded."""
    spec = config.backbone
    subject = f"weights {spec.weights} of {spec.name}:"
    try:
        check_backbone(spec, config.preprocessing.image_size_px)
        url = find_download(spec)
        text = f"will be downloaded from {urlsplit(url).hostname}" if url else load_backbone(spec).weights_source
    except WeightsError as error:
        return Finding.from_error("weights", error, remedy="use other --weights")
    except ConfigError as error:
        return Finding.from_error(f"backbone={spec.name}:", error, remedy="use another --backbone")
    return Finding.ok(subject, text)


def inspect_cluster(execution: ExecutionOptions, folder: Path) -> Iterator[Finding]:
    """Check that a trial fits on a node, and every node: its packages, GPUs and way to `folder`."""
    try:
        resources = choose_trial_resources(execution)
    except ConfigError as error:
        yield Finding.error("trial:", str(error), "use values that one of them has")
        return
    text = f"a node has the CPUs ({resources.num_cpus:g}) and GPUs ({resources.num_gpus:g}) that one asks for"
    yield Finding.ok("trial:", text)
    here = gather_install()
    for node in ask_nodes(folder.resolve()):
        yield from inspect_node(node, here, uses_gpus=resources.num_gpus > 0)
