from datetime import UTC, datetime

import psycopg
import pytest

from analytics.io.bindings import BindingsError
from analytics.io.bindings_store import Applied, apply, explain_stored, unmapped
from ingest.store.engine import Database

pytestmark = pytest.mark.db
NOW = datetime(2026, 3, 1, tzinfo=UTC)
LATER = datetime(2026, 4, 1, tzinfo=UTC)
FILE = """\
tenants:
  acme/nlp: {contact: a@acme.example}
bindings:
  - {tenant: acme/nlp, account: "nlp-*"}
  - {tenant: acme, cluster: c1, from: 2026-01-01}
"""


def test_a_changed_file_supersedes_rows_and_updates_none(db: Database) -> None:
    with db.connect("owner") as conn:
        assert apply(conn, FILE, NOW) == Applied(2, 0, 2, 1)
        assert apply(conn, FILE, LATER) == Applied(0, 0, 0, 0)
        changed = FILE.replace("a@acme", "b@acme").replace("cluster: c1", "cluster: c2")
        assert apply(conn, changed, LATER) == Applied(1, 1, 0, 1)
        rows = conn.execute("SELECT position, cluster, recorded_at, superseded_at FROM bindings ORDER BY id").fetchall()
        assert rows == [(1, None, NOW, None), (2, "c1", NOW, LATER), (2, "c2", LATER, None)]
        contacts = conn.execute("SELECT contact, superseded_at FROM tenant_details ORDER BY id").fetchall()
        assert contacts == [("a@acme.example", LATER), ("b@acme.example", None)]
        # The second change touches 2026 only, not what the untouched first rule decides.
        spans = conn.execute("SELECT from_at, kind FROM changes ORDER BY id").fetchall()
        assert spans == [
            (datetime(1970, 1, 1, tzinfo=UTC), "bindings"),
            (datetime(2026, 1, 1, tzinfo=UTC), "bindings"),
        ]


def test_a_bad_file_changes_nothing(db: Database) -> None:
    with db.connect("owner") as conn:
        apply(conn, FILE, NOW)
        with pytest.raises(BindingsError):
            apply(conn, "bindings:\n  - {tenant: a, who: b}\n", LATER)
        assert conn.execute("SELECT count(*) FROM bindings WHERE superseded_at IS NULL").fetchone() == (2,)


def _seed(db: Database) -> None:
    with db.connect("admin") as conn:
        conn.execute("INSERT INTO sites (name) VALUES ('lab')")
        conn.execute(
            "INSERT INTO jobs (site_id, cluster, native_id, started_at, account, origin, source) VALUES "
            "(1, 'c9', '7', '2026-02-01', 'nlp-a', 2, 'test'), (1, 'c9', '8', '2026-02-01', 'web', 2, 'test')"
        )
        run = (
            "INSERT INTO ledger_runs (site_id, hour_at, revision, code_version, as_of_at, seen_xid, inputs_sha256, "
            "content_sha256, reason) VALUES (1, '2026-02-01', 1, 'x', now(), '1', '', '', 'test') RETURNING id"
        )
        row: tuple[object, ...] | None = conn.execute(run).fetchone()
        assert row is not None
        conn.execute(
            "INSERT INTO ledger_hours (site_id, hour_at, revision, run_id, status, seen_xid, content_sha256) "
            "VALUES (1, '2026-02-01', 1, %s, 'closed', '1', '')",
            row,
        )
        conn.execute(
            "INSERT INTO ledger_lines (site_id, hour_at, revision, line_key, job_id, pool, charge_category, quantity, "
            "quantity_unit, billed_cost, currency, status, source, coverage, origin) VALUES "
            "(1, '2026-02-01', 1, 'a', 2, 'job', 'gpu_owned', 3600000000, 'accelerator-us', 2.5, 'USD', 'closed', 'measured', 1, 2), "
            "(1, '2026-02-01', 1, 'b', NULL, 'idle', 'gpu_owned', 3600000000, 'accelerator-us', 9, 'USD', 'closed', 'measured', 1, 2)"
        )


def test_unmapped_lists_jobs_without_a_tenant_and_not_the_idle_pool(db: Database) -> None:
    _seed(db)
    with db.connect("owner") as conn:
        found = unmapped(conn, 20)
        assert [(each.account, str(each.billed_cost), each.accelerator_us) for each in found] == [
            ("web", "2.500000000", 3_600_000_000)
        ]


def test_a_stored_job_is_explained_by_the_current_rules(db: Database) -> None:
    _seed(db)
    with db.connect("owner") as conn:
        apply(conn, FILE, NOW)
        (why,) = explain_stored(conn, "7", NOW)
        assert (why.tenant, why.steps) == ("acme/nlp", ("rule 1: matches",))
        (nobody,) = explain_stored(conn, "8", NOW)
        assert nobody.tenant is None
        assert "account 'web' does not match 'nlp-*'" in nobody.steps[0]
        assert explain_stored(conn, "404", NOW) == []


def test_two_files_at_once_are_applied_one_after_the_other(db: Database) -> None:
    with db.connect("owner") as one, db.connect("owner") as other, one.transaction():
        apply(one, FILE, NOW)
        other.execute("SET lock_timeout = '200ms'")
        other.commit()
        with pytest.raises(psycopg.errors.LockNotAvailable):
            apply(other, FILE, NOW)
