"""The layout: which group of modules may import which, no circle, small folders, a short way to the training step."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_MODULES = 15
BASE = {"errors", "storage"}
MURA_MODELS = {
    "errors": set(),
    "storage": {"errors"},
    "data": BASE,
    "evaluation": BASE,
    "networks": {"data", *BASE},
    "phantom": {"data", *BASE},
    "training": {"networks", "data", "evaluation", *BASE},
    "inference": {"networks", "data", "evaluation", *BASE},
}
"""Group -> the groups of mura_models that it may import."""
STEPS = ("cli", "pipeline", ("evaluation", "preflight"), "search", "ingest", "cluster", "run")
"""Groups of orchestrator in the direction of imports: each may import every later one."""
MAY_USE = {
    "progress": {"cli", "pipeline", "ingest", "search", "preflight"},
    "report": {"cli", "pipeline"},
    "options": {"cli"},
}
"""Other groups of orchestrator, which need at most `run` -> the groups that may import them."""
MAIN_PATH = (
    "run_study",
    "orchestrator.cli",
    "orchestrator.pipeline",
    "orchestrator.search.stages",
    "orchestrator.search.trial",
    "mura_models.training.loop",
)
"""The files that a newcomer reads from the command to the training step."""


def list_allowed_in_orchestrator() -> dict[str, set[str]]:
    """Return group -> the groups of orchestrator that it may import."""
    allowed: dict[str, set[str]] = {"progress": set(), "report": {"run"}, "options": {"run"}}
    later: set[str] = set()
    for step in reversed(STEPS):
        names = {step} if isinstance(step, str) else set(step)
        for name in names:
            allowed[name] = later | {group for group, users in MAY_USE.items() if name in users}
        later = later | names
    return allowed


ALLOWED = {"mura_models": MURA_MODELS, "orchestrator": list_allowed_in_orchestrator()}


@pytest.mark.parametrize("package", ALLOWED)
def test_groups_import_in_one_direction(package: str) -> None:
    wrong = []
    for module, imported in list_imports().items():
        group = parse_group(module)
        for other in sorted(imported):
            target = parse_group(other)
            is_checked = group[0] == target[0] == package and group != target and group[1]
            if is_checked and target[1] not in ALLOWED[package].get(group[1], set()):
                wrong.append(f"{module} -> {other}")
    assert wrong == []


@pytest.mark.parametrize("package", ALLOWED)
def test_every_module_is_in_a_known_group(package: str) -> None:
    groups = {group for top, group in map(parse_group, list_imports()) if top == package and group}
    assert groups == set(ALLOWED[package])


def test_no_circle_of_imports_between_files() -> None:
    TopologicalSorter(list_imports()).prepare()  # raises CycleError, which names the circle


def test_no_circle_of_imports_between_groups() -> None:
    groups: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for module, imported in list_imports().items():
        group = parse_group(module)
        if group[1]:  # a package itself only hands names on
            groups.setdefault(group, set()).update(parse_group(other) for other in imported)
    TopologicalSorter({group: others - {group} for group, others in groups.items()}).prepare()


def test_no_folder_has_too_many_modules() -> None:
    folders = [folder for package in ALLOWED for folder in (ROOT / package, *(ROOT / package).rglob("*/"))]
    counts = {folder: len([path for path in folder.glob("*.py") if path.stem != "__init__"]) for folder in folders}
    assert {str(folder.relative_to(ROOT)): num for folder, num in counts.items() if num > MAX_MODULES} == {}


def test_the_training_step_is_at_most_six_files_from_the_command() -> None:
    assert len(MAIN_PATH) <= 6
    for module, following in pairwise(MAIN_PATH):
        assert following in list_imports()[module], f"{module} does not import {following}"
    assert "def train_step" in list_modules()[MAIN_PATH[-1]].read_text(encoding="utf-8")


def parse_group(module: str) -> tuple[str, str]:
    """Return package and group of a module: the folder or the file next to it; no group for the package itself."""
    package, _, rest = module.partition(".")
    return package, rest.split(".")[0]


@cache
def list_modules() -> dict[str, Path]:
    """Return module -> file."""
    modules = {"run_study": ROOT / "run_study.py"}
    for path in (path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


@cache
def list_imports() -> dict[str, set[str]]:
    """Return module -> the modules of this project that it imports, at any depth of the code."""
    modules, imports = list_modules(), {}
    for module, path in modules.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno}: a relative import"
                parents = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= parents & set(modules) or {str(node.module)}
        imports[module] = names & set(modules)
    return imports
