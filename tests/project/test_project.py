"""The frame of the project: what is pinned, what make does, and which way imports run."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
MAY_NOT_IMPORT = {
    "mura_models": {"ray", "orchestrator", "run_study"},
    "orchestrator": {"run_study"},
}
HOME_FOLDER = re.compile(rb"/(?:home|Users)/\w+/|/roo[t]/")
OPTIONS = [
    "--all-bones",
    "--bones",
    "--data",
    "--corrections",
    "--run-dir",
    "--fresh",
    "--preset",
    "--recipes",
    "--trials",
    "--epochs",
    "--folds",
    "--image-size",
    "--backbone",
    "--weights",
    "--seed",
    "--metric",
    "--max-concurrent",
    "--no-early-stopping",
    "--gpus-per-trial",
    "--cpus-per-trial",
    "--address",
    "--dry-run",
    "--steps",
    "--sampling",
    "--audit",
    "--replicate-seeds",
    "--ensemble",
    "--finetune-trials",
    "--finetune-epochs",
    "--finetune-steps",
    "--finetune-batch-size",
    "--backbone-lr-factor",
    "--freeze-backbone-epochs",
    "--warm-start-head",
    "--ema-decay",
    "--freeze-batchnorm",
    "--rotation-degrees",
    "--scale-jitter",
    "--brightness-contrast-jitter",
]


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    pins = read_pins()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name}: no pin in constraints.txt"
        assert requirement.specifier.contains(pin), f"{requirement.name}: {pin} is not {requirement.specifier}"


def test_constraints_are_exact_sorted_and_free_of_paths() -> None:
    lines = read_constraint_lines()
    names = [canonicalize_name(line.split("==")[0]) for line in lines]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert names == sorted(set(names))


@pytest.mark.parametrize("package", MAY_NOT_IMPORT)
def test_imports_run_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        against_the_arrow = find_imported_packages(path) & MAY_NOT_IMPORT[package]
        assert not against_the_arrow, f"{path.relative_to(ROOT)} imports {against_the_arrow}"


def test_no_file_names_a_home_folder() -> None:
    leaks = [str(path) for path in list_repository_files() if HOME_FOLDER.search((ROOT / path).read_bytes())]
    assert leaks == []


def test_help_comes_without_torch_or_ray_and_names_every_option() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['run_study.py', '--help']\n"
        "try:\n"
        "    runpy.run_path('run_study.py', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [option for option in OPTIONS if option not in done.stdout] == []


@pytest.mark.parametrize(
    "target", ["run", "test", "test-slow", "test-faults", "test-all", "lint", "types", "check", "bench", "clean"]
)
def test_make_has_the_target(target: str) -> None:
    assert run_make("--dry-run", target).returncode == 0


def test_make_run_hands_its_arguments_on() -> None:
    planned = run_make("--dry-run", "run", "ARGS=--data x.csv").stdout
    assert "run_study.py --all-bones --data x.csv" in planned


def test_fast_slow_and_exhaustive_tests_are_all_there_are() -> None:
    markers = re.findall(r'pytest -m "([^"]+)"', run_make("--dry-run", "test-all", "test-faults").stdout)
    fast, slow, rest = markers
    assert fast == "not (slow or cluster or browser)"
    assert slow == "(slow or cluster or browser) and not exhaustive"
    assert rest == "exhaustive"


def test_make_installs_once_and_again_only_after_a_change(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    assert "pip install" in run_make("--dry-run", "test", folder=tmp_path).stdout

    stamp = tmp_path / ".venv" / ".installed"
    stamp.parent.mkdir()
    stamp.touch()
    assert "pip install" not in run_make("--dry-run", "run", "test", folder=tmp_path).stdout

    later_s = stamp.stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later_s, later_s))
    assert "pip install" in run_make("--dry-run", "run", folder=tmp_path).stdout


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param("exit 1", "must be Python 3.11 or newer", id="too old"),
        pytest.param('case "$2" in *venv*) exit 1;; esac', "has no venv module", id="no venv"),
    ],
)
def test_make_says_in_one_line_which_python_it_cannot_use(tmp_path: Path, script: str, reason: str) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "a-python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    done = run_make("test", f"PYTHON={python}", folder=tmp_path)
    said = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert done.returncode != 0
    assert len(said) == 1 and reason in said[0], done.stderr
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_every_check_once_by_way_of_make() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    called = re.findall(r"^make --no-print-directory (.+)$", script.read_text(), flags=re.MULTILINE)
    assert " ".join(called).split() == ["lint", "types", "test", "test-slow"]


def read_constraint_lines() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def read_pins() -> dict[str, str]:
    pairs = (line.split("==") for line in read_constraint_lines())
    return {canonicalize_name(name): version for name, version in pairs}


def find_imported_packages(path: Path) -> set[str]:
    """Name the top package of every import in a file, at any depth of the code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def list_repository_files() -> list[Path]:
    """List what git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(line) for line in listed.splitlines() if (ROOT / line).is_file()]


def run_make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run make as a user's shell would: without what an outer make hands on."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    environment.pop("ARGS", None)
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=folder,
        env=environment | {"LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
