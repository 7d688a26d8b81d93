"""Ray started here: on loopback, with a token that only its user can read, without usage reports."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ray

from orchestrator.cluster.auth_token import make_token_private, makes_token_private
from orchestrator.cluster.ray_private import listen_on_loopback, show_command_as

LOOPBACK = "127.0.0.1"
_PATH = re.compile(r"(?:^|(?<==))[^=]*[/\\].*", re.DOTALL)


def start_local_ray(**options: Any) -> None:
    """Start Ray with its dashboard, every port of it on 127.0.0.1 alone.

    Raises ConfigError if the token cannot be stored.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # by default Ray reports its use to its maker
    # Otherwise `ray.init` waits for workers that are started in advance, without end if one of them dies.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    if makes_token_private():
        make_token_private()
    with listen_on_loopback():
        ray.init("local", include_dashboard=True, dashboard_host=LOOPBACK, **options)


def hide_paths() -> AbstractContextManager[None]:
    """Show this process's command without its paths on Ray's dashboard, which lists jobs and processes."""
    os.environ.setdefault("SPT_NOENV", "1")  # the title must not overwrite the environment, which others read
    return show_command_as(redact_paths(sys.argv))


def redact_paths(argv: Sequence[str]) -> str:
    """Return a command line with PATH in place of everything that has a folder in it."""
    return shlex.join([Path(argv[0]).name, *(_PATH.sub("PATH", part) for part in argv[1:])])
