"""What any source tells of one LLM call, and whose word counts when several tell of the same one. Pure: no store, no wire.

Gateways, spans, logs and invoices all end in :class:`ApiCall`. Which reports are of one call is decided by their ids
(:meth:`ApiCall.names`), which of them counts by :func:`counting`; ingest.store.calls applies both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
MAX_TOKENS: Final = 1 << 40
"""More of one part is no call: the longest context there is has some 2**23 tokens."""
MAX_COUNT: Final = (1 << 31) - 1
"""Of images, pages and uses of one tool: what the store's integers hold."""
MAX_MEDIA_MS: Final = 400 * 86_400_000
MAX_TOOLS: Final = 16
_MAX_NAME: Final = 64
_TIERS: Final = {
    "default": "standard",
    "on_demand": "standard",
    "on-demand": "standard",
    "standard_only": "standard",
    "batches": "batch",
}
"""What providers call the tiers there are prices of: standard, batch, flex, priority."""
_ASKED_FOR: Final = frozenset(("auto",))
"""What a request says and no answer does: which tier answered is not known by it."""


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


@dataclass(slots=True, kw_only=True)
class ApiCall:
    """One report of one LLM request; None = not reported. Token parts are disjoint: totals are their sums.

    ``dedupe_key`` names the report within its site, the same however often it is sent. ``response_id`` is the provider's
    name for the answer, ``request_id`` the gateway's or provider's for the question. ``usage_known`` False: the sender
    did not report usage, and every token part is None, never 0. ``status`` is ok, error or cancelled; ``origin`` a
    collector.wire.Origin. Treat it as frozen: it is not, as one is made for each call there is, and a frozen one takes
    four times as long to make.
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
    """Of both sides together, as calls before 0063 have it; written no more: the sides have different prices."""
    image_tokens: int | None = None
    audio_input_tokens: int | None = None
    audio_output_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    """Written to be kept for an hour; ``cache_write_tokens`` are then the others, which are kept for minutes."""
    service_tier: str | None = None
    """Which tier answered, as :func:`tier_of` names it; null = not told, billed as the standard one."""
    is_batch: bool | None = None
    tool_calls: str | None = None
    """Uses of the provider's own tools that it bills by use, as :func:`tools_told` writes them: ``{"web_search": 3}``."""
    images: int | None = None
    """Images made."""
    media_ms: int | None = None
    """Audio or video heard or made."""
    characters: int | None = None
    """Characters of text, where they are billed and tokens are not."""
    pages: int | None = None
    deployment: str | None = None
    """Which of the provider's deployments answered: capacity that is paid by the hour has one."""
    status: str = "ok"
    streamed: bool | None = None
    duration_us: int | None = None
    time_to_first_token_us: int | None = None

    def names(self) -> tuple[str, ...]:
        """Return what names this call: reports that share one are of one call."""
        return names_of(self.response_id, self.request_id, self.dedupe_key)


def names_of(response_id: str | None, request_id: str | None, dedupe_key: str) -> tuple[str, ...]:
    """Return what names a call with these ids, the report's own name last.

    Response and request ids share a namespace, whatever the provider is called: LiteLLM logs a response's id as its
    request's, and the names of one provider differ between senders.
    """
    own = f"key/{dedupe_key}"
    if not request_id or request_id == response_id:
        return (f"id/{response_id}", own) if response_id else (own,)
    return (f"id/{response_id}", f"id/{request_id}", own) if response_id else (f"id/{request_id}", own)


@dataclass(frozen=True, slots=True)
class Report:
    """A call as one source tells it. ``tenant_id``: who pays, where the source itself names the tenant."""

    call: ApiCall
    source: CallSource
    tenant_id: int | None = None


_INPUT: Final = (
    "input_uncached_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "audio_input_tokens",
)
_OUTPUT: Final = ("output_text_tokens", "reasoning_tokens", "audio_output_tokens")
_APART: Final = ("audio_tokens", "image_tokens")
"""Of neither side alone: they travel with the output, which they are mostly billed with."""
TOKEN_PARTS: Final = (*_INPUT, *_OUTPUT, *_APART)
_FILLED: Final = (
    "api_key",
    "response_id",
    "request_id",
    "trace_id",
    "span_id",
    "streamed",
    "duration_us",
    "time_to_first_token_us",
    "service_tier",
    "is_batch",
    "tool_calls",
    "images",
    "media_ms",
    "characters",
    "pages",
    "deployment",
)
_UNKNOWN: Final = "unknown"


def disjoint(whole: int | None, inside: int, audio: int | None) -> tuple[int | None, int | None]:
    """Return what is left of one side's whole, and its audio, so that with ``inside`` they add up to the whole.

    Providers tell what was cached or was reasoning across kinds of content: cached audio is told twice. Audio gives way,
    as the price of cached tokens is the one that was asked for; what no longer fits of it is in the other part. ``whole``
    None: nothing is known of its rest, and audio stays as told.
    """
    if whole is None:
        return None, audio
    rest = max(whole - inside, 0)
    audio = None if audio is None else min(audio, rest)
    return rest - (audio or 0), audio


def written(whole: int | None, hour: int | None) -> tuple[int | None, int | None]:
    """Return what was written to a cache for minutes and what for an hour, of both together and what of it was for an hour."""
    if hour is None:
        return whole, None
    return None if whole is None else max(whole - hour, 0), hour if whole is None else min(hour, whole)


def tier_of(told: object) -> str | None:
    """Return the service tier a sender tells of, in one word for each there are prices of; null = it does not say which."""
    if not isinstance(told, str):
        return None
    word = told.strip().casefold()
    if not word or word in _ASKED_FOR or not word.isprintable():
        return None
    return _TIERS.get(word, word)[:_MAX_NAME]


def tools_told(uses: Mapping[str, int]) -> str | None:
    """Return how often each tool was used as the store writes JSON, null where none was: equal uses are equal texts."""
    counted = {name: count for name, count in uses.items() if 0 < count <= MAX_COUNT and 0 < len(name) <= _MAX_NAME}
    if not counted:
        return None
    # PostgreSQL keeps the members of a jsonb by length and bytes of their names, whatever order they came in.
    first = sorted(counted.items(), key=lambda use: (len(use[0].encode()), use[0].encode()))[:MAX_TOOLS]
    return json.dumps(dict(first), ensure_ascii=False)


def same_report(report: Report) -> tuple[str, str]:
    """Return what two sendings of one report have in common."""
    return report.source.value, report.call.dedupe_key


def better(one: Report, other: Report) -> Report:
    """Return which of two sendings of the same report is kept: the one that says more, whichever came first."""
    return max(one, other, key=_fullness)


def counting(reports: Iterable[Report]) -> Report:
    """Return what counts of several reports of one call, whatever their order.

    The best report says when, by whom, of which model and how it ended: the declared order of sources decides, then known
    usage, then detail, then the earliest. What it leaves open is filled from the others in the same order; tokens as a
    whole from the best report that knows them, and a finer split of the same input or output total from whoever has one,
    since cached and uncached tokens have different prices.
    """
    ranked = sorted(reports, key=_place)
    best = ranked[0]
    known = [report.call for report in ranked if report.call.usage_known]
    filled: dict[str, Any] = {name: _first(getattr(report.call, name) for report in ranked) for name in _FILLED}
    filled |= {
        name: _first(value for report in ranked if (value := getattr(report.call, name)) != _UNKNOWN) or _UNKNOWN
        for name in ("provider", "model")
    }
    if known:
        filled["usage_known"] = True
        for side in (_INPUT, (*_OUTPUT, *_APART)):
            filled |= _finest(side, known)
        if filled["audio_tokens"] is not None and filled["audio_input_tokens"] is not None:
            # One report from before audio was told by side, another since: what is known of the input counts there.
            filled["audio_tokens"] = max(filled["audio_tokens"] - filled["audio_input_tokens"], 0)
    return Report(replace(best.call, **filled), best.source, _first(report.tenant_id for report in ranked))


def _finest(side: Sequence[str], known: Sequence[ApiCall]) -> dict[str, int | None]:
    """Return one side's parts as the first of these calls has them, or as a later one splits the same total further."""
    chosen = _parts(known[0], side)
    for call in known[1:]:
        parts = _parts(call, side)
        splits_it_further = _given(parts) > _given(chosen) and sum(filter(None, parts)) == sum(filter(None, chosen))
        if splits_it_further or not _given(chosen):
            chosen = parts
    return dict(zip(side, chosen, strict=True))


def _parts(call: ApiCall, side: Sequence[str]) -> tuple[int | None, ...]:
    return tuple(getattr(call, name) for name in side)


def _given(parts: Iterable[object]) -> int:
    return sum(part is not None for part in parts)


def _place(report: Report) -> tuple[object, ...]:
    call = report.call
    return (
        report.source.rank,
        not call.usage_known,
        -_given(_parts(call, TOKEN_PARTS)),
        call.called_at_us,
        call.dedupe_key,
    )


def _fullness(report: Report) -> tuple[object, ...]:
    values = [report.tenant_id, *(getattr(report.call, entry.name) for entry in fields(ApiCall))]
    # The last resort makes the choice the same in any order: a text of all there is.
    return report.call.usage_known, _given(values), repr(values)


def _first(values: Iterable[_T | None]) -> _T | None:
    return next((value for value in values if value is not None), None)
