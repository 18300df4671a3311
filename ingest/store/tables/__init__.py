"""The schema, declared once. Nothing outside ``ingest.store`` (and ``analytics.io``, its one outside reader) names a table."""

from ingest.store.tables import (
    bills,
    books,
    call_reports,
    charges,
    control,
    lineage,
    meters,
    periods,
    price_book,
    queue,
    reference,
    samples,
    series,
    store_layout,
    views,
    work,
)
from ingest.store.tables.columns import order_by_names
from ingest.store.tables.metadata import metadata

__all__ = [
    "bills",
    "books",
    "call_reports",
    "charges",
    "control",
    "lineage",
    "metadata",
    "meters",
    "periods",
    "price_book",
    "queue",
    "reference",
    "samples",
    "series",
    "store_layout",
    "views",
    "work",
]

order_by_names(metadata)
