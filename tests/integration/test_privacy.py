"""Patient ids and data paths occur only where the README says so; marked images prove it."""

import base64
import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
import requests
from file_formats import detect_format
from marked_data import KINDS, MARKS, find_marks, name, write_marked_images
from ray_helpers import BIN, ROOT, TINY, User, list_listeners, make_user, read_journal, wait_until
from safetensors.torch import save_file

from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.networks.backbones import load_backbone

pytestmark = pytest.mark.slow

MAY_NAME_PATIENTS = {"manifest.parquet", "predictions.parquet", "quarantine.csv"}
"""As the README says. No other file of a run directory may."""
OPTIONS = (*TINY, "--trials", "5", "--epochs", "4", "--replicate-seeds", "1")
LISTS = ("tasks", "actors", "workers", "nodes", "jobs", "placement_groups", "objects", "runtime_envs")
PAGES = (
    *(f"/api/v0/{what}?detail=1&limit=1000" for what in LISTS),
    *(f"/api/v0/{what}/summarize" for what in ("tasks", "actors", "objects")),
    *("/api/v0/tasks/timeline", "/api/v0/cluster_metadata", "/api/v0/cluster_events", "/api/v0/platform_events"),
    *("/api/jobs/", "/nodes?view=summary", "/nodes?view=details", "/nodes?view=hostNameList", "/logical/actors"),
    *("/events", "/api/cluster_status", "/api/component_activities", "/api/serve/applications/"),
    *("/api/data/datasets/01000000", "/api/train/v2/runs", "/api/prometheus/sd", "/test/dump"),
)
SIGHTS = (b"decode_images", b"embed_images", b"ProbeTrial", b"checkpoint-store", b"run_study.py", b"# TYPE ray_")
"""What the pages must show, or the search proves nothing. Not our gauges: a scrape has them only if just set."""


@dataclass
class Watched:
    """A run on marked images, and what its pages and ports showed while it ran."""

    user: User
    data: Path
    run_dir: Path
    output: str = ""
    node_id: str = ""
    sights: set[bytes] = field(default_factory=set)
    """Those of SIGHTS that were seen at any time."""
    found: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Address -> the marks in any of its responses."""
    listeners: set[tuple[str, str]] = field(default_factory=set)

    def look(self) -> None:
        """Request everything from the dashboard and the metrics endpoint."""
        log = self.user.log.read_text()
        if not (dashboard := re.search(r"^dashboard: (\S+)", log, re.MULTILINE)):
            return
        token = (self.user.home / ".ray" / "auth_token").read_text()
        self.listeners |= list_listeners(self.user)
        metrics = re.findall(r"^metrics: (\S+)", log, re.MULTILINE)
        more = [f"/nodes/{self.node_id}", f"/api/v0/logs?node_id={self.node_id}"] if self.node_id else []
        for address in (*metrics, *(dashboard[1] + page for page in (*PAGES, *more)), *metrics):
            with suppress(requests.RequestException):
                answer = requests.get(address, headers={"Authorization": f"Bearer {token}"}, timeout=20)
                if answer.ok:  # if not, another user's Ray has taken the port of one that has ended
                    self.record(address.removeprefix(dashboard[1]), answer.content)

    def record(self, page: str, content: bytes) -> None:
        """Search a response for marks and sights."""
        self.found[page] |= find_marks(content)
        self.sights |= {sight for sight in SIGHTS if sight in content}
        if found := re.search(rb'"node_id": ?"(\w+)"', content):
            self.node_id = found[1].decode()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    user = make_user(tmp_path_factory.mktemp("user"))
    seen = Watched(user=user, data=write_marked_images(user.home), run_dir=user.home / "run")
    weights = user.home / name("weights_folder") / "lite0.safetensors"
    weights.parent.mkdir()
    save_file(load_backbone(BackboneSpec(weights="random")).module.state_dict(), weights)
    command = (sys.executable, ROOT / "run_study.py", "--all-bones", "--data", seen.data, "--run-dir", seen.run_dir)
    with user.start(*command, "--weights", weights, *OPTIONS, RAY_metrics_report_interval_ms="500") as driver:
        wait_until(lambda: read_journal(seen.run_dir), "the search", timeout_s=300)
        driver.send_signal(signal.SIGSTOP)  # even if the pages are slow, they show the run during its search
        seen.look()
        seen.look()
        driver.send_signal(signal.SIGCONT)
        wait_until(lambda: seen.look() or has_ended(driver), "the run to end", timeout_s=600)
        seen.output = user.log.read_text()
        assert driver.returncode == 0, seen.output
    return seen


def test_the_marks_are_where_they_are_allowed(watched: Watched) -> None:
    """Without this, the tests below would pass whatever leaked."""
    manifest = (watched.run_dir / "manifest.parquet").read_bytes()
    assert {"folder", "subfolder", "filename", "patient", "study", "column", "cell"} <= find_marks(manifest)
    assert {"broken_filename", "suffix", "label", "split", "fold"} <= find_marks(
        (watched.run_dir / "quarantine.csv").read_bytes()
    )
    image = next(watched.data.parent.glob(f"{name('subfolder')}/*.png")).read_bytes()
    inside = {"keyword", "png_text", "png_compressed_text", "exif", "exif_utf16", "behind_the_pixels"}
    assert find_marks(image) == inside


def test_a_run_writes_marks_only_where_the_readme_says(watched: Watched) -> None:
    found = {
        str(path.relative_to(watched.run_dir)): marks
        for path in list_files(watched.run_dir)
        if path.name not in MAY_NAME_PATIENTS and (marks := find_marks(path.read_bytes()))
    }
    assert found == {}


def test_files_that_are_passed_on_name_no_folder_of_the_machine(watched: Watched) -> None:
    words = {"home": str(watched.user.home), "clone": str(ROOT)}
    found = {
        str(path.relative_to(watched.run_dir)): places
        for path in list_files(watched.run_dir)
        if path.name not in MAY_NAME_PATIENTS and (places := find_marks(path.read_bytes(), words))
    }
    assert found == {}


def test_the_cache_holds_no_mark(watched: Watched) -> None:
    files = list_files(watched.user.cache / "mura")
    assert len(files) == 4  # an index and an array, of images and of embeddings
    assert {str(path): marks for path in files if (marks := find_marks(path.read_bytes()))} == {}


def test_every_file_is_of_a_format_that_executes_nothing(watched: Watched) -> None:
    files = [*list_files(watched.run_dir), *list_files(watched.user.cache / "mura")]
    unknown = [str(path) for path in files if detect_format(path) is None]
    assert unknown == [str(watched.run_dir / ".lock")]
    assert (watched.run_dir / ".lock").stat().st_size == 0


def test_the_terminal_shows_no_mark(watched: Watched) -> None:
    assert "Headline" in watched.output
    assert find_marks(watched.output.encode()) == set()


def test_rays_logs_hold_no_mark(watched: Watched) -> None:
    files = list_files(Path(watched.user.ray_folder))
    assert {"raylet.out", "gcs_server.out"} <= {path.name for path in files}
    assert {str(path): marks for path in files if (marks := find_marks(path.read_bytes()))} == {}


def test_the_dashboard_shows_no_mark(watched: Watched) -> None:
    assert watched.sights == set(SIGHTS)
    assert len(watched.found) > 20
    assert {page: marks for page, marks in watched.found.items() if marks} == {}


def test_every_port_of_a_run_is_on_loopback(watched: Watched) -> None:
    assert {"gcs_server", "raylet"} <= {process for process, _ in watched.listeners}
    assert {ip for _, ip in watched.listeners} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_predict_names_images_and_nothing_else(watched: Watched, tmp_path: Path) -> None:
    out = tmp_path / "answers.csv"
    command = ("predict", "--bundle", watched.run_dir / "bundle", "--data", watched.data, "--out", out)
    done = watched.user.call(BIN / "mura", *command)
    assert done.returncode == 0, done.stderr
    may_show = {"folder", "subfolder", "filename", "broken_filename", "suffix"}
    assert find_marks((done.stdout + done.stderr).encode()) <= may_show
    assert find_marks(out.read_bytes()) == {"subfolder", "filename", "patient", "study"}
    assert len(pd.read_csv(out)) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_search_finds_a_mark_in_every_spelling(kind: str) -> None:
    spellings = [MARKS[kind].encode(code) for code in ("utf-8", "utf-16", "utf-16-be")]
    spellings += [base64.b64encode(b"x" * n + MARKS[kind].encode() + b"y" * n) for n in range(4)]
    assert [find_marks(b"<p>" + spelling + b"</p>") for spelling in spellings] == [{kind}] * 7


def has_ended(driver: "subprocess.Popen[str]") -> bool:
    """Return whether a process has ended, or ends within two seconds: the requests slow it down."""
    with suppress(subprocess.TimeoutExpired):
        driver.wait(timeout=2)
    return driver.returncode is not None


def list_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
