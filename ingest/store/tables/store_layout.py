"""Where this database keeps things: how its days (written once, by the migration that makes the table), and which segments are its own."""

from sqlalchemy import CheckConstraint, SmallInteger, Table, Text, func

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

segment_place = Table(
    "segment_place",
    metadata,
    column("id", SmallInteger, primary_key=True, autoincrement=False, comment="surrogate id: always 1"),
    column("mark", Text, comment="what the marker file in the root of the segments says"),
    instant("marked_at", server_default=func.now()),
    CheckConstraint("id = 1", name="one"),
    comment="By which the folder or bucket of the segments is known to be ours. No row: nothing was sealed yet.",
)
