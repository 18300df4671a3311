"""How this database keeps its days: written once, by the migration that makes the table."""

from sqlalchemy import CheckConstraint, Table, Text, func

from ingest.store.tables.columns import column, instant
from ingest.store.tables.metadata import metadata

store_layout = Table(
    "store_layout",
    metadata,
    column("layout", Text, primary_key=True, comment="native, hypertables"),
    column("reason", Text, comment="why this one, in a sentence"),
    instant("chosen_at", server_default=func.now()),
    CheckConstraint("layout IN ('native', 'hypertables')", name="layout"),
    comment="How the days of samples, calls and spans are kept: one row, written when the database was made, never changed.",
)
