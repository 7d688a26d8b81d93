"""Write a small bundle with random weights and predict images with it, as an application would; needs no Ray.

CI runs it on Windows and macOS: `python tests/project/predict_small_bundle.py`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import mura_models as mura
from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.inference.assembly import FROZEN
from mura_models.inference.bundle_files import write_bundle
from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.networks.backbones import load_backbone
from mura_models.networks.runtimes import RuntimeChoice

sys.path.insert(0, str(Path(__file__).parents[1]))
from factories import make_assembly

NUM_IMAGES = 3


def main() -> None:
    """Predict in a temporary folder and check the table."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, images = Path(scratch) / "bundle", Path(scratch) / "images"
        folder.mkdir()
        images.mkdir()
        backbone = load_backbone(BackboneSpec(name="test_efficientnet", weights="random", seed=3))
        with torch.inference_mode():
            num_features = backbone.module(torch.zeros(1, 3, 64, 64)).shape[1]
        bundle = mura.Bundle(
            assembly=make_assembly(num_features=num_features).keep_selected(),
            backbones={FROZEN: backbone},
            preprocessing=Preprocessing(image_size_px=64),
            choice=RuntimeChoice(runtime="torch", precision="float32", device="cpu"),
            notes={},
        )
        write_bundle(bundle, folder)
        rng = np.random.default_rng(0)
        for number in range(NUM_IMAGES):
            Image.fromarray(rng.integers(0, 256, (80, 60), dtype=np.uint8)).save(images / f"{number}.png")
        table = mura.load_bundle(folder).predict(images)
    print(table.to_string())
    assert len(table) == NUM_IMAGES
    assert table["p_abnormal"].between(0, 1).all()
    assert set(table["bone_predicted"]) <= {"elbow", "hand", "wrist"}
    assert not {"ray", "orchestrator"} & set(sys.modules)


if __name__ == "__main__":
    main()
