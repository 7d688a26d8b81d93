"""Trials on what Ray gives them: one GPU each, several nodes, no disk in common. On a machine with neither."""

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import NUM_FOLDS, make_manifest, make_probe_data
from ray_helpers import BIN, TINY, User, find_free_port, make_user, read_journal, read_json, wait_until, write_films

from orchestrator.cluster import share_cluster
from orchestrator.config import Placement, RunConfig
from orchestrator.plan import make_plan
from orchestrator.rundir import RunDir
from orchestrator.search import run_searches

NUM_GPUS = 4
BARRIER_S = 90


class Barrier:
    """An actor that lets nobody through before all are there."""

    def __init__(self, num_expected: int) -> None:
        self._barrier = asyncio.Barrier(num_expected)

    async def wait(self) -> None:
        await self._barrier.wait()


class MetAtBarrier(dict[str, Any]):
    """The data of the searches; who takes some waits until all trials have come for theirs."""

    barrier: Any

    def __getitem__(self, search: str) -> Any:
        ray.get(self.barrier.wait.remote(), timeout=BARRIER_S)
        return super().__getitem__(search)


@contextmanager
def local_ray(**resources: int) -> Iterator[None]:
    ray.init(**resources, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


@pytest.mark.parametrize("num_cpus", [2, 4])
def test_four_trials_at_once_have_a_gpu_each(num_cpus: int, tmp_path: Path) -> None:
    """Each trial waits for three others before it trains: less than four at once, and none would ever train."""
    config = replace(RunConfig(), num_trials=NUM_GPUS, num_epochs=2, num_folds=NUM_FOLDS)
    plan = make_plan(config, make_manifest())
    plan = replace(plan, trials=tuple(plan.of_search("baseline/linear_probe")))
    data = MetAtBarrier({"baseline/linear_probe": make_probe_data("baseline")})
    with local_ray(num_cpus=num_cpus, num_gpus=NUM_GPUS):
        data.barrier = ray.remote(Barrier).options(num_cpus=0, max_concurrency=NUM_GPUS).remote(NUM_GPUS)
        share = share_cluster(Placement())
        run_searches(config, plan, data, rundir=RunDir(tmp_path), share=share, on_line=lambda line: None)
    lines = read_journal(tmp_path)
    assert {line["state"] for line in lines} == {"RUNNING", "COMPLETE"}
    visible = {line["trial"]: line["worker"]["visible_devices"] for line in lines}
    assert len(visible) == NUM_GPUS
    assert set(visible.values()) == {"0", "1", "2", "3"}


HEAD = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
if len(sys.argv) > 1:
    cluster.add_node(num_cpus=2, env_vars={"HOME": sys.argv[1], "XDG_CACHE_HOME": sys.argv[1] + "/cache"})
print("address:", cluster.address, flush=True)
sys.stdin.read()
"""
NO_AUTH = {"RAY_AUTH_MODE": "disabled"}


@pytest.fixture
def user(tmp_path: Path) -> User:
    return make_user(tmp_path / "driver")


@contextmanager
def cluster(user: User, *worker_home: Path) -> Iterator[str]:
    """Start a head that gives no CPU, and perhaps a worker at home elsewhere; give the address."""
    with user.start(sys.executable, "-c", HEAD, *worker_home, **NO_AUTH):
        line = wait_until(lambda: [li for li in user.log.read_text().splitlines() if "address:" in li], "the head")
        yield line[0].split()[-1]


@pytest.mark.cluster
def test_a_worker_node_needs_neither_cache_nor_home_of_the_driver(user: User, tmp_path: Path) -> None:
    films, worker_home = write_films(user.home / "films"), tmp_path / "worker"
    worker_home.mkdir()
    with cluster(user, worker_home) as address:
        user.run_study("--address", address, "--data", films, "--run-dir", user.home / "run", *TINY, **NO_AUTH)
    assert_trained_elsewhere(user.home / "run")
    assert not (worker_home / "cache").exists()
    assert {path.name for path in user.cache.glob("mura/*")} >= {"store", "embeddings"}


@pytest.mark.cluster
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="hiding a disk needs root and unshare")
def test_a_worker_node_needs_no_disk_of_the_driver(user: User, tmp_path: Path) -> None:
    """The worker sees an empty folder where the driver has its films, its cache and its run directory."""
    films = write_films(user.home / "films")
    away = make_user(tmp_path / "worker")
    script = 'mount -t tmpfs none "$0" && exec "$@"'
    start = (BIN / "ray", "start", "--num-cpus", 2, "--dashboard-agent-listen-port", find_free_port(), "--block")
    hidden = ("unshare", "--mount", "sh", "-c", script, user.home, *start)
    with cluster(user) as address, away.start(*hidden, "--address", address, **NO_AUTH):
        wait_until(lambda: "Ray runtime started" in away.log.read_text(), "the worker node")
        raylet = wait_until(lambda: [p for p in away.processes() if p.name() == "raylet"], "its raylet")[0]
        user.run_study("--address", address, "--data", films, "--run-dir", user.home / "run", *TINY, **NO_AUTH)
        seen = Path(f"/proc/{raylet.pid}/root/{user.home}")
        assert list(seen.iterdir()) == []
    assert_trained_elsewhere(user.home / "run")


def assert_trained_elsewhere(run_dir: Path) -> None:
    """Check that the run ended well and that its trials ran on one node: the head has no CPU to give."""
    report = read_json(run_dir / "report.json")
    assert report["run"]["images_embedded"] > 0
    assert report["run"]["failed_searches"] == {}
    assert len({line["worker"]["node"] for line in read_journal(run_dir)}) == 1
