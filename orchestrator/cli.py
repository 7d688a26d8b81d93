"""The command line: `python run_study.py`, and `mura` with its sub-commands.

Arguments become a RunConfig and a ExecutionOptions; torch and Ray are imported only after parsing.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from mura_models.errors import RunError, StorageError, UserError, to_one_line
from mura_models.storage import classify_fault
from mura_models.training.finetune_settings import FinetuneSettings, describe_fields
from orchestrator.arguments import add_run_arguments
from orchestrator.cluster.signals import Interrupted, interruptible
from orchestrator.options import check_contradictions, parse_path

if TYPE_CHECKING:
    from orchestrator.run.config import RunConfig
    from orchestrator.run.execution import ExecutionOptions

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, as every other mistake is told."""

    def error(self, message: str) -> NoReturn:
        """Say what was wrong and leave."""
        self.exit(EXIT_USAGE, f"error: {to_one_line(message)} (--help lists the options)\n")


def run_command(argv: Sequence[str] | None = None) -> int:
    """Run `python run_study.py`; return the exit code."""
    parser = Parser(prog="run_study.py", description=RUN_HELP)
    add_run_arguments(parser)
    arguments = parser.parse_args(argv)
    return guard(lambda: run(arguments), is_fresh=arguments.fresh)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mura`; return the exit code."""
    parser = Parser(prog="mura", description="Specialists per bone against one global model.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, add_arguments, action, text in (
        ("run", add_run_arguments, run, RUN_HELP),
        ("doctor", add_doctor_arguments, doctor, "Check machine, cluster and disk for a run, without one."),
        ("predict", add_predict_arguments, predict, "Let a bundle answer for images."),
        ("report", add_report_arguments, report, "Write report.html anew from a run's report.json."),
        ("phantom", add_phantom_arguments, phantom, "Write synthetic radiographs in MURA's layout."),
    ):
        command = commands.add_parser(name, help=text, description=text)
        add_arguments(command)
        command.set_defaults(action=action)
    arguments = parser.parse_args(argv)
    return guard(lambda: arguments.action(arguments), is_fresh=getattr(arguments, "fresh", False))


def guard(action: Callable[[], None], *, is_fresh: bool = False) -> int:
    """Turn what a user can mend into one line and a code; our own bugs stay tracebacks.

    is_fresh: the same command would start anew, so what continues is said otherwise.
    """
    try:
        with interruptible():
            action()
    except UserError as error:
        return _tell(f"error: {error}", EXIT_USAGE)
    except StorageError as error:
        return _tell(f"failed: {error}{FRESH if is_fresh else ''}", EXIT_FAILED)
    except RunError as error:
        return _tell(f"failed: {error}", EXIT_FAILED)
    except Interrupted as interrupt:
        return _tell(f"stopped: the same command continues from here{FRESH if is_fresh else ''}", interrupt.exit_code)
    except OSError as error:
        if classify_fault(error) is None:
            raise
        told = f"failed: {error.filename or 'a disk'}: {error.strerror}; the same command continues"
        return _tell(f"{told}{FRESH if is_fresh else ''}", EXIT_FAILED)
    return EXIT_OK


FRESH = ", with this run's directory as --run-dir in place of --fresh"


def _tell(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


RUN_HELP = "Train one specialist per bone, global baselines and a bone router, and report which is better."


def run(arguments: argparse.Namespace) -> None:
    """Carry out a run."""
    from orchestrator.ingest.dataset import open_dataset
    from orchestrator.pipeline import check_searches, forecast, run
    from orchestrator.progress import Progress
    from orchestrator.report.terminal import print_summary

    config, execution = make_config(arguments), make_execution(arguments)
    with Progress() as progress:
        dataset = open_dataset(arguments.data, progress, arguments.corrections)
        if arguments.dry_run:
            forecast(config, dataset, progress)
            return
        rundir = run(config, execution, dataset, progress)
    print_summary(rundir, progress.console)
    check_searches(rundir)


def make_config(arguments: argparse.Namespace, *, checks_backbone: bool = True) -> "RunConfig":
    """Lay the options over the preset. Raises ConfigError, and WeightsError where the backbone is looked at."""
    from mura_models.networks.backbones import check_backbone
    from orchestrator.run.presets import make_preset

    config = make_preset(arguments.preset)
    preprocessing = replace(config.preprocessing, **_given(arguments, "image_size_px", "resize"))
    named = {"name": arguments.backbone, "weights": arguments.weights}
    backbone = replace(config.backbone, **{key: value for key, value in named.items() if value is not None})
    changes = _given(arguments, *CONFIG_OPTIONS)
    if "num_epochs" in changes:
        changes.setdefault("finetune_epochs", changes["num_epochs"])
    for name in ("recipes", "bones", "sampling"):
        if getattr(arguments, name):
            changes[name] = tuple(dict.fromkeys(getattr(arguments, name)))
    if arguments.no_early_stopping:
        changes["early_stopping"] = False
    tune = _given(arguments, *(setting.name for setting in describe_fields(FinetuneSettings)))
    finetune = replace(config.finetune, **tune)
    config = replace(config, preprocessing=preprocessing, backbone=backbone, finetune=finetune, **changes)
    check_contradictions(arguments, config.recipes, trains_networks=config.trains_networks)
    if checks_backbone:
        check_backbone(config.backbone, config.preprocessing.image_size_px)
    return config


CONFIG_OPTIONS = (
    *("num_trials", "num_epochs", "num_steps", "num_folds", "metric", "seed"),
    *("num_audited", "replicate_seeds", "ensemble"),
    *("finetune_trials", "finetune_epochs", "finetune_steps", "finetune_batch_size"),
)
"""Options that are fields of RunConfig as they are."""


def make_execution(arguments: argparse.Namespace) -> "ExecutionOptions":
    """Gather where the run lies and what it runs on. Raises ConfigError."""
    from orchestrator.run.execution import ExecutionOptions

    names = ("run_dir", "fresh", "address", "max_concurrent", "gpus_per_trial", "cpus_per_trial")
    return ExecutionOptions(**{name: getattr(arguments, name) for name in names})


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a check: those of the run that is meant."""
    add_run_arguments(parser, needs_bones=False)


def doctor(arguments: argparse.Namespace) -> None:
    """Print a line a finding; raise ConfigError where a run would fail."""
    from mura_models.errors import ConfigError
    from orchestrator.ingest.dataset import find_mura, open_dataset
    from orchestrator.preflight.doctor import examine
    from orchestrator.progress import Progress

    config, execution = make_config(arguments, checks_backbone=False), make_execution(arguments)
    data = arguments.data or find_mura()
    with Progress() as progress:
        dataset = open_dataset(data, progress, arguments.corrections) if data else None
        levels = []
        for finding in examine(config, execution, dataset):
            progress.log(f"{finding.level:<8} {finding}")
            levels.append(finding.level)
    if "error" in levels:
        raise ConfigError(f"{levels.count('error')} of {len(levels)} checks failed: see the lines above")


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a prediction."""
    parser.add_argument("--bundle", type=parse_path, required=True, metavar="DIR", help="the folder bundle/ of a run")
    parser.add_argument(
        "--data", type=parse_path, required=True, metavar="PATH", help="CSV with a column path, or a folder"
    )
    parser.add_argument("--out", type=parse_path, required=True, metavar="FILE", help=".csv, .parquet or .json")
    parser.add_argument("--split", metavar="NAME", help="only the rows of this split")


def predict(arguments: argparse.Namespace) -> None:
    """Let a bundle answer."""
    from mura_models.inference.predict import predict_files

    predict_files(arguments.bundle, arguments.data, arguments.out, split=arguments.split)


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a report."""
    parser.add_argument("--run-dir", type=parse_path, required=True, metavar="PATH")


def report(arguments: argparse.Namespace) -> None:
    """Write a run's page anew."""
    from orchestrator.report import render_report
    from orchestrator.run.directory import RunDir
    from orchestrator.run.provenance import check_finished

    rundir = RunDir(arguments.run_dir)
    check_finished(rundir)
    render_report(rundir)
    print(rundir.report_html)


def add_phantom_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a phantom."""
    parser.add_argument("--out", type=parse_path, required=True, metavar="DIR", help="MURA-v1.1/ and masks/ go in here")
    parser.add_argument("--scale", type=float, default=0.05, metavar="F", help="1.0 = MURA's 40,005 images (0.05)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")


def phantom(arguments: argparse.Namespace) -> None:
    """Write a phantom."""
    from mura_models.phantom import write_phantom

    print(write_phantom(arguments.out, scale=arguments.scale, seed=arguments.seed))


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Keep the options that were given: None is no value of any of them."""
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
