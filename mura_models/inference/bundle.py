"""A bundle in memory: what a run selected, ready to predict."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mura_models.data.dataset import study_codes
from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.data.scan import summarize_excluded
from mura_models.errors import DataError, SettingError
from mura_models.inference.assembly import Assembly
from mura_models.inference.features import LazyFeatures, decode_files
from mura_models.inference.predict_input import Images, read_images
from mura_models.networks.backbones import Backbone
from mura_models.networks.runtimes import RuntimeChoice

KNOWN_COLUMNS = ("path", "bone", "patient", "study", "label")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """All that turns an image into a prediction; made by `load_bundle`."""

    assembly: Assembly
    """Router, models and which model answers for which bone."""
    backbones: Mapping[str, Backbone]
    """By key: those that the assembly uses."""
    preprocessing: Preprocessing
    choice: RuntimeChoice
    """What ran the backbone in training."""
    notes: Mapping[str, str]
    """For people: the data it was trained on and the version that trained it."""

    def __repr__(self) -> str:
        """Return one line: the weights of every layer would fill a notebook."""
        classes, selected = self.assembly.classes, dict(self.assembly.selected)
        return f"Bundle(classes={classes}, selected={selected}, notes={dict(self.notes)})"

    def predict(self, images: Images, *, split: str | None = None) -> pd.DataFrame:
        """Predict the bone and the probability of an abnormality for every image.

        Args:
            images: One of

                - a folder: of images, or in MURA's layout
                - a CSV file: with a column `path`, or without a header and one path per line
                - an image file, or several as a list
                - a DataFrame with a column `path`, relative to the working directory; `file`, if it is there, takes its
                  place
                - a `DataSet` of `read_dataset`

                The columns bone, patient, study and label are optional. Images of one study (same patient, bone and
                study) share one routing decision.
            split: Predict only the rows of this split.

        Returns:
            One row per image that can be used, in the order given:

            - `path`; `bone`, `patient`, `study`, `label` if known
            - `bone_predicted`, `p_bone`: the router's bone and its probability, the mean over the study; missing if
              the bundle has no router
            - `p_abnormal`: calibrated probability of an abnormality, in [0, 1]
            - `prediction`: 1 (abnormal) if `p_abnormal` reaches the model's threshold, else 0

            `table.attrs["excluded"]` lists the files that cannot be used, as `{"path": ..., "reason": ...}`. Read it
            before other operations: pandas does not keep `attrs` in all of them.

        Raises:
            DataError: No image can be used (`error.excluded` lists why), or the CSV cannot be read.
            SettingError: No row is in `split`.
            StorageError: The disk of temporary files is full (`$TMPDIR`).

        Examples:
            >>> bundle = mura.load_bundle("runs/phantom-quick/bundle")
            >>> table = bundle.predict("new_images/")
            >>> table[["path", "bone_predicted", "p_abnormal", "prediction"]]
        """
        dataset = read_images(images)
        source = str(images) if isinstance(images, str | os.PathLike) else dataset.name
        manifest = _select_split(dataset.manifest, split, source)
        # Windows removes no file that is mapped: the maps end with `_predict_files`, except after an error.
        with tempfile.TemporaryDirectory(prefix="mura-predict-", ignore_cleanup_errors=True) as scratch:
            used, answers, failures = self._predict_files(manifest, Path(scratch))
        failed = pd.DataFrame({"path": list(failures), "reason": list(failures.values())}, dtype="str")
        excluded = pd.concat([dataset.quarantine, failed], ignore_index=True)
        if answers is None:
            error = DataError(f"{source}: no image can be used{summarize_excluded(excluded)}")
            error.excluded = excluded.to_dict("records")
            raise error
        table = pd.concat([used[[column for column in KNOWN_COLUMNS if column in used]], answers], axis=1)
        table.attrs["excluded"] = excluded.to_dict("records")
        return table

    def _predict_files(
        self, manifest: pd.DataFrame, scratch: Path
    ) -> tuple[pd.DataFrame, pd.DataFrame | None, dict[str, str]]:
        """Return the rows that can be used, their predictions if there are any, and path -> reason of the others."""
        images_NHW, failures = decode_files(manifest, self.preprocessing, scratch / "images")
        used = manifest[~manifest["path"].isin(failures)].reset_index(drop=True)
        if used.empty:
            return used, None, failures
        features = LazyFeatures(
            images_NHW,
            networks=self.assembly.networks,
            backbones=self.backbones,
            choice=self.choice,
            scratch=scratch,
        )
        return used, self.assembly.predict(features, study_codes(used)), failures


def _select_split(manifest: pd.DataFrame, split: str | None, source: str) -> pd.DataFrame:
    if split is None:
        return manifest.reset_index(drop=True)
    if "split" not in manifest or not (manifest["split"] == split).any():
        raise SettingError("split", split, f"{source} has no such rows")
    return manifest[manifest["split"] == split].reset_index(drop=True)
