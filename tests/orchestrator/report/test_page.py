"""The contents of report.html and of the terminal summary."""

import re
from xml.etree import ElementTree

import pytest
from factories import SYSTEM_NAMES
from report_factories import (
    NASTY,
    PATIENT,
    check_layout,
    find_chromium,
    make_report,
    print_to_text,
    read_page,
    write_run,
)

from mura_models.errors import hide_folders
from orchestrator.report import render_report
from orchestrator.report.summary import list_headlines, state_verdict, write_answer


@pytest.fixture(scope="module")
def rundir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("plain"))


def test_answer_reports_better_with_its_interval_and_the_excluded_bones(rundir):
    text = read_page(rundir).text
    assert "specialists (mlp_probe, bone known) are better than the best baseline, +0.030 (95% CI +0.010 to" in text
    assert "the selected system is better than the best baseline" in text
    assert "Left out, as AUROC is undefined if the test set has one label only: hip" in text


def test_figures_of_the_report_are_on_the_page(rundir):
    text = read_page(rundir).text
    assert "0.800 0.750 to 0.850" in text  # a value and its interval
    assert "paired dev gain in auroc over the best baseline -0.0066, standard error 0.0108" in text
    assert "0.000067" in text  # not 6.7e-05
    assert "2 zero bytes" in text
    assert "1,200" in text


def test_dev_figures_state_that_their_threshold_was_fitted_to_the_same_rows(rundir):
    text = read_page(rundir).text
    section = text[text.index("Selected model per bone") : text.index("Study-level AUROC on test, system minus")]
    assert "use a threshold that was fitted to these same rows" in section


def test_page_states_how_few_are_too_few_for_an_interval(rundir):
    rule = "With fewer than 10 images or studies, or fewer than 5 patients, of either label, no interval is given"
    assert rule in read_page(rundir).text


def test_a_missing_figure_is_a_dash_with_its_reason(rundir):
    page = read_page(rundir)
    assert "one class only" in page.titles
    assert not re.search(r"\b(None|nan|null|Undefined)\b", page.text)


def test_page_is_one_file_without_script_or_address_elsewhere(rundir):
    html = rundir.report_html.read_text(encoding="utf-8")
    page = read_page(rundir)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(re.match("data:image/(svg[+]xml|png);base64,", image["src"]) for image in page.images)
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", html)
    for svg in page.figures():
        assert not re.search(r'href="(?!#)', svg)


def test_figures_are_also_files_next_to_the_page(rundir):
    written = {path.read_text(encoding="utf-8") for path in rundir.figures.iterdir()}
    shown = read_page(rundir).figures()
    assert written == set(shown)
    # 2 forests, 2 by bone, 3 ROC (all, hand, leg: hip has one label), 2 router, 5 searches x 3, 10 of the data
    assert len(shown) == 34
    for svg in shown:
        assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_every_figure_of_test_names_its_unit(rundir):
    for svg in read_page(rundir).figures():
        assert re.search(r"by (image|study)|study-level", svg)


def test_report_carries_no_patient_and_no_folder(rundir):
    everything = rundir.report_html.read_text(encoding="utf-8") + "".join(read_page(rundir).figures())
    for secret in (PATIENT, "/wards/jane", "weights/", str(rundir.root)):
        assert secret not in everything
    assert "r18.pt" in everything
    assert "a.csv is Latin-1" in everything


def test_the_same_report_gives_the_same_bytes(rundir):
    before = rundir.report_html.read_bytes()
    render_report(rundir)
    assert rundir.report_html.read_bytes() == before


def test_phantom_is_stated_in_page_title_and_every_figure(tmp_path):
    page = read_page(write_run(tmp_path, is_phantom=True))
    assert page.text.count("PHANTOM: synthetic images") >= 3
    for svg in page.figures():
        assert "PHANTOM: synthetic images" in svg
    assert all("PHANTOM" in image["alt"] for image in page.images)


def test_real_images_are_not_called_phantom(rundir):
    assert "PHANTOM" not in rundir.report_html.read_text(encoding="utf-8") + "".join(read_page(rundir).figures())


def test_bone_names_with_markup_stay_text(tmp_path):
    page = read_page(write_run(tmp_path, bones=(NASTY, "\u9aa8 / \u05d9\u05d3", "hip")))
    assert "script" not in page.tags
    assert NASTY in page.text
    assert "\u9aa8 / \u05d9\u05d3" in page.text
    assert any("$a_b$"[:2] in svg or "&lt;script&gt;" in svg for svg in page.figures())
    for svg in page.figures():
        assert not [e for e in ElementTree.fromstring(svg).iter() if str(e.tag).endswith("script")]


def test_failed_search_is_reported_first_and_in_its_row(tmp_path):
    search = "specialist:leg/mlp_probe"
    reason = f"{search}: every trial failed at /wards/jane/x.py"
    page = read_page(write_run(tmp_path, failed={search: reason}))
    assert "1 of 5 searches failed." in page.text
    assert page.text.count("every trial failed at x.py") == 2
    assert page.text.index("searches failed") < page.text.index("Selected model per bone")
    assert any("no winner" in svg for svg in page.figures())


def test_run_without_router_is_reported(tmp_path):
    page = read_page(write_run(tmp_path, with_router=False))
    reason = "the bone cannot be predicted, so the best baseline is selected for all bones, and selected_routed is"
    assert f"This run has no router: {reason}" in page.text
    assert not [image for image in page.images if "router" in image["alt"].lower() and "matrix" in image["alt"]]


@pytest.mark.parametrize(
    ("difference", "ci95", "verdict"),
    [
        (0.02, [0.01, 0.03], "better"),
        (-0.02, [-0.03, -0.01], "worse"),
        (0.02, [-0.01, 0.05], "no difference shown"),
        (0.0, [0.0, 0.0], "the same"),
        (0.02, None, "no verdict"),
        (None, None, "no verdict"),
    ],
)
def test_verdict_follows_the_interval(difference, ci95, verdict):
    assert state_verdict({"difference": difference, "ci95": ci95}) == verdict


def test_answer_without_interval_has_the_reason():
    report = make_report(("hand", "hip"))
    for row in report["comparisons"]:
        row |= {"ci95": None, "p": None, "reason": "too few"}
    answer = write_answer(list_headlines(report), "baseline_mlp_probe")
    assert "cannot be compared with the best baseline, +0.030 (no interval: too few)" in answer


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("file=/data/images/x.png: broken", "file=x.png: broken"),
        ("C:\\images\\x.png is empty", "x.png is empty"),
        ("hand/wrist 3/4 n/a", "hand/wrist 3/4 n/a"),
        ("'/a/b/c.csv'", "'c.csv'"),
    ],
)
def test_absolute_folders_are_cut_and_other_slashes_stay(text, shown):
    assert hide_folders(text) == shown


def test_terminal_tables_fit_80_columns_with_whole_names(tmp_path):
    text = print_to_text(write_run(tmp_path, is_phantom=True))
    figures = [line for line in text.splitlines() if "/" not in line]
    assert max(map(len, figures)) <= 80
    for system in SYSTEM_NAMES:
        assert len(re.findall(rf"^{system}  +0\.800 \[0\.750, 0\.850\]  0\.800", text, re.M)) == 2
    assert "+0.030, 95% CI +0.010 to +0.050: better" in text
    assert text.count("PHANTOM: synthetic images") == 3
    assert text.isascii()


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="chromium is not installed")
def test_page_fits_a_desktop_a_phone_and_paper(tmp_path):
    bones = (NASTY, "a_very_long_bone_name_without_any_space_in_it_at_all", "hip", *(f"bone {n}" for n in range(5)))
    rundir = write_run(tmp_path / "run", bones=bones, is_phantom=True, failed={f"specialist:{bones[1]}/mlp_probe": "x"})
    check_layout(rundir, tmp_path / "profile")
