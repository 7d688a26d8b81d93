"""The command line: `python run_study.py`, and `mura` with its commands.

Options become a RunConfig and ExecutionOptions (options.py). Torch and Ray are imported only after parsing.
"""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, CoercionError, CycloptsError, Group, MissingArgumentError, Parameter, UnusedCliTokensError

import mura_models
from mura_models.errors import ConfigError, RunError, SettingError, StorageError, UserError, to_one_line
from orchestrator.cluster.signals import Interrupted, interruptible
from orchestrator.options import RunOptions, make_command, spell_option, to_int, to_path

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
TRAIN_PACKAGES = ("ray", "matplotlib", "jinja2", "prometheus_client", "grpc", "packaging")
"""Installed by the extra `train`; `mura predict` and `mura phantom` need none of them."""
PathOption = Annotated[Path, Parameter(converter=to_path)]


def run_command(words: Sequence[str] | None = None) -> int:
    """Run `python run_study.py`; return the exit code."""
    words = sys.argv[1:] if words is None else words
    app = _make_app("run_study.py", run.__doc__, "Help")
    app.default(make_command(run, ("python", "run_study.py", *words)))
    return _execute(app, words)


def main(words: Sequence[str] | None = None) -> int:
    """Run `mura`; return the exit code."""
    words = sys.argv[1:] if words is None else words
    app = _make_app("mura", "Compare one specialist per bone with one global model on radiographs.", "Commands")
    app.command(make_command(run, ("mura", *words)), name="run", sort_key=0)
    app.command(make_command(doctor, ("mura", *words), needs_bones=False), name="doctor", sort_key=1)
    others: tuple[Callable[..., None], ...] = (predict, report, phantom)
    for place, command in enumerate(others, start=2):
        app.command(command, sort_key=place)
    app.register_install_completion_command()
    if not words:
        return _print_error("error: a command is missing; mura --help lists them", EXIT_USAGE)
    return _execute(app, words)


def run(options: RunOptions) -> None:
    """Train one specialist per bone, global baselines and a bone router, and report which is better."""
    from mura_models.networks.backbones import check_backbone
    from orchestrator import pipeline
    from orchestrator.ingest.dataset import open_dataset
    from orchestrator.progress import Progress
    from orchestrator.report.terminal import print_summary
    from orchestrator.run.directory import choose_rundir

    request, config = options.request, options.config
    check_backbone(config.backbone, config.preprocessing.image_size_px)
    with Progress() as progress:
        dataset = open_dataset(request.data, progress, request.corrections)
        if request.dry_run:
            pipeline.forecast(config, dataset, progress)
            return
        root = choose_rundir(config, options.execution, dataset).root
        with resumable(options.words, root):
            execution = replace(options.execution, run_dir=root, fresh=False)
            rundir = pipeline.run(config, execution, dataset, progress)
    print_summary(rundir, progress.console)
    pipeline.check_searches(rundir)


def doctor(options: RunOptions) -> None:
    """Check machine, cluster and disk for a run with these options, without running it."""
    from orchestrator.ingest.dataset import find_mura, open_dataset
    from orchestrator.preflight.doctor import examine
    from orchestrator.progress import Progress

    data = options.request.data or find_mura()
    with Progress() as progress:
        dataset = open_dataset(data, progress, options.request.corrections) if data else None
        levels = []
        for finding in examine(options.config, options.execution, dataset):
            progress.log(f"{finding.level:<8} {finding.spell(spell_option)}")
            levels.append(finding.level)
    if "error" in levels:
        raise ConfigError(f"{levels.count('error')} of {len(levels)} checks failed: see the lines above")


def predict(*, bundle: PathOption, data: PathOption, out: PathOption, split: str | None = None) -> None:
    """Predict images with the bundle of a run.

    Parameters
    ----------
    bundle
        The folder bundle/ of a run.
    data
        CSV with the column path, or a folder of images.
    out
        File to write: .csv, .parquet or .json, one row per image.
    split
        Predict only the rows of this split.
    """
    from mura_models.inference.predict import predict_files

    predict_files(bundle, data, out, split=split)


def report(*, run_dir: PathOption) -> None:
    """Write report.html again from report.json and the tables of a finished run.

    Parameters
    ----------
    run_dir
        Directory of the run.
    """
    from orchestrator.report import render_report
    from orchestrator.run.directory import RunDir
    from orchestrator.run.provenance import check_finished

    rundir = RunDir(run_dir)
    check_finished(rundir)
    render_report(rundir)
    print(rundir.report_html)


def phantom(*, out: PathOption, scale: float = 0.05, seed: Annotated[int, Parameter(converter=to_int)] = 0) -> None:
    """Write the phantom: synthetic radiographs in MURA's layout.

    Parameters
    ----------
    out
        Directory to write MURA-v1.1/ and masks/ into.
    scale
        Size relative to MURA; 1.0 writes 40,005 images.
    seed
        Seed of the images.
    """
    from mura_models.phantom import write_phantom

    print(write_phantom(out, scale=scale, seed=seed))


def guard(action: Callable[[], object]) -> int:
    """Turn what a user can fix into one line and an exit code; our own bugs remain tracebacks."""
    try:
        with interruptible():
            action()
    except (CycloptsError, UserError, ModuleNotFoundError) as error:
        return _print_error(f"error: {_explain(error)}", EXIT_USAGE)
    except RunError as error:
        hint = _resume_hint(error) if isinstance(error, StorageError) else ""
        return _print_error(f"failed: {str(error).removesuffix('.')}{hint}", EXIT_FAILED)
    except Interrupted as error:
        return _print_error(f"Interrupted{_resume_hint(error)}", error.exit_code)
    except OSError as error:
        from mura_models.storage import classify_fault

        if classify_fault(error) is None:
            raise
        reason = f"{error.filename or 'a disk'}: {error.strerror}"
        return _print_error(f"failed: {reason}{_resume_hint(error)}", EXIT_FAILED)
    return EXIT_OK


def _explain(error: CycloptsError | UserError | ModuleNotFoundError) -> str:
    """Return a user's mistake in one line that names the option as it was typed; raise what is no such mistake."""
    if isinstance(error, CycloptsError):
        return to_one_line(_explain_words(error))
    if isinstance(error, SettingError):
        return error.spell(spell_option)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package not in TRAIN_PACKAGES:
            raise error
        return f"{package} is not installed; install mura-study[train]"
    return str(error)


def _explain_words(error: CycloptsError) -> str:
    """Return what is wrong with the words of a command."""
    error.verbose = False
    text, name = str(error), error.argument.name if error.argument else ""
    if isinstance(error, CoercionError) and error.argument and error.token:
        choices = error.argument.get_choices()
        kind = "true or false" if error.target_type is bool else "a number"
        rule = error.msg or (f"must be one of {', '.join(choices)}" if choices else f"must be {kind}")
        return f"{name} {shlex.quote(error.token.value)}: {rule}"
    if isinstance(error, MissingArgumentError):
        _, _, suggestion = text.partition("Did you mean ")
        rule = "needs a value" if error.keyword else "is required"
        return f"{name}: {rule}. Did you mean {suggestion}" if suggestion else f"{name}: {rule}"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"{shlex.quote(error.unused_tokens[0])}: unexpected argument"
    return text[0].lower() + text[1:].rstrip(".")


def _make_app(name: str, text: str | None, group: str) -> App:
    return App(
        name=name,
        help=text,
        help_format="plaintext",
        version=lambda: mura_models.__version__,
        default_parameter=Parameter(negative_iterable=()),
        group_commands=Group(group, sort_key=0),
        suppress_keyboard_interrupt=False,  # `guard` prints how to resume
    )


def _execute(app: App, words: Sequence[str]) -> int:
    return guard(lambda: app(words, exit_on_error=False, print_error=False, result_action="return_value"))


def _print_error(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


@contextmanager
def resumable(words: Sequence[str], run_dir: Path) -> Iterator[None]:
    """Note on what stops a run the command that resumes it."""
    try:
        yield
    except (KeyboardInterrupt, StorageError, OSError) as stop:
        command = [word for word in words if word != "--fresh"]
        if str(run_dir) not in command:
            command += ["--run-dir", str(run_dir)]
        stop.add_note(shlex.join(command))
        raise


def _resume_hint(error: BaseException) -> str:
    notes = getattr(error, "__notes__", [])
    return f". Resume with: {notes[-1]}" if notes else ". Run the same command again to resume."
