"""Ray started here: on loopback, behind a token that its user alone can read, reporting to nobody.

Ray has no public setting for the first, nor for the command that its dashboard shows of a job, so both are set where
Ray itself looks them up. Where a later version looks elsewhere, tests/test_local_ray.py fails.
"""

import os
import re
import secrets
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import ray

from mura_models.errors import ConfigError

LOOPBACK = "127.0.0.1"
AUTH_MODE = "RAY_AUTH_MODE"
OWN_TOKEN = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Where Ray takes a token from before it looks for its file."""
_PATH = re.compile(r"(?:^|(?<==))[^=]*[/\\].*", re.DOTALL)


def start_local_ray(**options: Any) -> None:
    """Start Ray with its dashboard, every port of it on 127.0.0.1 alone.

    Raises ConfigError where the token cannot be kept.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use to its maker by default
    # Else `ray.init` waits for workers that are started beforehand: for ever, where one of them dies.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    if uses_rays_token_file():
        keep_token_private()
    # What Ray does on Windows and macOS: the node's own address, on which all of its daemons listen, is loopback.
    with _set(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False):
        ray.init("local", include_dashboard=True, dashboard_host=LOOPBACK, **options)


def uses_rays_token_file() -> bool:
    """Return whether a Ray that is started here asks for a token and takes it from `~/.ray/auth_token`."""
    mode = read_auth_mode(os.environ.get(AUTH_MODE))
    return mode != "disabled" and not any(os.environ.get(name) for name in OWN_TOKEN)


def find_token_file() -> Path:
    """Name the file in which Ray looks for a token by itself."""
    return Path.home() / ".ray" / "auth_token"


def read_auth_mode(text: str | None) -> Literal["token", "disabled"] | None:
    """Read RAY_AUTH_MODE as Ray does: in any case, and all but token as disabled; None where it is not set."""
    if text is None:
        return None
    return "token" if text.lower() == "token" else "disabled"


def keep_token_private() -> None:
    """Make Ray's token where there is none, readable by its owner alone: Ray's own is readable by everybody here."""
    token = find_token_file()
    try:
        token.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))  # as long as Ray's own
    except FileExistsError:
        with suppress(PermissionError):  # somebody else's
            token.chmod(0o600)
    except OSError as error:
        raise ConfigError(
            f"{token}: cannot be written ({error.strerror}); Ray keeps its token there: give a HOME that can be written"
        ) from error


@contextmanager
def shown_without_paths() -> Iterator[None]:
    """Let Ray's dashboard, which lists jobs and looks at processes as `ps` does, see this command without its paths."""
    os.environ.setdefault("SPT_NOENV", "1")  # the title may not be written over the environment, which others read
    command, title = describe_command(sys.argv), ray._raylet.getproctitle()
    with _set(ray._private.utils, "get_entrypoint_name", lambda: command):
        ray._raylet.setproctitle(command)
        try:
            yield
        finally:
            ray._raylet.setproctitle(title)


def describe_command(argv: Sequence[str]) -> str:
    """Return a command as others may see it: PATH for everything that lies in a folder."""
    return shlex.join([Path(argv[0]).name, *(_PATH.sub("PATH", part) for part in argv[1:])])


@contextmanager
def _set(module: ModuleType, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
