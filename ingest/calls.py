"""What any source tells of one LLM call, and whose word counts when several tell of the same one. Pure: no store, no wire.

Gateways, spans, logs and invoices all end in :class:`ApiCall`. Which reports are of one call is decided by their ids,
which of them counts by :class:`CallSource`; ingest.store.calls applies both.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

MAX_TOKENS: Final = 1 << 40
"""More of one part is no call: the longest context there is has some 2**23 tokens."""


class CallSource(Enum):
    """Who reports a call; members are in the declared order of record, the first counts before all others.

    A settlement is what a gateway granted and measured itself; a span is what the calling program measured; a log was
    written by somebody in between; an invoice repeats what the provider counted, often without saying for which call.
    """

    SETTLEMENT = "settlement"
    SPAN = "span"
    LOG = "log"
    INVOICE = "invoice"

    @property
    def rank(self) -> int:
        """0 = counts before all others."""
        return _ORDER[self]


_ORDER: Final = {source: rank for rank, source in enumerate(CallSource)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiCall:
    """One report of one LLM request; None = not reported. Token parts are disjoint: totals are their sums.

    ``dedupe_key`` names the report within its site, the same however often it is sent. ``response_id`` is the provider's
    name for the answer, ``request_id`` the gateway's or provider's for the question. ``usage_known`` False: the sender
    did not report usage, and every token part is None, never 0. ``status`` is ok, error or cancelled; ``origin`` a
    collector.wire.Origin.
    """

    called_at_us: int
    dedupe_key: str
    provider: str
    model: str
    usage_known: bool
    origin: int
    api_key: str | None = None
    response_id: str | None = None
    request_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    input_uncached_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_text_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None
    status: str = "ok"
    streamed: bool | None = None
    duration_us: int | None = None
    time_to_first_token_us: int | None = None
