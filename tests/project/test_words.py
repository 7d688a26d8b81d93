"""Words that the project does not use, counted in every text file that git tracks; `pytest -s` prints the counts."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUFFIXES = {".py", ".md", ".j2", ".yaml", ".yml", ".toml", ".css", ".cff", ".ipynb", ""}
THINGS = (
    "bone|label|search|fold|epoch|step|trial|image|node|study|patient|seed|stage|part|file|model|recipe|kind|row|digest"
    "|group|run|view|head|task|second|minute|hour"
)
COUNTED = (
    "one|two|three|four|five|eight|[0-9]+|images|trials|rows|lines|patients|epochs|steps|features|bytes|heads|tasks"
)
RULES = {
    # Words, wherever they stand: in prose, in names of several words, in any case.
    "film": r"\bfilms?\b",
    "anew": r"\banew\b",
    "mend": r"\bmend(s|ed|ing)?\b",
    "keeper": r"\bkeepers?\b",
    "told": r"\btold\b",
    "crown": r"\bcrown(s|ed)?\b",
    "orphan": r"\borphan(s|ed)?\b",
    "knock": r"\bknock(s|ed|ing)?\b",
    "beside": r"\bbeside\b",
    "whoever": r"\bwhoever\b",
    "nobody": r"\bnobody\b",
    "ladder": r"\bladders?\b",
    "judge": r"\bjudg(e|es|ed|ing)\b",
    "serve, of a model": r"\b(served|serves|serving)\b(?!.*(http|port|page|\.md))",
    "lie, of what is stored": r"\b(lie|lies)\b(?! (in [\[(]|between|midway|within|apart|outside))",
    "rows a thing": rf"\b({COUNTED}) an? ({THINGS})\b",
}
RAW_RULES = {
    "a row a thing": r"(?i)\ban? [a-z]+ an? [a-z]+",
    # An outcome in running text and `dict.update` are ordinary; names of views and of steps are not.
    "outcome, of a view": r"(?i)_outcomes?\b|\boutcomes?_|\bOUTCOMES?\b|outcomes? of the (paper|augment)",
    "update, of a step": r"(?<![.\w-])(?<!apt-get )updates?(?![\w(-]| the\b)|_updates?\b",
}
BAD_BEGINNING = re.compile(r"\s*(Give|Say|Tell)s?\b")


@pytest.mark.parametrize("rule", [*RULES, *RAW_RULES])
def test_a_word_that_the_project_does_not_use_is_nowhere(rule: str) -> None:
    pattern = re.compile(RULES.get(rule) or RAW_RULES[rule], flags=re.IGNORECASE if rule in RULES else 0)
    places = [
        f"{place}: {line.strip()[:100]}"
        for place, line in list_lines()
        for _ in pattern.finditer(split_names(line) if rule in RULES else line)
    ]
    assert_none(rule, places)


def test_no_docstring_begins_with_give_say_or_tell() -> None:
    places = []
    for path in (path for path in list_files() if path.suffix == ".py"):
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            text = str(node.value.value) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else ""
            if BAD_BEGINNING.match(text):
                places.append(f"{path}:{node.lineno}: {text[:80]}")
    assert_none("docstrings with Give, Say, Tell", places)


def assert_none(what: str, places: list[str]) -> None:
    print(f"{len(places):5} {what}")
    assert places == [], f"{what}: {len(places)} places, the first of them:\n" + "\n".join(places[:20])


def split_names(line: str) -> str:
    """Return a line with `snake_case` and `CamelCase` as separate words."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", line).replace("_", " ")


@cache
def list_files() -> tuple[Path, ...]:
    """List the text files that git tracks, but for this one."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = (Path(line) for line in listed.splitlines())
    here = Path(__file__).relative_to(ROOT)
    return tuple(path for path in paths if path.suffix in SUFFIXES and path != here and (ROOT / path).is_file())


@cache
def list_lines() -> tuple[tuple[str, str], ...]:
    """Return the place and the text of every line, and the name of every file as a line of its own."""
    return tuple(iterate_lines())


def iterate_lines() -> Iterator[tuple[str, str]]:
    for path in list_files():
        yield f"{path}", str(path)
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), start=1):
            yield f"{path}:{number}", line
