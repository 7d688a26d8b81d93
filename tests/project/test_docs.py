"""The documentation: equal to the command line, and every file and page that it names is there."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from factories import make_manifest

from orchestrator.run.config import RunConfig
from orchestrator.run.directory import RunDir
from orchestrator.run.journal import JournalLine
from orchestrator.run.report_schema import ReportData
from orchestrator.search.plan import make_plan

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
COMMAND_LINE = DOCS / "reference" / "command-line.md"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
OPTION = re.compile(r"--[a-z][a-z-]+")
IMPLIED = {"--help", "--version"}
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)")


def read_help(*command: str) -> str:
    code = f"import sys; from orchestrator.cli import main; sys.exit(main({[*command, '--help']}))"
    wide = os.environ | {"COLUMNS": "300"}  # no option is cut in two
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=wide, capture_output=True, text=True, check=True
    ).stdout


def read_section(heading: str) -> str:
    text = COMMAND_LINE.read_text(encoding="utf-8")
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert found is not None, f"{COMMAND_LINE}: no section {heading}"
    return found.group(1)


def list_commands() -> list[str]:
    return re.findall(r"^## mura (\w+)$", COMMAND_LINE.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("command", [name for name in list_commands() if name != "doctor"])
def test_the_command_line_page_has_every_option_and_no_other(command: str) -> None:
    in_help = set(OPTION.findall(read_help(command))) - IMPLIED
    documented = {
        option
        for row in re.findall(r"^\| (`--.*?`) \|", read_section(f"mura {command}"), flags=re.MULTILINE)
        for option in OPTION.findall(row)
    }
    assert documented == in_help


def test_every_command_has_a_section() -> None:
    listed = re.findall(r"^[\s│]{1,6}([a-z]+) {2,}\S", read_help(), flags=re.MULTILINE)
    assert set(list_commands()) == set(listed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in targets if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_navigation() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = set(re.findall(r"[\w/-]+\.md", str(config["nav"])))
    assert listed == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


def test_every_test_that_the_promises_name_is_there() -> None:
    text = (DOCS / "explanation" / "reliability.md").read_text(encoding="utf-8")
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    named = set(re.findall(r"`(test_\w+\.py)`", text))
    assert named and named <= there


def test_decisions_are_sorted_by_date() -> None:
    text = (DOCS / "explanation" / "decisions.md").read_text(encoding="utf-8")
    dates = re.findall(r"^## (\d{4}-\d{2}-\d{2}): ", text, flags=re.MULTILINE)
    assert dates and dates == sorted(dates)
    assert len(dates) == len(re.findall(r"^## ", text, flags=re.MULTILINE))


def test_modules_that_the_architecture_names_are_there() -> None:
    text = (DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8")
    files = re.findall(r"`((?:orchestrator|mura_models)/[\w/]+\.py|run_study\.py)`", text)
    assert files and [name for name in files if not (ROOT / name).is_file()] == []


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {page.relative_to(tmp_path): page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")}
    loaded = re.compile(
        r'<(?:script|img)[^>]*\ssrc="https?://|<link[^>]*\srel="(?:stylesheet|preconnect)"[^>]*https?://'
    )
    assert pages and [str(page) for page, text in pages.items() if loaded.search(text)] == []


def test_the_run_directory_page_names_every_file_and_every_column_of_plan_and_journal() -> None:
    text = (DOCS / "reference" / "run-directory.md").read_text(encoding="utf-8")
    rundir = RunDir(Path("runs/a"))
    paths = [getattr(rundir, name) for name, value in vars(RunDir).items() if isinstance(value, property)]
    temporary = {"embeddings"}  # removed at the end of a run
    assert [path.name for path in paths if path.name not in text and path.name not in temporary] == []
    columns = [
        *make_plan(RunConfig(num_folds=3), make_manifest()).to_table(),
        *(field.name for field in dataclasses.fields(JournalLine)),
    ]
    assert [name for name in columns if f"`{name}`" not in text] == []


def test_the_report_page_names_every_part_of_report_json() -> None:
    text = (DOCS / "reference" / "report-json.md").read_text(encoding="utf-8")
    assert [field.name for field in dataclasses.fields(ReportData) if f"`{field.name}`" not in text] == []
