"""cluster.yaml is what `ray up` accepts, and keeps the promises of its own comments."""

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private import util

ROOT = Path(__file__).parents[2]
LEARNING_WORDS = {"epochs", "trials", "lr", "batch", "decay", "seed", "folds", "preset", "recipes", "backbone"}


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return loaded


def test_rays_schema_accepts_it(cluster: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"num_epochs": 3}, schema)


def test_ray_up_accepts_it_with_its_defaults_filled_in(cluster: dict[str, Any]) -> None:
    validate_as_ray_up(cluster)


def test_ray_up_accepts_the_switch_to_machines_already_there(cluster: dict[str, Any]) -> None:
    local = {key: value for key, value in cluster.items() if key not in ("available_node_types", "head_node_type")}
    local["provider"] = {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2", "10.0.0.3"]}
    validate_as_ray_up(local)


def test_the_head_gives_neither_cpu_nor_gpu_to_trials(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}


def test_gpu_workers_are_started_for_work_and_stopped_when_idle(cluster: dict[str, Any]) -> None:
    workers = [node for name, node in cluster["available_node_types"].items() if name != cluster["head_node_type"]]
    assert workers
    for worker in workers:
        assert worker["resources"]["GPU"] >= 1
        assert worker["min_workers"] == 0 < worker["max_workers"] <= cluster["max_workers"]
    assert cluster["idle_timeout_minutes"] > 0


def test_every_node_starts_with_the_token_and_holds_it(cluster: dict[str, Any]) -> None:
    commands = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    assert sum("ray start" in command for command in commands) == 2
    for command in commands:
        assert command.count("RAY_AUTH_MODE=token ray ") == command.count("ray st") == 1, command
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in cluster["setup_commands"]
    assert any("RAY_AUTH_MODE=token" in command and ".bashrc" in command for command in cluster["setup_commands"])


def test_the_dashboard_listens_on_the_head_alone_and_every_node_exports_metrics(cluster: dict[str, Any]) -> None:
    starts = [cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]]
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert all("--metrics-export-port=" in start for start in starts)


def test_the_head_reports_nothing_to_rays_maker(cluster: dict[str, Any]) -> None:
    assert "RAY_USAGE_STATS_ENABLED=0 " in cluster["head_start_ray_commands"][-1]


def test_tasks_do_not_inherit_the_single_thread_of_ray_up(cluster: dict[str, Any]) -> None:
    for start in (cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]):
        assert start.index("unset OMP_NUM_THREADS") < start.index("ray start")


def test_every_installation_keeps_to_the_constraints(cluster: dict[str, Any]) -> None:
    commands = [command for key in cluster if key.endswith("setup_commands") for command in cluster[key]]
    installs = [command for command in commands if "pip install" in command]
    assert any(command.endswith('-e ".[train]"') for command in installs)
    for command in installs:
        assert "-c constraints.txt" in command


def test_every_node_gets_all_files_that_the_project_is_built_from(cluster: dict[str, Any]) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    setuptools = pyproject["tool"]["setuptools"]
    needed = {"pyproject.toml", "constraints.txt", pyproject["project"]["readme"]}
    needed |= {f"{module}.py" for module in setuptools["py-modules"]}
    needed |= {pattern.rstrip("*") for pattern in setuptools["packages"]["find"]["include"]}
    needed |= set(pyproject["project"]["license-files"])
    mounted = {local: remote for remote, local in cluster["file_mounts"].items() if remote.startswith("~/mura/")}
    assert set(mounted) == needed
    assert mounted == {local: f"~/mura/{local}" for local in needed}
    for pattern in cluster["rsync_exclude"]:
        kept_out = [path for top in ("mura_models", "orchestrator") for path in (ROOT / top).rglob(pattern)]
        assert all("__pycache__" in path.parts for path in kept_out), kept_out


def test_it_decides_nothing_about_learning(cluster: dict[str, Any]) -> None:
    assert not LEARNING_WORDS & set(re.findall("[a-z]+", json.dumps(cluster).lower()))


def validate_as_ray_up(cluster: dict[str, Any]) -> None:
    """Run what `ray up` runs before it asks a provider for anything."""
    util.validate_config(util.prepare_config(copy.deepcopy(cluster)))
