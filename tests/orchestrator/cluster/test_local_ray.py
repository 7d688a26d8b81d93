"""Ray as a run starts it on one machine: who can reach it, who can join it, and what it shows."""

import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from ray_helpers import ROOT, User, list_listeners, make_user, wait_until

from orchestrator.cluster.auth_token import make_token_private
from orchestrator.cluster.local_ray import redact_paths, start_local_ray

HOLD = """
import signal
import ray
from orchestrator.cluster.connection import connect_ray, list_metrics_endpoints
from orchestrator.cluster.ray_private import get_dashboard_url
from orchestrator.run.execution import ExecutionOptions

with connect_ray(ExecutionOptions()):
    print("metrics:", *list_metrics_endpoints(), flush=True)
    print("address:", ray.get_runtime_context().gcs_address, flush=True)
    print("dashboard:", get_dashboard_url(), flush=True)
    signal.pause()
"""
JOIN = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print('joined', ray.nodes())"
ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Without it Ray looks for 127.0.0.1 at the machine's outer address, where a local Ray does not listen."""
SECRET_PATHS = ("/api/v0/actors", "/api/v0/tasks", "/api/v0/workers", "/api/jobs/", "/nodes?view=summary")


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    return make_user(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def started(user: User) -> Iterator[dict[str, str]]:
    """The lines that a Ray started for this user alone prints."""
    command = (sys.executable, "-c", HOLD, user.home / "secret-ward" / "images.csv", "--data=secret/ward.csv")
    with user.start(*command, PYTHONPATH=str(ROOT)) as driver:

        def is_up() -> bool:
            assert driver.poll() is None, user.log.read_text()
            return "dashboard:" in user.log.read_text()

        wait_until(is_up, "Ray", timeout_s=120)
        yield dict(line.split(": ", 1) for line in user.log.read_text().splitlines() if ": " in line)


def read_token(user: User) -> str:
    return (user.home / ".ray" / "auth_token").read_text().strip()


@pytest.mark.slow
def test_every_port_of_a_local_ray_is_on_loopback(user: User, started: dict[str, str]) -> None:
    wait_until(lambda: requests.get(started["metrics"], timeout=5).ok, "the metrics endpoint")
    listeners = list_listeners(user)
    assert {"gcs_server", "raylet"} <= {name for name, _ in listeners}
    assert {(name, ip) for name, ip in listeners if not is_loopback(ip)} == set()
    assert started["dashboard"].startswith("http://127.0.0.1:")
    assert started["metrics"].startswith("http://127.0.0.1:")


@pytest.mark.slow
def test_the_token_is_readable_by_its_owner_alone(user: User, started: dict[str, str]) -> None:
    token = user.home / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(read_token(user)) == 64


@pytest.mark.slow
def test_the_dashboard_requires_the_token(user: User, started: dict[str, str]) -> None:
    for path in SECRET_PATHS:
        for headers in ({}, {"Authorization": "Bearer " + "0" * 64}):
            answer = requests.get(started["dashboard"] + path, headers=headers, timeout=30)
            assert answer.status_code in (401, 403), path
    job = {"entrypoint": f"touch {user.home}/intruder"}
    assert requests.post(started["dashboard"] + "/api/jobs/", json=job, timeout=30).status_code == 401
    known = {"Authorization": f"Bearer {read_token(user)}"}
    assert requests.get(started["dashboard"] + "/api/v0/actors", headers=known, timeout=30).ok


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["none", "another", "ours"])
def test_only_a_driver_with_the_token_can_join(whose: str, user: User, started: dict[str, str], tmp_path: Path) -> None:
    stranger = make_user(tmp_path / "stranger")
    token = {"none": {}, "another": {"RAY_AUTH_TOKEN": "0" * 64}, "ours": {"RAY_AUTH_TOKEN": read_token(user)}}[whose]
    mode = {"RAY_AUTH_MODE": "token" if token else "disabled", **ON_LOOPBACK}
    done = stranger.call(sys.executable, "-c", JOIN, started["address"], timeout_s=120, **mode, **token)
    assert (done.returncode == 0) == ("joined" in done.stdout) == (whose == "ours"), done.stdout + done.stderr
    assert whose == "ours" or "unauthenticated" in (done.stdout + done.stderr).lower()


@pytest.mark.slow
def test_the_dashboard_shows_the_command_without_its_paths(user: User, started: dict[str, str]) -> None:
    known = {"Authorization": f"Bearer {read_token(user)}"}

    def fetch(path: str) -> Any:
        return requests.get(started["dashboard"] + path, headers=known, timeout=30).json()

    assert "-c PATH --data=PATH" in [job["entrypoint"] for job in fetch("/api/jobs/")]
    (node,) = fetch("/nodes?view=summary")["data"]["summary"]
    page = f"/nodes/{node['raylet']['nodeId']}"
    wait_until(lambda: "-c PATH --data=PATH" in json.dumps(fetch(page)), "the driver's process on its node's page")
    assert "secret" not in json.dumps([fetch(page), fetch("/test/dump"), fetch("/api/jobs/")])


@pytest.mark.slow
def test_nothing_is_reported_to_rays_maker(user: User, started: dict[str, str]) -> None:
    known = {"Authorization": f"Bearer {read_token(user)}"}
    answer = requests.get(f"{started['dashboard']}/usage_stats_enabled", headers=known, timeout=30).json()
    assert answer["data"]["usageStatsEnabled"] is False


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["/opt/x/run_study.py", "--all-bones", "--data", "/wards/jane/a.csv"], "run_study.py --all-bones --data PATH"),
        (["run_study.py", "--data=../jane doe/x=1", "--bones", "a b"], "run_study.py --data=PATH --bones 'a b'"),
        (["mura", "run", "--weights", "C:\\jane\\r18.pt", "--trials", "3"], "mura run --weights PATH --trials 3"),
    ],
)
def test_a_command_is_shown_without_its_paths(command: list[str], shown: str) -> None:
    assert redact_paths(command) == shown


def test_a_token_that_is_there_is_kept_and_closed_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("known")
    token.chmod(0o644)
    make_token_private()
    assert (token.read_text(), stat.S_IMODE(token.stat().st_mode)) == ("known", 0o600)
    token.unlink()
    before = os.umask(0)
    try:
        make_token_private()
    finally:
        os.umask(before)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("environment", "is_closed"),
    [
        ({}, True),
        ({"RAY_AUTH_MODE": "token"}, True),
        ({"RAY_AUTH_MODE": "TOKEN"}, True),
        ({"RAY_AUTH_TOKEN": ""}, True),
        ({"RAY_AUTH_MODE": "disabled"}, False),
        ({"RAY_AUTH_MODE": ""}, False),  # which Ray takes for disabled
        ({"RAY_AUTH_TOKEN": "known"}, False),
        ({"RAY_AUTH_TOKEN_PATH": "/home/mine"}, False),
    ],
)
def test_the_token_is_closed_to_others_wherever_ray_takes_it_from_its_file(
    environment: dict[str, str], is_closed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment | {"HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ray.init", lambda *_, **__: None)
    start_local_ray()
    assert (tmp_path / ".ray" / "auth_token").exists() == is_closed


def is_loopback(ip: str) -> bool:
    return ip in ("127.0.0.1", "::ffff:127.0.0.1", "::1")
