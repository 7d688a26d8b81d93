"""The rows of each search of a stage."""

import numpy as np

from mura_models.data.dataset import patient_codes, study_codes
from mura_models.training.search_data import SearchData
from orchestrator.run.names import ROUTER, find_bone
from orchestrator.search.context import Work
from orchestrator.search.plan import Plan, holds_out_one_fold


def gather_data(work: Work, plan: Plan, base: str) -> dict[str, SearchData]:
    """Give each search its rows of the train embeddings, by the backbone of this key, and of the films."""
    train = work.train
    features_NOD = work.embed(base, train, all_outcomes=True)
    films = work.ingested.films
    has_networks = any(trial.recipe == "finetune" for trial in plan.trials)
    films_NHW = films.rows[films.find(train["digest"])] if has_networks else None
    bones = train["bone"].to_numpy(dtype=str)
    columns = {
        "folds": train["fold"].to_numpy(np.int64),
        "studies": study_codes(train),
        "patients": patient_codes(train),
        "bones": bones,
    }
    data = {}
    for name in plan.searches:
        target, recipe = name.rsplit("/", 1)
        bone = find_bone(target)
        rows = np.arange(len(train)) if bone is None else np.flatnonzero(bones == bone)
        is_router = target == ROUTER
        labels = np.searchsorted(work.bones, bones) if is_router else train["label"].to_numpy(np.int64)
        data[name] = SearchData(
            features_NOD=features_NOD,
            films_NHW=films_NHW,
            rows=rows,
            labels=labels[rows],
            held_out=(0,) if holds_out_one_fold(work.config, recipe) else tuple(range(work.config.num_folds)),
            bone_classes=tuple(work.bones) if is_router else None,
            **{column: values[rows] for column, values in columns.items()},
        )
    return data
