"""The options of a run, generated from its settings: name, type, choices, default and help come from the fields.

Free of torch, NumPy and Ray, like everything that is imported before the options are parsed.
"""

import dataclasses
import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from cyclopts import Group, Parameter, Token
from docstring_parser import parse_from_object

from mura_models.data.preprocessing_settings import Preprocessing
from mura_models.errors import ConfigError, SettingError
from mura_models.networks.backbone_spec import BackboneSpec
from mura_models.training.finetune_settings import FinetuneSettings
from orchestrator.run.config import RunConfig
from orchestrator.run.execution import ExecutionOptions
from orchestrator.run.presets import PRESETS, PresetName, make_preset


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a command asks for besides settings."""

    all_bones: bool = False
    """Train a specialist for every bone of the data."""
    data: Path | None = None
    """MURA-v1.1 folder or manifest CSV (default: $MURA_DATA, ./MURA-v1.1, else the phantom: synthetic radiographs)."""
    corrections: Path | None = None
    """CSV of known label errors, with the columns label, source, and path (one image) or study (all its images)."""
    preset: PresetName = "quick"
    """Settings to start from: quick (minutes on a laptop), paper (the source paper's systems) or full (whole
    networks, for machines with GPUs). Other options override it."""
    dry_run: bool = False
    """Print the plan and a forecast of time and disk space, then exit. Nothing is decoded or trained."""


WHOLE_NETWORKS = "Whole networks (recipes finetune and intermediate_task)"
SECTIONS: tuple[tuple[str, type, tuple[str, ...]], ...] = (
    ("Data", Request, ("all_bones",)),
    ("Data", RunConfig, ("bones",)),
    ("Data", Request, ("data", "corrections")),
    ("Training", Request, ("preset",)),
    ("Training", RunConfig, ("recipes", "num_trials", "num_epochs", "num_steps", "num_folds", "sampling", "metric")),
    ("Training", RunConfig, ("early_stopping", "num_audited", "replicate_seeds", "ensemble", "seed")),
    ("Images and backbone", Preprocessing, ("image_size_px", "resize")),
    ("Images and backbone", BackboneSpec, ("name", "weights")),
    (WHOLE_NETWORKS, RunConfig, ("finetune_trials", "finetune_epochs", "finetune_steps", "finetune_batch_size")),
    (WHOLE_NETWORKS, FinetuneSettings, tuple(field.name for field in dataclasses.fields(FinetuneSettings))),
    ("Run directory and resources", ExecutionOptions, tuple(f.name for f in dataclasses.fields(ExecutionOptions))),
    ("Run directory and resources", Request, ("dry_run",)),
)
"""Fields that are options, in the order of `--help`; the others are set by presets and by Python alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """A field of a settings class as an option of the command line."""

    section: str
    owner: type
    field: "dataclasses.Field[Any]"

    @property
    def name(self) -> str:
        """The option as it is typed: its field's name without units, unless the field's metadata has another."""
        short = self.field.name.removeprefix("num_").removesuffix("_px")
        return str(self.field.metadata.get("option", f"--{short.replace('_', '-')}"))

    @property
    def key(self) -> str:
        """Name of the parameter; unlike the field's name, only one option has it."""
        return self.name.removeprefix("--").replace("-", "_")

    def to_parameter(self, config: RunConfig, group: Group) -> inspect.Parameter:
        """Return the parameter of a command, with the default that it has in `config`."""
        hint = get_type_hints(self.owner)[self.field.name]
        default = getattr(_find_settings(config, self.owner), self.field.name)
        is_list = any(get_origin(part) is tuple for part in (hint, *get_args(hint)))
        is_switch = self.owner in (Request, ExecutionOptions) and hint is bool
        declared = Parameter(
            group=group,
            help=" ".join((read_field_docs(self.owner)[self.field.name]).split()),
            show_default=not is_switch and (" ".join(default) if is_list and default else default is not None),
            negative=() if is_switch else None,
            consume_multiple=is_list,
            allow_repeating=True,  # the last one counts, so that make run ARGS=... can override
            converter=next((read for kind, read in CONVERTERS.items() if hint in (kind, kind | None)), None),
        )
        return inspect.Parameter(
            self.key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, declared]
        )


def to_path(hint: Any, tokens: Sequence[Token]) -> Path:
    """Return a path; an empty one, as of a shell's unset variable, would silently mean the working directory."""
    text = tokens[0].value
    if not text.strip():
        raise ValueError("the path is empty; name a file or folder")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8; rename it") from None
    return Path(text)


def to_int(hint: Any, tokens: Sequence[Token]) -> int:
    """Return a whole number; cyclopts would round 1.5."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError("must be a whole number") from None


CONVERTERS: dict[Any, Callable[[Any, Sequence[Token]], Any]] = {int: to_int, Path: to_path}

OPTIONS = [
    Option(section=section, owner=owner, field=field)
    for section, owner, names in SECTIONS
    for name in names
    for field in dataclasses.fields(owner)
    if field.name == name
]
OPTION_NAMES = {name: option.name for option in OPTIONS for name in (option.field.name, option.key)}
"""Setting -> option, so that errors name what the user typed."""


@cache
def read_field_docs(settings: type) -> dict[str, str]:
    """Return the docstrings under the fields of a dataclass."""
    return {doc.arg_name: doc.description or "" for doc in parse_from_object(settings).params}


def spell_option(name: str, value: object) -> str:
    """Write a setting and its value as on the command line; what an environment variable gave stays NAME=value."""
    if name.isupper():
        return f"{name}={value}"
    option = OPTION_NAMES.get(name, f"--{name.replace('_', '-')}")
    if value is False:
        return option.replace("--", "--no-", 1)
    if value is True or value == ():
        return option
    text = str(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return f"{option} {shlex.quote(text)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """What the options of a run or a check come to."""

    request: Request
    config: RunConfig
    execution: ExecutionOptions
    words: tuple[str, ...]
    """The command as it was typed."""


def make_command(
    action: Callable[[RunOptions], None], words: tuple[str, ...], *, needs_bones: bool = True
) -> Callable[..., None]:
    """Return the command that parses the options of a run; its help shows the defaults of the preset in `words`."""

    def command(**given: Any) -> None:
        action(read_options(given, words, needs_bones=needs_bones))

    config = make_preset(_find_preset(words))
    groups = {option.section: Group.create_ordered(option.section) for option in OPTIONS}
    parameters = [option.to_parameter(config, groups[option.section]) for option in OPTIONS]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = action.__doc__
    return command


def read_options(given: Mapping[str, Any], words: tuple[str, ...], *, needs_bones: bool = True) -> RunOptions:
    """Lay the options that were given over the preset. Raises ConfigError."""
    fields: dict[type, dict[str, Any]] = {option.owner: {} for option in OPTIONS}
    for option in OPTIONS:
        if option.key in given:
            value = given[option.key]
            fields[option.owner][option.field.name] = tuple(dict.fromkeys(value)) if isinstance(value, tuple) else value
    request, own = Request(**fields[Request]), fields[RunConfig]
    if request.all_bones and "bones" in own:
        raise ConfigError("--bones: not allowed together with --all-bones")
    if needs_bones and not (request.all_bones or "bones" in own):
        raise ConfigError("--all-bones or --bones BONE ... is required")
    config = make_preset(request.preset)
    if "num_epochs" in own:
        own.setdefault("finetune_epochs", own["num_epochs"])
    config = replace(
        config,
        preprocessing=replace(config.preprocessing, **fields[Preprocessing]),
        backbone=replace(config.backbone, **fields[BackboneSpec]),
        finetune=replace(config.finetune, **fields[FinetuneSettings]),
        **own,
    )
    _check_effects(given, config)
    execution = ExecutionOptions(**fields[ExecutionOptions])
    return RunOptions(request=request, config=config, execution=execution, words=words)


def _check_effects(given: Mapping[str, Any], config: RunConfig) -> None:
    """Raise SettingError for an option that would have no effect."""
    if given.get("early_stopping") is False and given.get("audit"):
        rule = "{early_stopping} stops no trial, so none can be audited; leave one of the two out"
        raise SettingError("num_audited", given["audit"], rule, {"early_stopping": False})
    unused = [option.key for option in OPTIONS if option.section == WHOLE_NETWORKS and option.key in given]
    if unused and not config.trains_networks:
        rule = (
            f"none of {', '.join(config.recipes)} trains whole networks; add finetune or intermediate_task to --recipes"
        )
        raise SettingError(unused[0], given[unused[0]], rule)


def _find_preset(words: Sequence[str]) -> str:
    """Return the preset that is named among the words of a command, for its help."""
    named = [after for word, after in pairwise(words) if word == "--preset"]
    named += [word.removeprefix("--preset=") for word in words if word.startswith("--preset=")]
    return next((name for name in reversed(named) if name in PRESETS), "quick")


def _find_settings(config: RunConfig, owner: type) -> Any:
    """Return the part of a config that is of this class, or the class's own defaults."""
    parts = (config, config.preprocessing, config.backbone, config.finetune)
    return next((part for part in parts if type(part) is owner), None) or owner()
