"""What a user sees of a run in progress: the dashboard's lists, its pages in a browser, and the gauges."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from ray_helpers import BONES, ROOT, User, find_free_port, make_user, read_journal, wait_until, write_images

SEARCHES = {f"specialist:{bone}/mlp_probe" for bone in BONES} | {
    *("baseline/linear_probe", "baseline/mlp_probe", "router/linear_probe"),
}
LONG = ("--image-size", "64", "--trials", "1", "--epochs", "10000", "--folds", "2", "--no-early-stopping")
AT_ONCE = ("--cpus-per-trial", "0.2")


@dataclass(frozen=True)
class Running:
    """A run in progress."""

    dashboard: str
    metrics: str
    token: str
    run_dir: Path

    def fetch(self, path: str) -> Any:
        """Request data from the dashboard as its own pages do."""
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = requests.get(f"{self.dashboard}{path}", headers=headers, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def list_entries(self, what: str) -> list[dict[str, Any]]:
        """List Ray's tasks or actors."""
        entries: list[dict[str, Any]] = self.fetch(f"/api/v0/{what}?limit=1000&detail=1")["data"]["result"]["result"]
        return entries


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    return make_user(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def running(user: User) -> Iterator[Running]:
    images, run_dir = write_images(user.home / "images"), user.home / "run"
    command = (
        sys.executable,
        ROOT / "run_study.py",
        "--all-bones",
        "--data",
        images,
        "--run-dir",
        run_dir,
        *LONG,
        *AT_ONCE,
    )
    with user.start(*command, RAY_metrics_report_interval_ms="1000") as driver:

        def is_training() -> bool:
            assert driver.poll() is None, user.log.read_text()
            return bool(read_journal(run_dir))

        wait_until(is_training, "the first epoch", timeout_s=180)
        log = user.log.read_text()
        yield Running(
            dashboard=re.findall(r"^dashboard: (\S+)", log, re.MULTILINE)[0],
            metrics=re.findall(r"^metrics: (\S+)", log, re.MULTILINE)[0],
            token=(user.home / ".ray" / "auth_token").read_text().strip(),
            run_dir=run_dir,
        )
        assert driver.poll() is None, "the run ended before the tests did"


@pytest.mark.slow
def test_the_dashboard_lists_our_tasks_and_actors_by_descriptive_names(running: Running) -> None:
    def list_classes() -> set[str]:
        return {actor["class_name"].split(".")[-1] for actor in running.list_entries("actors")}

    wait_until(lambda: "ProbeTrial" in list_classes(), "an actor ProbeTrial")
    assert "checkpoint-store" in {actor["name"] for actor in running.list_entries("actors")}
    assert {"decode_images", "embed_images"} <= {task["name"] for task in running.list_entries("tasks")}


@pytest.mark.slow
def test_the_dashboard_lists_the_job(running: Running) -> None:
    jobs = running.fetch("/api/jobs/")
    assert ["run_study.py" in job["entrypoint"] for job in jobs if job["status"] == "RUNNING"] == [True]


@pytest.mark.slow
def test_the_dashboard_refuses_requests_without_the_token(running: Running) -> None:
    assert requests.get(f"{running.dashboard}/api/v0/actors", timeout=30).status_code == 401


@pytest.mark.slow
def test_the_metrics_endpoint_has_gauges_for_every_search(running: Running) -> None:
    def read_gauges() -> dict[str, list[Any]]:
        families = text_string_to_metric_families(requests.get(running.metrics, timeout=30).text)
        return {family.name: family.samples for family in families}

    def list_searches(gauge: str) -> set[str]:
        return {sample.labels["search"] for sample in read_gauges().get(gauge, [])}

    for gauge in ("ray_mura_trials", "ray_mura_best_dev_metric"):
        wait_until(lambda gauge=gauge: list_searches(gauge) == SEARCHES, f"{gauge} of every search", timeout_s=120)
    gauges = read_gauges()
    for sample in gauges["ray_mura_best_dev_metric"]:
        bone, recipe = sample.labels["bone"], sample.labels["recipe"]
        assert sample.labels["search"].endswith(f"/{recipe}")
        assert f":{bone}/" in sample.labels["search"] or bone == "all"
        assert 0 < sample.value <= 1
    for search in SEARCHES:
        assert sum(sample.value for sample in gauges["ray_mura_trials"] if sample.labels["search"] == search) == 1


class Browser:
    """Headless Chromium, driven by the WebDriver protocol (W3C)."""

    def __init__(self, driver_url: str, profile: Path) -> None:
        quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
        quiet = (*quiet, "--disable-background-networking", "--disable-component-update", "--window-size=1600,1200")
        options = {"binary": shutil.which("chromium"), "args": [*quiet, f"--user-data-dir={profile}"]}
        capabilities = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        made = requests.post(f"{driver_url}/session", json=capabilities, timeout=60).json()["value"]
        self._session = f"{driver_url}/session/{made['sessionId']}"

    def open(self, url: str) -> None:
        self._post("url", url=url)

    def read_text(self) -> str:
        text: str = self._post("execute/sync", script="return document.body.innerText", args=[])
        return text

    def find(self, css: str) -> str | None:
        """Return the first matching element, if there is one."""
        found = self._post("elements", using="css selector", value=css)
        return next(iter(found[0].values())) if found else None

    def type(self, css: str, text: str) -> None:
        element = wait_until(lambda: self.find(css), f"{css} on the page")
        self._post(f"element/{element}/value", text=text)

    def close(self) -> None:
        requests.delete(self._session, timeout=30)

    def _post(self, command: str, **content: Any) -> Any:
        answer = requests.post(f"{self._session}/{command}", json=content, timeout=60)
        answer.raise_for_status()
        return answer.json()["value"]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    port = find_free_port()
    process = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return bool(requests.get(f"{url}/status", timeout=5).json()["value"]["ready"])
        except requests.ConnectionError:
            return False

    try:
        wait_until(is_ready, "chromedriver")
        opened = Browser(url, tmp_path / "profile")
        yield opened
        opened.close()
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.browser
@pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs Chromium")
def test_a_user_signs_in_with_the_token_and_sees_the_run(running: Running, browser: Browser) -> None:
    browser.open(f"{running.dashboard}/#/jobs")
    wait_until(lambda: "authentication token" in browser.read_text(), "the question for the token")
    browser.type("input[type=password]", f"{running.token}\ue007")  # U+E007 is Enter (W3C WebDriver, 17.4.2)
    wait_until(lambda: "run_study.py" in browser.read_text(), "the job on the page")
    browser.open(f"{running.dashboard}/#/actors")
    wait_until(lambda: {"ProbeTrial", "checkpoint-store"} <= set(browser.read_text().split()), "our actors")
