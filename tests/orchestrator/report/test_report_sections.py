"""The other sections of the report: the paper, curves of winners, audit, replicates and the router."""

import dataclasses
import re
from pathlib import Path

import pytest
from report_factories import (
    NASTY,
    SEARCH,
    SPECIALIST,
    Page,
    check_layout,
    find_chromium,
    make_audited,
    make_exploration,
    make_paper,
    make_replicate,
    make_report,
    make_trials,
    print_to_text,
    read_page,
    write_run,
)

from orchestrator.evaluation.system_metrics import list_pairs
from orchestrator.report.figures import Canvas, draw_differences
from orchestrator.report.learning_curves import draw_learning_curves, draw_winner_curves
from orchestrator.report.page import Figures, gather_data_parts, list_settings, render_page
from orchestrator.report.summary import (
    RECIPE_GLOSSES,
    gloss_system,
    list_bone_comparisons,
    summarize_audit,
)
from orchestrator.run.directory import RunDir
from orchestrator.run.files import write_json
from orchestrator.run.names import SystemId

MEASURES = ("Loss", "Accuracy")
UNFAIR = ("specialists_mlp_probe_oracle", "specialists_mlp_probe_routed")


def show(**changes):
    """Return the page of such a report without its figures, which take long to draw."""
    return render(make_report(("hand", "leg", "hip"), **changes))


def render(report):
    """Return the page of a report without its figures."""
    nothing = Figures(**{field.name: () for field in dataclasses.fields(Figures)})
    exploration = make_exploration(("hand", "leg", "hip"), report["data"]) | {"samples": []}
    return Page(render_page(report, {}, nothing, gather_data_parts(exploration, Path())))


def summarize(root, **changes):
    """Return the terminal summary of a report."""
    rundir = RunDir(root)
    write_json(rundir.report_json, make_report(("hand", "leg", "hip"), **changes))
    return print_to_text(rundir)


def test_bones_without_a_specialist_are_named_with_the_headline(tmp_path):
    """They count as 0 in the mean; hip, where the metric does not exist, is in no mean."""
    counted = "1 of 2 bones has no specialist and counts as 0: the baseline answers there"
    page = show(without={"leg": "not among --bones"})
    assert f"95% CI +0.010 to +0.050; {counted})" in page.text[: page.text.index("Selected model per bone")]
    assert f"{counted} (leg)." in page.text
    assert "1 of 2 bones has no specialist: the baseline answers there (leg)." in page.text  # routed
    assert f"{counted} (leg)" in summarize(tmp_path, without={"leg": "not among --bones"})
    failed = {"specialist:hand/mlp_probe": "every trial failed"}
    text = show(failed=failed, without={"leg": "not among --bones"}).text
    assert "2 of 2 bones have no specialist and count as 0: the baseline answers there (hand, leg)." in text
    assert "counts as 0" not in show().text


def test_a_bone_without_a_specialist_is_no_zero_in_table_and_plot():
    without = {"leg": "not among --bones"}
    text = show(without=without).text
    for system in ("specialists_mlp_probe_oracle", "specialists_mlp_probe_routed"):
        assert f"leg {system} baseline_mlp_probe \u2013 no specialist \u2013" in text
        assert f"hand {system} baseline_mlp_probe +0.030 +0.010 to +0.050" in text
    report = make_report(("hand", "leg", "hip"), without=without)
    plots = {drawing.name: drawing.svg for drawing in draw_differences(Canvas(is_phantom=False), report)}
    assert {name: svg.count("no specialist") for name, svg in plots.items()} == {
        "differences_specialists_baseline_mlp_probe": 1,
        "differences_selected_baseline_mlp_probe": 0,
    }


def test_what_routing_errors_change_where_the_baseline_answers_is_shown():
    report = make_report(("hand", "leg", "hip"), without={"leg": "not among --bones"})
    for row in report["comparisons"]:
        if row["bone"] == "leg" and row["system"].endswith("_routed"):
            row |= {"difference": -0.01, "ci95": [-0.02, 0.0], "is_zero_by_design": False}
    rows = {row["system"]: row for row in list_bone_comparisons(report) if row["bone"] == "leg"}
    assert rows["specialists_mlp_probe_routed"]["difference"] == -0.01
    assert rows["specialists_mlp_probe_oracle"]["reason"] == "no specialist"
    assert rows["selected_oracle"]["difference"] == 0.03


@pytest.mark.parametrize("system", ["selected_oracle", "specialists_mlp_probe_oracle"])
def test_a_missing_figure_is_explained_if_nothing_was_routed(system):
    report = make_report(("hand", "leg", "hip"))
    report["comparisons"] = [row for row in report["comparisons"] if row["system"] == system]
    (drawing,) = draw_differences(Canvas(is_phantom=False), report)
    assert "one class only" in drawing.svg


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """Return the page of a run whose winners kept the weights of an epoch."""
    return read_page(write_run(tmp_path_factory.mktemp("curves"), kept_epoch=3))


def find_figures(page, words):
    drawn = [image for image in page.images if image["src"].startswith("data:image/svg")]
    return [svg for image, svg in zip(drawn, page.figures(), strict=True) if words in image["alt"]]


def count_rings(svg):
    """Count the white-filled marks of a panel."""
    return svg.count("fill: #ffffff; stroke: #009e73") + svg.count("fill: #ffffff; stroke: #1f2a33")


def test_paper_section_shows_published_next_to_ours_and_names_the_unit():
    page = show(paper=make_paper())
    section = page.text[page.text.rindex("Comparison with the paper") :]
    assert "Image-level test accuracy" in section
    assert "references, not targets" in section
    assert "not a fair comparison" in section
    assert "humerus 0.8892 0.810 0.760 to 0.860" in section
    assert "all bones 0.591 0.650" in section
    assert (
        "shoulder \u2013 no figure: 12 normal and 3 abnormal images in train: a specialist needs 20 of each" in section
    )
    assert "all bones 0.7217 no figure: not trained in this run" in section


def test_the_papers_unequal_pair_is_called_unfair_in_sentence_card_and_terminal(tmp_path):
    words = "not a fair comparison: the two were trained by different settings, as in the paper"
    page = show(unfair=UNFAIR)
    head = page.text[: page.text.index("Selected model per bone")]
    answer, cards = head.split("+0.030 95% CI", 1)
    assert (
        f"(mlp_probe, bone known) are better than the best baseline, +0.030 (95% CI +0.010 to +0.050; {words})"
        in answer
    )
    assert answer.count(words) == 1  # not of the selected system
    assert cards.count(words.capitalize()) == 2  # the bone known, and routed
    assert " ".join(summarize(tmp_path, unfair=UNFAIR).split()).count(words) == 2
    assert "not a fair comparison" not in show().text


def test_page_states_the_settings_of_the_papers_baselines():
    assert "It had as many trials and steps as each specialist of its recipe." in show().text
    text = show(unfair=UNFAIR).text
    assert "as each specialist" not in text
    assert "Only the one of two_stage_probe was trained by the settings of its specialists" in text


def test_page_states_at_which_epoch_winners_are_chosen():
    assert "best score on dev at the last epoch it ran." in show().text
    text = show(config={"kept_epoch": "best"}).text
    assert "best score on dev: a trial's score is that of its best epoch, whose weights are kept." in text
    assert "at the last epoch" not in text


def test_without_the_paper_preset_there_is_no_such_section(tmp_path):
    assert "Comparison with the paper" not in show().text
    assert "Comparison with the paper" not in summarize(tmp_path)


def test_terminal_shows_the_papers_figures_within_80_columns(tmp_path):
    text = summarize(tmp_path, paper=make_paper())
    assert max(len(line) for line in text.splitlines() if "/" not in line) <= 80
    assert re.search(rf"^3\.4b +{SPECIALIST} +humerus +0\.8892 0\.810 \[0\.760, 0\.860\]", text, re.M)
    assert re.search(r"^3\.1 +baseline_linear_probe +all +0\.6951 0\.700", text, re.M)
    assert "image-level test accuracy" in text
    assert "3.4b, shoulder: no figure, 12 normal and 3 abnormal" in text
    assert "3.2, baseline_mlp_probe: no figure, not trained in this run" in text
    assert "None" not in text
    assert "references, not targets" in " ".join(text.split())
    assert text.isascii()


def test_winners_have_loss_and_accuracy_of_train_and_dev_and_a_ring_at_the_kept_epoch(curves):
    for measure in MEASURES:
        panels = find_figures(curves, f"{measure} of the winner of")
        assert len(panels) == 5
        for svg in panels:
            assert f"{measure.lower()}, by image" in svg
            assert "stroke: #009e73" in svg and "stroke: #1f2a33" in svg
            assert count_rings(svg) == 2
    assert "Ring: the epoch whose weights were kept" in curves.text


@pytest.mark.parametrize(
    ("metric", "label"),
    [
        ("auroc", "AUROC on dev, by study"),
        ("kappa", "kappa on dev, by study"),
        ("accuracy", "accuracy on dev, by study"),
        ("image_accuracy", "accuracy at 0.5 on dev, by image"),
    ],
)
def test_learning_curves_name_their_metric_and_its_unit(metric, label):
    report = make_report(("hand", "hip"))
    report["run"]["config"]["metric"] = metric
    trials = make_trials([SEARCH, "router/linear_probe"]).rename(columns={"dev_auroc": f"dev_{metric}"})
    for drawing in draw_learning_curves(Canvas(is_phantom=False), report, {}, trials):
        assert ("macro F1 on dev, by image" if "router" in drawing.alt else label) in drawing.svg


def test_the_ring_does_not_mark_exported_weights_if_winners_were_trained_again(tmp_path):
    text = read_page(write_run(tmp_path, kept_epoch=3, replicates={SEARCH: make_replicate([12])})).text
    assert (
        "Ring: the epoch with the trial's score; if the winner was trained again under fresh seeds, those weights are"
        in text
    )
    assert "whose weights were kept" not in text


def test_without_a_kept_epoch_and_with_a_failed_search_there_is_neither_ring_nor_panel(tmp_path):
    page = read_page(write_run(tmp_path, failed={SEARCH: "every trial failed"}))
    panels = find_figures(page, "of the winner of")
    assert len(panels) == 8
    assert sum(map(count_rings, panels)) == 0
    assert not find_figures(page, f"of the winner of {SEARCH}")
    assert "Ring:" not in page.text


@pytest.mark.parametrize(
    "change",
    [lambda t: t.drop(columns="dev_image_accuracy"), lambda t: t.assign(dev_image_accuracy=float("nan"))],
    ids=["absent", "empty"],
)
def test_a_measure_that_was_not_written_has_no_line(change):
    report, trials = make_report(("hand", "hip")), make_trials([SEARCH, "router/linear_probe"])
    winners = {search: {"trial": f"{search}/000", "kept_epoch": 3} for search in trials["search"].unique()}
    drawings = draw_winner_curves(Canvas(is_phantom=False), report, winners, change(trials))
    lines = {drawing.alt: ("stroke: #009e73" in drawing.svg, "stroke: #1f2a33" in drawing.svg) for drawing in drawings}
    expected = {f"{measure} of the winner of {search} on train and dev" for search in winners for measure in MEASURES}
    assert set(lines) == expected
    assert lines.pop(f"Accuracy of the winner of {SEARCH} on train and dev") == (True, False)
    assert set(lines.values()) == {(True, True)}


@pytest.mark.parametrize(
    ("audit", "sentence"),
    [
        (None, "Early stopping was off"),
        ({"asked": 0, "trials": []}, "Early stopping was not audited"),
        ({"asked": 3, "trials": []}, "No trial was stopped early"),
        (
            {"asked": 1, "trials": make_audited(-0.02)},
            "wrong in none of 1 audited trial: run to the end, none would",
        ),
        ({"asked": 2, "trials": make_audited(0.0, -0.02)}, "wrong in none of 2 audited trials"),
        (
            {"asked": 3, "trials": make_audited(0.004, -0.01, -0.02)},
            "Early stopping was wrong in 1 of 3 audited trials; run to the end, it would have won by at most 0.004.",
        ),
        (
            {"asked": 3, "trials": make_audited(0.004, 0.013, -0.02)},
            "Early stopping was wrong in 2 of 3 audited trials; run to the end, they would have won by at most 0.013.",
        ),
    ],
)
def test_audit_is_one_sentence(audit, sentence):
    assert sentence in summarize_audit({"audit": audit, "searches": {SEARCH: {"states": {"COMPLETE": 2}}}})


def test_an_audit_whose_trials_all_failed_does_not_claim_that_none_was_stopped():
    run = {"audit": {"asked": 3, "trials": []}, "searches": {SEARCH: {"states": {"COMPLETE": 2, "PRUNED": 1}}}}
    assert summarize_audit(run) == "No audited trial was completed: it is unknown how often early stopping was wrong."


def test_an_unset_setting_is_shown_with_its_meaning():
    finetune = {"backbone_lr_factor": None, "freeze_backbone_epochs": 0}
    config = {"bones": None, "num_steps": None, "another": None, "recipes": ["a", "b"], "finetune": finetune}
    assert dict(list_settings(config)) == {
        "bones": "all",
        "num_steps": "set by the number of images",
        "another": "by default",
        "recipes": "a, b",
        "finetune.backbone_lr_factor": "1, 0.3 and 0.1 in turn",
        "finetune.freeze_backbone_epochs": "0",
    }


def test_audit_is_on_the_page_and_on_the_terminal(tmp_path):
    audit = {"asked": 2, "trials": make_audited(0.013, -0.02)}
    text = show(audit=audit).text
    assert "wrong in 1 of 2 audited trials" in text
    assert f"{SEARCH}/000 2 0.700 5 0.843 0.830 +0.013 wrong" in text
    assert f"{SEARCH}/001 2 0.700 5 0.810 0.830 \u22120.020 right" in text
    assert "wrong in 1 of 2 audited trials" in " ".join(summarize(tmp_path, audit=audit).split())


@pytest.mark.parametrize("audit", [None, {"asked": 2, "trials": []}])
def test_terminal_is_silent_about_an_audit_without_trials(tmp_path, audit):
    assert "audit" not in summarize(tmp_path, audit=audit)


def test_replicates_show_the_optimistic_score_and_the_mean_over_seeds():
    replicates = {SEARCH: make_replicate([12]), "specialist:leg/mlp_probe": make_replicate([11, 12, 13])}
    text = show(replicates=replicates).text
    assert "maximum over its trials and therefore too optimistic" in text
    assert (
        f"{SEARCH} 0.834 0.801 \u00b1 0.011 over 3 seeds: 0.801, 0.812, 0.790 the median {SEARCH}/replicate/12" in text
    )
    assert "all 3, as an ensemble" in text
    assert "trained again" not in show().text


def test_router_names_its_recipe_and_its_candidates():
    text = show(candidates={"linear_probe": 0.96, "finetune": 0.941}).text
    assert "The router is a linear_probe : the best on dev" in text
    assert "on dev, by image macro F1 linear_probe 0.960 finetune 0.941" in text
    assert "the only one trained" in show().text


def test_router_section_states_the_cost_of_routing_errors():
    report = make_report(("hand", "leg", "hip"))
    for row in report["comparisons"]:
        if row["reference"] == "selected_oracle" and row["scope"] == "mean_of_bones" and row["metric"] == "auroc":
            value = {"study": -0.004, "image": -0.1}[row["unit"]]
            row |= {"difference": value, "ci95": [value - 0.003, value + 0.001], "p": 0.07}
    text = render(report).text
    section = text[text.rindex("The router is a") : text.index("ROC curves")]
    assert (
        "selected_routed minus selected_oracle is \u22120.004 (95% CI \u22120.007 to \u22120.003, p 0.070)" in section
    )
    few = make_report(("hand", "leg", "hip"))
    for row in few["comparisons"]:
        row |= {"ci95": None, "p": None, "reason": "too few"}
    assert "selected_oracle is +0.030 (no interval: too few)" in render(few).text
    assert "Cost of routing errors: selected_routed" not in show(with_router=False).text


def test_every_recipe_has_a_line_in_the_glossary():
    text = show().text
    for recipe, words in RECIPE_GLOSSES.items():
        assert f"{recipe} {words}" in text


@pytest.mark.parametrize("recipe", RECIPE_GLOSSES)
def test_names_of_systems_are_understood_whatever_the_recipe(recipe):
    systems = [f"baseline_{recipe}", f"specialists_{recipe}_oracle", f"specialists_{recipe}_routed", "selected_routed"]
    parsed = [SystemId.parse(system) for system in systems]
    assert [system.kind for system in parsed] == ["baseline", "specialists", "specialists", "selected"]
    assert len({gloss_system(system) for system in systems} - {""}) == 4
    assert list_pairs(parsed, parsed[0])[:2] == [(parsed[1], parsed[0]), (parsed[2], parsed[0])]


def test_what_the_run_brings_stays_text(tmp_path):
    search = f"specialist:{NASTY}/mlp_probe"
    audited = [trial | {"search": search, "trial": f"{search}/001"} for trial in make_audited(0.01)]
    changes = {
        "paper": make_paper(NASTY),
        "audit": {"asked": 1, "trials": audited},
        "replicates": {search: make_replicate([12])},
        "candidates": {NASTY: 0.9, "finetune": 0.8},
    }
    page = show(**changes)
    assert "script" not in page.tags
    assert page.text.count(NASTY) == 4
    assert "<script>" in summarize(tmp_path, **changes)


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="chromium is not installed")
def test_every_part_fits_a_desktop_a_phone_and_paper(tmp_path):
    bone = "a_very_long_bone_name_without_any_space_in_it_at_all"
    trials = [f"specialist:{bone}/two_stage_probe/replicate/{seed}" for seed in range(5)]
    audited = [trial | {"trial": trials[0]} for trial in make_audited(0.01, -0.2)]
    rundir = write_run(
        tmp_path / "run",
        bones=(bone, "hip"),
        is_phantom=True,
        kept_epoch=5,
        paper=make_paper(bone),
        audit={"asked": 2, "trials": audited},
        replicates={f"specialist:{bone}/two_stage_probe": make_replicate([11]) | {"shipped": trials}},
        candidates={"linear_probe": 0.96, "finetune": 0.941},
    )
    check_layout(rundir, tmp_path / "profile")
