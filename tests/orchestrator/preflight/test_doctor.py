"""`mura doctor` and the checks before a run: each problem with its line and its remedy, and the whole on real Ray."""

import os
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from ray_helpers import BIN, TINY, User, find_free_port, make_user, wait_until, write_images

from mura_models.errors import ConfigError
from mura_models.networks.backbone_spec import BackboneSpec
from orchestrator.preflight.doctor import examine
from orchestrator.preflight.findings import Finding, ok, problem, raise_first_problem
from orchestrator.preflight.node_checks import Install, NodeFacts, check_dashboard_port, check_node, check_requirements
from orchestrator.preflight.node_facts import find_port_holder, try_download
from orchestrator.preflight.ray_token import TokenFacts, find_token_facts, is_readable_by_others, judge_tokens
from orchestrator.preflight.run_checks import examine_weights
from orchestrator.run.config import RunConfig
from orchestrator.run.execution import ExecutionOptions
from orchestrator.run.presets import make_preset

VERSIONS = {
    "ray": "2.60.0",
    "torch": "2.14.1",
    "torchvision": "0.29.1",
    "timm": "1.0.31",
    "onnxruntime": "1.32.0",
    "numpy": "2.4.6",
}
HERE = Install(python="3.11.7", versions=VERSIONS, torch_cuda="13.0", code="abc")
NODE = NodeFacts(name="10.0.0.2", install=HERE, temp="/tmp/ray", free_bytes=10**10)
GPU_NODE = replace(NODE, num_gpus=2.0, sees_cuda=True, devices=("NVIDIA H100", "NVIDIA H100"))
CPU_BUILD = replace(HERE, torch_cuda=None)


def other(python: str = "3.11.7", code: str | None = "abc", **versions: str | None) -> Install:
    return Install(python=python, versions=VERSIONS | versions, torch_cuda="13.0", code=code)


@pytest.mark.parametrize(
    ("node", "told"),
    [
        (replace(NODE, install=other(python="3.12.1")), "has python 3.12, here it is 3.11: install python 3.11 there"),
        (replace(NODE, install=other(ray="2.55.0")), "has ray 2.55.0, here it is 2.60.0: install ray 2.60.0 there"),
        (replace(NODE, install=other(torch=None)), "lacks torch: install there what is installed here"),
        (replace(NODE, install=other(code=None)), "lacks this project: install there what is installed here"),
        (
            replace(GPU_NODE, sees_cuda=False),
            "has 2 GPUs for Ray, and its torch sees none: it is built for CUDA 13.0: see `nvidia-smi` there; "
            "update the driver, or install a torch for the CUDA that it has, or give --gpus-per-trial 0",
        ),
        (
            replace(GPU_NODE, sees_cuda=False, install=CPU_BUILD),
            "its torch sees none: it is built for CPUs: install a torch that is built for CUDA there",
        ),
        (
            replace(NODE, storage_error="No space left on device"),
            "cannot get bytes into the run directory (No space left on device): open the ports",
        ),
    ],
)
def test_a_node_that_a_run_would_fail_on_is_a_problem(node: NodeFacts, told: str) -> None:
    (finding,) = check_node(node, HERE, uses_gpus=True)
    assert finding.level == "problem"
    assert str(finding).startswith(f"node 10.0.0.2 {told}") or told in str(finding)


@pytest.mark.parametrize(
    ("node", "told"),
    [
        (replace(NODE, install=other(torch="2.13.0")), "has torch 2.13.0, here it is torch 2.14.1: figures may differ"),
        (replace(NODE, install=other(code="abd")), "has another version of this project's code: install there"),
        (replace(NODE, free_bytes=10**8), "has 100 MB free in Ray's temporary folder (/tmp/ray): make room for 300 MB"),
        (replace(GPU_NODE, sees_cuda=False), "its torch sees none"),  # where trials run on CPUs
    ],
)
def test_a_node_that_a_run_survives_is_a_warning(node: NodeFacts, told: str) -> None:
    fine, finding = check_node(node, HERE, uses_gpus=False)
    assert (fine.level, finding.level) == ("ok", "warning")
    assert told in str(finding)


def test_a_node_that_does_not_answer_could_not_be_checked() -> None:
    (finding,) = check_node(replace(NODE, error="no answer within 60 s"), HERE, uses_gpus=True)
    assert finding.level == "warning"
    assert "node 10.0.0.2 could not be checked (no answer within 60 s): see that it answers" in str(finding)


def test_a_sound_node_is_one_line() -> None:
    (finding,) = check_node(GPU_NODE, other(python="3.11.9"), uses_gpus=True)
    assert finding.level == "ok"
    assert "2 GPUs (NVIDIA H100)" in str(finding)


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        ({"torch": "2.14.1+cu130", "torchvision": "0.29.1"}, []),
        ({"torchvision": "0.29.1"}, []),
        (
            {"torch": "2.13.0", "torchvision": "0.29.1"},
            [
                "torch 2.13.0 does not go with torchvision 0.29.1, which needs torch==2.14.1: "
                "pip install 'torch==2.14.1'"
            ],
        ),
    ],
)
def test_torch_and_torchvision_must_go_together(installed: dict[str, str], told: list[str]) -> None:
    requires = {"torchvision": ["numpy", "torch (==2.14.1)", "gdown >=4 ; extra == 'gdown'", "torch <2 ; extra == 'x'"]}
    assert [str(finding) for finding in check_requirements(requires, installed)] == told


ADDRESS = {"address": "10.0.0.1:6379"}


@pytest.mark.parametrize(
    ("facts", "level", "told"),
    [
        (TokenFacts(), "ok", "the Ray that is started here asks for one (Ray's default)"),
        (TokenFacts(source="/h/t"), "ok", "(Ray's default): /h/t"),
        (TokenFacts(mode="disabled"), "warning", "can run code in it: unset RAY_AUTH_MODE"),
        (TokenFacts(mode="none"), "warning", "RAY_AUTH_MODE=none: Ray treats this as disabled: set it to token"),
        (TokenFacts(mode=""), "warning", "RAY_AUTH_MODE=: Ray treats this as disabled: set it to token"),
        (TokenFacts(mode="TOKEN"), "ok", "the Ray that is started here asks for one"),
        (
            TokenFacts(unreadable="RAY_AUTH_TOKEN_PATH=/h/t"),
            "problem",
            "RAY_AUTH_TOKEN_PATH=/h/t: none can be read there: write",
        ),
        (TokenFacts(source="/h/t", is_readable_by_others=True), "warning", "can read it (/h/t): chmod 600 /h/t"),
        (TokenFacts(mode="token", **ADDRESS), "problem", "and there is none here: put the cluster's into"),
        (
            TokenFacts(source="/h/t", answer="refused", **ADDRESS),
            "problem",
            "without RAY_AUTH_MODE=token Ray sends none, not even that of /h/t: export RAY_AUTH_MODE=token",
        ),
        (
            TokenFacts(answer="refused", **ADDRESS),
            "problem",
            "the cluster at 10.0.0.1:6379 asks for one, and there is none here: export RAY_AUTH_MODE=token, and put",
        ),
        (
            TokenFacts(mode="token", source="/h/t", answer="refused", **ADDRESS),
            "problem",
            "the cluster at 10.0.0.1:6379 asks for one, and /h/t holds another: put the cluster's into",
        ),
        (TokenFacts(mode="token", source="/h/t", answer="accepted", **ADDRESS), "ok", "takes that of /h/t"),
        (
            TokenFacts(answer="open", **ADDRESS),
            "warning",
            "asks for none: whoever reaches it can run code there",
        ),
        (TokenFacts(unknown="auto is not HOST:PORT", address="auto"), "warning", "could not be checked (auto is not"),
    ],
)
def test_the_token_of_driver_and_cluster(facts: TokenFacts, level: str, told: str) -> None:
    findings = judge_tokens(facts)
    assert [str(finding) for finding in findings if finding.level == level and told in str(finding)]
    assert {finding.level for finding in findings} <= {"ok", "warning", level}


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
def test_a_file_that_holds_no_token_is_told_at_once(
    put: Callable[[Path], object],
    is_wrong_as_rays_own: bool,
    is_named: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    if is_named:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    put(path)
    findings = judge_tokens(find_token_facts(ExecutionOptions()))
    name = f"RAY_AUTH_TOKEN_PATH={path}" if is_named else str(path)
    told = f"token: {name}: none can be read there: write the token there as plain text, or unset or remove it"
    is_wrong = is_named or is_wrong_as_rays_own
    assert [str(finding) for finding in findings if finding.level == "problem"] == ([told] if is_wrong else [])


def test_a_token_is_readable_by_others_where_its_folders_let_them_in(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    token = folder / "token"
    token.write_text("x")
    token.chmod(0o644)
    assert not is_readable_by_others(token)
    token.chmod(0o600)
    folder.chmod(0o755)
    assert not is_readable_by_others(token)


def test_a_token_that_a_run_closes_by_itself_is_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its start a Ray that is started here closes its own file, and no other."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("orchestrator.preflight.ray_token.is_readable_by_others", lambda path: True)
    for path in (tmp_path / ".ray" / "auth_token", tmp_path / "mine"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("a" * 64)
    assert not find_token_facts(ExecutionOptions()).is_readable_by_others
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "mine"))
    facts = find_token_facts(ExecutionOptions())
    assert (facts.source, facts.is_readable_by_others) == (str(tmp_path / "mine"), True)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / ".ray" / "auth_token"))  # then it is left as it is
    assert find_token_facts(ExecutionOptions()).is_readable_by_others


def test_an_address_that_no_run_can_join_is_one_finding_among_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    config = make_preset("quick")
    found = list(
        examine(replace(config, backbone=replace(config.backbone, weights="random")), ExecutionOptions(), None)
    )
    assert {"python", "packages", "disk:"} <= {finding.what for finding in found}
    (told,) = [str(finding) for finding in found if finding.level == "problem"]
    assert "RAY_ADDRESS=http://127.0.0.1:8265" in told


def test_a_dashboard_whose_port_is_taken_is_a_warning() -> None:
    assert check_dashboard_port(None).level == "ok"
    taken = check_dashboard_port("another program")
    assert (taken.level, "port 8265 is held by another program" in str(taken)) == ("warning", True)


@contextmanager
def listener(greeting: bytes) -> Iterator[int]:
    """Answer everybody on a port of 127.0.0.1 with this; return the port."""

    class Greeter(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(10_000)
            self.request.sendall(greeting)

    with socketserver.TCPServer(("127.0.0.1", 0), Greeter) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 nonsense\r\n\r\n", b"", b"\xff\x1b[2J\n"])
def test_a_program_that_speaks_no_http_is_told_in_one_line(greeting: bytes) -> None:
    with listener(greeting) as port:
        assert find_port_holder(port) == "another program"
        is_there, reason = try_download(f"http://127.0.0.1:{port}/resnet18.pth")
    assert is_there is False
    assert reason.isprintable() and reason


def test_the_dashboard_of_another_ray_is_known_by_its_page() -> None:
    assert find_port_holder(find_free_port()) is None
    with listener(b"HTTP/1.0 200 OK\r\n\r\n<title>Ray Dashboard</title>") as port:
        assert find_port_holder(port) == "the dashboard of another Ray"


def test_weights_that_cannot_be_had_are_a_problem_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def look(backbone: BackboneSpec) -> Finding:
        return examine_weights(RunConfig(backbone=backbone))

    assert look(BackboneSpec()).level == "ok"
    assert look(BackboneSpec(name="resnet18", weights="random")).level == "ok"
    unknown = look(BackboneSpec(name="resnet19"))
    assert (unknown.level, str(unknown)[:18]) == ("problem", "backbone=resnet19:")
    missing = look(BackboneSpec(weights=str(tmp_path / "nowhere.pt")))
    assert (missing.level, "no such file: give imagenet, random or" in str(missing)) == ("problem", True)
    for answer, level in (((True, ""), "ok"), ((False, "refused"), "problem"), ((None, "timed out"), "warning")):
        monkeypatch.setattr("orchestrator.preflight.run_checks.try_download", lambda url, answer=answer: answer)
        finding = look(BackboneSpec(name="resnet18"))
        assert finding.level == level
        assert "fetched" in str(finding) or "give --weights FILE, or give --weights random" in str(finding)


def test_a_run_ends_at_the_first_problem_in_one_line() -> None:
    raise_first_problem([ok("python", "3.11.7")])
    with pytest.raises(ConfigError, match=r"^disk is full: make room$"):
        raise_first_problem([ok("python", "3.11.7"), problem("disk", "is full", "make room"), problem("a", "b", "c")])


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
        "python 3.",
        "packages ray",
        "token: the Ray that",
        "weights imagenet",
        "disk needs",
        "trial: a node",
    ):
        assert any(line.startswith(f"ok       {start}") for line in lines), done.stdout
    assert any("bytes from it reach the run directory" in line for line in lines)
    assert not any(line.startswith("problem") for line in lines)
    assert list(run_dir.parent.iterdir()) == []
    assert not (user.cache / "mura").exists()


def test_doctor_tells_every_problem_and_needs_no_data(user: User) -> None:
    done = user.call(BIN / "mura", "doctor", "--weights", "nowhere.pt", "--cpus-per-trial", 1000)
    problems = [line for line in done.stdout.splitlines() if line.startswith("problem")]
    assert done.returncode == 2
    assert [line.split()[1] for line in problems] == ["weights", "trial:"]
    assert "give --cpus-per-trial and --gpus-per-trial that one of them has" in problems[1]
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
def test_doctor_asks_every_node_and_tells_a_missing_token_from_a_wrong_one(tmp_path: Path) -> None:
    head, driver = make_user(tmp_path / "head"), make_user(tmp_path / "driver")
    with head.start(sys.executable, "-c", HEAD, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="a" * 64):
        said = wait_until(lambda: [li for li in head.log.read_text().splitlines() if "address:" in li], "the head")
        address = said[0].split()[-1]

        def look(**more: str) -> str:
            done = driver.call(BIN / "mura", "doctor", "--address", address, **more)
            assert done.returncode == (0 if "problem " not in done.stdout else 2)
            return done.stdout

        right = look(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="a" * 64)
        assert right.count("bytes from it reach the run directory") == 2
        assert f"ok       token: the cluster at {address} asks for one and takes that of RAY_AUTH_TOKEN" in right
        assert "and RAY_AUTH_TOKEN holds another" in look(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="b" * 64)
        assert "asks for one, and there is none here" in look()
