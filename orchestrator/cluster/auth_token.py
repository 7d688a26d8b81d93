"""Ray's authentication token: where Ray reads it, and how it is kept from other users of this machine.

A Ray that is started here asks for a token unless RAY_AUTH_MODE=disabled. To a cluster that is joined Ray sends one
only if RAY_AUTH_MODE=token, whatever token there is (seen on Ray 2.60).
"""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Literal

from mura_models.data.safe_read import read_file
from mura_models.errors import ConfigError

AUTH_MODE = "RAY_AUTH_MODE"
TOKEN_VARIABLE, PATH_VARIABLE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
"""Where Ray looks for a token, in this order, before its default file."""
MAX_TOKEN_BYTES = 65_536
"""Of a file that may hold a token: Ray's own has 64 (chosen by us)."""
REMEDY = (
    "if the cluster asks for a token, export RAY_AUTH_MODE=token and put its token into ~/.ray/auth_token or "
    "RAY_AUTH_TOKEN (`ray get-auth-token` on its head prints it)"
)


def read_auth_mode() -> Literal["token", "disabled"] | None:
    """Read RAY_AUTH_MODE as Ray does: in any case, and all but token as disabled; None if it is not set."""
    text = os.environ.get(AUTH_MODE)
    if text is None:
        return None
    return "token" if text.lower() == "token" else "disabled"


def is_token_used(address: str | None) -> bool:
    """Return whether Ray uses a token with the cluster at `address`, or with the one started here (None)."""
    mode = read_auth_mode()
    return mode == "token" or (mode is None and address is None)


def default_token_file() -> Path:
    """Return the file in which Ray keeps a token."""
    return Path.home() / ".ray" / "auth_token"


def find_token(address: str | None) -> str:
    """Return the variable or file from which Ray takes its token; empty if it uses none, or has yet to make one.

    Raises ConfigError if there is a file that should hold it and does not: Ray would wait, or fail without a word.
    """
    if not is_token_used(address):
        return ""
    if os.environ.get(TOKEN_VARIABLE):
        return TOKEN_VARIABLE
    named = os.environ.get(PATH_VARIABLE)
    path = Path(named) if named else default_token_file()
    try:
        token = read_file(path, max_bytes=MAX_TOKEN_BYTES).decode().strip()
        is_wrong = bool(named) and not token
    except (FileNotFoundError, NotADirectoryError):
        token, is_wrong = "", bool(named)  # its default file Ray makes by itself
    except (OSError, UnicodeDecodeError):
        token, is_wrong = "", True
    if is_wrong:
        name = f"{PATH_VARIABLE}={named}" if named else path
        raise ConfigError(f"token: {name}: holds no token; write the token there as plain text, or unset or remove it")
    return str(path) if token else ""


def makes_token_private() -> bool:
    """Return whether `start_local_ray` calls `make_token_private`: if the token is in Ray's default file."""
    is_elsewhere = os.environ.get(TOKEN_VARIABLE) or os.environ.get(PATH_VARIABLE)
    return is_token_used(None) and not is_elsewhere


def make_token_private() -> None:
    """Make the default token file readable by its owner alone, and the token if there is none.

    The file that Ray makes is readable by every user of the machine.
    """
    token = default_token_file()
    try:
        token.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))  # as long as Ray's own
    except FileExistsError:
        with suppress(PermissionError):  # another user's
            token.chmod(0o600)
    except OSError as error:
        raise ConfigError(
            f"{token}: cannot be written ({error.strerror}); Ray keeps its token there: set HOME to a writable folder"
        ) from error


def is_readable_by_others(path: Path) -> bool:
    """Return whether users other than its owner can read a file: its mode and that of every parent folder allow it."""
    if not path.is_file():
        return False
    modes = [folder.stat().st_mode for folder in path.absolute().parents]
    return any(
        path.stat().st_mode & readable and all(mode & enterable for mode in modes)
        for readable, enterable in ((stat.S_IRGRP, stat.S_IXGRP), (stat.S_IROTH, stat.S_IXOTH))
    )
