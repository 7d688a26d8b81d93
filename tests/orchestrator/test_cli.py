"""The command line: its options are the fields of the settings, and errors name the option that was typed."""

import dataclasses
import pickle
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.errors import ConfigError, SettingError
from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.training.finetune_settings import FinetuneSettings
from orchestrator import cli
from orchestrator.cli import main, run_command
from orchestrator.options import OPTIONS, Request, RunOptions, read_field_docs, spell_option
from orchestrator.run.config import RunConfig
from orchestrator.run.execution import ExecutionOptions
from orchestrator.run.presets import PRESETS, make_preset

ROOT = Path(__file__).parents[2]
WITHOUT_TRAIN = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "matplotlib", "jinja2", "prometheus_client", "grpc", "packaging"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from orchestrator.cli import main, run_command
sys.exit(COMMAND)
"""


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[RunOptions]:
    """What the options of every run come to, in place of a run."""
    runs: list[RunOptions] = []

    def run(options: RunOptions) -> None:
        """Train."""
        runs.append(options)

    monkeypatch.setattr(cli, "run", run)
    return runs


def read_help(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return a page of help on one line, without its frames."""
    assert main([*words, "--help"]) == 0
    return " ".join(re.sub("[\u2500-\u257f]", " ", capsys.readouterr().out).split())


def run_without_train(command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as if the packages of the extra `train` were not installed."""
    code = WITHOUT_TRAIN.replace("COMMAND", command)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("settings", [FinetuneSettings, ExecutionOptions, Preprocessing, Request])
def test_every_field_of_these_settings_is_an_option(settings: type) -> None:
    options = {option.field.name for option in OPTIONS if option.owner is settings}
    assert options == {field.name for field in dataclasses.fields(settings)}


def test_no_two_options_share_a_name_and_each_has_a_help_text() -> None:
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)
    for option in OPTIONS:
        text = read_field_docs(option.owner)[option.field.name]
        assert text.rstrip().endswith(".") and text[0].isupper(), option.name


@pytest.mark.parametrize("preset", PRESETS)
def test_options_that_are_left_out_are_those_of_the_preset(preset: str, parsed: list[RunOptions]) -> None:
    assert run_command(["--all-bones", "--preset", preset]) == 0
    assert parsed[0].config == make_preset(preset)
    assert parsed[0].execution == ExecutionOptions()


@pytest.mark.parametrize("preset", PRESETS)
def test_help_shows_the_defaults_of_the_preset(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, config = read_help(capsys, "run", "--preset", preset), make_preset(preset)
    for option, default in (
        ("--trials", config.num_trials),
        ("--metric", config.metric),
        ("--recipes", " ".join(config.recipes)),
        ("--backbone", config.backbone.name),
        ("--image-size", config.preprocessing.image_size_px),
        ("--rotation-degrees", config.finetune.rotation_degrees),
        ("--warm-start-head", config.finetune.warm_start_head),
        ("--replicate-seeds", config.replicate_seeds),
    ):
        described = text.split(f" {option} ", 1)[1]
        assert described.split("[default: ", 1)[1].split("]")[0] == str(default), option


def test_help_shows_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    text = read_help(capsys, "run")
    assert "[choices: auroc, kappa, accuracy, image_accuracy]" in text
    assert "[choices: plain, balanced_bones, balanced_bones_labels, weighted_labels]" in text
    assert "[choices: stretch, pad]" in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--trials 3 --audit 0", RunConfig(num_trials=3, num_audited=0)),
        ("--epochs 3", RunConfig(num_epochs=3, finetune_epochs=3)),
        ("--recipes finetune --epochs 3 --finetune-epochs 5", None),
        ("--folds 3 --folds 4", RunConfig(num_folds=4)),
        ("--sampling plain weighted_labels plain", RunConfig(sampling=("plain", "weighted_labels"))),
        ("--no-early-stopping", RunConfig(early_stopping=False)),
        ("--preset full --no-ensemble", dataclasses.replace(make_preset("full"), ensemble=False)),
        ("--image-size 64 --resize pad", RunConfig(preprocessing=Preprocessing(image_size_px=64, resize="pad"))),
        ("--backbone resnet18 --weights random", RunConfig(backbone=BackboneSpec(name="resnet18", weights="random"))),
        ("--seed=7", RunConfig(seed=7)),
    ],
)
def test_options_are_laid_over_the_preset(words: str, expected: RunConfig | None, parsed: list[RunOptions]) -> None:
    assert run_command(["--all-bones", *words.split()]) == 0
    config = parsed[0].config
    if expected is None:
        assert (config.num_epochs, config.finetune_epochs) == (3, 5)
    else:
        assert config == expected


def test_options_of_a_run_that_decide_no_figure(parsed: list[RunOptions]) -> None:
    words = "run --bones hand wrist hand --run-dir a/b --fresh --max-concurrent 2 --gpus-per-trial 0.5 --data x.csv"
    assert main([*words.split(), "--dry-run"]) == 0
    (options,) = parsed
    assert options.config.bones == ("hand", "wrist")
    expected = ExecutionOptions(run_dir=Path("a/b"), fresh=True, max_concurrent=2, gpus_per_trial=0.5)
    assert options.execution == expected
    assert (options.request.data, options.request.dry_run, options.request.all_bones) == (Path("x.csv"), True, False)
    assert options.words == ("mura", *words.split(), "--dry-run")


@pytest.mark.parametrize(
    ("name", "value", "spelled"),
    [
        ("num_audited", 2000, "--audit 2000"),
        ("image_size_px", 1, "--image-size 1"),
        ("backbone", "", "--backbone ''"),
        ("rotation_degrees", 9.0, "--rotation-degrees 9"),
        ("warm_start_head", False, "--no-warm-start-head"),
        ("ensemble", True, "--ensemble"),
        ("run_dir", Path("a b"), "--run-dir 'a b'"),
        ("run_dir", Path("v1.0"), "--run-dir v1.0"),
        ("recipes", (), "--recipes"),
        ("RAY_ADDRESS", "x", "RAY_ADDRESS=x"),
    ],
)
def test_a_setting_is_spelled_as_it_was_typed(name: str, value: object, spelled: str) -> None:
    assert spell_option(name, value) == spelled


def test_python_names_the_field_and_the_command_line_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingError) as caught:
        RunConfig(num_audited=2000)
    assert str(caught.value) == "num_audited=2000: must be between 0 and 1000"
    assert run_command(["--all-bones", "--audit", "2000"]) == 2
    assert capsys.readouterr().err == "error: --audit 2000: must be between 0 and 1000\n"


def test_a_setting_error_survives_a_process_border() -> None:
    error = pickle.loads(pickle.dumps(SettingError("a", 1, "must be below {b}", {"b": 2})))
    assert isinstance(error, ConfigError)
    assert str(error) == "a=1: must be below b=2"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("run --all-bones --trails 3", "unknown option: --trails. Did you mean --trials?"),
        ("run --all-bones --metric f1", "--metric f1: must be one of auroc, kappa, accuracy, image_accuracy"),
        ("run --all-bones --gpus-per-trial some", "--gpus-per-trial some: must be a number"),
        ("run --all-bones --dry-run=maybe", "--dry-run maybe: must be true or false"),
        ("run --all-bones --trials", "--trials: needs a value"),
        ("run --all-bones extra", "extra: unexpected argument"),
        ("run", "--all-bones or --bones BONE ... is required"),
        ("predict --data a.csv --out b.csv", "--bundle: is required"),
        ("phantom --out p --seed 1.5", "--seed 1.5: must be a whole number"),
        (
            "perdict",
            'unknown command "perdict". Did you mean "predict"? '
            "Available commands: run, doctor, predict, report, phantom",
        ),
        ("", "a command is missing; mura --help lists them"),
    ],
)
def test_a_mistake_in_the_words_is_one_line(words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_mura_lists_its_commands_and_installs_completion(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # the shell's start-up file is in there
    text = read_help(capsys)
    assert re.search("Commands run Train .* doctor Check .* predict Predict .* report Write .* phantom Write ", text)
    script = tmp_path / "mura.bash"
    assert main(["--install-completion", "--shell", "bash", "--output", str(script)]) == 0
    assert "--all-bones" in script.read_text()


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (main, run_command):
        assert command(["--version"]) == 0
        assert capsys.readouterr().out.strip() == version("mura-study")


@pytest.mark.parametrize("command", ["main(['run', '--all-bones', '--dry-run'])", "run_command(['--all-bones'])"])
def test_a_run_without_the_packages_for_training_says_what_to_install(command: str) -> None:
    done = run_without_train(command)
    assert done.returncode == 2
    assert re.fullmatch(r"error: \w+ is not installed; install mura-study\[train\]\n", done.stderr), done.stderr


def test_a_prediction_needs_none_of_the_packages_for_training() -> None:
    done = run_without_train("main(['predict', '--bundle', 'nowhere', '--data', 'x.csv', '--out', 'y.csv'])")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "nowhere" in done.stderr, done.stderr


def test_a_missing_package_of_another_kind_stays_a_traceback() -> None:
    def fail() -> Any:
        raise ModuleNotFoundError("No module named 'nonsense'", name="nonsense")

    with pytest.raises(ModuleNotFoundError):
        cli.guard(fail)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_is_interrupted_ends_in_one_line(
    number: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("mura_models.phantom.write_phantom", lambda *_, **__: signal.raise_signal(number))
    assert main(["phantom", "--out", str(tmp_path)]) == code
    assert capsys.readouterr().err == "Interrupted. Run the same command again to resume.\n"
