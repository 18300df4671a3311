"""``wattledger-agent enroll``: trades a join token, which many nodes share, for a token of this node's own, and keeps it.

The join token is read from a file and sent once, over the same checked connection as everything else. It prints no secret.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from collector.config import Settings
from collector.errors import AgentError, NoAnswerError
from collector.exchange import Exchange
from collector.recorder import agent_version
from collector.wire import ENROLL_PATH

if TYPE_CHECKING:
    from collector.http import httpx

DEFAULT_TOKEN_FILE: Final = Path("/etc/wattledger-agent/token")
_LIMIT_S: Final = 60.0
_MAX_ANSWER_BYTES: Final = 16_384
_MAX_TOKEN_CHARACTERS: Final = 4_096
_UNUSABLE: Final = (
    "the server's answer holds no token; is server_url right? If it is, the node may have joined all the same: "
    "revoke its token (`wattledger token list`, `wattledger token revoke ID`) and enrol again"
)
_ADVICE: Final = {
    401: "the join token is unknown or no longer valid; make another with `wattledger token create --scope join`",
    403: "the token may not let nodes join; make one with `wattledger token create --scope join`",
    404: "the server knows no enrolment; is server_url right, and the server of this version?",
    409: "this node has joined before; revoke its token first (`wattledger token list`, `wattledger token revoke ID`)",
    429: "too many nodes join at once; try again in a minute",
}


def enroll(settings: Settings, client: httpx.Client, join_token_file: Path) -> Path:
    """Join as ``settings.node``; return the file that holds the node's token now. Raises AgentError with what to do.

    The file is ``settings.token_file``, or :data:`DEFAULT_TOKEN_FILE`; it is written beside and renamed, readable by this
    user alone.
    """
    target = Path(settings.token_file) if settings.token_file else DEFAULT_TOKEN_FILE
    # Before the server is asked: it gives the token once, and a token that cannot be kept is lost.
    if not os.access(target.parent, os.W_OK):
        raise AgentError(f"cannot write to {target.parent}; run as a user who may, or set token_file")
    token = _ask(settings, client, _join_token(join_token_file))
    _keep(token, target)
    return target


def _join_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AgentError(f"cannot read the join token: {error}") from error
    if not token or not token.isprintable():
        raise AgentError(f"{path} holds no join token")
    return token


def _ask(settings: Settings, client: httpx.Client, join_token: str) -> str:
    body = {"node": settings.node, "agent_version": agent_version()}
    headers = {"Authorization": f"Bearer {join_token}", "Content-Type": "application/json"}
    exchange = Exchange(client, limit_s=_LIMIT_S, max_bytes=_MAX_ANSWER_BYTES)
    try:
        found = exchange.ask("POST", ENROLL_PATH, headers=headers, body=json.dumps(body).encode())
    except NoAnswerError as error:
        raise AgentError(f"{settings.server_url} does not answer: {error}") from error
    code, answer = found.code, found.body
    if code == 200 and found.fault:
        raise AgentError(f"the server's answer cannot be read: {found.fault}; revoke the token it gave and enrol again")
    if code != 200:
        raise AgentError(f"the server answered {code}: {_ADVICE.get(code, _reason(answer))}")
    try:
        token = json.loads(answer)["token"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AgentError(_UNUSABLE) from error
    if not isinstance(token, str) or not 0 < len(token) <= _MAX_TOKEN_CHARACTERS:
        raise AgentError(_UNUSABLE)
    if not (token.isascii() and token.isprintable()):  # no header could carry it
        raise AgentError(_UNUSABLE)
    return token


def _reason(answer: bytes) -> str:
    return answer[:300].decode("utf-8", "replace").strip() or "no reason given"


def _keep(token: str, target: Path) -> None:
    """Write the token so that there is the old file or the new one, and nobody else can read either."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=".token-", dir=target.parent)  # made readable by this user alone
    except OSError as error:
        raise AgentError(f"the token could not be kept: {error}; revoke it and enrol again") from error
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).rename(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            Path(name).unlink()
        raise AgentError(f"the token could not be kept: {error}; revoke it and enrol again") from error
