"""Which reports are of one LLM call, and the reports behind a call that several sources tell of."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    func,
)

from ingest.store.tables.call_parts import call_parts
from ingest.store.tables.columns import column, instant, reference
from ingest.store.tables.metadata import metadata

_TOKENS = (
    "input_uncached_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "output_text_tokens",
    "reasoning_tokens",
    "audio_tokens",
    "image_tokens",
)
_COMMENTS = {"audio_tokens": "tokens of both sides, told before 0063; later ones are apart"}

call_keys = Table(
    "call_keys",
    metadata,
    # No foreign key: it would cost a look-up per key, and the calls themselves have one.
    column("site_id", Integer, comment="surrogate id"),
    Column("key", Uuid, nullable=False, comment="first 128 bits of the SHA-256 of ingest.calls.ApiCall.names"),
    instant("called_at", comment="instant, UTC: with dedupe_key the row of api_calls that counts"),
    column("dedupe_key", Text),
    PrimaryKeyConstraint("site_id", "key"),
    comment="What names a call, each name once: how reports of one call find each other, however far apart.",
)

call_name_window = Table(
    "call_name_window",
    metadata,
    column("id", SmallInteger, primary_key=True, autoincrement=False, comment="surrogate id: always 1"),
    instant("pruned_before", comment="instant, UTC: names of calls before this may be gone"),
    instant("deleted_before", comment="instant, UTC: and of calls before this they are"),
    CheckConstraint("id = 1", name="one"),
    comment="Which names of calls have been let go. No row: none.",
)

call_reports = Table(
    "call_reports",
    metadata,
    reference("site_id", "sites"),
    column("source", Text, comment="settlement, span, log, invoice"),
    column("dedupe_key", Text, comment="the report's own name within its source"),
    instant("counted_at", comment="instant, UTC: called_at of the row of api_calls made of this report and others"),
    column("counted_key", Text, comment="dedupe_key of that row"),
    instant("called_at"),
    reference("tenant_id", "tenants", nullable=True),
    column("api_key", Text, nullable=True, comment="the key's public name, never the secret"),
    column("provider", Text),
    column("model", Text),
    column("response_id", Text, nullable=True, comment="text"),
    column("request_id", Text, nullable=True, comment="text"),
    column("trace_id", Text, nullable=True, comment="text"),
    column("span_id", Text, nullable=True, comment="text"),
    *(column(name, BigInteger, nullable=True, comment=_COMMENTS.get(name, "tokens")) for name in _TOKENS),
    column("usage_known", Boolean, comment="false: the sender did not report usage; tokens are null, never 0"),
    column("status", Text, comment="ok, error, cancelled"),
    column("streamed", Boolean, nullable=True),
    column("duration_us", BigInteger, nullable=True),
    column("time_to_first_token_us", BigInteger, nullable=True),
    column("origin", SmallInteger, comment="collector.wire.Origin"),
    instant("received_at", server_default=func.now()),
    *call_parts(),
    PrimaryKeyConstraint("site_id", "source", "dedupe_key"),
    Index("call_reports_counted_ix", "site_id", "counted_key", "counted_at"),
    comment="Each report of a call that several tell of, as it came; api_calls holds what counts of them.",
)
