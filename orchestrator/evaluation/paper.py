"""The source paper's published figures next to this run's: image-level test accuracy at 0.5, as the paper reports.

Source: a course paper of July 2023 on abnormality detection in MURA, which prints them as percentages; MURA's `valid`
split was its test set. Sections are numbered as there.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mura_models.data.dataset import patient_codes
from mura_models.evaluation.bootstrap import Estimate, summarize
from mura_models.evaluation.metrics import Scored
from orchestrator.run.names import BASELINE, SELECTED_ROUTED, SearchId, SystemId, specialist_target
from orchestrator.run.report_schema import PaperRow

HUMERUS = "humerus"
"""The only bone for which the paper trained specialists."""
NOT_TRAINED = "not trained in this run"


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperSystem:
    """One system of the paper, and the system of a run that comes nearest to it."""

    section: str
    system: SystemId
    description: str
    published: float | None = None
    """Accuracy as printed; None if the paper gives none."""
    is_by_bone: bool = False
    """One row per bone, the published figure next to the humerus; otherwise all bones pooled."""


PAPER_SYSTEMS = (
    PaperSystem(
        section="3.1",
        system=SystemId("baseline", "linear_probe"),
        description="one model for all bones: frozen backbone, one linear layer",
        published=0.6951,
    ),
    PaperSystem(
        section="3.2",
        system=SystemId("baseline", "mlp_probe"),
        description="one model for all bones: frozen backbone, two linear layers",
        published=0.7217,
    ),
    PaperSystem(
        section="3.3",
        system=SystemId("baseline", "intermediate_task"),
        description="one model for all bones: backbone trained to predict the bone, then frozen under a new layer",
        published=0.591,
    ),
    PaperSystem(
        section="3.4a",
        system=SystemId("specialists", "mlp_probe", "oracle"),
        description="the layers of 3.2, one model per bone",
        published=0.7936,
        is_by_bone=True,
    ),
    PaperSystem(
        section="3.4b",
        system=SystemId("specialists", "two_stage_probe", "oracle"),
        description="3.4a trained further at the next lower learning rate",
        published=0.8892,
        is_by_bone=True,
    ),
    PaperSystem(
        section="3.4b, all bones",
        system=SystemId("baseline", "two_stage_probe"),
        description="one model for all bones at the learning rates of 3.4b: its fair reference, not in the paper",
    ),
    PaperSystem(
        section="5",
        system=SystemId("specialists", "two_stage_probe", "routed"),
        description="the paper's proposal: the router predicts the bone, the model of 3.4b for that bone answers",
    ),
    PaperSystem(
        section="5",
        system=SELECTED_ROUTED,
        description="the paper's proposal as this run exports it: the bundle",
    ),
)


@dataclass(frozen=True, slots=True)
class Absences:
    """Why models are missing: there the baseline would answer, so no figure is given."""

    bones_without_specialist: Mapping[str, str]
    """Bone -> reason."""
    failed_searches: Mapping[str, str]
    """Search -> reason."""

    def explain_bone(self, bone: str, recipe: str | None) -> str | None:
        """Return why no specialist of this recipe answers for a bone; None if one does."""
        reasons = {name.lower(): reason for name, reason in self.bones_without_specialist.items()}
        reasons |= {search.lower(): reason for search, reason in self.failed_searches.items()}
        search = SearchId(specialist_target(bone), str(recipe))
        return reasons.get(bone.lower()) or reasons.get(str(search).lower())

    def explain_system(self, paper: PaperSystem, predictions: pd.DataFrame) -> str:
        """Return why no model, or no router, answers for a system; every system needs its recipe's baseline."""
        recipe = str(paper.system.recipe)
        if f"p_{SystemId('baseline', recipe)}" not in predictions:
            return self.failed_searches.get(str(SearchId(BASELINE, recipe)), NOT_TRAINED)
        if f"p_{SystemId('specialists', recipe, 'oracle')}" in predictions:
            failures = [reason for search, reason in self.failed_searches.items() if SearchId.parse(search).is_router]
            return failures[0] if failures else "no router was trained in this run"
        absent = self.explain_bone(HUMERUS, recipe) if paper.is_by_bone else None
        return absent or "no specialist was trained in this run"


def compare_with_paper(predictions: pd.DataFrame, absences: Absences) -> list[PaperRow]:
    """Return report.json's `paper`: one row per system of the paper, or per bone; also for systems without answers.

    The threshold is 0.5 for all, so calibration changes no answer: a temperature leaves 0.5 where it is.
    """
    rows = []
    for paper in PAPER_SYSTEMS:
        if f"p_{paper.system}" not in predictions:
            rows.append(_make_empty_row(paper, predictions, absences.explain_system(paper, predictions)))
        elif not paper.is_by_bone:
            rows.append(_measure(paper, predictions, paper.published))
        else:
            rows += _measure_bones(paper, predictions, absences)
    return rows


def _make_empty_row(paper: PaperSystem, predictions: pd.DataFrame, reason: str) -> PaperRow:
    """Return the row of a system that did not answer: over all bones, or of the humerus alone."""
    if not paper.is_by_bone:
        return _measure(paper, predictions, paper.published, reason=reason)
    images = predictions[predictions["bone"].str.lower() == HUMERUS]
    name = str(images["bone"].iloc[0]) if len(images) else HUMERUS
    return _measure(paper, images, paper.published, bone=name, reason=reason)


def _measure_bones(paper: PaperSystem, predictions: pd.DataFrame, absences: Absences) -> list[PaperRow]:
    """Return one row per bone, and one for the humerus even if the data has none, to show its published figure."""
    rows = []
    for bone, images in predictions.groupby("bone"):
        name = str(bone)
        published = paper.published if name.lower() == HUMERUS else None
        reason = absences.explain_bone(name, paper.system.recipe)
        rows.append(_measure(paper, images, published, bone=name, reason=reason))
    if all(str(row.bone).lower() != HUMERUS for row in rows):
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
) -> PaperRow:
    absent: Estimate = {"value": None, "ci95": None, "reason": reason or ""}
    estimates = {"accuracy": absent, "auroc": absent} if reason else _summarize_at_half(images, str(paper.system))
    return PaperRow(
        section=paper.section,
        system=str(paper.system),
        description=paper.description,
        bone=bone,
        published=published,
        unit="image",
        metric="accuracy at 0.5",
        ours=estimates["accuracy"],
        auroc=estimates["auroc"],
        num_images=len(images),
    )


def _summarize_at_half(images: pd.DataFrame, system: str) -> dict[str, Estimate]:
    scored = Scored(
        labels=images["label"].to_numpy(np.int64),
        p_abnormal=images[f"p_{system}"].to_numpy(np.float64),
        thresholds=np.full(len(images), 0.5),
        patients=patient_codes(images),
    )
    return summarize(scored)
