"""What runs the backbone must not decide the answer: bounds on every runtime and precision against torch float32.

docs/explanation/decisions.md has the figures on real images; here are drawn ones, so that the bounds hold everywhere.
"""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.networks.backbones import load_backbone
from mura_models.networks.embeddings import embed_views
from mura_models.networks.runtimes import Embedder, RuntimeChoice, prepare_model

SIZE_PX = 96
NUM_IMAGES = 160


def draw_images(rng):
    """Draw shafts on a dark ground; every other one has a faint gap across it."""
    images = gaussian_filter(rng.normal(size=(NUM_IMAGES, SIZE_PX, SIZE_PX)), (0, 2, 2)) * 60 + 60
    labels = np.arange(NUM_IMAGES) % 2
    for image, label in zip(images, labels, strict=True):
        left, row = rng.integers(25, 55), rng.integers(30, 60)
        image[:, left : left + 18] += 90
        if label:
            image[row : row + 3, left : left + 18] -= 55
    return np.clip(images, 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def embeddings():
    """Embed the same images by each runtime and precision, rounded as the cache rounds them."""
    images, labels = draw_images(np.random.default_rng(0))
    backbone = load_backbone(BackboneSpec())
    by_choice = {}
    for runtime, precision in (("torch", "float32"), ("onnxruntime", "float32"), ("torch", "bfloat16")):
        choice = RuntimeChoice(runtime=runtime, precision=precision, device="cpu")
        model, choice = prepare_model(backbone, choice, SIZE_PX)
        embedder = Embedder(model, choice, num_threads=1)
        by_choice[runtime, precision] = embed_views(images, embedder, views=((False, False),))[:, 0]
    return by_choice, labels


@pytest.mark.parametrize(
    ("choice", "largest_shift", "largest_auroc_difference"),
    [
        # The first only rounds differently to float16, here and there by one step.
        (("onnxruntime", "float32"), 1e-3, 1e-3),
        (("torch", "bfloat16"), 0.25, 0.02),
    ],
)
def test_runtime_moves_no_answer_beyond_its_bound(embeddings, choice, largest_shift, largest_auroc_difference):
    by_choice, labels = embeddings
    half = NUM_IMAGES // 2
    reference = by_choice["torch", "float32"].astype(np.float32)
    other = by_choice[choice].astype(np.float32)
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01)).fit(reference[:half], labels[:half])
    p_reference = head.predict_proba(reference[half:])[:, 1]
    p_other = head.predict_proba(other[half:])[:, 1]

    auroc = roc_auc_score(labels[half:], p_reference)
    assert auroc > 0.7  # the head has learnt something, else the bounds say nothing
    assert np.abs(p_other - p_reference).max() <= largest_shift
    assert abs(roc_auc_score(labels[half:], p_other) - auroc) <= largest_auroc_difference
