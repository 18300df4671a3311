"""The few calls of the Kubernetes API that watching takes: versions of a group, lists in pages, watches by lines. Read only; it knows no kinds.

Errors say which right is missing. A watch that ends, breaks off in the middle of a line or is told that its place is too old
is no error of the round: the caller goes on from where it was, or lists again.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from ingest.pollers.errors import RightsError, SourceError

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PAGE: Final = 500
WATCH_S: Final = 290
"""API servers end watches after five minutes or so; asking for less makes the end an orderly one."""
QUIET_S: Final = 330.0
"""Longer without a byte, bookmarks included, and the connection is dead."""
MAX_LINE_BYTES: Final = 8 << 20
Object = dict[str, Any]


class ExpiredError(SourceError):
    """The place to go on from is too old (410): list again."""


class AbsentError(SourceError):
    """The server has no such resource (404): the thing that defines it is not installed."""


class UnknownVersionError(SourceError):
    """What defines the resource is installed, in versions that this watcher does not read."""


class BrokenWatchError(SourceError):
    """The connection ended within a line, or went silent: go on from the last whole event."""


@dataclass(frozen=True, slots=True)
class Listed:
    items: list[Object]
    resource_version: str


class KubeApi:
    """One API server. ``token`` is asked for with each request: a service account's is renewed every hour."""

    def __init__(self, client: httpx.Client, server: str, token: Callable[[], str | None]) -> None:
        self._client = client
        self._server = server.rstrip("/")
        self._token = token

    def list(self, path: str) -> Listed:
        """Return all objects of a resource and the version that the list is of."""
        items: list[Object] = []
        params: dict[str, str] = {"limit": str(PAGE)}
        while True:
            page = self._get(path, params)
            metadata = page.get("metadata") or {}
            items += page.get("items") or []
            if not metadata.get("continue"):
                return Listed(items, str(metadata.get("resourceVersion", "")))
            params["continue"] = metadata["continue"]

    def versions(self, group: str) -> tuple[str, ...]:
        """Return the versions in which an API group is served; raises AbsentError where it is not installed."""
        found = self._get(f"/apis/{group}", {})
        return tuple(str(each["version"]) for each in found.get("versions") or () if each.get("version"))

    def watch(self, path: str, resource_version: str) -> Iterator[tuple[str, Object]]:
        """Yield (type, object) of changes since then, BOOKMARK included, until the server ends the watch."""
        params = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(WATCH_S),
        }
        timeout = httpx.Timeout(QUIET_S, connect=10.0)
        try:
            with self._client.stream(
                "GET", self._server + path, params=params, headers=self._headers(), timeout=timeout
            ) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise _fault(path, "watch", answer)
                for line in _lines(answer.iter_bytes()):
                    yield _event(path, line)
        except httpx.TransportError as error:
            raise BrokenWatchError(f"the watch of {path} broke off: {str(error) or type(error).__name__}") from error

    def _get(self, path: str, params: Mapping[str, str]) -> Object:
        try:
            answer = self._client.get(self._server + path, params=dict(params), headers=self._headers())
        except httpx.TransportError as error:
            raise SourceError(
                f"the API server {self._server} does not answer: {str(error) or type(error).__name__}"
            ) from error
        if answer.status_code != 200:
            raise _fault(path, "list", answer)
        try:
            found = answer.json()
        except ValueError as error:
            raise SourceError(f"{self._server}{path} answers no JSON: {error}; is it an API server?") from error
        if not isinstance(found, dict):
            raise SourceError(f"{self._server}{path} answers no list; is it an API server?")
        return found

    def _headers(self) -> dict[str, str]:
        token = self._token()
        return {"accept": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})


def connected(server: str | None, token_file: Path | None, ca_file: Path | None) -> tuple[httpx.Client, KubeApi]:
    """Return a client of the API server that is named, or else of the one this pod runs under. Raises SourceError."""
    if server is None:
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise SourceError(
                "this is no pod (KUBERNETES_SERVICE_HOST is not set): name the API server with --api-server, "
                "e.g. http://127.0.0.1:8001 of `kubectl proxy`"
            )
        server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        token_file, ca_file = token_file or ACCOUNT / "token", ca_file or ACCOUNT / "ca.crt"
    try:
        context = ssl.create_default_context(cafile=ca_file) if ca_file else True
    except OSError as error:
        raise SourceError(f"{ca_file} cannot be read: {error.strerror}; name it with --api-ca-file") from error

    def token() -> str | None:
        try:
            return token_file.read_text().strip() if token_file is not None else None
        except OSError as error:
            raise RightsError(
                f"{token_file} cannot be read: {error.strerror}; name it with --api-token-file"
            ) from error

    client = httpx.Client(timeout=httpx.Timeout(60.0, connect=10.0), verify=context)
    return client, KubeApi(client, server, token)


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield whole lines; raise BrokenWatchError for what is left over without its end."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise BrokenWatchError(f"an event of more than {MAX_LINE_BYTES} bytes")
        yield from (line for line in whole if line.strip())
    if rest.strip():
        raise BrokenWatchError("the watch ended within an event")


def _event(path: str, line: bytes) -> tuple[str, Object]:
    try:
        found = json.loads(line)
        kind, thing = found["type"], found["object"]
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenWatchError(f"the watch of {path} holds no event: {line[:80]!r}") from error
    if kind == "ERROR":
        detail = f"the watch of {path} ended: {thing.get('message')}"
        raise (ExpiredError if thing.get("code") == 410 else BrokenWatchError)(detail)
    return kind, thing


def _fault(path: str, verb: str, answer: httpx.Response) -> SourceError:
    try:
        message = str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        message = answer.text[:200]
    detail = f"{verb} {path} is answered {answer.status_code}: {message}"
    match answer.status_code:
        case 401:
            return RightsError(f"{detail}; is the service account's token mounted and valid?")
        case 403:
            return RightsError(f"{detail}; apply deploy/kubernetes/watcher.yaml, which grants get, list and watch")
        case 404:
            return AbsentError(detail)
        case 410:
            return ExpiredError(detail)
    return SourceError(f"{detail}; it is asked again")
