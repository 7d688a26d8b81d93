"""Ray's token: whether driver and cluster agree on it.

A Ray that is started here asks for a token unless RAY_AUTH_MODE=disabled, and makes one. To an address that is given,
Ray sends a token only where RAY_AUTH_MODE=token is set here, whatever token lies here; refused, it waits for 20 seconds
and then says nothing of tokens (both seen on Ray 2.60). So the cluster is asked before it is joined.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

from mura_models.data.safe_read import read_file
from orchestrator.cluster.connection import CONNECT_TIMEOUT_S, check_port_open, resolve_address
from orchestrator.cluster.local_ray import AUTH_MODE, OWN_TOKEN, find_token_file, read_auth_mode, uses_rays_token_file
from orchestrator.preflight.findings import Finding, not_checked, ok, problem, warning
from orchestrator.run.execution import ExecutionOptions

Answer = Literal["open", "accepted", "refused", "silent"]
"""Of a cluster: it asks for no token; takes ours; takes none of ours; does not answer."""

TOKEN = "token:"
"""What every finding here is about."""

PROOF = "`ray get-auth-token` on its head prints it"
TOKEN_BYTES = 65_536
"""Of a file that may hold a token: Ray's own has 64 (chosen by us)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenFacts:
    """What is set here, and what the cluster to be joined says to it."""

    mode: str | None = None
    """RAY_AUTH_MODE."""
    source: str = ""
    """Where the token comes from; empty where there is none."""
    unreadable: str = ""
    """The file where a token should be, as it is named, where none can be read there."""
    is_readable_by_others: bool = False
    address: str | None = None
    answer: Answer | None = None
    """None where no cluster is joined."""
    unknown: str = ""
    """Why the cluster could not be asked."""


def judge_tokens(facts: TokenFacts) -> list[Finding]:
    """Return whether this driver gets in, and who else would."""
    mode = read_auth_mode(facts.mode)
    findings = []
    if facts.mode is not None and facts.mode.lower() not in ("token", "disabled"):
        text = f"RAY_AUTH_MODE={facts.mode}: Ray treats this as disabled"
        findings.append(warning(TOKEN, text, "set it to token or disabled"))
    sends_token = mode == "token" or (mode is None and facts.address is None)
    if sends_token and facts.unreadable:
        text = f"{facts.unreadable}: none can be read there"
        findings.append(problem(TOKEN, text, "write the token there as plain text, or unset or remove it"))
    elif facts.address is not None:
        findings += _judge_cluster(facts, facts.address, sends_token=sends_token)
    elif sends_token:
        made = facts.source or "in ~/.ray/auth_token, which Ray makes"
        findings.append(ok(TOKEN, f"the Ray that is started here asks for one (Ray's default): {made}"))
    else:
        remedy = "unset RAY_AUTH_MODE, and Ray asks for a token"
        findings.append(warning(TOKEN, "whoever reaches the Ray that is started here can run code in it", remedy))
    if sends_token and facts.is_readable_by_others:
        text = f"others on this machine can read it ({facts.source})"
        findings.append(warning(TOKEN, text, f"chmod 600 {facts.source}"))
    return findings


def _judge_cluster(facts: TokenFacts, address: str, *, sends_token: bool) -> list[Finding]:
    copy_it = f"put the cluster's into ~/.ray/auth_token or RAY_AUTH_TOKEN ({PROOF})"
    if facts.unknown:
        return [not_checked(TOKEN, facts.unknown, "RAY_AUTH_MODE and token must be those of the cluster's head")]
    if sends_token and not facts.source:
        return [problem(TOKEN, "RAY_AUTH_MODE=token, and there is none here", copy_it)]
    if facts.answer == "refused":
        return [_explain_refusal(facts, f"the cluster at {address} asks for one", copy_it, sends_token=sends_token)]
    if facts.answer == "open":
        text = f"the cluster at {address} asks for none: whoever reaches it can run code there"
        return [warning(TOKEN, text, "start its head and workers with RAY_AUTH_MODE=token")]
    if facts.answer == "accepted":
        return [ok(TOKEN, f"the cluster at {address} asks for one and takes that of {facts.source}")]
    return []  # it does not answer at all, which joining it will say


def _explain_refusal(facts: TokenFacts, asks: str, copy_it: str, *, sends_token: bool) -> Finding:
    if sends_token:
        return problem(TOKEN, f"{asks}, and {facts.source} holds another", copy_it)
    if facts.source:
        text = f"{asks}, and without RAY_AUTH_MODE=token Ray sends none, not even that of {facts.source}"
        return problem(TOKEN, text, "export RAY_AUTH_MODE=token")
    return problem(TOKEN, f"{asks}, and there is none here", f"export RAY_AUTH_MODE=token, and {copy_it}")


def find_token_facts(execution: ExecutionOptions) -> TokenFacts:
    """Look at what is set here, and ask the cluster that is to be joined."""
    source, unreadable = _find_source()
    address = resolve_address(execution)
    is_closed_at_start = address is None and uses_rays_token_file()  # by local_ray.py
    answer, unknown = None, ""
    mode = os.environ.get(AUTH_MODE)
    sends_token = read_auth_mode(mode) == "token"
    if address is not None and (source or not sends_token):
        try:
            answer = ask_cluster(address, sends_token=sends_token)
        except Exception as error:  # Ray's inner workings, which another version may have moved
            unknown = str(error) or type(error).__name__
    return TokenFacts(
        mode=mode,
        source=source,
        unreadable=unreadable,
        is_readable_by_others=bool(source) and not is_closed_at_start and is_readable_by_others(Path(source)),
        address=address,
        answer=answer,
        unknown=unknown,
    )


def _find_source() -> tuple[str, str]:
    """Name where Ray takes the token from, in its order, and the file that should hold one where none can be read."""
    by_value, by_path = OWN_TOKEN
    if os.environ.get(by_value):
        return by_value, ""
    named = os.environ.get(by_path)
    path = Path(named) if named else find_token_file()
    name = f"{by_path}={named}" if named else str(path)
    try:
        token = read_file(path, max_bytes=TOKEN_BYTES).decode().strip()
    except (FileNotFoundError, NotADirectoryError):
        token = ""
    except (OSError, UnicodeDecodeError):
        return "", name
    if token:
        return str(path), ""
    return "", name if named else ""  # its own file Ray makes by itself


def is_readable_by_others(path: Path) -> bool:
    """Return whether others than its owner can read a file: it lets them, and so does every folder on the way."""
    if not path.is_file():
        return False
    modes = [folder.stat().st_mode for folder in path.absolute().parents]
    return any(
        path.stat().st_mode & readable and all(mode & enterable for mode in modes)
        for readable, enterable in ((stat.S_IRGRP, stat.S_IXGRP), (stat.S_IROTH, stat.S_IXOTH))
    )


def ask_cluster(address: str, *, sends_token: bool) -> Answer:
    """Ask the head at HOST:PORT for its id, with our token and without. Raises ValueError for another address."""
    if ":" not in address:
        raise ValueError(f"{address} is not HOST:PORT")
    try:
        check_port_open(address)
    except OSError:
        return "silent"
    with grpc.insecure_channel(address) as channel:
        if _is_let_in(channel):
            return "open"
    if not sends_token:
        return "refused"
    with init_grpc_channel(address) as channel:
        return "accepted" if _is_let_in(channel) else "refused"


def _is_let_in(channel: grpc.Channel) -> bool:
    try:
        NodeInfoGcsServiceStub(channel).GetClusterId(GetClusterIdRequest(), timeout=CONNECT_TIMEOUT_S)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            return False
        raise ConnectionError(error.details()) from error
    return True
