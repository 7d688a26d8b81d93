"""Every use of Ray's private names, each because there is no public one.

tests/orchestrator/cluster/test_ray_private.py looks each of them up, and names what breaks if Ray moves it.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType

import ray
import ray._private.authentication.authentication_token_setup
import ray._private.utils


def listen_on_loopback() -> AbstractContextManager[None]:
    """Make the `ray.init` inside use 127.0.0.1 as the node's address, on which all of its daemons listen.

    Ray does so on Windows and macOS, and reads the switch from the environment only when it is imported.
    """
    return _set(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False)


@contextmanager
def show_command_as(command: str) -> Iterator[None]:
    """Show `command` in place of this process's own, as the job on the dashboard and as the process in `ps`.

    Ray has no setting for the job's entrypoint of a driver, and its dashboard lists processes by their titles.
    """
    title = ray._raylet.getproctitle()
    with _set(ray._private.utils, "get_entrypoint_name", lambda: command):
        ray._raylet.setproctitle(command)
        try:
            yield
        finally:
            ray._raylet.setproctitle(title)


def silence_token_log() -> None:
    """Keep Ray from logging where it stores a new token: a path on this machine. It has no setting for this log."""
    ray._private.authentication.authentication_token_setup.logger.setLevel(logging.ERROR)


def get_dashboard_url() -> str | None:
    """Return the dashboard's address, if Ray has one. Publicly only `ray.init` returns it, to its own caller."""
    url = ray._private.worker.get_dashboard_url()
    return f"http://{url}" if url else None


def list_startable_resources() -> list[dict[str, float]]:
    """Return the resources of each kind of node that an autoscaler may start: `ray.nodes()` lists living nodes only."""
    config = ray._private.state.state.get_cluster_config()
    return [dict(group.resources) for group in config.node_group_configs] if config else []


@contextmanager
def _set(module: ModuleType, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
