"""The source paper's published figures beside this run's: test accuracy by image at 0.5, as the paper counts.

Source: the study of July 2023 that this project starts from, which prints them as percentages; MURA's `valid` split was
its test set. Sections are numbered as there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mura_models.data.dataset import patient_codes
from mura_models.evaluation.bootstrap import Estimate, summarize
from mura_models.evaluation.metrics import Scored
from orchestrator.run.names import BASELINE, ROUTER, specialist_target

HUMERUS = "humerus"
"""The only bone for which the paper trained specialists."""
NOT_TRAINED = "not trained in this run"


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperSystem:
    """One system of the paper, and the system of a run that comes nearest to it."""

    section: str
    system: str
    description: str
    published: float | None = None
    """Accuracy as printed; None where the paper gives none."""
    is_by_bone: bool = False
    """A row a bone, the published figure beside the humerus; otherwise all bones pooled."""

    @property
    def recipe(self) -> str:
        """Name how the system's models were trained."""
        prefix, suffix = ("baseline_", "") if self.system.startswith("baseline_") else ("specialists_", "_oracle")
        return self.system.removeprefix(prefix).removesuffix(suffix).removesuffix("_routed")


PAPER_SYSTEMS = (
    PaperSystem(
        section="3.1",
        system="baseline_linear_probe",
        description="one model for all bones: frozen backbone, one linear layer",
        published=0.6951,
    ),
    PaperSystem(
        section="3.2",
        system="baseline_mlp_probe",
        description="one model for all bones: frozen backbone, two linear layers",
        published=0.7217,
    ),
    PaperSystem(
        section="3.3",
        system="baseline_intermediate_task",
        description="one model for all bones: backbone trained to name the bone, then frozen under a new layer",
        published=0.591,
    ),
    PaperSystem(
        section="3.4a",
        system="specialists_mlp_probe_oracle",
        description="3.2's layers, one model a bone",
        published=0.7936,
        is_by_bone=True,
    ),
    PaperSystem(
        section="3.4b",
        system="specialists_two_stage_probe_oracle",
        description="3.4a trained on at the next lower rate",
        published=0.8892,
        is_by_bone=True,
    ),
    PaperSystem(
        section="3.4b, all bones",
        system="baseline_two_stage_probe",
        description="one model for all bones under 3.4b's rates: its fair partner, which the paper did not train",
    ),
    PaperSystem(
        section="5",
        system="specialists_two_stage_probe_routed",
        description="the paper's proposal: the router names the bone, 3.4b's model of that bone answers",
    ),
    PaperSystem(
        section="5",
        system="selected_routed",
        description="the paper's proposal as this run would ship it: the bundle",
    ),
)


def compare_with_paper(
    predictions: pd.DataFrame, *, bones_without_specialist: Mapping[str, str], failed_searches: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return report.json's `paper`: one row per system of the paper, or per bone; also for a system not predicted.

    The threshold is 0.5 for all, so calibration moves no answer: a temperature leaves 0.5 where it is. The mappings say
    why a bone, or a search (`specialist:<bone>/<recipe>`), has no model: there the baseline would answer, and no
    figure is given.
    """
    rows = []
    for paper in PAPER_SYSTEMS:
        if f"p_{paper.system}" not in predictions:
            reason = _explain_missing(paper, predictions, bones_without_specialist, failed_searches)
            rows.append(_keep_row(paper, predictions, reason))
            continue
        if not paper.is_by_bone:
            rows.append(_measure(paper, predictions, paper.published))
            continue
        reasons = {
            bone: absent
            for bone in predictions["bone"].unique()
            if (absent := _explain_absence(bone, paper.recipe, bones_without_specialist, failed_searches))
        }
        rows += _list_bones(paper, predictions, reasons)
    return rows


def _explain_missing(
    paper: PaperSystem,
    predictions: pd.DataFrame,
    bones_without_specialist: Mapping[str, str],
    failed_searches: Mapping[str, str],
) -> str:
    """Say why no model, or no router, answers for a system; no system of a recipe stands without its baseline."""
    baseline = f"baseline_{paper.recipe}"
    if f"p_{baseline}" not in predictions:
        return failed_searches.get(f"{BASELINE}/{paper.recipe}", NOT_TRAINED)
    if f"p_specialists_{paper.recipe}_oracle" in predictions:
        failures = [reason for search, reason in failed_searches.items() if search.startswith(f"{ROUTER}/")]
        return failures[0] if failures else "no router was trained in this run"
    absent = _explain_absence(HUMERUS, paper.recipe, bones_without_specialist, failed_searches)
    return absent if paper.is_by_bone and absent else "no specialist was trained in this run"


def _keep_row(paper: PaperSystem, predictions: pd.DataFrame, reason: str) -> dict[str, Any]:
    """Return the row of a system that did not answer: over all bones, or of the humerus alone."""
    if not paper.is_by_bone:
        return _measure(paper, predictions, paper.published, reason=reason)
    images = predictions[predictions["bone"].str.lower() == HUMERUS]
    name = str(images["bone"].iloc[0]) if len(images) else HUMERUS
    return _measure(paper, images, paper.published, bone=name, reason=reason)


def _list_bones(paper: PaperSystem, predictions: pd.DataFrame, reasons: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a row a bone, and one for the humerus where the data has none: its published figure is always shown."""
    rows = []
    for bone, images in predictions.groupby("bone"):
        name = str(bone)
        published = paper.published if name.lower() == HUMERUS else None
        rows.append(_measure(paper, images, published, bone=name, reason=reasons.get(name)))
    if all(row["bone"].lower() != HUMERUS for row in rows):
        reason = "no humerus in the data"
        rows.append(_measure(paper, predictions.head(0), paper.published, bone=HUMERUS, reason=reason))
    return rows


def _measure(
    paper: PaperSystem,
    images: pd.DataFrame,
    published: float | None,
    *,
    bone: str | None = None,
    reason: str | None = None,
) -> dict[str, Any]:
    estimates = (
        {"accuracy": _absent(reason), "auroc": _absent(reason)} if reason else _summarize_at_half(images, paper.system)
    )
    return {
        "section": paper.section,
        "system": paper.system,
        "description": paper.description,
        "bone": bone,
        "published": published,
        "unit": "image",
        "metric": "accuracy at 0.5",
        "ours": estimates["accuracy"],
        "auroc": estimates["auroc"],
        "num_images": len(images),
    }


def _summarize_at_half(images: pd.DataFrame, system: str) -> dict[str, Estimate]:
    scored = Scored(
        labels=images["label"].to_numpy(np.int64),
        p_abnormal=images[f"p_{system}"].to_numpy(np.float64),
        thresholds=np.full(len(images), 0.5),
        patients=patient_codes(images),
    )
    return summarize(scored)


def _explain_absence(
    bone: str, recipe: str, bones_without_specialist: Mapping[str, str], failed_searches: Mapping[str, str]
) -> str | None:
    """Say why no specialist of this recipe answers for a bone; None where one does."""
    whys = {name.lower(): reason for name, reason in bones_without_specialist.items()}
    whys |= {search.lower(): reason for search, reason in failed_searches.items()}
    return whys.get(bone.lower()) or whys.get(f"{specialist_target(bone)}/{recipe}".lower())


def _absent(reason: str) -> Estimate:
    return {"value": None, "ci95": None, "reason": reason}
