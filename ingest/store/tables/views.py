"""Views as tables to select from; kept off the schema's MetaData because migrations, not Alembic's comparison, own views.

``current_usage_hours`` and ``current_ledger_lines`` hold the rows of the revision that counts, under the row-level
security of whoever asks; of lines also the corrections of closed months, in the hour they are posted in.
"""

from sqlalchemy import Column, DateTime, MetaData, Text

from ingest.store.tables.books import ledger_lines, usage_hours

_views = MetaData()

current_usage_hours = usage_hours.to_metadata(_views, name="current_usage_hours")
current_ledger_lines = ledger_lines.to_metadata(_views, name="current_ledger_lines")
current_ledger_lines.append_column(Column("corrects_hour_at", DateTime(timezone=True), nullable=True))
current_ledger_lines.append_column(Column("reason", Text, nullable=True))
