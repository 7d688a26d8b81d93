"""Training whole networks: exact resuming, what is held out, rates and decay, the head start, memory that runs out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import make_probe_data, make_settings
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from mura_models.data.preprocessing import normalize
from mura_models.training import finetune as finetuning
from mura_models.training.checkpoints import Checkpoint
from mura_models.training.finetune import WARM_START_C, FinetuneTraining, make_optimizer
from mura_models.training.finetune_settings import FinetuneSettings

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE_PX = 8
PLAIN = {"ema_decay": 0.0, "rotation_degrees": 0.0, "scale_jitter": 0.0, "brightness_contrast_jitter": 0.0}


class SmallBackbone(nn.Module):
    """Images [B, 3, H, W] -> embeddings [B, 6], by what real ones are made of."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, images_B3HW):
        return self.norm(self.conv(images_B3HW)).relu().mean((2, 3))


def make_backbone():
    return SmallBackbone().eval().requires_grad_(False)


def make_image_data(target="baseline", *, images_seed=0):
    """Return rows with images whose brightness tells the labels apart a little, and fold 0 held out."""
    data = make_probe_data(target)
    num_images = len(data.features_NVD)
    images = np.random.default_rng(images_seed).integers(0, 200, (num_images, SIZE_PX, SIZE_PX))
    images[data.rows] += 40 * (data.labels[:, None, None] > 0)
    images_NHW = images.astype(np.uint8)
    with torch.no_grad():
        features_ND = make_backbone()(normalize(torch.from_numpy(images_NHW))).numpy()
    features_NVD = np.repeat(features_ND[:, None], 4, axis=1).astype(np.float16)
    return replace(data, features_NVD=features_NVD, images_NHW=images_NHW, held_out=(0,))


def make_training(data=None, *, finetune=None, **settings):
    """Return a training of milliseconds, of images as they are and without an average unless asked for."""
    tune = FinetuneSettings(**PLAIN | (finetune or {}))
    chosen = make_settings(**{"head": "linear", "finetune": tune} | settings)
    return FinetuneTraining(data or make_image_data(), chosen, make_backbone())


def run(training):
    """Train to the end."""
    list(training.epochs())
    return training


def copy_state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_checkpoint(first, second):
    """Compare all that two trainings would save, to the last bit."""
    a, b = (Checkpoint.from_bytes(training.save()) for training in (first, second))
    for part in ("state", "ema", "best_state"):
        ours, theirs = getattr(a, part) or {}, getattr(b, part) or {}
        assert ours.keys() == theirs.keys(), part
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part
    for number, moments in a.optimizer.items():
        assert all(torch.equal(moments[name], b.optimizer[number][name]) for name in moments)
    assert np.array_equal(a.dev_logits, b.dev_logits)
    assert (a.history, a.best_score, a.best_epoch) == (b.history, b.best_score, b.best_epoch)


EVERYTHING = {
    "ema_decay": 0.9,
    "freeze_backbone_epochs": 1,
    "rotation_degrees": 20.0,
    "scale_jitter": 0.2,
    "brightness_contrast_jitter": 0.2,
}


@pytest.mark.parametrize("num_done", [1, 2, 3])
@pytest.mark.parametrize(("finetune", "kept_epoch"), [({}, "last"), (EVERYTHING, "last"), (EVERYTHING, "best")])
def test_a_trial_stopped_after_any_epoch_goes_on_to_the_same_bits(finetune, kept_epoch, num_done):
    changes = {"finetune": finetune, "kept_epoch": kept_epoch, "weight_decay": 0.1}
    whole, stopped, resumed = (make_training(**changes) for _ in range(3))
    run(whole)
    for _ in range(num_done):
        stopped.train_epoch()
    resumed.restore(stopped.save())
    assert resumed.epoch == num_done
    assert_same_checkpoint(run(resumed), whole)


def test_the_backbone_given_is_not_changed():
    backbone = make_backbone()
    before = copy_state(backbone)
    settings = make_settings(head="linear", finetune=FinetuneSettings())
    trained = run(FinetuneTraining(make_image_data(), settings, backbone))
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert not torch.equal(trained.module["backbone"].conv.weight, backbone.conv.weight)


@pytest.mark.parametrize("target", ["baseline", "hand", "router"])
def test_the_held_out_fold_changes_no_weight(target):
    clean = make_image_data(target)
    own = clean.folds == 0
    images_NHW, features_NVD, labels = clean.images_NHW.copy(), clean.features_NVD.copy(), clean.labels.copy()
    images_NHW[clean.rows[own]] = 255
    features_NVD[clean.rows[own]] = 9
    labels[own] = labels[own].max() - labels[own]
    poisoned = replace(clean, images_NHW=images_NHW, features_NVD=features_NVD, labels=labels)
    metric = "macro_f1" if target == "router" else "auroc"
    first, second = (run(make_training(data, metric=metric)) for data in (clean, poisoned))
    states = [training.module.state_dict() for training in (first, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not np.array_equal(first.dev_logits, second.dev_logits)


@pytest.fixture
def _in_float32(monkeypatch):
    """Compute in float32 on every machine; those with bfloat16 would round otherwise than what is compared."""
    monkeypatch.setattr("mura_models.training.finetune.has_native_bfloat16", lambda device: False)


@pytest.mark.usefixtures("_in_float32")
def test_only_the_held_out_fold_is_dev():
    data = make_image_data()
    training = run(make_training(data))
    held_out = data.folds == 0
    assert len(training.dev_logits) == held_out.sum()
    images_B3HW = normalize(torch.from_numpy(data.images_NHW[data.rows[held_out]]))
    with torch.no_grad():
        features_BD = training.module["backbone"](images_B3HW)
        expected = training.module["heads"].forward_one(0, features_BD)
    assert training.dev_logits == pytest.approx(expected.numpy(), abs=1e-4)


def test_backbone_and_head_have_rates_of_their_own_and_norms_and_biases_do_not_decay():
    training = make_training(finetune={"backbone_lr_factor": 0.1}, weight_decay=0.5, lr=0.02)
    training.set_learning_rates(0)
    found = {}
    for group in training.optimizer.param_groups:
        for parameter in group["params"]:
            found[id(parameter)] = (group["lr"], group["weight_decay"])
    grouped = {name: found[id(parameter)] for name, parameter in training.module.named_parameters()}
    assert grouped == {
        "backbone.conv.weight": (pytest.approx(0.002), 0.5),
        "backbone.conv.bias": (pytest.approx(0.002), 0.0),
        "backbone.norm.weight": (pytest.approx(0.002), 0.0),
        "backbone.norm.bias": (pytest.approx(0.002), 0.0),
        "heads.weights.0": (0.02, 0.5),
        "heads.biases.0": (0.02, 0.0),
    }


def test_every_parameter_is_optimised_once():
    module = make_training().module
    groups = make_optimizer(module, make_settings(finetune=FinetuneSettings())).param_groups
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in module.parameters())


def test_during_the_frozen_epochs_only_the_head_is_trained():
    training = make_training(finetune={"freeze_backbone_epochs": 2})
    backbone, heads = copy_state(training.module["backbone"]), copy_state(training.module["heads"])
    for _ in range(2):
        training.train_epoch()
    now = training.module["backbone"].state_dict()
    assert all(torch.equal(now[name], backbone[name]) for name in backbone)
    assert not torch.equal(training.module["heads"].weights[0], heads["weights.0"])
    training.train_epoch()
    assert not torch.equal(training.module["backbone"].conv.weight, backbone["conv.weight"])


@pytest.mark.parametrize("is_frozen", [True, False])
def test_batch_normalization_keeps_its_statistics_where_asked(is_frozen):
    training = make_training(finetune={"freeze_batchnorm": is_frozen})
    before = training.module["backbone"].norm.running_mean.clone()
    training.train_epoch()
    assert torch.equal(training.module["backbone"].norm.running_mean, before) is is_frozen


def test_a_warm_start_is_scikit_learns_logistic_regression_on_rows_not_held_out():
    data = make_image_data()
    heads = make_training(data).module["heads"]
    seen = data.folds != 0
    features_ND = data.features_NVD[data.rows, 0].astype(np.float64)
    scaler = StandardScaler().fit(features_ND[seen])
    expected = LogisticRegression(C=WARM_START_C, max_iter=1000).fit(
        scaler.transform(features_ND[seen]), data.labels[seen]
    )
    logits_N1 = heads.forward_one(0, torch.from_numpy(features_ND).float()).detach().numpy()
    assert logits_N1[:, 0] == pytest.approx(expected.decision_function(scaler.transform(features_ND)), abs=1e-3)


@pytest.mark.parametrize("num_bones", [2, 3])
def test_a_routers_head_start_names_bones_as_scikit_learn_does(num_bones):
    data = make_image_data("router")
    if num_bones == 2:
        keep = data.labels < 2
        columns = ("rows", "labels", "folds", "studies", "patients", "bones")
        kept = {name: getattr(data, name)[keep] for name in columns}
        data = replace(data, bone_classes=data.bone_classes[:2], **kept)
    heads = make_training(data, metric="macro_f1").module["heads"]
    seen = data.folds != 0
    features_ND = data.features_NVD[data.rows, 0].astype(np.float64)
    scaler = StandardScaler().fit(features_ND[seen])
    expected = LogisticRegression(C=WARM_START_C, max_iter=1000).fit(
        scaler.transform(features_ND[seen]), data.labels[seen]
    )
    p_NC = heads.forward_one(0, torch.from_numpy(features_ND).float()).detach().softmax(1).numpy()
    assert p_NC == pytest.approx(expected.predict_proba(scaler.transform(features_ND)), abs=1e-3)


def test_rows_of_one_class_leave_the_head_as_it_was_drawn():
    data = make_image_data("hand")
    one_class = replace(data, labels=np.where(data.folds == 0, data.labels, 0))
    drawn = make_training(data, finetune={"warm_start_head": False})
    assert torch.equal(make_training(one_class).module["heads"].weights[0], drawn.module["heads"].weights[0])


def test_without_a_head_start_the_head_is_drawn_by_its_seed():
    first, again, other = (
        make_training(finetune={"warm_start_head": False}, seed=seed).module["heads"].weights[0] for seed in (7, 7, 8)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def run_out_of_memory_above(monkeypatch, num_rows, error=None):
    """Make the network run out of memory for more images than this."""
    forward = SmallBackbone.forward

    def refuse(self, images_B3HW):
        if len(images_B3HW) > num_rows:
            raise error or torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images_B3HW)

    monkeypatch.setattr(SmallBackbone, "forward", refuse)


@pytest.mark.usefixtures("_in_float32")
def test_out_of_memory_halves_the_batch_and_keeps_the_gradient(monkeypatch):
    """Batch normalization is frozen: its statistics would be those of the parts."""
    whole, halved = (make_training(finetune={"freeze_batchnorm": True}) for _ in range(2))
    whole.train_step(0)
    run_out_of_memory_above(monkeypatch, 5)
    halved.train_step(0)
    assert halved.micro_batch_size == 4  # 16, 8, 4
    for expected, found in zip(whole.module.parameters(), halved.module.parameters(), strict=True):
        assert torch.allclose(found.grad, expected.grad, atol=1e-6)
    assert halved.note == "memory ran out: batches of 16 go through in parts of 4"


def test_a_smaller_batch_is_noted_once_and_kept_when_resumed(monkeypatch):
    training, resumed = make_training(), make_training()
    run_out_of_memory_above(monkeypatch, 5)
    notes = [epoch.note for epoch in training.epochs()]
    assert notes == ["memory ran out: batches of 16 go through in parts of 4", None, None, None]
    resumed.restore(training.save())
    assert resumed.micro_batch_size == 4


def test_memory_that_runs_out_for_one_image_is_an_error(monkeypatch):
    training = make_training()
    run_out_of_memory_above(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        training.train_epoch()
    assert training.micro_batch_size == 1


def test_another_failure_of_the_device_is_not_taken_for_a_lack_of_memory(monkeypatch):
    training = make_training()
    run_out_of_memory_above(monkeypatch, 5, error=RuntimeError("CUDA error: device-side assert"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        training.train_epoch()
    assert training.micro_batch_size == 16


def test_dev_rows_that_do_not_fit_are_evaluated_in_smaller_parts_alike(monkeypatch):
    whole, halved = make_training(), make_training()
    expected = whole.predict_dev()
    run_out_of_memory_above(monkeypatch, 5)
    assert halved.predict_dev() == pytest.approx(expected, abs=1e-6)
    assert halved.micro_batch_size == 4


def test_the_processs_own_lack_of_memory_is_known():
    """What torch really says on a CPU."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**52, dtype=torch.uint8)
    assert finetuning.is_out_of_memory(caught.value)


def test_an_average_of_the_weights_is_evaluated_and_exported():
    training = make_training(finetune={"ema_decay": 0.9}, num_epochs=1)
    average = copy_state(training.module)
    for step in range(3):
        training.set_learning_rates(step)
        training.train_step(step)
        training.ema.update_parameters(training.module)
        for name, parameter in training.module.named_parameters():
            decay = (1 + step) / (10 + step) if step else 0.0  # the first step takes the weights as they are
            average[name] = decay * average[name] + (1 - decay) * parameter.detach()
    exported = training.exported_state()
    for name, _ in training.module.named_parameters():
        assert torch.allclose(exported[name], average[name], atol=1e-6), name
    again = run(make_training(finetune={"ema_decay": 0.9}, num_epochs=1))
    saved = Checkpoint.from_bytes(again.save())
    assert torch.equal(saved.exported["backbone.conv.weight"], exported["backbone.conv.weight"])
    assert again.dev_logits == pytest.approx(training.predict_dev(), abs=1e-6)


def test_the_best_epochs_weights_are_exported_if_asked():
    training = make_training(kept_epoch="best", num_epochs=8, lr=0.3)
    states = {}
    for epoch in training.epochs():
        states[epoch.epoch] = copy_state(training.module)
    assert training.best_epoch < 8  # or this would show nothing
    exported = Checkpoint.from_bytes(training.save()).exported
    best = states[training.best_epoch]
    assert all(torch.equal(exported[name], best[name]) for name in best)


def test_weighted_labels_weigh_each_row_by_the_share_of_the_other_label():
    data = make_image_data("hand")
    plain, weighted = make_training(data), make_training(data, sampling="weighted_labels")
    share = data.labels.mean()
    weights = np.where(data.labels == 1, 1 - share, share)
    assert weighted.row_weights == pytest.approx(weights / weights.mean())
    entries_1B, _ = plain.batches.draw(0)
    entries_B = entries_1B[0]
    assert np.array_equal(entries_B, weighted.batches.draw(0)[0][0])
    for training in (plain, weighted):
        training.module["heads"].load_state_dict(plain.module["heads"].state_dict())
    features_BD = plain._forward(plain.module.train(), plain.fetch_images(entries_B, np.zeros(16, int), 0)).detach()
    losses_B = nn.functional.binary_cross_entropy_with_logits(
        features_BD[:, 0], torch.from_numpy(data.labels[entries_B]).float(), reduction="none"
    ).numpy()
    images_B3HW = weighted.fetch_images(entries_B, np.zeros(16, int), 0)
    weighted._set_mode(is_frozen=False)
    loss, _ = weighted._accumulate(images_B3HW, entries_B, is_frozen=False)
    assert float(loss) == pytest.approx((losses_B * weighted.row_weights[entries_B]).mean(), rel=1e-4)


def test_images_are_fetched_by_index_augmented_and_normalized():
    data = make_image_data()
    training = make_training(data)
    entries_B, plain = np.array([5, 0, 9]), np.zeros(3, int)
    expected = normalize(torch.from_numpy(data.images_NHW[data.rows[entries_B]]))
    assert torch.equal(training.fetch_images(entries_B, plain, 0), expected)
    flipped = training.fetch_images(entries_B, np.ones(3, int), 0)
    assert torch.equal(flipped, expected.flip(3))


def test_one_update_draws_the_same_augmentation_whenever_it_is_run():
    entries_B, views_B = np.arange(6), np.zeros(6, int)
    training = make_training(finetune={"rotation_degrees": 30.0})
    first, other, again = (training.fetch_images(entries_B, views_B, step) for step in (3, 4, 3))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
