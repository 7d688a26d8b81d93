"""`ray job submit --working-dir . -- python run_study.py`, against a head with token authentication."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_helpers import BIN, ROOT, TINY, User, find_free_port, make_user, read_json, wait_until, write_images

pytestmark = pytest.mark.cluster
TOKEN = {"RAY_AUTH_MODE": "token"}


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    return make_user(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def clone(user: User) -> Path:
    """The files of a fresh clone, without its history."""
    folder = user.home / "clone"
    for package in ("mura_models", "orchestrator"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run_study.py", folder)
    return folder


@pytest.fixture(scope="module")
def head(user: User) -> Iterator[str]:
    """The address of a head's job server."""
    made = user.call(BIN / "ray", "get-auth-token", "--generate", **TOKEN)
    assert made.returncode == 0, made.stderr
    port = find_free_port()
    ports = ("--port", "--ray-client-server-port", "--dashboard-agent-listen-port")
    options = [part for name in ports for part in (name, find_free_port())]
    command = (BIN / "ray", "start", "--head", "--num-cpus", 2, "--dashboard-port", port, *options, "--block")
    address = f"http://127.0.0.1:{port}"
    with user.start(*command, **TOKEN):
        listed = (BIN / "ray", "job", "list", "--address", address)
        wait_until(lambda: user.call(*listed, **TOKEN).returncode == 0, "the job server")
        yield address


def submit(user: User, head: str, clone: Path, *options: object) -> "subprocess.CompletedProcess[str]":
    command = ("python", "run_study.py", "--all-bones", *options, *TINY)
    job = (BIN / "ray", "job", "submit", "--address", head, "--working-dir", ".", "--", *command)
    return user.call(*job, cwd=clone, **TOKEN)


def test_a_job_ends_with_a_report_in_its_run_directory(user: User, head: str, clone: Path) -> None:
    images, run_dir = write_images(user.home / "images"), user.home / "runs" / "first"
    done = submit(user, head, clone, "--data", images, "--run-dir", run_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_json(run_dir / "report.json")["run"]["failed_searches"] == {}
    assert str(run_dir / "report.html") in done.stdout


@pytest.mark.parametrize("options", [(), ("--run-dir", "runs/first")])
def test_a_job_refuses_a_run_directory_that_it_would_lose(
    options: tuple[str, ...], user: User, head: str, clone: Path
) -> None:
    images = write_images(user.home / "images")
    done = submit(user, head, clone, "--data", images, *options)
    assert done.returncode != 0
    assert "a Ray job works in a temporary folder and would lose it; give an absolute path" in done.stdout
    assert "error: --run-dir " in done.stdout
    assert "Traceback" not in done.stdout


def test_without_the_token_nothing_is_submitted(user: User, head: str, clone: Path, tmp_path: Path) -> None:
    stranger = make_user(tmp_path / "stranger")
    stranger.call(BIN / "ray", "get-auth-token", "--generate", **TOKEN)  # a token, but another one
    done = submit(stranger, head, clone, "--run-dir", tmp_path / "run")
    assert done.returncode != 0
    assert "authentication token is invalid" in (done.stdout + done.stderr)
    assert not (tmp_path / "run").exists()
