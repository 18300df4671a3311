"""The frame every import runs in: hash, claim, one transaction, report. The importers fill it; it knows no format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from ingest.errors import BadBodyError
from ingest.importers.columns import Source
from ingest.importers.errors import ImportFileError, OptionError
from ingest.importers.report import ImportReport
from ingest.importers.tabular import sha256_of
from ingest.store.imports import TooManyDaysError, claim, finish, one_import
from ingest.store.segments import SegmentError, SegmentUnreachableError
from ingest.store.tenancy import TenantPathError, checked_path


def check_tenant(path: str | None) -> None:
    """Raise OptionError for a tenant that an option names and that is no path."""
    if path is None:
        return
    try:
        checked_path(path)
    except TenantPathError as error:
        raise OptionError(f"--tenant: {error}") from error


@contextmanager
def importing(
    conn: sa.Connection, source: Source, *, kind: str, site: str, scope: str = "", dry_run: bool = False
) -> Iterator[tuple[ImportReport, int | None]]:
    """Give the report and the site's id, or None for the id if this file was imported before: then write nothing.

    Everything the block writes is kept when it ends, and nothing if it raises or in a dry run.
    """
    sha256 = sha256_of(source.path)
    report = ImportReport(kind, source.path.name, sha256.hex(), site, scope, dry_run)
    try:
        with one_import(conn, dry_run=dry_run):
            claimed = claim(conn, site, kind, sha256, scope, source.path.name)
            report.import_id = claimed.id
            if claimed.imported_at is not None:
                report.already_imported_at = claimed.imported_at
                yield report, None
                return
            yield report, claimed.site_id
            finish(conn, claimed, report.as_json())
    except (TooManyDaysError, BadBodyError, SegmentError, SegmentUnreachableError) as error:
        raise ImportFileError(f"{source.path.name}: {error}") from error
