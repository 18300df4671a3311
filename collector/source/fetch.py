"""Bounded HTTP reads for sources on this node and for management controllers: size, time and redirects are all limited.

Whoever answers is not trusted: a body that never ends, trickles or unpacks to gigabytes is given up. Proxies named in the
environment are not used, as all of this is local. It retries nothing; a source asks again at its next turn.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from collector.exchange import IDENTITY, Connections, no_cookies
from collector.memory import no_authorities, usual_authorities

if TYPE_CHECKING:
    import ssl

    from collector.http import httpx

_CHUNK_BYTES: Final = 65_536
_PATIENCE: Final = 3
"""The whole exchange may take this many times the timeout of one step: connect, send, read."""


class FetchError(Exception):
    """A request that gave no usable body; ``kind`` is short and countable: timeout, connect, tls, status_503, too_large, ..."""

    def __init__(self, kind: str, detail: str) -> None:
        """Keep both; the detail is for people."""
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


class Answer(NamedTuple):
    """A response that was asked for: 2xx only."""

    body: bytes
    headers: Mapping[str, str]
    """Names in lower case."""


class Fetcher:
    """One kept connection per host; made at the first request."""

    def __init__(
        self,
        *,
        timeout_s: float,
        max_bytes: int,
        verify: ssl.SSLContext | bool = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Open nothing yet. ``timeout_s`` limits each step (connect, read) and, checked at each chunk, the whole."""
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._verify = verify
        self._transport = transport
        self._client: httpx.Client | None = None
        self._secure = False
        self._connections = Connections()

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Return the answer of a GET. Raises FetchError."""
        return self.request("GET", url, headers=headers)

    def request(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answer:
        """Return the answer. Raises FetchError for anything but 2xx within size and time."""
        from collector.http import httpx  # noqa: PLC0415  only where something is to be fetched

        secure = url.lower().startswith("https:")
        if self._client is not None and secure and not self._secure:
            self.close()
        if self._client is None:
            self._secure = secure
            self._client = httpx.Client(
                verify=self._context(secure=secure),
                timeout=self._timeout_s,
                transport=self._transport,
                follow_redirects=False,
                trust_env=False,
                cookies=no_cookies(),
                headers={"Accept-Encoding": IDENTITY, "User-Agent": "wattledger-agent"},
                limits=httpx.Limits(max_connections=4, max_keepalive_connections=4),
            )
        limit_s = _PATIENCE * self._timeout_s
        trace = {"trace": self._connections.note}
        with self._connections.within(limit_s) as late:
            try:
                with self._client.stream(
                    method, url, headers=dict(headers or {}), content=body, extensions=trace
                ) as response:
                    return self._read(response)
            except httpx.TimeoutException as error:
                raise FetchError("timeout", f"no answer within {self._timeout_s} s from {url}") from error
            # Beside httpx's own errors what it does not translate: a head with impossible texts, a client closed meanwhile.
            except (httpx.HTTPError, httpx.InvalidURL, ValueError, OverflowError, RuntimeError, OSError) as error:
                if late.is_set():
                    raise FetchError("timeout", f"{url} had not ended after {limit_s} s") from error
                # httpx gives a refused certificate as a ConnectError whose text OpenSSL wrote.
                kind = "tls" if "CERTIFICATE" in str(error) or "SSL" in str(error) else "connect"
                raise FetchError(kind, f"{url}: {error}") from error

    def _context(self, *, secure: bool) -> ssl.SSLContext | bool:
        if not secure:
            return no_authorities()
        return usual_authorities(trust_env=False) if self._verify is True else self._verify

    def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _read(self, response: httpx.Response) -> Answer:
        url = response.request.url
        if not response.is_success:
            raise FetchError(f"status_{response.status_code}", f"{url} answered {response.status_code}")
        if response.headers.get("content-encoding", IDENTITY) != IDENTITY:
            raise FetchError("encoding", f"{url} packed its body though asked not to")
        give_up_at = time.monotonic() + self._timeout_s
        body = bytearray()
        for chunk in response.iter_bytes(_CHUNK_BYTES):
            body += chunk
            if len(body) > self._max_bytes:
                raise FetchError("too_large", f"{url} answered more than {self._max_bytes} bytes")
            if time.monotonic() > give_up_at:
                raise FetchError("timeout", f"{url} had not ended after {self._timeout_s} s")
        return Answer(bytes(body), {name.lower(): value for name, value in response.headers.items()})
