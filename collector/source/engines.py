"""Reads inference engines, vLLM and SGLang, at their metrics endpoints: load, tokens, cache, latencies of each model.

It reads aggregates only, no request and no text. An engine that does not answer is counted, left alone for a while, and never
stands for an idle one: it gives no row.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from collector.clock import US_PER_S
from collector.probe import Observation, Row, Sight
from collector.probe.prometheus_text import MAX_TEXT_BYTES, parse
from collector.source.engine_metrics import WANTED, rows_of
from collector.source.fetch import Fetcher, FetchError
from collector.source.rows import fitted
from collector.wire import Stream

if TYPE_CHECKING:
    from collector.http import httpx

_LONGEST_PAUSE_S: Final = 60.0
_MOVED: Final = frozenset({"status_301", "status_307", "status_308"})
_HEADERS: Final = {"Accept": "text/plain;version=0.0.4"}


@dataclass(slots=True)
class _Endpoint:
    """One engine's address as configured and as asked, and how it answered."""

    name: str
    url: str
    read_at_s: float | None = None
    not_before_s: float = float("-inf")
    failures: int = 0
    last: str = "not asked yet"
    answers: bool = False


class EngineSource:
    """All engines the settings name."""

    def __init__(
        self,
        urls: Sequence[str] = (),
        *,
        period_s: float = 10.0,
        timeout_s: float = 2.0,
        transport: httpx.BaseTransport | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open nothing yet. An address without a path means ``/metrics``."""
        self.name = "engines"
        self.period_s = period_s
        self._monotonic = monotonic
        self._fetcher = Fetcher(timeout_s=timeout_s, max_bytes=MAX_TEXT_BYTES, transport=transport)
        self._endpoints = [_Endpoint(url, _asked(url)) for url in dict.fromkeys(urls)]

    def read(self) -> Observation:
        """Return a row for each model of each engine that answers."""
        errors: Counter[str] = Counter()
        rows: list[Row] = []
        for endpoint in self._endpoints:
            rows += self._read_endpoint(endpoint, errors)
        return Observation({Stream.ENGINE: tuple(rows)} if rows else {}, dict(errors))

    def sights(self) -> tuple[Sight, ...]:
        """Say which engines answer."""
        if not self._endpoints:
            remedy = "name the engines' addresses, e.g. http://127.0.0.1:8000"
            return (Sight("inference engines", seen=False, detail="none is named", remedy=remedy),)
        if all(endpoint.last == "not asked yet" for endpoint in self._endpoints):
            self.read()
        remedy = "start the engine with its metrics on (SGLang: --enable-metrics), or correct the address"
        return tuple(
            Sight(f"engine {endpoint.name}", endpoint.answers, endpoint.last, None if endpoint.answers else remedy)
            for endpoint in self._endpoints
        )

    def close(self) -> None:
        """Close the connections."""
        self._fetcher.close()

    def _read_endpoint(self, endpoint: _Endpoint, errors: Counter[str]) -> list[Row]:
        now_s = self._monotonic()
        if now_s < endpoint.not_before_s:
            return []
        try:
            body = self._fetcher.get(endpoint.url, _HEADERS).body
        except FetchError as error:
            errors[f"{self.name}:{error.kind}"] += 1
            self._failed(endpoint, now_s, str(error))
            if error.kind in _MOVED and not endpoint.url.endswith("/"):
                endpoint.url += "/"  # older servers mount their metrics there; redirects are not followed anywhere else
            return []
        scrape = parse(body.decode("utf-8", "replace"), WANTED)
        if scrape.malformed or scrape.truncated:
            errors[f"{self.name}:malformed_lines"] += max(1, scrape.malformed)
        span_s = 0.0 if endpoint.read_at_s is None else now_s - endpoint.read_at_s
        rows = [
            fitted(
                Stream.ENGINE,
                row | {"engine": endpoint.name, "span_us": round(span_s * US_PER_S)},
                errors,
                self.name,
            )
            for row in rows_of(scrape.samples, errors)
        ]
        if not rows:
            errors[f"{self.name}:no_known_metric"] += 1
            self._failed(endpoint, now_s, "it answers, but with no metric of vLLM or SGLang")
            return []
        endpoint.failures, endpoint.answers, endpoint.read_at_s = 0, True, now_s
        endpoint.last = ", ".join(str(row["model"]) for row in rows)
        return rows

    def _failed(self, endpoint: _Endpoint, now_s: float, why: str) -> None:
        endpoint.failures += 1
        endpoint.answers, endpoint.last = False, why
        pause_s = min(self.period_s * 2 ** min(endpoint.failures - 1, 6), max(_LONGEST_PAUSE_S, self.period_s))
        endpoint.not_before_s = now_s + pause_s * 0.9  # a turn that comes a little early is that turn


def _asked(url: str) -> str:
    parts = urlsplit(url)
    if parts.password:
        raise ValueError("an engine's address must not hold a password: it names the engine wherever it shows")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"an engine's address must be like http://127.0.0.1:8000, got {url!r}")
    return url if parts.path not in ("", "/") else f"{parts.scheme}://{parts.netloc}/metrics"
