"""Connect to Ray: join a cluster, or start one on this machine."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import AuthenticationError, OutOfDiskError

from mura_models.errors import ConfigError, SettingError, StorageError
from orchestrator.cluster.auth_token import REMEDY, find_token
from orchestrator.cluster.local_ray import hide_paths, start_local_ray
from orchestrator.cluster.ray_private import silence_token_log
from orchestrator.cluster.signals import ignore_signals, keep_signal_handlers
from orchestrator.run.execution import ExecutionOptions, check_address

CONNECT_TIMEOUT_S = 10.0
"""How long a cluster may take to answer at its address (chosen by us)."""


@contextmanager
def connect_ray(execution: ExecutionOptions) -> Iterator[None]:
    """Join the cluster that `resolve_address` returns, or start Ray here, on 127.0.0.1 alone. Shut it down at the end.

    Does nothing if Ray is initialized already. Raises ConfigError if no cluster answers at the address, or one that
    accepts neither this token nor these versions.
    """
    if ray.is_initialized():
        yield
        return
    silence_token_log()
    with hide_paths():
        try:
            _start_or_join(resolve_address(execution))
            yield
        except OutOfDiskError as error:
            raise StorageError(f"Ray's folder for objects is full ({_first_line(error)}); free some space") from error
        finally:
            with ignore_signals():
                ray.shutdown()


def _start_or_join(address: str | None) -> None:
    find_token(address)  # raises ConfigError
    try:
        with keep_signal_handlers():
            if address:
                _join(address)
            else:  # a Ray that is running on this machine is joined only if its address is given
                start_local_ray(log_to_driver=False, logging_level="WARNING")
    except (OSError, ValueError) as error:
        raise ConfigError(f"Ray cannot be started here ({_first_line(error)})") from error
    except AuthenticationError as error:
        raise ConfigError(f"token: {_first_line(error).split('. ')[0]}; {REMEDY}") from error
    except RuntimeError as error:
        if not str(error).startswith("Version mismatch"):  # Ray compares versions after it has joined
            raise
        text = " ".join(str(error).split())
        raise SettingError("address", address, f"{text}; install the same Ray and Python here and there") from error


def _join(address: str) -> None:
    try:
        check_port_open(address)
    except (OSError, ValueError) as error:
        text = f"no Ray cluster answers there ({_first_line(error)})"
        rule = f"{text}; check that its head is up and that this is the head's HOST:PORT"
        raise SettingError("address", address, rule) from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="WARNING")
    except (OSError, ValueError) as error:  # also for a wrong token: Ray retries for 20 s and does not mention it
        raise SettingError("address", address, f"{_first_line(error)}; {REMEDY}") from error


def resolve_address(execution: ExecutionOptions) -> str | None:
    """Return the address of the cluster to join: `--address`, else $RAY_ADDRESS; None if Ray is to be started here.

    Raises ConfigError if a run cannot join by $RAY_ADDRESS.
    """
    address, variable = execution.address, os.environ.get("RAY_ADDRESS")
    if variable and address in (None, "auto"):  # as in Ray: $RAY_ADDRESS goes before a search for a cluster
        check_address(variable, given_by="RAY_ADDRESS")
        address = variable
    return None if address == "local" else address


def check_port_open(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT: Ray itself would wait there for minutes."""
    host, _, port = address.rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()


def list_metrics_endpoints() -> list[str]:
    """Return each living node's address for Prometheus."""
    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"]
    ]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
