"""Kill any process at any moment, run the same command again: nothing is lost, and nothing is done twice.

The slow tests cover a few of the moments; the others are marked exhaustive (`make test-faults`).
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pandas as pd
import pytest
from ray_helpers import (
    ROOT,
    TINY,
    User,
    assert_same_results,
    make_user,
    read_journal,
    read_json,
    wait_until,
    write_images,
)
from robustness.faults import (
    MODES,
    OPTIONS,
    Fault,
    FaultyRun,
    assert_nothing_changed,
    assert_whole,
    draw_faults,
    take_stock,
)

pytestmark = pytest.mark.slow

LIGHT = ("--recipes", "linear_probe")
"""For tests with many runs."""


class Undisturbed(Protocol):
    """A function that returns the directory of a run without faults in a mode."""

    def __call__(self, mode: str, *more: str) -> Path: ...


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Return the directory of a run without faults in a mode, by another user, so that no cache is shared."""
    done: dict[tuple[str, ...], Path] = {}

    def find(mode: str, *more: str) -> Path:
        if (mode, *more) not in done:
            user = make_user(tmp_path_factory.mktemp("undisturbed"))
            user.run_study("--data", images, "--run-dir", user.home / "run", *OPTIONS, *MODES[mode], *more)
            done[mode, *more] = user.home / "run"
        return done[mode, *more]

    return find


def run_with_faults(
    user: User, images: Path, undisturbed: Undisturbed, mode: str, faults: list[Fault], *more: str
) -> None:
    """Run with these faults, and check everything that is promised."""
    whole, run_dir = undisturbed(mode, *more), user.home / "run"
    options = ("--data", images, *OPTIONS, *MODES[mode], *more)
    run = FaultyRun(user, run_dir, options, num_lines=len(read_journal(whole)))
    run.inject(faults)
    assert_as_promised(run_dir, whole, mode)


def assert_as_promised(run_dir: Path, whole: Path, mode: str) -> None:
    assert_whole(run_dir)
    assert read_json(run_dir / "report.json")["run"]["failed_searches"] == {}
    if mode != "concurrent":
        assert_same_results(whole, run_dir)


@pytest.fixture
def user(tmp_path: Path) -> User:
    return make_user(tmp_path / "user")


@pytest.mark.parametrize(
    ("mode", "seed", "num", "victims"),
    [
        # These seeds draw each victim once or twice, before the search, in it and after it.
        ("one at a time", 27, 3, ("driver", "ctrl-c", "sigterm")),
        ("no early stopping", 6, 4, ("driver", "trial", "worker", "trial")),
    ],
)
def test_a_run_that_is_killed_has_the_results_of_one_that_was_not(
    user: User, images: Path, undisturbed: Undisturbed, mode: str, seed: int, num: int, victims: tuple[str, ...]
) -> None:
    run_with_faults(user, images, undisturbed, mode, draw_faults(seed, num, victims))


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("seed", "num", "victims"),
    [(10, 2, ("driver",)), (11, 3, ("trial",)), (12, 3, ("worker",)), (13, 3, ("ctrl-c", "trial", "worker"))],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else None,
)
def test_a_run_that_is_killed_at_more_moments_has_the_results_of_one_that_was_not(
    user: User, images: Path, undisturbed: Undisturbed, mode: str, seed: int, num: int, victims: tuple[str, ...]
) -> None:
    faults = draw_faults(10 * seed + list(MODES).index(mode), num, victims)
    run_with_faults(user, images, undisturbed, mode, faults, *LIGHT)


DIE_BETWEEN_RUNGS = """
import os
import signal
import sys
from orchestrator.cli import run_command
from orchestrator.run.journal import JournalWriter

append = JournalWriter.append

def append_and_die(journal, **entry):
    line = append(journal, **entry)
    if entry["trial"].endswith("mlp_probe/005") and entry["epoch"] == 6 and entry["state"] == "RUNNING":
        os.kill(os.getpid(), signal.SIGKILL)
    return line

JournalWriter.append = append_and_die
sys.exit(run_command(sys.argv[1:]))
"""


def test_a_trial_killed_between_two_rungs_is_stopped_as_if_it_had_not_been_killed(
    user: User, images: Path, undisturbed: Undisturbed
) -> None:
    """The last trial of a search, after its first rung: at the second it meets its peers from before the kill."""
    mode = "one at a time"
    run_dir, options = user.home / "run", ("--data", images, *OPTIONS, *MODES[mode])
    done = user.call(sys.executable, "-c", DIE_BETWEEN_RUNGS, "--all-bones", "--run-dir", run_dir, *options)
    assert done.returncode == -9, done.stderr
    user.wait_for_end()
    cut = read_journal(run_dir)[-1]
    assert (cut["epoch"], cut["state"]) == (6, "RUNNING")
    assert "PRUNED" in {line["state"] for line in read_journal(run_dir)}
    before = take_stock(run_dir)
    user.run_study("--run-dir", run_dir, *options)
    assert_nothing_changed(before, run_dir)
    assert_as_promised(run_dir, undisturbed(mode), mode)


FAIL_A_SEARCH = """
import sys
from dataclasses import replace
import orchestrator.search.tuner as search
from orchestrator.cli import run_command

make_job = search.make_job

def make_impossible_job(config, trial):
    job = make_job(config, trial)
    if trial.search == "specialist:wrist/mlp_probe":  # needs more memory than exists
        job = replace(job, settings=replace(job.settings, hidden_size=10**9))
    return job

search.make_job = make_impossible_job
sys.exit(run_command(sys.argv[1:]))
"""


def test_a_search_whose_trials_all_fail_is_reported_and_the_rest_completes(user: User, images: Path) -> None:
    search, run_dir = "specialist:wrist/mlp_probe", user.home / "run"
    options = ("--all-bones", "--data", images, "--run-dir", run_dir, *TINY)
    done = user.call(sys.executable, "-c", FAIL_A_SEARCH, *options)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("failed:")]
    assert f"{search}: every trial failed" in line
    report = read_json(run_dir / "report.json")
    assert set(report["run"]["failed_searches"]) == {search}
    assert report["selected"]["wrist"]["target"] == "baseline"
    assert "every trial failed" in (run_dir / "report.html").read_text(encoding="utf-8")
    ends = {line["trial"]: line for line in read_journal(run_dir) if line["state"] != "RUNNING"}
    assert set(ends) == set(pd.read_csv(run_dir / "plan.csv")["trial"])
    failed = {name: line["reason"] for name, line in ends.items() if line["state"] == "FAILED"}
    assert set(failed) == {name for name in ends if name.startswith(search)}
    assert all(
        re.match(r"the worker failed [4-7] times: .*can't allocate memory", reason) for reason in failed.values()
    )
    again = user.call(sys.executable, ROOT / "run_study.py", *options)
    assert again.returncode == 1
    assert "this run is finished" in again.stdout


NODES = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
print("address:", cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(nodes.pop(0), allow_graceful=False)
    nodes.append(cluster.add_node(num_cpus=1))
"""
"""Two worker nodes; for every line on standard input, one is killed and another one is added."""


@contextmanager
def nodes(user: User) -> Iterator[tuple[str, Callable[[], None]]]:
    """Start a cluster; return its address and a function that kills one of its nodes."""
    with user.start(sys.executable, "-c", NODES, RAY_AUTH_MODE="disabled") as head:
        line = wait_until(lambda: [li for li in user.log.read_text().splitlines() if "address:" in li], "the head")

        def kill_node() -> None:
            assert head.stdin is not None
            head.stdin.write("\n")
            head.stdin.flush()

        yield line[0].split()[-1], kill_node


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("mode", "seed", "num"),
    [
        ("no early stopping", 3, 1),
        *(pytest.param(mode, 30 + number, 2, marks=pytest.mark.exhaustive) for number, mode in enumerate(MODES)),
    ],
)
def test_a_run_that_loses_nodes_continues_on_the_others(
    user: User, images: Path, undisturbed: Undisturbed, mode: str, seed: int, num: int, tmp_path: Path
) -> None:
    whole = undisturbed(mode, *LIGHT)
    owner = make_user(tmp_path / "owner")
    with nodes(owner) as (address, kill_node):
        run = FaultyRun(
            user,
            user.home / "run",
            ("--data", images, "--address", address, *OPTIONS, *MODES[mode], *LIGHT),
            num_lines=len(read_journal(whole)),
            kill_node=kill_node,
            environment={"RAY_AUTH_MODE": "disabled"},
        )
        run.inject(draw_faults(seed, num, ("node",)))
    assert_as_promised(user.home / "run", whole, mode)
