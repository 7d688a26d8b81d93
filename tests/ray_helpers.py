"""Helpers for the tests of whole runs: a small data set, commands in their own processes, and Ray's leftovers."""

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from PIL import Image

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
TINY = ("--image-size", "64", "--trials", "2", "--epochs", "3", "--folds", "2")
BONES = ("elbow", "wrist")
MARK = "MURA_TEST_MARK"
FOREIGN = ("RAY_", "MURA_", "CUDA_VISIBLE_DEVICES", "XDG_CACHE_HOME")


def write_images(folder: Path, *, num_train: int = 24, num_test: int = 12) -> Path:
    """Draw this many patients per bone and label, one or two images each; return the path of their manifest."""
    rng = np.random.default_rng(7)
    rows = []
    for split, num_patients in (("train", num_train), ("test", num_test)):
        for bone in BONES:
            for number in range(2 * num_patients):
                patient, label = f"{split}-{bone}-{number}", number % 2
                for view in range(1 + number % 3 // 2):
                    path = f"images/{patient}-{view}.png"
                    save_image(folder / path, bone, label, rng)
                    rows.append((path, bone, patient, "1", label, split))
    manifest = folder / "manifest.csv"
    pd.DataFrame(rows, columns=["path", "bone", "patient", "study", "label", "split"]).to_csv(manifest, index=False)
    return manifest


def save_image(path: Path, bone: str, label: int, rng: np.random.Generator) -> None:
    """Draw a shaft in noise: vertical for an elbow, horizontal for a wrist, with a faint gap if the label is 1."""
    image_HW = rng.normal(60, 30, (80, 96))
    shaft = slice(int(rng.integers(20, 30)), int(rng.integers(42, 52)))
    image_HW[shaft] += 80
    if label:
        gap = int(rng.integers(25, 65))
        image_HW[shaft, gap : gap + int(rng.integers(2, 5))] -= 40
    image_HW = image_HW.clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_HW.T.copy() if bone == "elbow" else image_HW).save(path)


@dataclass(frozen=True)
class User:
    """A user with their own home and cache; every process that they start carries their mark."""

    home: Path
    mark: str
    ray_folder: str
    """Ray's sockets, whose paths must be short, and the address of the last head that was started."""

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    def environment(self, **more: str) -> dict[str, str]:
        """Return this user's environment, without the tester's settings for Ray, GPUs and caches."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        own |= {"HOME": str(self.home), "XDG_CACHE_HOME": str(self.cache), MARK: self.mark}
        own["RAY_TMPDIR"] = self.ray_folder
        return own | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"} | more

    def call(
        self, *command: object, cwd: Path | None = None, timeout_s: float = 400, **more: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end; `more` is added to its environment."""
        return subprocess.run(
            [str(part) for part in command],
            cwd=cwd or self.home,
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def run_study(self, *options: object, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run `python run_study.py --all-bones`, which must succeed."""
        done = self.call(sys.executable, ROOT / "run_study.py", "--all-bones", *options, **more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    @contextmanager
    def start(self, *command: object, **more: str) -> Iterator["subprocess.Popen[str]"]:
        """Start a command; end it and all of its processes with the block. Its output goes to `log`."""
        with self.log.open("w") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=self.home,
                env=self.environment(**more),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        try:
            yield process
        finally:
            self.end_processes()
            process.wait(timeout=30)
            assert process.stdin is not None
            process.stdin.close()

    @property
    def log(self) -> Path:
        return self.home / "started.log"

    def processes(self) -> list[psutil.Process]:
        """Return the processes of this user that still run, Ray's daemons and workers included."""
        return [process for process in psutil.process_iter() if _read_mark(process) == self.mark]

    def wait_for_end(self) -> None:
        """Wait until only Ray's agents run: Ray ends by itself, seconds after its driver, and later under load.

        The agents try for a minute to report the end of Ray to a driver that is gone.
        """
        wait_until(lambda: not self._list_but_agents(), "Ray to follow its driver", timeout_s=180)

    def _list_but_agents(self) -> list[psutil.Process]:
        return [process for process in self.processes() if "Agent" not in _read_command(process)]

    def end_processes(self) -> None:
        """Kill the remaining processes."""
        for process in self.processes():
            with _may_be_gone():
                process.kill()
        wait_until(lambda: not self.processes(), "this user's processes to end")


def _read_command(process: psutil.Process) -> str:
    with _may_be_gone():
        return " ".join(process.cmdline())
    return ""


def make_user(home: Path) -> User:
    """Return a user with an empty home."""
    home.mkdir(parents=True, exist_ok=True)
    ray_folder = tempfile.mkdtemp(prefix="mura-")
    atexit.register(shutil.rmtree, ray_folder, ignore_errors=True)
    return User(home=home, mark=uuid.uuid4().hex, ray_folder=ray_folder)


def list_listeners(user: User) -> set[tuple[str, str]]:
    """Return the name and the address of each process of this user that listens on a port."""
    found = set()
    for process in user.processes():
        with _may_be_gone():
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((process.name(), connection.laddr.ip))
    return found


@contextmanager
def _may_be_gone() -> Iterator[None]:
    with suppress(psutil.Error):
        yield


def _read_mark(process: psutil.Process) -> str | None:
    mark: str | None = None
    with _may_be_gone():
        if process.status() != psutil.STATUS_ZOMBIE:
            mark = process.environ().get(MARK)
    return mark


def wait_until(condition: Callable[[], Any], what: str, *, timeout_s: float = 60) -> Any:
    """Wait until `condition` returns a true value, and return it."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {timeout_s:g} s for {what}")


def find_free_port() -> int:
    """Return a port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def read_journal(run_dir: Path) -> list[dict[str, Any]]:
    """Return the complete lines of the journal; none if it does not exist yet."""
    path = run_dir / "journal.jsonl"
    if not path.exists():
        return []
    content = path.read_bytes()
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def assert_same_results(first: Path, second: Path) -> None:
    """Check that everything that two runs must share is the same, to the last bit."""
    for name in ("plan.csv", "selected.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    for name in ("manifest.parquet", "trials.parquet", "predictions.parquet"):
        pd.testing.assert_frame_equal(*(pd.read_parquet(run / name) for run in (first, second)), check_exact=True)
    reports = [read_json(run / "report.json") for run in (first, second)]
    for part in ("data", "router", "systems", "selected", "comparisons"):
        assert reports[0][part] == reports[1][part]
