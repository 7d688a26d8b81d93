"""Trials on resources that Ray assigns: one GPU each, several nodes, no shared disk. Needs no such machine."""

import asyncio
import gc
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from factories import NUM_FOLDS, make_manifest, make_probe_data
from ray_helpers import BIN, TINY, User, find_free_port, make_user, read_journal, read_json, wait_until, write_images
from safetensors.torch import load

from mura_models.errors import StorageError
from mura_models.training.checkpoints import Checkpoint
from orchestrator.cluster.resources import choose_trial_resources
from orchestrator.preflight.nodes import ask_nodes
from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.run.execution import ExecutionOptions
from orchestrator.run.journal import JournalLine
from orchestrator.search.checkpoint_store import CheckpointStore, LoadedCheckpoint, start_checkpoint_store
from orchestrator.search.context import StageContext, open_journals
from orchestrator.search.plan import StagePlan, make_plan
from orchestrator.search.retrain import read_exported
from orchestrator.search.trial import StageInputs
from orchestrator.search.tuner import make_job, run_search

NUM_GPUS = 4
LATCH_S = 120


class Latch:
    """An actor that blocks trials until this many searches wait at once, then lets all of them continue."""

    def __init__(self, num_expected: int) -> None:
        self._num_expected = num_expected
        self._devices: dict[str, str] = {}
        self._is_open = asyncio.Event()

    async def wait(self, search: str, devices: str) -> None:
        self._devices.setdefault(search, devices)
        if len(self._devices) == self._num_expected:
            self._is_open.set()
        await self._is_open.wait()

    async def list_devices(self) -> dict[str, str]:
        return self._devices


class HeldData(dict[str, Any]):
    """The data of the searches; a trial that fetches its data waits at the latch before it trains."""

    latch: Any

    def __getitem__(self, search: str) -> Any:
        ray.get(self.latch.wait.remote(search, os.environ.get("CUDA_VISIBLE_DEVICES", "")), timeout=LATCH_S)
        return super().__getitem__(search)


@contextmanager
def local_ray(**resources: int) -> Iterator[None]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    ray.init("local", **resources, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize("num_cpus", [2, 4])
def test_four_trials_at_once_have_a_gpu_each(num_cpus: int, tmp_path: Path) -> None:
    """Each trial waits for three others before it trains: with fewer than four at once, none would train."""
    config, plan = plan_one_trial_per_search(num_epochs=2)
    with local_ray(num_cpus=num_cpus, num_gpus=NUM_GPUS):
        data = HeldData({search: make_probe_data(search.split("/")[0].split(":")[-1]) for search in plan.searches})
        data.latch = ray.remote(Latch).options(num_cpus=0, max_concurrency=8).remote(NUM_GPUS)
        run_search(make_stage(config, plan, data, tmp_path, on_line=lambda line: None))
        devices = ray.get(data.latch.list_devices.remote())
    assert set(devices) == set(plan.searches)
    assert set(devices.values()) == {"0", "1", "2", "3"}
    lines = read_journal(tmp_path)
    assert [line["state"] for line in lines].count("COMPLETE") == NUM_GPUS
    assert all(line["worker"]["visible_devices"] in {"0", "1", "2", "3"} for line in lines)


def test_a_trial_whose_worker_dies_resumes(tmp_path: Path) -> None:
    config, plan = plan_one_trial_per_search(num_epochs=30)
    plan = replace(plan, trials=plan.trials[:1])
    search = next(iter(plan.searches))
    data = {search: make_probe_data(search.split("/")[0].split(":")[-1])}
    killed = []

    def kill_once(line: JournalLine) -> None:
        if line.epoch == 15 and not killed:
            assert line.worker is not None
            killed.append(line.worker["pid"])
            os.kill(killed[0], signal.SIGKILL)

    with local_ray(num_cpus=2):
        run_search(make_stage(config, plan, data, tmp_path, on_line=kill_once))
    lines = read_journal(tmp_path)
    assert [line["epoch"] for line in lines] == list(range(1, 31))
    assert [line["state"] for line in lines] == ["RUNNING"] * 29 + ["COMPLETE"]
    assert lines[-1]["worker"]["pid"] != killed[0]


def damage(path: Path) -> None:
    """Change one byte in the middle of a file; a second call does not restore it."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] = (content[len(content) // 2] + 1) % 256
    path.write_bytes(content)


def assert_same_checkpoint(first: bytes, second: bytes) -> None:
    tensors = [load(content) for content in (first, second)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())
    histories = [Checkpoint.from_bytes(content).history for content in (first, second)]
    assert histories[0] == histories[1]


def test_a_damaged_checkpoint_is_detected_and_the_previous_one_is_used(tmp_path: Path) -> None:
    """A resumed trial and an exported winner are the same to the last bit as without the damage."""
    config, plan = plan_one_trial_per_search(num_epochs=10)
    plan = replace(plan, trials=plan.trials[:1])
    trial = plan.trials[0]
    data = {trial.search: make_probe_data(trial.target.split(":")[-1])}
    rundir = RunDir(tmp_path)
    last, previous = rundir.checkpoint(trial.name), rundir.previous_checkpoint(trial.name)
    with local_ray(num_cpus=2):
        stage = make_stage(config, plan, data, tmp_path, on_line=lambda line: None)
        run_search(stage)
        whole, lines = last.read_bytes(), rundir.journal.read_bytes().splitlines(keepends=True)

        rundir.journal.write_bytes(b"".join(lines[:7]))
        damage(last)
        stage = replace(stage, journals=open_journals(rundir))
        run_search(stage)
        assert_same_checkpoint(last.read_bytes(), whole)
        continued = read_journal(tmp_path)
        assert [line["metrics"] for line in continued] == [json.loads(line)["metrics"] for line in lines]
        assert "the last checkpoint is damaged: resumed from the one before" in [line["note"] for line in continued]

        for paths in ([last], [last, previous]):
            for path in paths:
                damage(path)
            read_exported(stage, make_job(config, trial), num_epochs=10)
            assert_same_checkpoint(last.read_bytes(), whole)


def test_a_checkpoint_store_that_dies_receives_the_rows_of_the_stage_again(tmp_path: Path) -> None:
    config, plan = plan_one_trial_per_search(num_epochs=2)
    data = {search: make_probe_data(search.split("/")[0].split(":")[-1]) for search in plan.searches}
    killed = []

    def kill_once(line: JournalLine) -> None:
        if not killed:
            killed.append(True)
            ray.kill(stage.store, no_restart=False)

    with local_ray(num_cpus=1):
        stage = make_stage(config, plan, data, tmp_path, on_line=kill_once)
        run_search(stage)
    assert [line["state"] for line in read_journal(tmp_path)].count("COMPLETE") == NUM_GPUS


def test_an_unreadable_checkpoint_ends_the_search_in_one_line_and_loses_nothing(tmp_path: Path) -> None:
    """A trial that started from the beginning would overwrite the checkpoint."""
    config, plan = plan_one_trial_per_search(num_epochs=2)
    data = {search: make_probe_data(search.split("/")[0].split(":")[-1]) for search in plan.searches}

    class StoreWithoutDisk(CheckpointStore):
        def load(self, trial: str, starts_from: str = "") -> LoadedCheckpoint:
            raise StorageError("the checkpoint: cannot be read (Stale file handle)")

    with local_ray(num_cpus=2):
        stage = make_stage(config, plan, data, tmp_path, on_line=lambda line: None)
        broken = replace(stage, store=ray.remote(StoreWithoutDisk).options(num_cpus=0).remote(str(tmp_path)))
        broken.set_inputs()
        with pytest.raises(StorageError, match=r"^the checkpoint: cannot be read"):
            run_search(broken)
        assert not (tmp_path / "journal.jsonl").exists()
        run_search(stage)
    assert [line["state"] for line in read_journal(tmp_path)].count("COMPLETE") == NUM_GPUS


def test_a_worker_that_dies_while_its_node_is_checked_is_no_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.preflight.nodes.PROBE_BYTES", 2**27)  # takes long enough to be seen
    killed: list[str] = []

    def kill_once() -> None:
        while not killed:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    name = " ".join(process.cmdline())
                    if name.startswith("ray::gather_node"):
                        process.kill()
                        killed.append(name)
                        return

    with local_ray(num_cpus=2):
        killer = threading.Thread(target=kill_once, daemon=True)
        killer.start()
        (node,) = ask_nodes(tmp_path)
        killer.join(10)
    assert killed
    assert (node.error, node.storage_error) == ("", "")


def test_the_rows_of_a_stage_are_freed_when_it_is_over(tmp_path: Path) -> None:
    """Tune never frees its inputs: it would hold the images of MURA once per search, audit and replicate."""
    config, plan = plan_one_trial_per_search(num_epochs=1)
    data = {search: make_probe_data(search.split("/")[0].split(":")[-1]) for search in plan.searches}
    heavy = data | {"images": np.ones(2**24, np.uint8)}
    with local_ray(num_cpus=2):
        stage = make_stage(config, plan, heavy, tmp_path, on_line=lambda line: None)
        run_search(stage)
        assert measure_store() > 2**24
        store = stage.store
        del stage
        ray.get(store.set_inputs.remote([]))
        wait_until(lambda: measure_store() < 2**23, "Ray to free the rows")
    assert [line["state"] for line in read_journal(tmp_path)] == ["COMPLETE"] * NUM_GPUS


def measure_store() -> int:
    """Return the bytes in this node's object store."""
    gc.collect()
    node = ray.nodes()[0]
    stats = ray._private.internal_api.node_stats(node["NodeManagerAddress"], node["NodeManagerPort"])
    used: int = stats.store_stats.object_store_bytes_used
    return used


def make_stage(
    config: RunConfig, plan: StagePlan, data: Mapping[str, Any], root: Path, *, on_line: Callable[[JournalLine], None]
) -> StageContext:
    rundir = RunDir(root)
    stage = StageContext(
        config=config,
        plan=plan,
        rundir=rundir,
        journals=open_journals(rundir),
        store=start_checkpoint_store(rundir),
        inputs=ray.put(StageInputs(data=data)),
        resources=choose_trial_resources(ExecutionOptions()),
        on_line=lambda what, line: on_line(line),
        log=lambda text: None,
    )
    stage.set_inputs()
    return stage


def plan_one_trial_per_search(num_epochs: int) -> tuple[RunConfig, StagePlan]:
    """Plan four searches with one trial each: two specialists, the baseline and the router."""
    recipes = ("linear_probe",)
    config = RunConfig(num_trials=1, num_epochs=num_epochs, num_folds=NUM_FOLDS, recipes=recipes, early_stopping=False)
    plan = make_plan(config, make_manifest())
    assert len(plan.searches) == len(plan.trials) == NUM_GPUS
    (stage,) = plan.stages
    return config, stage


HEAD = """
import signal
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
if len(sys.argv) > 1:
    cluster.add_node(num_cpus=2, env_vars={"HOME": sys.argv[1], "XDG_CACHE_HOME": sys.argv[1] + "/cache"})
print("address:", cluster.address, flush=True)
signal.pause()
"""
NO_AUTH = {"RAY_AUTH_MODE": "disabled"}


@pytest.fixture
def user(tmp_path: Path) -> User:
    return make_user(tmp_path / "driver")


@contextmanager
def cluster(user: User, *worker_home: Path) -> Iterator[str]:
    """Start a head without CPUs, and a worker for each home that is given; return the address."""
    with user.start(sys.executable, "-c", HEAD, *worker_home, **NO_AUTH):
        line = wait_until(lambda: [li for li in user.log.read_text().splitlines() if "address:" in li], "the head")
        yield line[0].split()[-1]


@pytest.mark.cluster
def test_a_worker_node_needs_neither_the_cache_nor_the_home_of_the_driver(user: User, tmp_path: Path) -> None:
    images, worker_home = write_images(user.home / "images"), tmp_path / "worker"
    worker_home.mkdir()
    with cluster(user, worker_home) as address:
        user.run_study("--address", address, "--data", images, "--run-dir", user.home / "run", *TINY, **NO_AUTH)
    assert_trained_elsewhere(user.home / "run")
    assert not (worker_home / "cache" / "mura").exists()
    assert {path.name for path in user.cache.glob("mura/*")} >= {"store", "embeddings"}


@pytest.mark.cluster
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="hiding a disk needs root and unshare")
def test_a_worker_node_needs_no_disk_of_the_driver(user: User, tmp_path: Path) -> None:
    """The worker sees an empty folder where the driver has its images, its cache and its run directory."""
    images = write_images(user.home / "images")
    away = make_user(tmp_path / "worker")
    script = 'mount -t tmpfs none "$0" && exec "$@"'
    start = (BIN / "ray", "start", "--num-cpus", 2, "--dashboard-agent-listen-port", find_free_port(), "--block")
    hidden = ("unshare", "--mount", "sh", "-c", script, user.home, *start)
    with cluster(user) as address, away.start(*hidden, "--address", address, **NO_AUTH):
        wait_until(lambda: "Ray runtime started" in away.log.read_text(), "the worker node")
        raylet = wait_until(lambda: [p for p in away.processes() if p.name() == "raylet"], "its raylet")[0]
        user.run_study("--address", address, "--data", images, "--run-dir", user.home / "run", *TINY, **NO_AUTH)
        seen = Path("/proc", str(raylet.pid), "root", *user.home.parts[1:])
        assert list(seen.iterdir()) == []
    assert_trained_elsewhere(user.home / "run")


def assert_trained_elsewhere(run_dir: Path) -> None:
    """Check that the run succeeded and that its trials ran on one node: the head has no CPUs."""
    report = read_json(run_dir / "report.json")
    assert report["run"]["images_embedded"] > 0
    assert report["run"]["failed_searches"] == {}
    assert len({line["worker"]["node"] for line in read_journal(run_dir)}) == 1
