"""The project around the code: pinned versions, make targets, continuous integration and hooks."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
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
    for text in [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]:
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


def test_help_needs_neither_torch_nor_ray_and_names_every_option() -> None:
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
    "target",
    [
        *("run", "test", "test-slow", "test-faults", "test-all", "coverage", "lint", "types", "check", "bench", "docs"),
        "clean",
    ],
)
def test_make_has_the_target(target: str) -> None:
    assert run_make("--dry-run", target).returncode == 0


def test_make_run_passes_its_arguments_on() -> None:
    planned = run_make("--dry-run", "run", "ARGS=--data x.csv").stdout
    assert "run_study.py --all-bones --data x.csv" in planned


def test_fast_slow_and_exhaustive_tests_are_all_tests() -> None:
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
def test_make_reports_in_one_line_a_python_that_it_cannot_use(tmp_path: Path, script: str, reason: str) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "a-python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    done = run_make("test", f"PYTHON={python}", folder=tmp_path)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert done.returncode != 0
    assert len(lines) == 1 and reason in lines[0], done.stderr
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_every_check_once_with_make() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    called = re.findall(r"^make --no-print-directory (.+)$", script.read_text(), flags=re.MULTILINE)
    assert " ".join(called).split() == ["lint", "types", "docs", "test", "test-slow"]


def test_github_runs_the_same_checks_on_every_supported_python() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    commands = {name: " ".join(step.get("run", "") for step in job["steps"]) for name, job in jobs.items()}
    called = {
        name: {word for words in re.findall(r"\bmake ((?:(?!make\b)[a-z-]+ ?)+)", text) for word in words.split()}
        for name, text in commands.items()
    }
    assert called["linux"] == {"lint", "types", "docs", "test"}
    assert called["slow"] == {"test-slow"}
    assert called["lowest-versions"] == {"test"}
    oldest, *newer = jobs["linux"]["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={oldest}"
    classified = {text.split(" :: ")[-1] for text in project["classifiers"] if "Python :: 3." in text}
    assert classified == {oldest, *newer}
    assert all((ROOT / path).exists() for path in re.findall(r"python (tests/\S+)", " ".join(commands.values())))


def test_hooks_before_a_commit_are_the_projects_own_tools() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    programs = {hook["entry"].split()[0] for hook in hooks}
    assert programs == {".venv/bin/ruff", ".venv/bin/codespell", "make"}


def test_prediction_on_other_systems_needs_no_ray() -> None:
    script = ROOT / "tests" / "project" / "predict_small_bundle.py"
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def read_constraint_lines() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def read_pins() -> dict[str, str]:
    pairs = (line.split("==") for line in read_constraint_lines())
    return {canonicalize_name(name): version for name, version in pairs}


def find_imported_packages(path: Path) -> set[str]:
    """Return the top package of every import in a file, at any depth of the code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def list_repository_files() -> list[Path]:
    """List the files that git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(line) for line in listed.splitlines() if (ROOT / line).is_file()]


def run_make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run make as from a user's shell: without the variables of an outer make."""
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
