"""Start or join Ray, and share it out among trials."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import AuthenticationError, OutOfDiskError

from mura_models.errors import ConfigError, StorageError
from orchestrator.cluster.local_ray import shown_without_paths, start_local_ray
from orchestrator.cluster.signals import handlers_kept, uninterrupted
from orchestrator.run.execution import ExecutionOptions, check_address

JOB_MARKER = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the process that `ray job submit` starts."""


CONNECT_TIMEOUT_S = 10.0
"""How long a cluster may take to answer at its address (chosen by us)."""


@contextmanager
def connect_ray(execution: ExecutionOptions) -> Iterator[None]:
    """Join the cluster that `resolve_address` gives, else start Ray here, on 127.0.0.1 alone.

    Raises ConfigError where no cluster answers at the address, or one that takes neither this token nor these versions.
    """
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    with shown_without_paths():
        try:
            _start_or_join(resolve_address(execution))
            yield
        except OutOfDiskError as error:
            raise StorageError(f"Ray's folder for objects is full ({_first_line(error)}); make room there") from error
        finally:
            with uninterrupted():
                ray.shutdown()


def _start_or_join(address: str | None) -> None:
    try:
        with handlers_kept():
            if address:
                check_port_open(address)
                ray.init(address=address, log_to_driver=False, logging_level="WARNING")
            else:  # a Ray that somebody else left running on this machine is not joined unasked
                start_local_ray(log_to_driver=False, logging_level="WARNING")
    except (OSError, ValueError) as error:
        what = f"address={address}: no Ray cluster answers there" if address else "Ray cannot be started here"
        raise ConfigError(f"{what} ({_first_line(error)})") from error
    except AuthenticationError as error:
        raise ConfigError(f"token: {error.message.splitlines()[0]}") from error
    except RuntimeError as error:
        if not str(error).startswith("Version mismatch"):  # Ray compares versions after it has joined
            raise
        told = " ".join(str(error).split())
        raise ConfigError(f"address={address}: {told}; install the same Ray and Python here and there") from error


def resolve_address(execution: ExecutionOptions) -> str | None:
    """Return the address of the cluster to join: `--address`, else $RAY_ADDRESS; None where Ray is started here.

    Raises ConfigError where $RAY_ADDRESS is none that a run can join by.
    """
    address, named = execution.address, os.environ.get("RAY_ADDRESS")
    if named and address in (None, "auto"):  # as Ray reads it: $RAY_ADDRESS goes before a search for a cluster
        check_address(named, given_by="RAY_ADDRESS")
        address = named
    return None if address == "local" else address


def check_port_open(address: str) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray itself would wait there for minutes."""
    host, _, port = address.rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()


def get_dashboard_url() -> str | None:
    """Return the dashboard's address, if Ray has one."""
    url = ray._private.worker.get_dashboard_url()
    return f"http://{url}" if url else None


def list_metrics_endpoints() -> list[str]:
    """Return each living node's address for Prometheus."""
    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"]
    ]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
