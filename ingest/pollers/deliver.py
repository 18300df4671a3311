"""Posts events to ingest in bodies of bounded size: a body is told again until its commit is acknowledged, or the round fails.

It drops nothing: what could not be delivered is asked of the scheduler again, since the caller notes as told only what this
says was kept.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx

from ingest.pollers.errors import DeliveryError
from ingest.receivers.work_events import PATH, VERSION

_LOG = logging.getLogger(__name__)
MAX_EVENTS: Final = 1_000
MAX_BYTES: Final = 1 << 20
ATTEMPTS: Final = 4
LONGEST_PAUSE_S: Final = 30.0
Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Delivered:
    """What came of one body: the places of its events that were refused, with the reason of each."""

    count: int
    refused: Mapping[int, str]


class Delivery:
    """One sender to one ingest. ``secret`` gives the token, read again after a refusal: it may have been rotated."""

    def __init__(
        self,
        client: httpx.Client,
        server: str,
        source: str,
        secret: Callable[[], str],
        *,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._client = client
        self._url = server.rstrip("/") + PATH
        self._source = source
        self._secret = secret
        self._wait = wait or threading.Event().wait
        self._pause_s = 0.0

    def post(self, events: Sequence[Event]) -> Delivered:
        """Deliver up to MAX_EVENTS events; raise DeliveryError where they were not taken."""
        body = json.dumps({"version": VERSION, "source": self._source, "events": list(events)}).encode()
        fault = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                self._wait(self._pause_s)
            self._pause_s = min(LONGEST_PAUSE_S, 2.0**attempt) * random.uniform(0.5, 1.5)  # noqa: S311 (jitter)
            try:
                answer = self._client.post(
                    self._url,
                    content=body,
                    headers={"authorization": f"Bearer {self._secret()}", "content-type": "application/json"},
                )
            except httpx.TransportError as error:
                fault = f"{self._url} does not answer: {str(error) or type(error).__name__}"
                continue
            if answer.status_code == 200:
                return self._delivered(answer, len(events))
            fault = f"{self._url} answers {answer.status_code}: {_detail(answer)}"
            if answer.status_code not in {408, 425, 429} and answer.status_code < 500:
                raise DeliveryError(f"{fault}; {_advice(answer.status_code)}")
            after = answer.headers.get("retry-after", "")
            if after.isdigit():
                self._pause_s = min(LONGEST_PAUSE_S, float(after)) * random.uniform(1.0, 1.5)  # noqa: S311 (jitter)
        raise DeliveryError(f"{fault}; nothing is lost, it is told again in the next round")

    def _delivered(self, answer: httpx.Response, count: int) -> Delivered:
        try:
            said = answer.json()
            refused = {int(each["index"]): f"{each['reason']}: {each['detail']}" for each in said["refused"]}
            unnamed = int(said["refused_count"]) - len(refused)
        except (ValueError, KeyError, TypeError) as error:
            raise DeliveryError(f"{self._url} answers 200 in words unknown here: {error}; is it Wattledger?") from error
        if unnamed:
            _LOG.warning("%d more events of this body were refused than are named", unnamed)
        return Delivered(count, refused)


def bodies(events: Sequence[tuple[str, Event]]) -> Iterator[list[tuple[str, Event]]]:
    """Yield (key, event) in groups that one body takes."""
    group: list[tuple[str, Event]] = []
    size = 0
    for key, event in events:
        bytes_ = len(json.dumps(event))
        if group and (len(group) >= MAX_EVENTS or size + bytes_ > MAX_BYTES):
            yield group
            group, size = [], 0
        group.append((key, event))
        size += bytes_
    if group:
        yield group


def _detail(answer: httpx.Response) -> str:
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = answer.text[:200]
    return str(detail)


def _advice(status: int) -> str:
    if status in {401, 403}:
        return "make a token with `wattledger token create NAME --scope write --site SITE`"
    if status == 404:
        return "is this the address of Wattledger's ingest?"
    return "this server is of another version than the watcher"
