"""Which columns may name a person: each of a tenant's rows is said to, or not to."""

from __future__ import annotations

from typing import Final

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from collector.wire import COLUMNS, Stream
from ingest.store.personal import BODIES, NOT_PERSONAL, OWN_ROWS, PERSONAL, UNIQUE, Kind
from ingest.store.sample_tables import NOT_SEALED
from ingest.store.tables import metadata

pytestmark = pytest.mark.unit

OF_PEOPLE: Final = {"jobs", "queue_entries", "lineage_runs", "tenants", "decisions"}
"""Whatever hangs on one of these is about what a tenant did."""
BESIDE: Final = {
    "dead_letters",
    "audit",
    "outbox",
    "imports",
    "tokens",
    "device_shares",
    "late_device_shares",
    "kube_pods",
}
"""About what tenants did, though no key says so."""


def can_name(column: sa.Column[object]) -> bool:
    return isinstance(column.type, sa.Text | sa.String | JSONB | sa.ARRAY)


def of_tenants() -> set[str]:
    found = set(OF_PEOPLE | BESIDE)
    for table in metadata.tables.values():
        if "tenant_id" in table.c or any(key.column.table.name in OF_PEOPLE for key in table.foreign_keys):
            found.add(table.name)
    return found


def test_every_text_of_a_tenants_rows_is_said_to_name_people_or_not_to() -> None:
    """A new column fails here: put it into ingest.store.personal, with how it names a person, or why it does not."""
    missing, twice = [], []
    for name in sorted(of_tenants()):
        for column in metadata.tables[name].c:
            if can_name(column):
                is_personal = column.name in PERSONAL.get(name, {})
                is_not = column.name in NOT_PERSONAL.get(name, {})
                missing += [f"{name}.{column.name}"] * (not is_personal and not is_not)
                twice += [f"{name}.{column.name}"] * (is_personal and is_not)
    assert (missing, twice) == ([], [])


def test_what_is_listed_is_there_and_of_the_type_it_is_read_as() -> None:
    kinds: dict[Kind, type | tuple[type, ...]] = {
        Kind.NAME: sa.Text,
        Kind.WORDS: sa.Text,
        Kind.LIST: sa.ARRAY,
        Kind.JSON: JSONB,
    }
    for table, columns in PERSONAL.items():
        for name, kind in columns.items():
            assert isinstance(metadata.tables[table].c[name].type, kinds[kind]), (table, name)
    for table, reasons in NOT_PERSONAL.items():
        assert set(reasons) <= {column.name for column in metadata.tables[table].c}, table
    assert {*OWN_ROWS, *UNIQUE} <= set(PERSONAL)
    assert "body" in metadata.tables[BODIES].c


def test_a_sealed_hour_holds_no_words_of_people() -> None:
    """docs/security.md says so: of the streams that are sealed only device_shares has what people choose, and not in files."""
    sealed = {
        *(Stream.DEVICE, Stream.NODE, Stream.FABRIC, Stream.ENGINE),
        *(Stream.DEVICE_HEALTH, Stream.DEVICE_SHARE, Stream.AGENT),
    }
    texts = {(stream, column.name) for stream in sealed for column in COLUMNS[stream] if column.type == "utf8"}
    # Of machines: which meter, port, engine and model, histograms and counts by kind of fault.
    ours = {"meter", "port", "engine", "model", "ttft_histogram", "itl_histogram", "request_histogram"}
    texts -= {(stream, name) for stream, names in NOT_SEALED.items() for name in names}
    assert {(stream, name) for stream, name in texts if name not in ours | {"probe_errors_by_kind"}} == {
        (Stream.DEVICE_SHARE, name) for name in ("cluster", "native_job_id", "namespace", "evidence", "method")
    }
