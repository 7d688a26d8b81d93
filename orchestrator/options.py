"""What the command line alone can tell of its options: empty paths, and options that leave one another without effect.

Free of torch and Ray, as all that is imported before parsing.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mura_models.errors import ConfigError
from mura_models.training.finetune_settings import FinetuneSettings, describe_fields

FINETUNE_OPTIONS = (
    *("finetune_trials", "finetune_epochs", "finetune_steps", "finetune_batch_size"),
    *(setting.name for setting in describe_fields(FinetuneSettings)),
)
"""Options that mean nothing where no whole network is trained."""


def parse_path(text: str) -> Path:
    """Read a path; an empty one, as of a shell's unset variable, would silently mean the working directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty; name a file or folder")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8; rename it") from None
    return Path(text)


def check_contradictions(arguments: argparse.Namespace, recipes: Sequence[str], *, trains_networks: bool) -> None:
    """Raise ConfigError for an option that another one leaves without effect."""
    if arguments.no_early_stopping and arguments.num_audited:
        raise ConfigError(
            f"audit={arguments.num_audited}: with --no-early-stopping no trial is stopped, so none can be audited; "
            "leave one of the two out"
        )
    given = {name: getattr(arguments, name) for name in FINETUNE_OPTIONS if getattr(arguments, name) is not None}
    if given and not trains_networks:
        name, value = next(iter(given.items()))
        raise ConfigError(
            f"{name}={value}: none of {', '.join(recipes)} trains whole networks; "
            "add finetune or intermediate_task to --recipes"
        )
