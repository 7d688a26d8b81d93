"""Numbers and comparisons of report.json in words, the same on the page and on the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.run.names import specialist_target

PHANTOM_LABEL = "PHANTOM: synthetic images"

SYSTEM_GLOSSES = {
    "baseline": "one model for all bones",
    "specialists_oracle": "one model per bone, the bone known",
    "specialists_routed": "one model per bone, the router names the bone",
    "selected_oracle": "what serves each bone, the bone known",
    "selected_routed": "the bundle: what serves each bone, the bone not known",
}

RECIPE_GLOSSES = {
    "linear_probe": "The backbone stays frozen; one linear layer is trained on it (paper 3.1).",
    "mlp_probe": "The backbone stays frozen; two linear layers are trained on it (paper 3.2; bone by bone, 3.4a).",
    "two_stage_probe": "An mlp_probe trained at one rate, then further at the next lower one (paper 3.4b).",
    "intermediate_task": "The backbone is first trained to name the bone, then frozen under a new layer (paper 3.3).",
    "finetune": "Backbone and last layer are trained together.",
}

UNFAIR = "not a fair comparison: the two were trained by different settings, as in the paper"

PAPER_NOTES = (
    "The paper's figures are for MURA's valid split, from models trained on other folds: references, not targets.",
    "The paper gave its specialists (3.4a, 3.4b) other learning rates than its global models (3.1 to 3.3), so to hold "
    "those against each other is not a fair comparison. The fair one is under 3.4b's rates on both sides: "
    "specialists_two_stage_probe_oracle against baseline_two_stage_probe.",
)


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One system against a baseline: the mean over bones of within-bone differences in study AUROC, on test."""

    system: str
    baseline: str
    difference: str
    interval: str | None
    """None where there is none; `why` then says why."""
    reason: str | None
    p: str | None
    verdict: str
    left_out: Sequence[str]
    """Bones in which the metric does not exist."""
    too_few: Sequence[str]
    """Bones in the mean with too few studies or patients of either label for an interval of their own."""
    without_specialist: Sequence[str]
    """Bones in the mean for which the baseline answers, as the system has no specialist for them."""
    num_bones: int
    """In the mean."""
    caveat: str | None
    """Why the two should not be held against each other."""


def name_family(system: str) -> str:
    """Return `baseline`, `specialists` or `served`."""
    return system.split("_", 1)[0]


def name_recipe(system: str) -> str:
    """Return the recipe in the name of a system of specialists."""
    return system.removeprefix("specialists_").rsplit("_", 1)[0]


def gloss_system(system: str) -> str:
    """Say in a few words what a system is; the recipe in its name says how it was trained."""
    family = name_family(system)
    return SYSTEM_GLOSSES.get(family if family == "baseline" else f"{family}_{system.rsplit('_', 1)[-1]}", "")


def find_best_baseline(report: Mapping[str, Any]) -> str | None:
    """Name the baseline that the served system is compared with: the best one on dev."""
    for comparison in report["comparisons"]:
        if comparison["a"] == "selected_routed" and name_family(comparison["b"]) == "baseline":
            return str(comparison["b"])
    return None


def select_comparisons(report: Mapping[str, Any], **wanted: str) -> list[dict[str, Any]]:
    """Return the comparisons of a system against a baseline whose fields are as wanted."""
    return [
        comparison
        for comparison in report["comparisons"]
        if name_family(comparison["b"]) == "baseline"
        and all(comparison[name] == value for name, value in wanted.items())
    ]


def find_bones_without(report: Mapping[str, Any], system: str) -> list[str]:
    """Name the bones for which a system of specialists has none: not asked for, not trainable, or its search failed."""
    if name_family(system) != "specialists":
        return []
    recipe, run = name_recipe(system), report["run"]
    return [
        bone
        for bone in report["systems"][system]["by_bone"]
        if bone in run["bones_without_specialist"] or f"{specialist_target(bone)}/{recipe}" in run["failed_searches"]
    ]


def list_bone_comparisons(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the comparisons by bone in study AUROC; where the baseline is compared with itself there is no figure."""
    rows = select_comparisons(report, scope="bone", unit="study", metric="auroc")
    without = {system: find_bones_without(report, system) for system in {row["a"] for row in rows}}
    nothing = {"difference": None, "ci95": None, "p": None, "reason": "no specialist"}
    return [row | nothing if row["bone"] in without[row["a"]] and _is_zero(row) else row for row in rows]


def _is_zero(comparison: Mapping[str, Any]) -> bool:
    """Return whether two systems never differed; routing errors can part them even where the baseline answers."""
    return comparison["difference"] == 0 and not any(comparison["ci95"] or ())


def is_fair(report: Mapping[str, Any], system: str) -> bool:
    """Return whether a system's models were trained as the baseline of their recipe was (orchestrator/search/plan.py).

    The paper gave its specialists another rate, and 3.4a's a fixed number of steps.
    """
    config = report["run"]["config"]
    trained_alike = config["specialist_lr"] is None and config["specialist_probe_steps"] is None
    return trained_alike or name_family(system) != "specialists" or name_recipe(system) == "two_stage_probe"


def find_routing_cost(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what routing errors cost: the served system minus itself with the bone known; None where not compared."""
    wanted = {
        "a": "selected_routed",
        "b": "selected_oracle",
        "scope": "mean_of_bones",
        "unit": "study",
        "metric": "auroc",
    }
    found = (row for row in report["comparisons"] if all(row[name] == value for name, value in wanted.items()))
    return next(found, None)


def list_headlines(report: Mapping[str, Any]) -> list[Headline]:
    """Return the headline of every system that is compared with a baseline, in the order of report.json."""
    rows = select_comparisons(report, scope="mean_of_bones", unit="study", metric="auroc")
    return [_make_headline(report, row) for row in rows]


def _make_headline(report: Mapping[str, Any], row: Mapping[str, Any]) -> Headline:
    left_out = row.get("left_out", ())
    without = find_bones_without(report, row["a"])
    return Headline(
        system=row["a"],
        baseline=row["b"],
        difference=format_signed(row["difference"]),
        interval=format_interval(row["ci95"], signed=True) if row["ci95"] else None,
        reason=row.get("reason"),
        p=format_p(row["p"]) if row["p"] is not None else None,
        verdict=judge(row),
        left_out=left_out,
        too_few=row.get("too_few", ()),
        without_specialist=[bone for bone in without if bone not in left_out],
        num_bones=len(set(report["systems"][row["a"]]["by_bone"]) - set(left_out)),
        caveat=None if is_fair(report, row["a"]) else UNFAIR,
    )


def count_bones_without(headline: Headline) -> str:
    """Say in how many bones the baseline answers, and what that does to the mean; nothing where it answers in none."""
    if not headline.without_specialist:
        return ""
    num, is_one = len(headline.without_specialist), len(headline.without_specialist) == 1
    who = f"{num} of {headline.num_bones} bones {'has' if is_one else 'have'} no specialist"
    if headline.system.endswith("_routed"):  # a routing error may send it to another bone's specialist
        return f"{who}: the baseline answers there"
    return f"{who} and {'counts' if is_one else 'count'} as 0: the baseline answers there"


def judge(comparison: Mapping[str, Any]) -> str:
    """Put a paired difference into plain words."""
    if comparison["difference"] is None or comparison["ci95"] is None:
        return "no verdict"
    low, high = comparison["ci95"]
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    if low == high == 0:
        return "the same"
    return "no difference shown"


def write_answer(headlines: Sequence[Headline], best_baseline: str | None) -> str:
    """Answer in one sentence: specialists where the bone is known, and the served system, against the baseline."""
    parts = []
    for headline in headlines:
        family = name_family(headline.system)
        if headline.system == "selected_oracle" or (family == "specialists" and headline.system.endswith("_routed")):
            continue
        recipe = headline.baseline.removeprefix("baseline_")
        who = "the served system" if family == "selected" else f"specialists ({recipe}, bone known)"
        whom = "the best baseline" if headline.baseline == best_baseline else f"the {recipe} baseline"
        bounds = f"95% CI {headline.interval}" if headline.interval else f"no interval: {headline.reason}"
        bounds = "; ".join(filter(None, (bounds, count_bones_without(headline), headline.caveat)))
        one, many, link = _VERBS[headline.verdict]
        parts.append(f"{who} {one if family == 'selected' else many} {link} {whom}, {headline.difference} ({bounds})")
    if not parts:
        return "No system could be compared with a baseline."
    return f"In study-level AUROC on test, averaging the differences within each bone: {'; '.join(parts)}."


_VERBS = {
    "better": ("is", "are", "better than"),
    "worse": ("is", "are", "worse than"),
    "the same": ("is", "are", "equal to"),
    "no difference shown": ("shows", "show", "no difference from"),
    "no verdict": ("cannot be judged", "cannot be judged", "against"),
}


def describe_audit(run: Mapping[str, Any]) -> str:
    """Say in a sentence how often early stopping was wrong among the stopped trials that were run to the end."""
    audit = run["audit"]
    if audit is None:
        return "Early stopping was off: there is nothing to audit."
    trials = audit["trials"]
    if not audit["asked"]:
        return "Early stopping was not audited: no trial that it had stopped was run to the end."
    if not trials and any(search["states"].get("PRUNED") for search in run["searches"].values()):
        return "No audited trial came to its end: how often early stopping was wrong is not known."
    if not trials:
        return "No trial was stopped early: there is nothing to audit."
    wrong = [trial["gain"] for trial in trials if trial["is_wrong"]]
    audited = f"{len(trials)} audited trial{'s' if len(trials) > 1 else ''}"
    if not wrong:
        return f"Early stopping was wrong in none of {audited}: run to the end, none would have won."
    who = "it" if len(wrong) == 1 else "they"
    most = format_value(max(wrong))
    found = f"Early stopping was wrong in {len(wrong)} of {audited}"
    return f"{found}; run to the end, {who} would have won by at most {most}."


def format_published(value: float | None) -> str:
    """Write a published figure with the digits it was published with; a dash where there is none."""
    return "\u2013" if value is None else f"{value:g}"


def format_value(value: float | None) -> str:
    """Write a figure; a dash where there is none."""
    return "\u2013" if value is None else f"{round(value, 3) + 0.0:.3f}".replace("-", "\u2212")


def format_signed(value: float | None) -> str:
    """Write a difference with its sign; a dash where there is none."""
    return "\u2013" if value is None else f"{round(value, 3) + 0.0:+.3f}".replace("-", "\u2212")


def format_interval(ci95: Sequence[float], *, signed: bool = False) -> str:
    """Write an interval."""
    write = format_signed if signed else format_value
    return f"{write(ci95[0])} to {write(ci95[1])}"


def format_rate(rate: float) -> str:
    """Write a learning rate or a weight decay with two digits that count."""
    return np.format_float_positional(rate, precision=2, fractional=False, trim="-")


def format_share(part: int, whole: int) -> str:
    """Write a part of a whole in percent."""
    return f"{100 * part / whole:.1f}%"


def format_p(p: float) -> str:
    """Write a p value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
