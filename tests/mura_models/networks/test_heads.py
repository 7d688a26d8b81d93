"""K heads side by side against K separate models of torch."""

from itertools import pairwise

import pytest
import torch
from factories import NUM_FEATURES, NUM_FOLDS, make_heads
from torch import nn

from mura_models.errors import ConfigError
from mura_models.networks.heads import Heads, HeadSettings
from mura_models.training.dev_metrics import per_head_loss

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [("linear", "relu", 1), ("mlp", "relu", 1), ("mlp", "none", 1), ("linear", "relu", 3)]
each_shape = pytest.mark.parametrize(("kind", "activation", "num_outputs"), SHAPES)


def make_both(kind, activation, num_outputs):
    """Return heads and the same as a list of torch's own models, before standardization."""
    settings = HeadSettings(
        kind=kind,
        num_heads=NUM_FOLDS,
        num_features=NUM_FEATURES,
        num_outputs=num_outputs,
        hidden_size=5,
        activation=activation,
    )
    heads = Heads(settings, seed=4)
    sizes = [NUM_FEATURES, num_outputs] if kind == "linear" else [NUM_FEATURES, 5, num_outputs]
    models = []
    for head in range(NUM_FOLDS):
        layers = [nn.Linear(*size) for size in pairwise(sizes)]
        for layer, weight, bias in zip(layers, heads.weights, heads.biases, strict=True):
            layer.weight.data, layer.bias.data = weight.data[head].T.clone(), bias.data[head, 0].clone()
        inner = [nn.ReLU()] if activation == "relu" and len(layers) > 1 else []
        models.append(nn.Sequential(*layers[:1], *inner, *layers[1:]))
    return heads, models


def draw_batch(num_outputs, num_rows=9):
    """Draw features and labels, other ones for every head."""
    generator = torch.Generator().manual_seed(1)
    features_KBD = torch.randn(NUM_FOLDS, num_rows, NUM_FEATURES, generator=generator)
    return features_KBD, torch.randint(max(2, num_outputs), (NUM_FOLDS, num_rows), generator=generator)


@each_shape
def test_each_head_answers_as_a_model_of_its_own(kind, activation, num_outputs):
    heads, models = make_both(kind, activation, num_outputs)
    features_KBD, _ = draw_batch(num_outputs)
    expected = torch.stack([model(part) for model, part in zip(models, features_KBD, strict=True)])
    torch.testing.assert_close(heads(features_KBD), expected)
    for head, model in enumerate(models):
        torch.testing.assert_close(heads.forward_one(head, features_KBD[0]), model(features_KBD[0]))


@each_shape
def test_each_head_learns_as_a_model_of_its_own(kind, activation, num_outputs):
    heads, models = make_both(kind, activation, num_outputs)
    features_KBD, labels_KB = draw_batch(num_outputs)
    together = torch.optim.Adam(heads.parameters(), lr=0.1)
    per_head_loss(heads(features_KBD), labels_KB).sum().backward()
    together.step()
    for model, features_BD, labels_B in zip(models, features_KBD, labels_KB, strict=True):
        alone = torch.optim.Adam(model.parameters(), lr=0.1)
        logits_BC = model(features_BD)
        if num_outputs == 1:
            nn.functional.binary_cross_entropy_with_logits(logits_BC[:, 0], labels_B.float()).backward()
        else:
            nn.functional.cross_entropy(logits_BC, labels_B).backward()
        alone.step()
    expected = torch.stack([model(part) for model, part in zip(models, features_KBD, strict=True)])
    torch.testing.assert_close(heads(features_KBD), expected)


@each_shape
def test_the_exported_logit_is_the_mean_of_the_heads(kind, activation, num_outputs):
    heads, models = make_both(kind, activation, num_outputs)
    features_BD = draw_batch(num_outputs)[0][0]
    expected = torch.stack([model(features_BD) for model in models]).mean(0)
    exported = heads.mean_logit(features_BD)
    torch.testing.assert_close(exported, expected)
    assert not exported.requires_grad


def test_each_head_standardizes_by_its_own_rows():
    heads, models = make_both("mlp", "relu", 1)
    rows_KBD = 5 + 3 * draw_batch(1, num_rows=50)[0]
    heads.standardize_by(rows_KBD.mean(1), rows_KBD.std(1, unbiased=False))
    standard_KBD = (rows_KBD - rows_KBD.mean(1, keepdim=True)) / rows_KBD.std(1, unbiased=False, keepdim=True)
    expected = torch.stack([model(part) for model, part in zip(models, standard_KBD, strict=True)])
    torch.testing.assert_close(heads(rows_KBD), expected)


def test_a_feature_that_never_varies_leaves_the_logits_finite():
    heads = make_heads()
    heads.standardize_by(torch.ones(NUM_FOLDS, NUM_FEATURES), torch.zeros(NUM_FOLDS, NUM_FEATURES))
    assert heads(torch.ones(NUM_FOLDS, 2, NUM_FEATURES)).isfinite().all()


def test_without_an_activation_two_layers_are_one_linear_map():
    heads, _ = make_both("mlp", "none", 1)
    features_BD = draw_batch(1)[0][0]
    zero = heads.mean_logit(torch.zeros(1, NUM_FEATURES))
    linear = heads.mean_logit(features_BD) + heads.mean_logit(2 * features_BD) - 2 * zero
    torch.testing.assert_close(linear, heads.mean_logit(3 * features_BD) - zero)


def test_one_seed_gives_one_start_and_heads_that_differ():
    settings = HeadSettings(kind="mlp", num_heads=2, num_features=50)
    first, again, other = (Heads(settings, seed=seed).weights[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    as_torch_starts = nn.Linear(50, 512).weight.detach()
    assert first.detach().abs().max().item() == pytest.approx(as_torch_starts.abs().max().item(), rel=0.01)
    assert first.std().item() == pytest.approx(as_torch_starts.std().item(), rel=0.02)


@pytest.mark.parametrize(
    "wrong", [{"kind": "finetune"}, {"num_heads": 0}, {"num_features": 0}, {"activation": "gelu"}, {"hidden_size": 0}]
)
def test_a_head_that_cannot_be_is_refused_by_its_value(wrong):
    settings = {"kind": "mlp", "num_heads": 2, "num_features": 3} | wrong
    with pytest.raises(ConfigError, match=next(f"{name}='?{value}" for name, value in wrong.items())):
        HeadSettings(**settings)
