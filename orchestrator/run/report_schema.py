"""report.json (schema 2): its parts as frozen dataclasses. report.schema.json is made from them (json_schema.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mura_models.errors import ConfigError
from mura_models.evaluation.bootstrap import Estimate
from orchestrator.run.files import read_json

SCHEMA = 2

Unit = Literal["image", "study"]
Scope = Literal["mean_of_bones", "pooled", "bone"]
Metrics = Mapping[str, float | None]
"""Metric -> value; null if it does not exist, as with one label only."""


@dataclass(frozen=True, kw_only=True)
class DataCounts:
    """Counts of the images of one split, or of one bone in it."""

    num_images: int
    num_images_abnormal: int
    num_studies: int
    num_studies_abnormal: int
    num_patients: int


@dataclass(frozen=True, kw_only=True)
class SplitCounts(DataCounts):
    """Counts of one split, and by bone."""

    by_bone: Mapping[str, DataCounts]


@dataclass(frozen=True, kw_only=True)
class Corrections:
    """What a file of corrected labels changed."""

    file: str
    num_rows: int
    images_changed: int
    images_unchanged: int
    by_source: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """Files that were excluded, by reason."""

    total: int
    by_reason: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What the data is made of."""

    name: str
    kind: str
    is_phantom: bool
    notes: Sequence[str]
    splits: Mapping[str, SplitCounts]
    corrections: Corrections | None
    quarantined: Quarantined


@dataclass(frozen=True, kw_only=True)
class SearchSummary:
    """What was run of one search."""

    trials: int
    epochs: int
    max_epochs: int
    steps_per_epoch: int
    states: Mapping[str, int]
    """State in which trials ended -> trials."""


@dataclass(frozen=True, kw_only=True)
class AuditedTrial:
    """A trial that early stopping had stopped, run to completion."""

    search: str
    trial: str
    stopped_epoch: int
    score_at_stop: float
    last_epoch: int
    final_score: float
    winner_score: float
    gain: float
    is_wrong: bool
    """Whether it would have won its search."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """How often early stopping was wrong."""

    asked: int
    """Trials per stage that were to be audited."""
    trials: Sequence[AuditedTrial]


@dataclass(frozen=True, kw_only=True)
class Replicates:
    """A winner's configuration trained again under fresh seeds."""

    searched_score: float
    seeds: Sequence[int]
    scores: Sequence[float]
    mean: float
    sd: float | None
    shipped: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """How the figures came about: settings, versions, and what was decoded, searched and audited."""

    config: Mapping[str, Any]
    data_fingerprint: str
    versions: Mapping[str, str]
    git_commit: str | None
    images_decoded: int
    images_embedded: int
    backbone: str
    weights: str
    runtime: Mapping[str, Any]
    searches: Mapping[str, SearchSummary]
    failed_searches: Mapping[str, str]
    """Search -> why it has no winner."""
    bones_without_specialist: Mapping[str, str]
    """Bone -> why no specialist was planned for it."""
    files_not_decoded: int
    audit: Audit | None
    """Null if early stopping was off."""
    replicates: Mapping[str, Replicates]


@dataclass(frozen=True, kw_only=True)
class RouterFigures:
    """The router's figures of one unit on test."""

    macro_f1: float | None
    accuracy: float | None
    confusion: Sequence[Sequence[int]]
    """Counts: one row per true bone, one column per predicted bone, in the order of `classes`."""


@dataclass(frozen=True, kw_only=True)
class RouterSummary:
    """The router: its recipe, its test figures and the candidates' macro F1 by image on dev."""

    classes: Sequence[str]
    image: RouterFigures
    study: RouterFigures
    recipe: str
    candidates: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class UnitFigures:
    """Every metric by image and by study, on all bones or on one."""

    num_images: int
    num_studies: int
    image: Mapping[str, Estimate]
    study: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class SystemFigures:
    """One system on test."""

    overall: UnitFigures
    mean_of_bones: Metrics
    """By study, each bone counting the same."""
    mean_of_bones_by_image: Metrics
    by_bone: Mapping[str, UnitFigures]
    bones_without_specialist: Sequence[str]
    """Bones for which a system of specialists has none, so that the baseline of its recipe answers."""


@dataclass(frozen=True, kw_only=True)
class SelectedModel:
    """The model selected for one bone on dev."""

    target: str
    recipe: str
    trial: str
    lr_schedule: str
    lr: float
    dev: Metrics
    """By study, on the bone's dev rows."""
    threshold: float
    temperature: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A system minus a reference on the same test rows."""

    system: str
    reference: str
    unit: Unit
    metric: str
    bone: str | None
    scope: Scope
    difference: float | None
    ci95: Sequence[float] | None
    p: float | None
    is_fair: bool
    """Whether the models of both sides were trained by the same settings."""
    is_zero_by_design: bool
    """Whether the baseline answers for this bone on both sides, and no routing error made a difference."""
    reason: str | None = None
    """Why a figure is missing."""
    left_out: Sequence[str] = ()
    """Bones without this metric, in a mean of bones."""
    too_few: Sequence[str] = ()
    """Bones in a mean with too few studies or patients of either label for an interval of their own."""


@dataclass(frozen=True, kw_only=True)
class RocCurve:
    """One system's ROC curve by image."""

    false_positive_rate: Sequence[float]
    sensitivity: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class RocPanel:
    """ROC curves on all test images, or on those of one bone; none if they have one label only."""

    bone: str | None
    num_normal: int
    num_abnormal: int
    curves: Mapping[str, RocCurve]
    """By system: the best baseline and the selected, routed system."""


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A figure of the source paper and this run's, on all bones or on one."""

    section: str
    system: str
    description: str
    bone: str | None
    published: float | None
    unit: Unit
    metric: str
    ours: Estimate
    auroc: Estimate
    num_images: int


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Every figure of the report."""

    run: RunSummary
    data: DataSummary
    router: RouterSummary | None
    systems: Mapping[str, SystemFigures]
    selected: Mapping[str, SelectedModel]
    best_baseline: str
    """The baseline system with the best dev score: what the selected system is compared with."""
    comparisons: Sequence[Comparison]
    roc: Sequence[RocPanel]
    paper: Sequence[PaperRow] | None
    """Null unless the config has `compare_with_paper`."""

    def to_json(self) -> dict[str, Any]:
        """Return the content of report.json."""
        return {"schema": SCHEMA} | asdict(self)


def read_report(path: Path) -> dict[str, Any]:
    """Read a report.json. Raises ConfigError if it is damaged or of another schema."""
    return check_schema(path, read_json(path))


def check_schema(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a run's file. Raises ConfigError if another version of this program wrote it."""
    found = content.get("schema")
    if found != SCHEMA:
        reader = "0.1" if found == 1 else "of another version"
        raise ConfigError(
            f"{path}: has schema {found}, not {SCHEMA}; use mura-study {reader} for this run, "
            "or start a new one with --fresh"
        )
    return content
