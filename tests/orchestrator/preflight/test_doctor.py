"""`mura doctor` and the checks before a run: each error with its line and its remedy, and all of them on real Ray."""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ray_helpers import BIN, ROOT, TINY, User, make_user, wait_until, write_images
from rich.console import Console

from mura_models.errors import ConfigError
from mura_models.networks.backbone_spec import BackboneSpec
from orchestrator.cluster.auth_token import is_readable_by_others
from orchestrator.options import spell_option
from orchestrator.preflight.doctor import examine
from orchestrator.preflight.findings import Finding, report_findings
from orchestrator.preflight.nodes import PROJECT, Install, NodeFacts, inspect_node
from orchestrator.preflight.run_checks import inspect_token, inspect_weights
from orchestrator.progress import Progress
from orchestrator.run.config import RunConfig
from orchestrator.run.execution import ExecutionOptions
from orchestrator.run.presets import make_preset

HERE: Install = {
    "python": "3.11",
    "ray": "2.60.0",
    "torch": "2.14.1",
    "torchvision": "0.29.1",
    "timm": "1.0.31",
    "onnxruntime": "1.32.0",
    "numpy": "2.4.6",
    PROJECT: "abc",
}
NODE = NodeFacts(name="10.0.0.2", install=HERE)
GPU_NODE = replace(NODE, num_gpus=2.0, torch_cuda="13.0", devices=("NVIDIA H100", "NVIDIA H100"))


def install(**different: str | None) -> NodeFacts:
    """Return a node with other versions."""
    return replace(NODE, install={**HERE, **different})


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (install(python="3.12"), "has python 3.12, here it is 3.11: install python 3.11 there"),
        (install(ray="2.55.0"), "has ray 2.55.0, here it is 2.60.0: install ray 2.60.0 there"),
        (install(torch=None), "lacks torch: install the same packages there"),
        (install(**{PROJECT: None}), "lacks this project: install the same packages there"),
        (
            replace(GPU_NODE, devices=()),
            "has 2 GPUs for Ray, but its torch, built for CUDA 13.0, sees none: check `nvidia-smi` and "
            "install a torch for its CUDA version there, or use --gpus-per-trial 0",
        ),
        (replace(GPU_NODE, devices=(), torch_cuda=None), "its torch, built for CPUs, sees none"),
        (
            replace(NODE, storage_error="No space left on device"),
            "cannot send bytes to the run directory (No space left on device): open the ports",
        ),
    ],
)
def test_a_node_that_a_run_would_fail_on_is_an_error(node: NodeFacts, text: str) -> None:
    (finding,) = inspect_node(node, HERE, uses_gpus=True)
    assert finding.level == "error"
    assert str(finding).startswith(f"node 10.0.0.2 {text}") or text in str(finding)


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (install(torch="2.13.0"), "has torch 2.13.0, here it is torch 2.14.1: figures may differ"),
        (install(**{PROJECT: "abd"}), "has another version of this project's code: install the version of this"),
        (replace(GPU_NODE, devices=()), "its torch, built for CUDA 13.0, sees none"),  # if trials run on CPUs
    ],
)
def test_a_node_that_a_run_survives_is_a_warning(node: NodeFacts, text: str) -> None:
    fine, finding = inspect_node(node, HERE, uses_gpus=False)
    assert (fine.level, finding.level) == ("ok", "warning")
    assert text in str(finding)


def test_a_node_that_does_not_answer_could_not_be_checked() -> None:
    (finding,) = inspect_node(replace(NODE, error="no answer within 60 s"), HERE, uses_gpus=True)
    assert finding.level == "warning"
    assert "node 10.0.0.2 could not be checked (no answer within 60 s): check that it is up" in str(finding)


def test_a_sound_node_is_one_line() -> None:
    (finding,) = inspect_node(GPU_NODE, HERE, uses_gpus=True)
    assert finding.level == "ok"
    assert "2 GPUs (NVIDIA H100)" in str(finding)


@pytest.fixture
def token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ray's default file, in a home where no token is set; its folder is there, the file is not."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    return path


@pytest.mark.parametrize(
    ("mode", "token", "address", "level", "text"),
    [
        (None, None, None, "ok", "the Ray started here asks for one: in ~/.ray/auth_token, to be made"),
        (None, "known", None, "ok", "the Ray started here asks for one: RAY_AUTH_TOKEN"),
        ("TOKEN", None, None, "ok", "the Ray started here asks for one"),
        ("disabled", None, None, "warning", "RAY_AUTH_MODE=disabled: anybody who can reach the Ray started here can"),
        ("none", None, None, "warning", "RAY_AUTH_MODE=none: anybody who can reach the Ray started here can run code"),
        ("", None, None, "warning", "RAY_AUTH_MODE=: anybody who can reach the Ray started here can run code in it"),
        (None, None, "10.0.0.1:6379", None, ""),  # connecting to it reports the rest
    ],
)
@pytest.mark.usefixtures("token_file")
def test_the_token_of_a_ray_that_is_started_here(
    mode: str | None,
    token: str | None,
    address: str | None,
    level: str | None,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("RAY_AUTH_MODE", mode), ("RAY_AUTH_TOKEN", token)):
        if value is not None:
            monkeypatch.setenv(name, value)
    findings = list(inspect_token(address))
    assert [finding.level for finding in findings] == ([level] if level else [])
    assert all(text in str(finding) for finding in findings)


def put_nothing(path: Path) -> None:
    """Leave the place of a token empty."""


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize(
    ("put", "is_wrong_as_rays_own"),
    [
        (put_nothing, False),
        (Path.touch, False),
        (Path.mkdir, True),
        (os.mkfifo, True),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), True),
        (lambda path: path.write_bytes(b"a" * 10**6), True),
    ],
    ids=["nothing", "an empty file", "a folder", "a pipe", "no text", "a huge file"],
)
def test_a_file_that_holds_no_token_is_reported_at_once(
    put: Callable[[Path], object],
    is_wrong_as_rays_own: bool,
    is_named: bool,
    token_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if is_named:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token_file))
    put(token_file)
    findings = inspect_token(None)
    name = f"RAY_AUTH_TOKEN_PATH={token_file}" if is_named else str(token_file)
    text = f"token: {name}: holds no token: write the token there as plain text, or unset or remove it"
    is_wrong = is_named or is_wrong_as_rays_own
    assert [str(finding) for finding in findings if finding.level == "error"] == ([text] if is_wrong else [])


def test_a_token_is_readable_by_others_if_its_folders_are_too(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    token = folder / "token"
    token.write_text("x")
    token.chmod(0o644)
    assert not is_readable_by_others(token)
    token.chmod(0o600)
    folder.chmod(0o755)
    assert not is_readable_by_others(token)


def test_a_token_that_others_can_read_is_a_warning_unless_the_run_makes_it_private(
    token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ray that is started here makes its default file private, and no other."""

    def find_warnings(address: str | None = None) -> list[str]:
        return [str(finding) for finding in inspect_token(address) if finding.level == "warning"]

    monkeypatch.setattr("orchestrator.preflight.run_checks.is_readable_by_others", lambda path: True)
    mine = tmp_path / "mine"
    for path in (token_file, mine):
        path.write_text("a" * 64)
    assert find_warnings() == []
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(mine))
    assert find_warnings() == [f"token: other users of this machine can read it ({mine}): chmod 600 {mine}"]
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token_file))  # then it is left as it is
    assert len(find_warnings()) == 1
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert len(find_warnings("10.0.0.1:6379")) == 1


def test_an_address_that_no_run_can_join_is_one_finding_among_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    config = make_preset("quick")
    found = list(
        examine(replace(config, backbone=replace(config.backbone, weights="random")), ExecutionOptions(), None)
    )
    assert {"packages", "disk:"} <= {finding.subject for finding in found}
    (text,) = [str(finding) for finding in found if finding.level == "error"]
    assert "RAY_ADDRESS=http://127.0.0.1:8265" in text


def test_weights_that_cannot_be_loaded_are_an_error_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def look(backbone: BackboneSpec) -> Finding:
        return inspect_weights(RunConfig(backbone=backbone))

    assert look(BackboneSpec()).level == "ok"
    assert look(BackboneSpec(name="resnet18", weights="random")).level == "ok"
    unknown = look(BackboneSpec(name="resnet19"))
    assert (unknown.level, str(unknown)[:18]) == ("error", "backbone=resnet19:")
    assert unknown.spell(spell_option).startswith("--backbone resnet19: ")
    missing = look(BackboneSpec(weights=str(tmp_path / "nowhere.pt")))
    assert (missing.level, "no such file: give imagenet, random or" in str(missing)) == ("error", True)
    to_download = look(BackboneSpec(name="resnet18"))
    assert (to_download.level, "will be downloaded from download.pytorch.org" in str(to_download)) == ("ok", True)
    assert list(tmp_path.iterdir()) == []


def test_a_run_ends_at_the_first_error_in_one_line_and_logs_every_warning() -> None:
    console = Console(record=True, width=200, quiet=False)
    warnings = [Finding.warning("disk", f"is {state}", "free some space") for state in ("small", "slow")]
    report_findings([Finding.ok("python", "3.11.7"), warnings[0]], Progress(console))
    errors = [Finding.error("disk", "is full", "make room"), Finding.error("a", "b", "c")]
    with pytest.raises(ConfigError, match=r"^disk is full: make room$"):
        report_findings([*errors, warnings[1]], Progress(console))
    assert console.export_text() == (
        "warning: disk is small: free some space\nwarning: disk is slow: free some space\n"
    )


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    return make_user(tmp_path_factory.mktemp("user"))


def test_doctor_finds_a_sound_machine_sound_and_leaves_no_trace(user: User) -> None:
    images = write_images(user.home / "images", num_train=20, num_test=4)
    run_dir = user.home / "runs" / "mine"
    run_dir.parent.mkdir()
    done = user.call(BIN / "mura", "doctor", "--data", images, "--run-dir", run_dir, *TINY)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    for start in (
        "packages python 3.",
        "token: the Ray started",
        "weights imagenet",
        "disk needs",
        "trial: a node",
    ):
        assert any(line.startswith(f"ok       {start}") for line in lines), done.stdout
    assert any("can reach the run directory" in line for line in lines)
    assert not any(line.startswith("error") for line in lines)
    assert list(run_dir.parent.iterdir()) == []
    assert not (user.cache / "mura").exists()


def test_doctor_reports_every_error_and_needs_no_data(user: User) -> None:
    done = user.call(BIN / "mura", "doctor", "--weights", "nowhere.pt", "--cpus-per-trial", 1000)
    errors = [line for line in done.stdout.splitlines() if line.startswith("error")]
    assert done.returncode == 2
    assert [line.split()[1] for line in errors] == ["weights", "trial:"]
    assert "--cpus-per-trial 1000 and --gpus-per-trial 0: no node has both, the nodes have" in errors[1]
    assert errors[1].endswith(" GPUs: use values that one of them has")
    assert "not forecast without --data" in done.stdout
    assert "NO DATA GIVEN" not in done.stdout
    assert done.stderr.startswith("error: 2 of ")


HEAD = """
import signal
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print("address:", cluster.address, flush=True)
signal.pause()
"""


@pytest.mark.cluster
def test_every_node_is_checked_and_a_missing_or_wrong_token_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    head, driver = make_user(tmp_path / "head"), make_user(tmp_path / "driver")
    images = write_images(driver.home / "images", num_train=20, num_test=4)
    with head.start(sys.executable, "-c", HEAD, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="a" * 64):
        lines = wait_until(lambda: [li for li in head.log.read_text().splitlines() if "address:" in li], "the head")
        address = lines[0].split()[-1]
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
        right = driver.call(BIN / "mura", "doctor", "--address", address, **token)
        assert right.returncode == 0, right.stdout + right.stderr
        assert right.stdout.count("can reach the run directory") == 2

        def fail(**environment: str) -> str:
            """Return the one line by which a run ends."""
            command = ("--all-bones", "--data", images, "--run-dir", driver.home / "run", "--address", address, *TINY)
            done = driver.call(sys.executable, ROOT / "run_study.py", *command, **environment)
            assert done.returncode == 2, done.stdout + done.stderr
            assert "Traceback" not in done.stderr
            (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert line == done.stderr.splitlines()[-1]
            return line

        remedy = "; if the cluster asks for a token, export RAY_AUTH_MODE=token and put its token into "
        for environment in ({}, token | {"RAY_AUTH_TOKEN": "b" * 64}):
            line = fail(**environment)
            assert re.match("error: (--address |address=)", line)
            assert f"{address}: Failed to connect to Ray cluster at {address}{remedy}" in line
        line = fail(RAY_AUTH_MODE="token")
        assert line.startswith("error: token: Token authentication is enabled but no authentication token was found")
        assert remedy in line
