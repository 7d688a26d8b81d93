"""Every string of report.json and exploration.json reaches a page as text: each is tried in turn."""

import copy
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report_factories import (
    METRICS,
    PIXEL,
    make_audited,
    make_exploration,
    make_paper,
    make_replicate,
    make_report,
    make_trials,
)

from orchestrator.report import page as page_module
from orchestrator.report import render_data_page
from orchestrator.report.page import Figures, draw_figures, gather_data_parts, render_page
from orchestrator.run.directory import RunDir
from orchestrator.run.files import write_json

WORD = "qzxjq"
PAYLOAD = (
    f'javascript:{WORD}\'" onload={WORD} x="><script>{WORD}</script><img src=x onerror={WORD}()>'
    f"<a href='javascript:{WORD}()'>{{{{ 6*7 }}}}{{% raw %}}</svg></style></title>]]>--><!--&lt;"
)
BONES = ("hand", "leg", "hip")
SEARCH = "baseline/mlp_probe"
SHORT = "<i id='x'>\"&amp;"
"""No longer than the names that a figure shows."""
Place = tuple[Any, ...]
"""Keys and indices that lead to a string."""


def make_full_report() -> dict[str, Any]:
    """Return a report in which every part of the page is there."""
    report: dict[str, Any] = make_report(
        BONES,
        paper=make_paper("hand"),
        audit={"asked": 2, "trials": make_audited(0.01, -0.2)},
        replicates={SEARCH: make_replicate([11])},
        candidates={"linear_probe": 0.96, "finetune": 0.94},
        failed={"specialist:leg/mlp_probe": "specialist:leg/mlp_probe: every trial failed"},
    )
    report["data"]["corrections"] = {
        "file": "fixes.csv",
        "num_rows": 2,
        "images_changed": 2,
        "images_unchanged": 0,
        "by_source": {"reader A": 2},
    }
    return report


@pytest.fixture(autouse=True)
def _compiled_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile the templates once for hundreds of pages."""
    monkeypatch.setattr(page_module, "make_environment", functools.cache(page_module.make_environment))


WINNERS = {
    search: {"trial": f"{search}/000", "lr_schedule": "step", "lr": 0.01, "weight_decay": 8.3, "num_epochs": 5}
    | {"score": 0.8, "kept_epoch": 3}
    for search in (SEARCH, "specialist:hand/mlp_probe", "specialist:hip/mlp_probe", "router/linear_probe")
}


def show_report(parts: dict[str, Any]) -> str:
    """Return report.html without its figures."""
    nothing = Figures(**{field.name: () for field in dataclasses.fields(Figures)})
    images = gather_data_parts(parts["exploration"] | {"samples": []}, Path())
    return render_page(parts["report"], parts["winners"], nothing, images)


@pytest.fixture
def show_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], str]:
    """Return a function that renders data.html without its figures."""
    monkeypatch.setattr(page_module, "draw_data", lambda *_: [])
    rundir = RunDir(tmp_path)
    rundir.samples.mkdir()
    (rundir.samples / "000.png").write_bytes(PIXEL)

    def show(parts: dict[str, Any]) -> str:
        write_json(rundir.exploration, parts["exploration"])
        render_data_page(rundir)
        return rundir.data_html.read_text(encoding="utf-8")

    return show


def make_parts() -> dict[str, Any]:
    report = make_full_report()
    return {"report": report, "winners": WINNERS, "exploration": make_exploration(BONES, report["data"])}


class Elements(HTMLParser):
    """The elements of a page with the names of their attributes, the attributes with the payload, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.shapes: set[tuple[str, frozenset[str]]] = set()
        self.touched: set[str] = set()
        self.links: set[str] = set()
        self.text = ""
        self.comments: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.shapes.add((tag, frozenset(name for name, _ in attrs)))
        self.touched |= {name for name, value in attrs if WORD in (value or "")}
        self.links |= {value or "" for name, value in attrs if name in ("href", "src")}

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def check_harmless(html: str, plain: Elements, where: Place) -> bool:
    """Check that the payload adds no element or attribute to the plain page; return whether the page shows it."""
    found = Elements(html)
    assert found.shapes <= plain.shapes, (where, found.shapes - plain.shapes)
    assert found.touched <= {"title", "alt"}, (where, found.touched)
    assert found.comments == plain.comments, where
    assert all(re.match(r"#|data:image/(png|svg\+xml);base64,[\w+/=]*$", link) for link in found.links), where
    is_shown = WORD in html
    if WORD in found.text:
        assert "{{ 6*7 }}" in found.text and "42" not in found.text.split(WORD)[-1][:9], where
    return is_shown


def list_strings(content: Any, path: Place = ()) -> Iterator[tuple[Place, bool]]:
    """Return the place of every string, and whether it is a key."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield (*path, key), True
            yield from list_strings(value, (*path, key))
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            yield from list_strings(value, (*path, number))
    elif isinstance(content, str):
        yield path, False


def choose_places(parts: dict[str, Any]) -> list[tuple[Place, bool]]:
    """Choose one place of those that differ only in a number or in a name that the data brought."""
    report = make_report(BONES)
    brought = {*BONES, *METRICS, *report["systems"], *report["run"]["searches"]}
    chosen = {}
    for path, is_key in list_strings(parts):
        shape = tuple("*" if isinstance(step, int) or step in brought else step for step in path)
        chosen.setdefault((shape, is_key), (path, is_key))
    return list(chosen.values())


def put_payload(parts: dict[str, Any], path: Place, *, is_key: bool) -> dict[str, Any]:
    """Return a copy with the payload behind a string, or behind a key."""
    changed = copy.deepcopy(parts)
    holder: Any = changed
    for step in path[:-1]:
        holder = holder[step]
    if is_key:  # in its place, as order matters to no page but to this
        items = [(f"{key}{PAYLOAD}" if key == path[-1] else key, value) for key, value in holder.items()]
        holder.clear()
        holder.update(items)
    elif isinstance(holder, dict):
        holder[path[-1]] = f"{holder[path[-1]]}{PAYLOAD}"
    return changed


def try_every_string(show: Callable[[dict[str, Any]], str], *tried: str) -> int:
    """Put the payload into every string of these parts in turn; count how often a page shows it."""
    parts = make_parts()
    plain = Elements(show(parts))
    num_shown = 0
    for path, is_key in choose_places({name: parts[name] for name in tried}):
        try:
            html = show(put_payload(parts, path, is_key=is_key))
        except Exception:  # a name that the page is built upon: no page, no harm
            continue
        num_shown += check_harmless(html, plain, path)
    return num_shown


def test_every_string_of_a_report_reaches_the_page_as_text() -> None:
    assert try_every_string(show_report, "report", "winners") > 50


def test_every_string_of_an_exploration_reaches_its_page_as_text(show_data: Callable[[dict[str, Any]], str]) -> None:
    assert try_every_string(show_data, "exploration") > 8


def test_figures_are_drawn_with_markup_in_every_name_as_text() -> None:
    plain, marked = (list_shapes(bones) for bones in (BONES, tuple(f"{SHORT}{bone}" for bone in BONES)))
    assert marked <= plain, marked - plain


def list_shapes(bones: tuple[str, ...]) -> set[tuple[str, str]]:
    """Return the elements and attributes of all figures of a run over these bones; no link leads out of its figure."""
    report = make_report(bones)
    for row in report["comparisons"]:
        row["reason"] = bones[0]
    searches = report["run"]["searches"]
    exploration = make_exploration(bones, report["data"])
    specialist = next(search for search in searches if bones[0] in search)
    winners = {specialist: {"trial": f"{specialist}/000", "kept_epoch": 3}}
    figures = draw_figures(report, winners, make_trials(searches), exploration)
    shapes = set()
    for drawing in figures.all():
        for element in ElementTree.fromstring(drawing.svg).iter():
            shapes |= {(str(element.tag), name) for name in element.attrib}
            links = [value for name, value in element.attrib.items() if name.endswith("href")]
            assert all(link.startswith("#") for link in links), drawing.name
    return shapes
