"""One HTTP exchange with somebody who is not trusted to end it: bounded in time as a whole, in bytes, and never unpacked.

httpx limits each read, so an answer that trickles, in its head or its body, could go on for days: here the connection is cut
when the time is over. A body is asked for as it is and a packed one is not opened, as a few hundred kilobytes may unpack to
gigabytes. Whatever cannot be read is no answer, of one class. It retries nothing and interprets no status.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakSet

from collector.errors import NoAnswerError

if TYPE_CHECKING:
    from collector.http import httpx

IDENTITY: Final = "identity"
_NO_END: Final = "it does not end"
_CONNECTED: Final = (".connect_tcp.complete", ".connect_unix_socket.complete", ".start_tls.complete")


class Answer(NamedTuple):
    """What came back."""

    code: int
    headers: Mapping[str, str]
    """Of any case."""
    body: bytes
    """As far as it came and was allowed to; empty where it was packed."""
    fault: str | None
    """Why the body is not all there; None where it is."""


class Connections:
    """The connections of one client, to be cut from another thread."""

    def __init__(self) -> None:
        """Know of none yet."""
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._lock = threading.Lock()
        self._late: threading.Event | None = None

    def note(self, event: str, info: Mapping[str, Any]) -> None:
        """Note a connection that was made: for httpx's ``trace`` extension."""
        if not event.endswith(_CONNECTED):
            return
        found = info["return_value"].get_extra_info("socket")
        with self._lock:
            self._sockets.add(found)
            late = self._late
        if late is not None and late.is_set():
            _shut(found)

    @contextmanager
    def within(self, limit_s: float) -> Iterator[threading.Event]:
        """Cut all connections unless what is inside ends in time; the event says that they were."""
        late = threading.Event()

        def cut() -> None:
            with self._lock:
                if self._late is not late:
                    return  # it ended at the same instant
                late.set()
                sockets = tuple(self._sockets)
            for each in sockets:
                _shut(each)

        watchdog = threading.Timer(limit_s, cut)
        watchdog.daemon = True
        with self._lock:
            before, self._late = self._late, late
        watchdog.start()
        try:
            yield late
        finally:
            watchdog.cancel()
            with self._lock:
                self._late = before


class Exchange:
    """Exchanges through one client, one at a time; each connection of the client must be made by it."""

    def __init__(self, client: httpx.Client, *, limit_s: float, max_bytes: int, body_s: float | None = None) -> None:
        """Give each exchange ``limit_s`` seconds, ``body_s`` of them to the answer's body, and that ``max_bytes``."""
        self._body_s = limit_s if body_s is None else body_s
        self._client = client
        self._limit_s = limit_s
        self._max_bytes = max_bytes
        self._connections = Connections()

    def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        more_s: float = 0.0,
    ) -> Answer:
        """Return the answer of any status, its body as far as it came; ``more_s`` is added to the limit.

        Raises NoAnswerError where there is not even a status.
        """
        from collector.http import httpx  # noqa: PLC0415  whoever has a client has it

        limit_s = self._limit_s + more_s
        wanted = {**(headers or {}), "Accept-Encoding": IDENTITY}
        head: tuple[int, Mapping[str, str]] | None = None
        got = bytearray()
        body_late = threading.Event()
        with self._connections.within(limit_s) as late:
            try:
                with self._client.stream(
                    method, url, headers=wanted, content=body, extensions={"trace": self._connections.note}
                ) as response:
                    head = (response.status_code, response.headers)
                    with self._connections.within(self._body_s) as body_late:
                        fault = self._read(response, got)
            # Beside httpx's own errors what it does not translate: a head with impossible texts, a client closed meanwhile.
            except (httpx.HTTPError, httpx.InvalidURL, ValueError, OverflowError, RuntimeError, OSError) as error:
                fault = _NO_END if late.is_set() or body_late.is_set() else f"{type(error).__name__}: {error}"
                if head is None:
                    kind = "timeout" if late.is_set() or isinstance(error, httpx.TimeoutException) else "connect"
                    raise NoAnswerError(
                        f"no answer within {limit_s:g} s" if late.is_set() else fault, kind=kind
                    ) from error
        return Answer(*head, bytes(got[: self._max_bytes]), fault)

    def whole(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answer:
        """Return an answer whose body is all there. Raises NoAnswerError."""
        answer = self.ask(method, url, headers=headers, body=body)
        if answer.fault:
            raise NoAnswerError(f"the answer (HTTP {answer.code}) cannot be used: {answer.fault}")
        return answer

    def _read(self, response: httpx.Response, got: bytearray) -> str | None:
        """Gather the body; return why it is not all there."""
        packed = response.headers.get("Content-Encoding", IDENTITY)
        if packed.strip().lower() not in ("", IDENTITY):
            return f"its body is packed ({packed:.40}), though asked not to be"
        until_s = time.monotonic() + self._body_s
        for piece in response.iter_bytes():
            got += piece
            if len(got) > self._max_bytes:
                return f"it has more than {self._max_bytes} bytes"
            if time.monotonic() > until_s:
                return _NO_END
        return None


def no_cookies() -> CookieJar:
    """Return a jar that takes nothing: what others set in each answer would otherwise be kept, and sent back, for years."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


def http_date(text: str | None) -> datetime | None:
    """Read a date of a header; None where there is none or it makes no sense."""
    if text is None:
        return None
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, LookupError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _shut(each: socket.socket) -> None:
    """Wake whoever reads or writes. Not closed: the number of a file that is closed under a reader may be another's next."""
    with suppress(OSError):
        socket.socket.shutdown(each, socket.SHUT_RDWR)  # of an SSLSocket, too, only this part
