"""What of a call is billed beside the tokens every call has: columns that calls and reports of them share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Integer, Text
from sqlalchemy.dialects.postgresql import JSONB

from ingest.store.tables.columns import column


def call_parts() -> tuple[Column[Any], ...]:
    """Return the columns 0063 added: null = not told, and so in every row from before it."""
    return (
        column("audio_input_tokens", BigInteger, nullable=True),
        column("audio_output_tokens", BigInteger, nullable=True),
        column(
            "cache_write_1h_tokens",
            BigInteger,
            nullable=True,
            comment="tokens written to be kept for an hour; cache_write_tokens are the others",
        ),
        column(
            "service_tier", Text, nullable=True, comment="standard, batch, flex, priority or another; null = not told"
        ),
        column("is_batch", Boolean, nullable=True),
        column("tool_calls", JSONB, nullable=True, comment="JSON: uses of the provider's own tools, by their names"),
        column("images", Integer, nullable=True, comment="images made"),
        column("media_ms", BigInteger, nullable=True, comment="milliseconds of audio or video heard or made"),
        column("characters", BigInteger, nullable=True, comment="characters of text, where those are billed"),
        column("pages", Integer, nullable=True, comment="pages read"),
        column("deployment", Text, nullable=True, comment="which of the provider's deployments answered"),
    )
