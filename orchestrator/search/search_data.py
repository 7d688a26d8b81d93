"""The rows of each search of a stage."""

import numpy as np

from mura_models.data.dataset import patient_codes, study_codes
from mura_models.training.search_data import SearchData
from orchestrator.run.names import SearchId
from orchestrator.search.context import RunContext
from orchestrator.search.plan import Plan, holds_out_one_fold


def gather_data(work: RunContext, plan: Plan, base: str) -> dict[str, SearchData]:
    """Return each search its rows of the train embeddings, by the backbone of this key, and of the images."""
    train = work.train
    features_NVD = work.embed(base, train, all_views=True)
    images = work.ingested.images
    has_networks = any(trial.recipe == "finetune" for trial in plan.trials)
    images_NHW = images.array[images.find_rows(train["digest"])] if has_networks else None
    bones = train["bone"].to_numpy(dtype=str)
    columns = {
        "folds": train["fold"].to_numpy(np.int64),
        "studies": study_codes(train),
        "patients": patient_codes(train),
        "bones": bones,
    }
    data = {}
    for name in plan.searches:
        search = SearchId.parse(name)
        bone = search.bone
        rows = np.arange(len(train)) if bone is None else np.flatnonzero(bones == bone)
        labels = np.searchsorted(work.bones, bones) if search.is_router else train["label"].to_numpy(np.int64)
        data[name] = SearchData(
            features_NVD=features_NVD,
            images_NHW=images_NHW,
            rows=rows,
            labels=labels[rows],
            held_out=(0,) if holds_out_one_fold(work.config, search.recipe) else tuple(range(work.config.num_folds)),
            bone_classes=tuple(work.bones) if search.is_router else None,
            **{column: values[rows] for column, values in columns.items()},
        )
    return data
