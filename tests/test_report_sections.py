"""The report's parts beyond the run's own figures: the paper's, the winners' curves, audit, refits and the router."""

import re
from xml.etree import ElementTree

import pandas as pd
import pytest
from test_report import NASTY, make_estimate, print_to_text, read_page, write_run

from orchestrator.report import render_report
from orchestrator.report.wording import RECIPE_GLOSSES, describe_audit, gloss_system, name_family
from orchestrator.results import list_pairs

SEARCH = "baseline/mlp_probe"
SPECIALIST = "specialists_two_stage_probe_oracle"
RINGS = re.compile(r'<g clip-path[^>]*>\s*<use [^>]*style="fill: #ffffff', re.S)


def make_paper_row(section, system, bone, published, ours, *, num_images=90):
    named = {"section": section, "system": system, "description": f"what {system} is", "bone": bone}
    figures = {"published": published, "ours": ours, "auroc": ours, "n_images": num_images}
    return named | figures | {"unit": "image", "metric": "accuracy at 0.5"}


def make_paper(bone="humerus"):
    missing = make_estimate(None, "12 normal and 3 abnormal images in train: a specialist needs 20 of each")
    return [
        make_paper_row("3.1", "baseline_linear_probe", None, 0.6951, make_estimate(0.7)),
        make_paper_row("3.3", "baseline_intermediate_task", None, 0.591, make_estimate(0.65)),
        make_paper_row("3.4b", SPECIALIST, bone, 0.8892, make_estimate(0.81)),
        make_paper_row("3.4b", SPECIALIST, "shoulder", None, missing),
        make_paper_row("3.4b, all bones", "baseline_two_stage_probe", None, None, make_estimate(0.74, "too few")),
        make_paper_row("5", "specialists_two_stage_probe_routed", None, None, make_estimate(0.78)),
    ]


def make_audited(*gains):
    return [
        {
            "search": SEARCH,
            "trial": f"{SEARCH}/{number:03d}",
            "stopped_epoch": 2,
            "score_at_stop": 0.7,
            "last_epoch": 5,
            "final_score": 0.83 + gain,
            "winner_score": 0.83,
            "gain": gain,
            "is_wrong": gain > 0,
        }
        for number, gain in enumerate(gains)
    ]


def make_refit(shipped):
    scores = [0.801, 0.812, 0.79]
    refit = {"searched_score": 0.834, "seeds": [11, 12, 13], "scores": scores, "mean": 0.801, "sd": 0.011}
    return refit | {"shipped": [f"{SEARCH}/refit/{seed}" for seed in shipped]}


def find_figures(page, words):
    return [svg for image, svg in zip(page.images, page.figures(), strict=True) if words in image["alt"]]


def count_rings(svg):
    """Count the white-filled marks of a panel."""
    return svg.count("fill: #ffffff; stroke: #009e73") + svg.count("fill: #ffffff; stroke: #1f2a33")


def test_paper_section_shows_published_beside_ours_and_names_the_unit(tmp_path):
    page = read_page(write_run(tmp_path, paper=make_paper()))
    section = page.text[page.text.rindex("Beside the paper") :]
    assert "Image-level test accuracy" in section
    assert "references, not targets" in section
    assert "not a fair comparison" in section
    assert "humerus 0.8892 0.810 0.760 to 0.860" in section
    assert "all 0.591 0.650" in section
    assert any("a specialist needs 20 of each" in title for title in page.titles)


def test_without_the_paper_preset_there_is_no_such_section(tmp_path):
    rundir = write_run(tmp_path)
    assert "the paper, as published" not in read_page(rundir).text
    assert "Beside the paper" not in read_page(rundir).text
    assert "Beside the paper" not in print_to_text(rundir)


def test_terminal_shows_the_papers_figures_within_80_columns(tmp_path):
    text = print_to_text(write_run(tmp_path, paper=make_paper()))
    assert max(len(line) for line in text.splitlines() if "/" not in line) <= 80
    assert re.search(rf"^3\.4b +{SPECIALIST} +humerus +0\.8892 0\.810 \[0\.760, 0\.860\]", text, re.M)
    assert re.search(r"^3\.1 +baseline_linear_probe +all +0\.6951 0\.700", text, re.M)
    assert "image-level test accuracy" in text
    assert "3.4b, shoulder: no figure, 12 normal and 3 abnormal" in text
    assert "references, not targets" in " ".join(text.split())
    assert text.isascii()


def test_winners_have_loss_and_accuracy_of_train_and_dev(tmp_path):
    page = read_page(write_run(tmp_path))
    for measure in ("Loss", "Accuracy"):
        panels = find_figures(page, f"{measure} of the winner of")
        assert len(panels) == 5
        for svg in panels:
            assert f"{measure.lower()}, by image" in svg
            assert "stroke: #009e73" in svg and "stroke: #1f2a33" in svg
            assert count_rings(svg) == 0


def test_kept_epoch_is_ringed(tmp_path):
    page = read_page(write_run(tmp_path, kept_epoch=3))
    assert all(count_rings(svg) == 2 for svg in find_figures(page, "of the winner of"))
    assert "Ring: the epoch whose weights were kept" in page.text


@pytest.mark.parametrize(
    "change", [lambda t: t.drop(columns="dev_image_accuracy"), lambda t: t.assign(dev_image_accuracy=float("nan"))]
)
def test_a_measure_that_was_not_written_has_no_line(tmp_path, change):
    rundir = write_run(tmp_path, kept_epoch=3)
    change(pd.read_parquet(rundir.trials)).to_parquet(rundir.trials)
    render_report(rundir)
    page = read_page(rundir)
    for svg in find_figures(page, f"Accuracy of the winner of {SEARCH}"):
        assert "stroke: #009e73" in svg and "stroke: #1f2a33" not in svg
        assert count_rings(svg) == 1
    (router,) = find_figures(page, "Accuracy of the winner of router")
    assert count_rings(router) == 2


def test_a_failed_search_has_no_curves_of_a_winner(tmp_path):
    page = read_page(write_run(tmp_path, failed={SEARCH: "every trial failed"}))
    assert not find_figures(page, f"of the winner of {SEARCH}")
    assert len(find_figures(page, "of the winner of")) == 8


@pytest.mark.parametrize(
    ("audit", "sentence"),
    [
        (None, "Early stopping was off"),
        ({"asked": 0, "trials": []}, "The ladder was not audited"),
        ({"asked": 3, "trials": []}, "The ladder stopped no trial"),
        ({"asked": 1, "trials": make_audited(-0.02)}, "wrong in none of 1 audited trial: run to the end, none would"),
        ({"asked": 2, "trials": make_audited(0.0, -0.02)}, "wrong in none of 2 audited trials"),
        (
            {"asked": 3, "trials": make_audited(0.004, -0.01, -0.02)},
            "The ladder was wrong in 1 of 3 audited trials; run to the end it would have won by at most 0.004.",
        ),
        (
            {"asked": 3, "trials": make_audited(0.004, 0.013, -0.02)},
            "The ladder was wrong in 2 of 3 audited trials; run to the end they would have won by at most 0.013.",
        ),
    ],
)
def test_audit_is_one_sentence(audit, sentence):
    assert sentence in describe_audit(audit)


def test_audit_is_on_the_page_and_on_the_terminal(tmp_path):
    rundir = write_run(tmp_path, audit={"asked": 2, "trials": make_audited(0.013, -0.02)})
    text = read_page(rundir).text
    assert "wrong in 1 of 2 audited trials" in text
    assert f"{SEARCH}/000 2 0.700 5 0.843 0.830 +0.013 wrong" in text
    assert f"{SEARCH}/001 2 0.700 5 0.810 0.830 \u22120.020 right" in text
    assert "wrong in 1 of 2 audited trials" in " ".join(print_to_text(rundir).split())


def test_terminal_is_silent_about_an_audit_without_trials(tmp_path):
    assert "ladder" not in print_to_text(write_run(tmp_path / "none", audit=None))
    assert "ladder" not in print_to_text(write_run(tmp_path / "asked", audit={"asked": 2, "trials": []}))


def test_refits_tell_the_flattering_score_from_the_mean_over_seeds(tmp_path):
    refits = {SEARCH: make_refit([12]), "specialist:leg/mlp_probe": make_refit([11, 12, 13])}
    text = read_page(write_run(tmp_path, refits=refits)).text
    assert "best of many and therefore flattering" in text
    assert (
        f"{SEARCH} 0.834 0.801 \u00b1 0.011 over 3 seeds 0.801, 0.812, 0.790 the median one {SEARCH}/refit/12" in text
    )
    assert "all 3, as an ensemble" in text


def test_without_refits_there_is_no_such_table(tmp_path):
    assert "trained again" not in read_page(write_run(tmp_path)).text


def test_router_names_its_recipe_and_what_it_was_chosen_among(tmp_path):
    text = read_page(write_run(tmp_path / "two", candidates={"linear_probe": 0.96, "finetune": 0.941})).text
    assert "The router is a linear_probe: the best on dev" in text
    assert "finetune macro F1 on dev, by image: 0.941" in text
    assert "the only one trained" in read_page(write_run(tmp_path / "one")).text


def test_every_recipe_has_a_line_among_the_words(tmp_path):
    text = read_page(write_run(tmp_path)).text
    for recipe, words in RECIPE_GLOSSES.items():
        assert f"{recipe} {words}" in text


@pytest.mark.parametrize("recipe", RECIPE_GLOSSES)
def test_names_of_systems_are_understood_whatever_the_recipe(recipe):
    systems = [f"baseline_{recipe}", f"specialists_{recipe}_oracle", f"specialists_{recipe}_routed", "served_routed"]
    assert [name_family(system) for system in systems] == ["baseline", "specialists", "specialists", "served"]
    assert len({gloss_system(system) for system in systems} - {""}) == 4
    assert list_pairs(systems, systems[0])[:2] == [(systems[1], systems[0]), (systems[2], systems[0])]


def test_what_the_run_brings_stays_text(tmp_path):
    bones = (NASTY, "leg", "hip")
    search = f"specialist:{NASTY}/mlp_probe"
    audited = [trial | {"search": search, "trial": f"{search}/001"} for trial in make_audited(0.01)]
    rundir = write_run(
        tmp_path,
        bones=bones,
        paper=make_paper(NASTY),
        audit={"asked": 1, "trials": audited},
        refits={search: make_refit([12])},
        candidates={NASTY: 0.9, "finetune": 0.8},
    )
    page = read_page(rundir)
    assert "script" not in page.tags
    assert page.text.count(NASTY) > 8
    for svg in page.figures():
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "<script>" in print_to_text(rundir)
