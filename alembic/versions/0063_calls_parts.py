"""What of a call is billed apart: audio of each side, hour-long cache writes, tier and batch, tools, images, media, pages.

Rows there are keep what they say: their audio is of both sides together. A replica of the version before leaves these null.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0063_calls_parts"
down_revision = "0062_run_uses"
branch_labels = None
depends_on = None

TABLES = ("api_calls", "call_reports")
COLUMNS: dict[str, tuple[Any, str]] = {
    "audio_input_tokens": (sa.BigInteger(), "tokens"),
    "audio_output_tokens": (sa.BigInteger(), "tokens"),
    "cache_write_1h_tokens": (
        sa.BigInteger(),
        "tokens written to be kept for an hour; cache_write_tokens are the others",
    ),
    "service_tier": (sa.Text(), "standard, batch, flex, priority or another; null = not told"),
    "is_batch": (sa.Boolean(), "true or false"),
    "tool_calls": (postgresql.JSONB(), "JSON: uses of the provider's own tools, by their names"),
    "images": (sa.Integer(), "images made"),
    "media_ms": (sa.BigInteger(), "milliseconds of audio or video heard or made"),
    "characters": (sa.BigInteger(), "characters of text, where those are billed"),
    "pages": (sa.Integer(), "pages read"),
    "deployment": (sa.Text(), "which of the provider's deployments answered"),
}
"""Type, comment. All may be null, without a default: no row of a partition is rewritten."""
AUDIO = "tokens of both sides, told before 0063; later ones are apart"


def upgrade() -> None:
    for table in TABLES:
        for name, (kind, comment) in COLUMNS.items():
            op.add_column(table, sa.Column(name, kind, nullable=True, comment=comment))
        op.execute(f"COMMENT ON COLUMN {table}.audio_tokens IS '{AUDIO}'")


def downgrade() -> None:
    for table in TABLES:
        op.execute(f"COMMENT ON COLUMN {table}.audio_tokens IS 'tokens'")
        for name in reversed(COLUMNS):
            op.drop_column(table, name)
