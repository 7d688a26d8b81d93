"""Ray's private names: each is where it was, works as it did, and is used in one file alone."""

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

from orchestrator.cluster.local_ray import hide_paths
from orchestrator.cluster.ray_private import listen_on_loopback, show_command_as, silence_token_log

ROOT = Path(__file__).parents[3]
PRIVATE = re.compile(r"\bray\.(_private|_raylet|core\.generated|[a-z.]+\._private)\b|from ray import _")
NAMES = {
    ("ray._private.ray_constants", "ENABLE_RAY_CLUSTER"): "a Ray started here would listen on every network interface",
    ("ray._private.utils", "get_entrypoint_name"): "the dashboard would show the paths of the command line",
    ("ray._raylet", "getproctitle"): "the dashboard would show the paths of the command line in its list of processes",
    ("ray._raylet", "setproctitle"): "the dashboard would show the paths of the command line in its list of processes",
    ("ray._private.authentication.authentication_token_setup", "logger"): "the terminal would show a path of the home",
    ("ray._private.worker", "get_dashboard_url"): "a run would not print its dashboard's address",
    ("ray._private.state", "state.get_cluster_config"): "a trial would be refused if only a new node can run it",
}
"""Module and name -> what breaks without it."""
CALLS = {
    ("ray._private.worker", "init", "ray._private.utils.get_entrypoint_name()"): (
        "Ray takes the job's entrypoint elsewhere: the dashboard would show the paths of the command line"
    ),
    ("ray._private.services", "get_node_ip_address", "ray_constants.ENABLE_RAY_CLUSTER"): (
        "Ray chooses the node's address elsewhere: a Ray started here would listen on every network interface"
    ),
}
"""Module, function and what it is to read -> what breaks if it does not."""


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_ray_has_the_name(module: str, name: str) -> None:
    found: object = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    moved = f"Ray has no {module}.{name} any more: {NAMES[module, name]}. Adapt orchestrator/cluster/ray_private.py."
    assert found is not None, moved


@pytest.mark.parametrize(("module", "function", "text"), CALLS)
def test_ray_reads_what_is_replaced(module: str, function: str, text: str) -> None:
    source = inspect.getsource(getattr(importlib.import_module(module), function))
    assert text in source, f"{CALLS[module, function, text]}. Adapt orchestrator/cluster/ray_private.py."


def test_what_is_replaced_is_put_back() -> None:
    constants, utils = (importlib.import_module(f"ray._private.{name}") for name in ("ray_constants", "utils"))
    before = (constants.ENABLE_RAY_CLUSTER, utils.get_entrypoint_name)
    with listen_on_loopback(), show_command_as("run_study.py PATH"):
        assert constants.ENABLE_RAY_CLUSTER is False, "a Ray started here would listen on every network interface"
        assert utils.get_entrypoint_name() == "run_study.py PATH"
    assert (constants.ENABLE_RAY_CLUSTER, utils.get_entrypoint_name) == before


def test_the_address_is_loopback_while_ray_starts() -> None:
    services = importlib.import_module("ray._private.services")
    with listen_on_loopback():
        assert services.get_node_ip_address() == "127.0.0.1", "a Ray started here would listen on a network interface"


def test_the_title_of_the_process_is_the_command_without_its_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    raylet = importlib.import_module("ray._raylet")
    monkeypatch.setattr(sys, "argv", ["/opt/run_study.py", "--data", "/wards/jane"])
    before = raylet.getproctitle()
    with hide_paths():
        assert raylet.getproctitle() == "run_study.py --data PATH"
    assert raylet.getproctitle() == before


def test_the_log_of_new_tokens_is_silent() -> None:
    silence_token_log()
    module = importlib.import_module("ray._private.authentication.authentication_token_setup")
    assert not module.logger.isEnabledFor(30), "the terminal would show a path of the home"
    assert "logger.info" in inspect.getsource(module) or "logger.warning" in inspect.getsource(module)


def test_only_one_file_uses_private_names_of_ray() -> None:
    files = [
        path for package in ("orchestrator", "mura_models", "benchmarks") for path in (ROOT / package).rglob("*.py")
    ]
    users = [path.relative_to(ROOT) for path in [*files, ROOT / "run_study.py"] if PRIVATE.search(path.read_text())]
    assert users == [Path("orchestrator/cluster/ray_private.py")]
