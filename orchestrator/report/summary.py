"""The figures and comparisons of report.json in words, the same on the page and on the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.run.names import SELECTED_ORACLE, SELECTED_ROUTED, SystemId

PHANTOM_LABEL = "PHANTOM: synthetic images"

BONE_GLOSS = "Bone means the body part by which the images are divided."

SYSTEM_GLOSSES = {
    ("baseline", None): "one model for all bones",
    ("specialists", "oracle"): "one model per bone, bone known",
    ("specialists", "routed"): "one model per bone, bone predicted by the router",
    ("selected", "oracle"): "the selected model of each bone, bone known",
    ("selected", "routed"): "the bundle: the selected model of each bone, bone predicted by the router",
}

RECIPE_GLOSSES = {
    "linear_probe": "The backbone stays frozen; one linear layer is trained on it (section 3.1 of the source paper).",
    "mlp_probe": "The backbone stays frozen; two linear layers are trained on it (3.2; one model per bone: 3.4a).",
    "two_stage_probe": "An mlp_probe trained at one learning rate, then further at the next lower one (3.4b).",
    "intermediate_task": "The backbone is first trained to predict the bone, then frozen under a new layer (3.3).",
    "finetune": "Backbone and last layer are trained together.",
}

UNFAIR = "not a fair comparison: the two were trained by different settings, as in the paper"

PAPER_NOTES = (
    "The paper's figures are for MURA's valid split, from models trained on other folds: references, not targets.",
    "The paper gave its specialists (3.4a, 3.4b) other learning rates than its global models (3.1 to 3.3), so "
    "comparing those is not a fair comparison. The fair one uses the learning rates of 3.4b on both sides: "
    "specialists_two_stage_probe_oracle against baseline_two_stage_probe.",
)


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One system against a baseline: the mean over bones of within-bone differences in study AUROC, on test."""

    system: SystemId
    baseline: SystemId
    difference: str
    interval: str | None
    """None if there is none; `reason` then explains it."""
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
    """Why the two should not be compared."""


def gloss_system(system: str) -> str:
    """Describe a system in a few words; the recipe in its name is glossed elsewhere."""
    parsed = SystemId.parse(system)
    return SYSTEM_GLOSSES[parsed.kind, parsed.routing]


def select_comparisons(report: Mapping[str, Any], **wanted: str) -> list[dict[str, Any]]:
    """Return the comparisons of a system against a baseline whose fields have the wanted values."""
    return [
        comparison
        for comparison in report["comparisons"]
        if SystemId.parse(comparison["reference"]).kind == "baseline"
        and all(comparison[name] == value for name, value in wanted.items())
    ]


def list_bone_comparisons(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the comparisons by bone in study AUROC, without a figure if the baseline is compared with itself."""
    rows = select_comparisons(report, scope="bone", unit="study", metric="auroc")
    nothing = {"difference": None, "ci95": None, "p": None, "reason": "no specialist"}
    return [row | nothing if row["is_zero_by_design"] else row for row in rows]


def find_routing_cost(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the cost of routing errors: the selected system minus itself with the bone known; None if not compared."""
    wanted = {
        "system": str(SELECTED_ROUTED),
        "reference": str(SELECTED_ORACLE),
        "scope": "mean_of_bones",
        "unit": "study",
        "metric": "auroc",
    }
    found = (row for row in report["comparisons"] if all(row[name] == value for name, value in wanted.items()))
    return next(found, None)


def list_headlines(report: Mapping[str, Any]) -> list[Headline]:
    """Return the headline of every system that is compared with a baseline, in the order of report.json."""
    rows = select_comparisons(report, scope="mean_of_bones", unit="study", metric="auroc")
    return [_make_headline(report["systems"][row["system"]], row) for row in rows]


def _make_headline(figures: Mapping[str, Any], row: Mapping[str, Any]) -> Headline:
    return Headline(
        system=SystemId.parse(row["system"]),
        baseline=SystemId.parse(row["reference"]),
        difference=format_signed(row["difference"]),
        interval=format_interval(row["ci95"], signed=True) if row["ci95"] else None,
        reason=row["reason"],
        p=format_p(row["p"]) if row["p"] is not None else None,
        verdict=state_verdict(row),
        left_out=row["left_out"],
        too_few=row["too_few"],
        without_specialist=[bone for bone in figures["bones_without_specialist"] if bone not in row["left_out"]],
        num_bones=len(set(figures["by_bone"]) - set(row["left_out"])),
        caveat=None if row["is_fair"] else UNFAIR,
    )


def count_bones_without(headline: Headline) -> str:
    """State in how many bones the baseline answers, and its effect on the mean; empty if there are none."""
    if not headline.without_specialist:
        return ""
    num, is_one = len(headline.without_specialist), len(headline.without_specialist) == 1
    who = f"{num} of {headline.num_bones} bones {'has' if is_one else 'have'} no specialist"
    if headline.system.routing == "routed":  # a routing error may send it to another bone's specialist
        return f"{who}: the baseline answers there"
    return f"{who} and {'counts' if is_one else 'count'} as 0: the baseline answers there"


def state_verdict(comparison: Mapping[str, Any]) -> str:
    """Return what a paired difference and its interval show."""
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


def write_answer(headlines: Sequence[Headline], best_baseline: str) -> str:
    """Answer in one sentence: specialists with the bone known, and the selected system, against the baseline."""
    parts = []
    for headline in headlines:
        is_selected = headline.system.kind == "selected"
        if is_selected != (headline.system.routing == "routed"):
            continue
        recipe = headline.baseline.recipe
        who = "the selected system" if is_selected else f"specialists ({recipe}, bone known)"
        whom = "the best baseline" if str(headline.baseline) == best_baseline else f"the {recipe} baseline"
        bounds = f"95% CI {headline.interval}" if headline.interval else f"no interval: {headline.reason}"
        bounds = "; ".join(filter(None, (bounds, count_bones_without(headline), headline.caveat)))
        one, many, link = _VERBS[headline.verdict]
        parts.append(f"{who} {one if is_selected else many} {link} {whom}, {headline.difference} ({bounds})")
    if not parts:
        return "No system could be compared with a baseline."
    return f"In study-level AUROC on test, averaged over bones: {'; '.join(parts)}."


_VERBS = {
    "better": ("is", "are", "better than"),
    "worse": ("is", "are", "worse than"),
    "the same": ("is", "are", "equal to"),
    "no difference shown": ("shows", "show", "no difference from"),
    "no verdict": ("cannot be compared", "cannot be compared", "with"),
}


def summarize_audit(run: Mapping[str, Any]) -> str:
    """State how often early stopping was wrong among the stopped trials that were run to the end."""
    audit = run["audit"]
    if audit is None:
        return "Early stopping was off, so there is nothing to audit."
    trials = audit["trials"]
    if not audit["asked"]:
        return "Early stopping was not audited: no stopped trial was run to the end."
    if not trials and any(search["states"].get("PRUNED") for search in run["searches"].values()):
        return "No audited trial was completed: it is unknown how often early stopping was wrong."
    if not trials:
        return "No trial was stopped early, so there is nothing to audit."
    wrong = [trial["gain"] for trial in trials if trial["is_wrong"]]
    audited = f"{len(trials)} audited trial{'s' if len(trials) > 1 else ''}"
    if not wrong:
        return f"Early stopping was wrong in none of {audited}: run to the end, none would have won."
    who = "it" if len(wrong) == 1 else "they"
    most = format_value(max(wrong))
    found = f"Early stopping was wrong in {len(wrong)} of {audited}"
    return f"{found}; run to the end, {who} would have won by at most {most}."


def format_published(value: float | None) -> str:
    """Format a published figure with the digits it was published with; a dash if there is none."""
    return "\u2013" if value is None else f"{value:g}"


def format_value(value: float | None) -> str:
    """Format a figure; a dash if there is none."""
    return "\u2013" if value is None else f"{round(value, 3) + 0.0:.3f}".replace("-", "\u2212")


def format_signed(value: float | None) -> str:
    """Format a difference with its sign; a dash if there is none."""
    return "\u2013" if value is None else f"{round(value, 3) + 0.0:+.3f}".replace("-", "\u2212")


def format_interval(ci95: Sequence[float], *, signed: bool = False) -> str:
    """Format an interval."""
    write = format_signed if signed else format_value
    return f"{write(ci95[0])} to {write(ci95[1])}"


def format_rate(rate: float) -> str:
    """Format a learning rate or a weight decay with two significant digits."""
    return np.format_float_positional(rate, precision=2, fractional=False, trim="-")


def format_share(part: int, whole: int) -> str:
    """Format a part of a whole in percent."""
    return f"{100 * part / whole:.1f}%"


def format_p(p: float) -> str:
    """Format a p value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
