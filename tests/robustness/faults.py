"""Faults at seeded moments of a run, and what must hold after any of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from ray_helpers import ROOT, User, read_journal, wait_until

OPTIONS = ("--image-size", "64", "--trials", "6", "--epochs", "10", "--folds", "2")
"""Options of every run here: rungs at epochs 4 and 8 of 10."""
MODES = {
    "one at a time": ("--max-concurrent", "1"),
    "no early stopping": ("--no-early-stopping",),
    "concurrent": (),
}
"""The first two guarantee the same winners and figures after any fault, the third only that nothing is lost."""


@dataclass(frozen=True)
class Moment:
    """When something happens in a run: the part of the run, and the position in it."""

    part: str
    """`before` the search, `search`, or `after` it."""
    share: float
    """In [0, 1): of the journal's lines during the search, of a few seconds elsewhere."""

    def has_come(self, run_dir: Path, since: dict[str, float], num_lines: int) -> bool:
        """Return whether it has come; `since` holds the times when the parts of the run were first seen."""
        now = time.monotonic()
        lines = read_journal(run_dir)
        if self.part == "search":
            return len(lines) > self.share * num_lines
        is_there = run_dir.exists() if self.part == "before" else (run_dir / "trials.parquet").exists()
        if is_there:
            since.setdefault(self.part, now)
        length_s = 12.0 if self.part == "before" else 3.0
        return is_there and now - since[self.part] >= self.share * length_s


ENDS = {"driver": (signal.SIGKILL, -9), "ctrl-c": (signal.SIGINT, 130), "sigterm": (signal.SIGTERM, 143)}
"""How a driver may end: the signal, and its correct exit code."""


PARTS = {"trial": ("search",), "node": ("search",), "worker": ("before", "search", "search", "search")}
"""The parts of a run in which these victims exist; a driver is in all of them."""


@dataclass(frozen=True)
class Fault:
    """What is killed, and when."""

    victim: str
    moment: Moment


def draw_faults(seed: int, num: int, victims: tuple[str, ...]) -> list[Fault]:
    """Draw this many faults in the order of a run: most in the search, others where their victims exist."""
    rng = np.random.default_rng(seed)
    faults = []
    for _ in range(num):
        victim = str(rng.choice(victims))
        parts = PARTS.get(victim, ("before", "search", "search", "search", "after"))
        faults.append(Fault(victim, Moment(str(rng.choice(parts)), float(rng.random()))))
    order = {"before": 0, "search": 1, "after": 2}
    return sorted(faults, key=lambda fault: (order[fault.moment.part], fault.moment.share))


@dataclass
class FaultyRun:
    """A run with faults: the same command, started again until it finishes."""

    user: User
    run_dir: Path
    options: tuple[object, ...]
    num_lines: int
    """Number of lines in the journal of a run without faults."""
    kill_node: Callable[[], None] = lambda: None
    environment: dict[str, str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    """What was done, printed if a test fails."""

    def inject(self, faults: list[Fault]) -> None:
        """Cause each fault at its moment and complete the run; check after each fault that nothing is lost."""
        left = list(faults)
        while left:
            left = self._start(left)
        print(*self.log, sep="\n")
        assert len(self.log) == len(faults), "a fault never came: the run was over before"
        self.user.run_study("--run-dir", self.run_dir, *self.options, **self.environment)

    def _start(self, faults: list[Fault]) -> list[Fault]:
        """Start the command; return the remaining faults when its driver was killed or it ended."""
        command = (sys.executable, ROOT / "run_study.py", "--all-bones", "--run-dir", self.run_dir, *self.options)
        left, since = list(faults), dict[str, float]()
        before = take_stock(self.run_dir)
        with self.user.start(*command, **self.environment) as driver:
            while left and driver.poll() is None:
                if left[0].moment.has_come(self.run_dir, since, self.num_lines) and self._is_there(left[0].victim):
                    fault = left.pop(0)
                    self.log.append(f"{fault} with {len(read_journal(self.run_dir))} lines")
                    if fault.victim in ENDS:
                        self._end(driver, fault.victim)
                    else:
                        self._kill(fault.victim)
                time.sleep(0.02)
            if not left:
                wait_until(lambda: driver.poll() is not None, "the run to end", timeout_s=600)
            assert driver.returncode in (0, *(code for _, code in ENDS.values())), self.user.log.read_text()
        assert_nothing_changed(before, self.run_dir)
        return left if driver.returncode else []

    def _is_there(self, victim: str) -> bool:
        return victim != "worker" or bool(find_workers(self.user))

    def _end(self, driver: "subprocess.Popen[str]", how: str) -> None:
        """End the driver, unless it has just ended by itself; only Ray's agents may stay, for a minute."""
        number, code = ENDS[how]
        driver.send_signal(number)
        driver.wait(120)
        self.user.wait_for_end()
        assert driver.returncode in (0, code), self.user.log.read_text()
        log = self.user.log.read_text()
        assert "Traceback" not in log
        assert driver.returncode <= 0 or log.splitlines()[-1].startswith("Interrupted. Resume with: ")

    def _kill(self, victim: str) -> None:
        if victim == "node":
            self.kill_node()
        elif victim == "trial":
            kill(read_journal(self.run_dir)[-1]["worker"]["pid"])
        else:
            workers = wait_until(lambda: find_workers(self.user), "a worker")
            pid = sorted(workers)[len(self.log) % len(workers)]  # an older or a younger one
            self.log[-1] += f": {workers[pid]}"
            kill(pid)


def find_workers(user: User) -> dict[int, str]:
    """Return Ray's worker processes, process id -> title: tasks, trials, the checkpoint store and idle workers."""
    found = {}
    for process in user.processes():
        with suppress(psutil.Error):
            name = " ".join(process.cmdline())
            if name.startswith("ray::") and "Agent" not in name:  # an agent takes its node with it
                found[process.pid] = name
    return found


def kill(pid: int) -> None:
    """Kill a process, if it still exists."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Stock:
    """The content of a run directory."""

    journals: dict[str, bytes]
    ended: frozenset[str]
    checkpoints: dict[str, int]
    """Of trials that have ended: file name -> modification time."""


def take_stock(run_dir: Path) -> Stock:
    """Record what must not change from now on."""
    names = ("journal.jsonl", "audit.jsonl", "replicates.jsonl")
    journals = {name: (run_dir / name).read_bytes() for name in names if (run_dir / name).exists()}
    whole = {name: content[: content.rfind(b"\n") + 1] for name, content in journals.items()}
    ended = frozenset(line["trial"] for line in read_journal(run_dir) if line["state"] != "RUNNING")
    files = {checkpoint_name(trial): run_dir / "checkpoints" / checkpoint_name(trial) for trial in ended}
    kept = {name: path.stat().st_mtime_ns for name, path in files.items() if path.exists()}
    return Stock(journals=whole, ended=ended, checkpoints=kept)


def checkpoint_name(trial: str) -> str:
    """Return the file name of a trial's checkpoint."""
    return f"{trial.replace('/', '%2F').replace(':', '%3A')}.safetensors"


def assert_nothing_changed(before: Stock, run_dir: Path) -> None:
    """Check that old lines are unchanged and that no trial that had ended was run again."""
    now = take_stock(run_dir)
    for name, content in before.journals.items():
        assert now.journals[name].startswith(content), name
    assert before.ended <= now.ended
    changed = {name for name, time_ns in now.checkpoints.items() if before.checkpoints.get(name, time_ns) != time_ns}
    assert not changed


def assert_whole(run_dir: Path) -> None:
    """Check that a finished run has every epoch of every trial exactly once, both in journal and table."""
    lines = read_journal(run_dir)
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    epochs: dict[str, list[int]] = {}
    ends: dict[str, str] = {}
    for line in lines:
        assert line["trial"] not in ends, "an epoch after the last"
        epochs.setdefault(line["trial"], []).append(line["epoch"])
        if line["state"] != "RUNNING":
            ends[line["trial"]] = line["state"]
    plan = pd.read_csv(run_dir / "plan.csv")
    assert set(epochs) == set(ends) == set(plan["trial"])
    assert set(ends.values()) <= {"COMPLETE", "PRUNED"}
    assert all(of_trial == list(range(1, len(of_trial) + 1)) for of_trial in epochs.values())
    table = pd.read_parquet(run_dir / "trials.parquet")
    written = sorted((line["trial"], line["epoch"], line["metrics"]["dev_loss"]) for line in lines)
    assert sorted(zip(table["trial"], table["epoch"], table["dev_loss"], strict=True)) == written
    assert not list(run_dir.rglob("*.part"))
